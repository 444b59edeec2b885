"""The health score of an agent, as the scripts compute it (``health`` in ``workers/lua/lib/agents.lua``)."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest

from workers import lua

T0 = 1_000_000
INTERVAL = 1_000


LIMITS = "missed_beats=3 agent_timeout_ms=300000 repeat_loss_ms=5000 reply_data_bytes=0"


def score(**changes: Any) -> float:
    """Return the health of an agent that has just registered, with some fields changed; ``observed`` is now."""
    values: dict[str, Any] = {
        "status": "active", "interval_ms": INTERVAL, "registered_obs": T0, "beat_obs": T0, "beats": [], "observed": T0,
        "cpu": None, "memory": None,
    } | changes  # fmt: skip
    record = {
        "status": values["status"], "heartbeat_interval": values["interval_ms"],
        "registered_obs": values["registered_obs"], "beat_obs": values["beat_obs"],
        "beats": ",".join(map(str, values["beats"])), "metric:cpu": values["cpu"], "metric:memory": values["memory"],
    }  # fmt: skip
    fields = [part for name, value in record.items() if value is not None for part in (name, _text(value))]
    return float(_redis.eval(_script, 1, "{t}:", 0, LIMITS, values["observed"], *fields))


def on_time(until: int, *, missing: tuple[int, ...] = ()) -> dict[str, Any]:
    """Beats at every interval up to number ``until``, without those that are missing."""
    beats = [T0 + n * INTERVAL for n in range(1, until + 1) if n not in missing]
    return {"beats": beats[::-1][:10], "beat_obs": max([T0, *beats])}


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0, 1.0),
        (INTERVAL, 1.0),
        (1_250, 0.9375),
        (1_499, 0.875),
        (2_000, 0.75),
        (2_499, 0.625),
        (3_000, 0.5),
        (9_000, 0.5),
    ],
)
def test_freshness_falls_to_a_half_at_the_timeout(age: int, expected: float) -> None:
    """1 while beats are on time, then linear; beside it, regularity counts the beats missed meanwhile."""
    known = {**on_time(20), "observed": T0 + 20_000 + age}
    missed = max(0, int(age / INTERVAL - 0.5))
    assert score(**known) == pytest.approx(expected * (10 - min(10, missed)) / 10, abs=0.001)


@pytest.mark.parametrize(
    ("beats", "missing", "expected"),
    [
        (0, (), 1.0),
        (1, (), 1.0),
        (9, (), 1.0),
        (30, (), 1.0),
        (30, (25,), 0.9),
        (30, (22, 25, 28), 0.7),
        (30, (5,), 1.0),
    ],
)
def test_regularity_is_the_share_of_the_last_ten(beats: int, missing: tuple[int, ...], expected: float) -> None:
    """Of the last ten signs of life that were expected; what is further back is forgiven."""
    assert score(**on_time(beats, missing=missing), observed=T0 + beats * INTERVAL) == pytest.approx(expected)


def test_regularity_counts_from_the_registration() -> None:
    """Before ten were expected, the share is of those that were: the registration is the first sign of life."""
    assert score(**on_time(3, missing=(2,)), observed=T0 + 3_000) == pytest.approx(0.75)


@pytest.mark.parametrize("late", [0, 1, 250, 499])
def test_a_beat_on_its_way_is_not_missed(late: int) -> None:
    """⚠ Just before a heartbeat arrives, regularity is what it was: an agent that beats on time never flickers."""
    for beats in range(12):
        known = on_time(beats)
        assert score(**known, observed=T0 + beats * INTERVAL + INTERVAL + late) >= 0.87


def test_without_an_interval_nothing_is_expected() -> None:
    """Health does not decay where no beats were promised."""
    assert score(interval_ms=None, observed=T0 + 10**9) == 1.0


@pytest.mark.parametrize(
    ("status", "cpu", "memory", "expected"),
    [
        ("active", None, None, 1.0),
        ("busy", None, None, 0.9),
        ("maintenance", None, None, 0.8),
        ("error", None, None, 0.5),
        ("draining", None, None, 1.0),
        ("active", 0.6, None, 1.0),
        ("active", 0.61, None, 0.9),
        ("active", 0.8, 0.8, 0.9),
        ("active", 0.81, 0.81, 0.7),
        ("active", 1.0, 0.0, 1.0),
        ("active", None, 0.9, 0.7),
        ("active", 85.0, 0.0, 1.0),  # no fraction: it counts as a full processor, not as 8,500 %
        ("error", 0.9, 0.9, 0.2),
    ],
)
def test_penalties(status: str, cpu: float | None, memory: float | None, expected: float) -> None:
    """For a status, and for the mean of the loads that were reported."""
    assert score(status=status, cpu=cpu, memory=memory) == pytest.approx(expected)


def test_it_stays_between_zero_and_one() -> None:
    """Penalties never make it negative."""
    assert score(status="error", cpu=1.0, observed=T0 + 3_000) == 0.0


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


#: A script that only computes, with the parts that the registry's scripts share.
_script = lua.assemble(
    """-- include: base agents
local agent = {}
for i = 4, #ARGV, 2 do
  agent[ARGV[i]] = ARGV[i + 1]
end
return string.format('%.17g', health(agent, tonumber(ARGV[3])))
"""
)
_redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
