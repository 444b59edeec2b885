"""``coord agents``: what it shows about an agent that is ejected."""

from __future__ import annotations

from coord.cli.agents import _fields, _row
from coord.models.agents import AgentRecord, AgentStatus, Ejected

NOW = 1_700_000_000_000


def test_an_ejection_is_shown_with_its_reason() -> None:
    """In the list it marks the health; the record says which type, for how long, and how often it fails."""
    ejected = Ejected("resize", until=NOW + 24_000, for_ms=30_000, failure_rate=0.95, others_rate=0.02)
    bad = AgentRecord(
        agent_id="a1", agent_type="worker", status=AgentStatus.ACTIVE, health_score=0.9, ejected=(ejected,)
    )
    good = AgentRecord(agent_id="a2", agent_type="worker", status=AgentStatus.ACTIVE)
    text = "'resize' for 24.0 s more, as 95% of its attempts failed, and 2% of the others'"
    assert (_row(bad, NOW)[3], _fields(bad, NOW)["ejected"]) == ("0.90 (ejected)", text)
    assert (_row(good, NOW)[3], _fields(good, NOW)["ejected"]) == ("1.00", None)
