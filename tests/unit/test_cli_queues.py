"""``coord queues``: what it shows about a pool."""

from __future__ import annotations

import pytest

from coord.cli.queues import _requirements
from coord.models.tasks import Pool, Requirements


@pytest.mark.parametrize(
    ("pool", "text"),
    [
        (Pool("t"), "none"),
        (Pool("t", Requirements(capabilities=("ocr", "pdf")), "random"), "capabilities ocr, pdf; strategy random"),
        (Pool("t", refused_by=("", "1.2")), "another version than (none), 1.2"),
        (Pool("t", expected_ms=4096.0), "expected to take about 4.1 s"),
        (Pool("t", unhandled_by=("a1", "a2")), "another agent than a1, a2"),
    ],
)
def test_a_pool_shows_what_an_agent_must_have(pool: Pool, text: str) -> None:
    """Also the versions of agents that refused the payload of its tasks."""
    assert _requirements(pool) == text
