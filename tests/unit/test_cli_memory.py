"""The sentences about the server's memory."""

from __future__ import annotations

import pytest

from coord.cli.ps import memory_lines, memory_warnings
from coord.config import GIB, KIB, MIB
from coord.models.cell import MemoryPart, MemoryUse
from coord.units import size


def use(
    share: float, *parts: tuple[str, int], is_estimate: bool = False, dropped: int = 0, note: str = ""
) -> MemoryUse:
    """Memory of 100 MiB of which so much is used."""
    return MemoryUse(
        used=int(share * 100 * MIB),
        maximum=100 * MIB,
        parts=[MemoryPart(kind=kind, bytes=mib * MIB, keys=1, is_estimate=is_estimate) for kind, mib in parts],
        results_dropped=dropped,
        results_dropped_bytes=dropped * MIB,
        note=note,
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (KIB, "1.0 KiB"), (1.5 * MIB, "1.5 MiB"), (64 * GIB, "64.0 GiB")],
)
def test_sizes(count: float, text: str) -> None:
    """In the unit that a person reads."""
    assert size(count) == text


def test_the_lines() -> None:
    """How full, what holds it, what was dropped, what could not be read."""
    parts = (("ended tasks", 30), ("log:tasks", 5), ("replies", 2), ("agents", 1), ("other", 1), ("messages", 1))
    named = "ended tasks 30.0 MiB, log:tasks 5.0 MiB, replies 2.0 MiB, agents 1.0 MiB, the rest 2.0 MiB"
    assert memory_lines(use(0.4, *parts)) == [f"memory: 40.0 MiB of 100.0 MiB (40%): {named}"]
    estimated = use(0.4, ("ended tasks", 30), is_estimate=True, dropped=3, note="INFO is forbidden")
    assert memory_lines(estimated) == [
        "memory: 40.0 MiB of 100.0 MiB (40%): ended tasks about 30.0 MiB",
        "result and payload of 3 ended tasks were dropped to free memory: 3.0 MiB so far",
        "memory: INFO is forbidden",
    ]
    assert memory_lines(MemoryUse(used=MIB, maximum=0)) == ["memory: 1.0 MiB, no maxmemory"]


def test_enough_memory_is_no_warning() -> None:
    """Nor is a server without a maximum."""
    assert memory_warnings(use(0.85, ("dead letters", 80))) == []
    assert memory_warnings(MemoryUse(used=MIB, maximum=0)) == []


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("dead letters", "coord dead list"),
        ("waiting tasks", "add agents"),
        ("log:agents", "COORD_LOG_BYTES"),
        ("inboxes", "coord agents list"),
        ("server and other data", "see what else uses this server"),
        ("other", "Next: raise maxmemory"),
    ],
)
def test_a_full_server_is_a_warning_with_its_cause(kind: str, step: str) -> None:
    """What is stopped, what holds the memory, and what to do about the largest part."""
    (refusing,) = memory_warnings(use(0.9, (kind, 70), ("agents", 1)))
    assert "90% full" in refusing
    assert "submissions are refused (above 85%)" in refusing
    assert "no task is placed" not in refusing
    assert f"used by {kind} 70.0 MiB" in refusing
    assert step in refusing
    (stopped,) = memory_warnings(use(0.93, (kind, 70)))
    assert "no task is placed (above 92%) and submissions are refused" in stopped
