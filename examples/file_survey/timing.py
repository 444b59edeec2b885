"""How fast it went, and what each agent did: from the moments that the coordinator recorded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from examples.main_job.outcome import Outcome

#: What is measured: its name, and the two moments of a task's record between which it lies.
SPANS = (
    ("submitted → finished", "submitted_at", "finished_at"),
    ("waiting for an agent", "submitted_at", "assigned_at"),
    ("with the agent, not started", "assigned_at", "started_at"),
    ("running", "started_at", "finished_at"),
)


class Span(msgspec.Struct, frozen=True):
    """How long something took, in milliseconds."""

    what: str
    p50: int
    p95: int
    p99: int
    longest: int


class AgentWork(msgspec.Struct, frozen=True):
    """What one agent did."""

    agent_id: str
    done: int
    failed: int
    running_ms: int  #: of all its tasks together
    p50_ms: int  #: of one


class Timing(msgspec.Struct, frozen=True):
    """All of it."""

    tasks: int
    seconds: float  #: from the first submission to the last outcome
    repeated: int  #: tasks that took more than one attempt
    spans: tuple[Span, ...]
    agents: tuple[AgentWork, ...]

    @property
    def per_second(self) -> float:
        """Tasks per second."""
        return self.tasks / self.seconds if self.seconds else 0.0


def timing(outcomes: Sequence[Outcome]) -> Timing:
    """Measure finished tasks; there is at least one."""
    begin = min(one.record.submitted_at for one in outcomes)
    end = max(one.record.finished_at or one.record.submitted_at for one in outcomes)
    spans = []
    for what, first, last in SPANS:
        took = sorted(ms for one in outcomes if (ms := one.between(first, last)) is not None)
        if took:
            spans.append(Span(what, *(percentile(took, share) for share in (0.5, 0.95, 0.99, 1.0))))
    by_agent: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        by_agent[one.record.agent_id or "(none)"].append(one)
    return Timing(
        tasks=len(outcomes),
        seconds=max(1, end - begin) / 1000,
        repeated=sum(one.record.attempt > 1 for one in outcomes),
        spans=tuple(spans),
        agents=tuple(_agent(agent_id, work) for agent_id, work in sorted(by_agent.items())),
    )


def percentile(ascending: Sequence[int], share: float) -> int:
    """The smallest value that at least this share of all values does not exceed (nearest rank)."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _agent(agent_id: str, work: list[Outcome]) -> AgentWork:
    took = sorted(one.between("started_at", "finished_at") or 0 for one in work)
    done = sum(one.is_done for one in work)
    return AgentWork(agent_id, done, len(work) - done, sum(took), percentile(took, 0.5))
