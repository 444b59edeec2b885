"""Cuts a plan into pieces of the size of a batch."""

from __future__ import annotations

from workers.transitions import Placement


def by_agents(placements: list[Placement], most: int) -> list[list[Placement]]:
    """Cut a plan into similar pieces of at most ``most``; an agent's placements stay together, to wake it once."""
    if len(placements) <= most:
        return [placements] if placements else []
    share = len(placements) / -(-len(placements) // most)
    of_agent: dict[str, list[Placement]] = {}
    for placement in placements:
        of_agent.setdefault(placement.agent_id, []).append(placement)
    pieces: list[list[Placement]] = [[]]
    for group in of_agent.values():
        for at in range(0, len(group), most):
            some, before = group[at : at + most], len(pieces[-1])
            if before and (before + len(some) > most or before + len(some) / 2 > share):
                pieces.append([])
            pieces[-1] += some
    return pieces
