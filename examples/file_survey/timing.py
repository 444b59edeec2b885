"""Durations and the work of each agent, from the times in the tasks' records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from examples.file_survey.jobs import Outcome

#: Name of a span, and the two times of a task's record that it lies between.
SPANS = (
    ("submitted → finished", "submitted_at", "finished_at"),
    ("waiting for an agent", "submitted_at", "assigned_at"),
    ("with the agent, not started", "assigned_at", "started_at"),
    ("running", "started_at", "finished_at"),
)


class Span(msgspec.Struct, frozen=True):
    """Percentiles of a duration, in milliseconds."""

    what: str
    p50: int
    p95: int
    p99: int
    longest: int


class AgentWork(msgspec.Struct, frozen=True):
    """The work of one agent."""

    agent_id: str
    done: int
    failed: int
    running_ms: int  #: total of all its tasks
    p50_ms: int  #: of one task


class Timing(msgspec.Struct, frozen=True):
    """All measurements."""

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
    """Measure finished tasks, at least one."""
    begin = min(outcome.record.submitted_at for outcome in outcomes)
    end = max(outcome.record.finished_at or outcome.record.submitted_at for outcome in outcomes)
    spans = []
    for what, first, last in SPANS:
        took = sorted(ms for outcome in outcomes if (ms := outcome.between(first, last)) is not None)
        if took:
            spans.append(Span(what, *(percentile(took, share) for share in (0.5, 0.95, 0.99, 1.0))))
    by_agent: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_agent[outcome.record.agent_id or "(none)"].append(outcome)
    return Timing(
        tasks=len(outcomes),
        seconds=max(1, end - begin) / 1000,
        repeated=sum(outcome.record.attempt > 1 for outcome in outcomes),
        spans=tuple(spans),
        agents=tuple(_agent(agent_id, work) for agent_id, work in sorted(by_agent.items())),
    )


def percentile(ascending: Sequence[int], share: float) -> int:
    """Return the smallest value that at least this share of all values does not exceed (nearest rank)."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _agent(agent_id: str, work: list[Outcome]) -> AgentWork:
    took = sorted(outcome.between("started_at", "finished_at") or 0 for outcome in work)
    done = sum(outcome.is_done for outcome in work)
    return AgentWork(agent_id, done, len(work) - done, sum(took), percentile(took, 0.5))
