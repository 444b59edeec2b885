"""An agent's health score, computed anew for displays: between beats it decays, and what is stored moves in steps.

The same formula as ``health`` in ``workers/lua/lib/agents.lua``, which is the one that eligibility goes by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from coord.models.agents import AgentStatus

#: What a status costs.
STATUS_PENALTY: dict[str, float] = {AgentStatus.ERROR: 0.5, AgentStatus.MAINTENANCE: 0.2, AgentStatus.BUSY: 0.1}
#: Signs of life that regularity looks back over.
LOOK_BACK = 10


def health_score(
    *,
    status: str,
    interval_ms: int | None,
    missed_beats: int,
    registered_obs: int,
    beat_obs: int,
    beats: Sequence[int],
    observed: int,
    cpu: float | None = None,
    memory: float | None = None,
) -> float:
    """Freshness x regularity - penalties, 0..1.

    Freshness is 1 while beats are on time and falls to 0.5 at the moment when the agent turns stale. Regularity is the
    share of the last ten expected signs of life that came, the registration being the first; a beat counts as missed
    once it is half an interval late.

    Args:
        status: a value of ``AgentStatus``.
        interval_ms: as declared; None: nothing is expected, so freshness and regularity are 1.
        missed_beats: intervals after which the agent is stale.
        registered_obs: when it registered, on the observed clock like every time here; ms.
        beat_obs: its last sign of life.
        beats: its last ten beats, newest first.
        observed: now.
        cpu: as reported, a fraction.
        memory: as reported, a fraction.
    """
    score = 1.0
    if interval_ms is not None:
        score = _freshness(interval_ms, missed_beats, observed - beat_obs)
        score *= _regularity(interval_ms, [*beats, registered_obs], observed)
    return max(0.0, min(1.0, score - STATUS_PENALTY.get(status, 0) - _load_penalty(cpu, memory)))


def _freshness(interval_ms: int, missed_beats: int, age: int) -> float:
    if age <= interval_ms:
        return 1.0
    limit = interval_ms * missed_beats
    # With one missed beat allowed there is no time between late and stale.
    return 0.5 if limit <= interval_ms else max(0.5, 1 - 0.5 * (age - interval_ms) / (limit - interval_ms))


def _regularity(interval_ms: int, signs: Sequence[int], observed: int) -> float:
    seen, missed, later = 0, 0, observed
    for sign in signs:
        missed += max(0, math.floor((later - sign) / interval_ms - 0.5))
        if seen + missed < LOOK_BACK:
            seen += 1
        later = sign
    return seen / min(LOOK_BACK, seen + missed)


def _load_penalty(cpu: float | None, memory: float | None) -> float:
    known = [value for value in (cpu, memory) if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    return 0.3 if mean > 0.8 else 0.1 if mean > 0.6 else 0.0
