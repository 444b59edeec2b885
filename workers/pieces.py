"""Cuts plans and batches into pieces, so that no call keeps the server busy for long."""

from __future__ import annotations

from typing import Any

from coord.models.facts import TasksChangeRequested
from workers.service import ReceivedFact
from workers.transitions import Placement

#: Tasks that operators' requests change in one call: some 15 ms of the server's time.
CHANGED_AT_ONCE = 500


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


def by_changes(batch: list[ReceivedFact[Any]]) -> list[list[ReceivedFact[Any]]]:
    """Cut a batch so that the requests in each piece change at most ``CHANGED_AT_ONCE`` tasks, or are one request.

    The requests keep their order. All other facts are in the first piece.
    """
    pieces: list[list[ReceivedFact[Any]]] = [[]]
    tasks = 0
    for received in batch:
        if type(received.fact) is not TasksChangeRequested:
            pieces[0].append(received)
            continue
        count = len(received.fact.task_ids)
        if tasks and tasks + count > CHANGED_AT_ONCE:
            pieces.append([])
            tasks = 0
        pieces[-1].append(received)
        tasks += count
    return pieces
