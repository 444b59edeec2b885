"""The check of the indexes of agents against their records. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from coord.fsck.snapshot import CellSnapshot, Finding


def check_agents(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that each set lists the agents whose records say so, and that the order by health has each of them."""
    expected: dict[str, set[str]] = {"agents:facets": set(), **{name: set() for name in snapshot.agent_sets}}
    scores: dict[str, float] = {}
    for agent, record in snapshot.agents.items():
        status = record["status"]
        sets = [
            "agents:all",
            f"agents:by:status:{status}",
            *(f"agents:by:{one}" for one in record.get("facets", "").split()),
        ]
        if status == "active" and record.get("deaf") != "1":
            sets.append("agents:active")
        if status != "inactive" and record.get("delivery") == "push":
            sets.append("agents:pushed")
        for name in sets:
            expected.setdefault(name, set()).add(agent)
        expected["agents:facets"].update(record.get("facets", "").split())
        scores[agent] = 1.0 if status == "inactive" else -float(record.get("health_score", 0))
    for name, members in sorted(expected.items()):
        listed = snapshot.agent_sets.get(name, set())
        for member in sorted(members ^ listed):
            kind, why = (
                ("missing", "should be there and is not")
                if member in members
                else ("orphan", "is there and should not be")
            )
            yield Finding(f"agents.{kind}", name, f"{member} {why}")
    health = snapshot.agent_health
    for agent in sorted({*scores, *health}):
        if scores.get(agent) != health.get(agent):
            found = f"is at {health[agent]:g}" if agent in health else "is missing"
            wanted = f"not at {scores[agent]:g}" if agent in scores else "and has no record"
            yield Finding("agents.health", "agents:health", f"{agent} {found}, {wanted}")
