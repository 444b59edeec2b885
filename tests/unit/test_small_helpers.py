"""Helpers that several modules share: backoff, suggestions for misspelt names, entry ids."""

from __future__ import annotations

import pytest

from coord.backoff import Backoff
from coord.models.ids import entry_ms, entry_order
from coord.suggestions import closest, suggest


def test_waits_double_up_to_the_longest() -> None:
    """0.1 s doubling to 5 s, and 0.1 s again after a reset."""
    backoff = Backoff(0.1, 5.0)
    assert [backoff.next_s() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 0.1


@pytest.mark.parametrize(
    ("name", "hint"), [("tymeout", "did you mean 'timeout'?"), ("zzz", "known are timeout, retry")]
)
def test_a_misspelt_name_gets_a_hint(name: str, hint: str) -> None:
    """The most similar known name, or all of them if none is similar."""
    assert suggest(name, ("timeout", "retry")) == hint


def test_similarity_has_a_limit() -> None:
    """A higher cutoff accepts only more similar names."""
    assert closest("tme", ("timeout",)) == "timeout"
    assert closest("tme", ("timeout",), cutoff=0.7) is None


@pytest.mark.parametrize("entry_id", ["1769860800000-12", b"1769860800000-12"])
def test_an_entry_id_has_a_time(entry_id: str | bytes) -> None:
    """The same for text and bytes."""
    assert entry_ms(entry_id) == 1_769_860_800_000


def test_entry_ids_are_ordered_by_number() -> None:
    """Not by their characters; an id without a number counts as its first."""
    assert sorted(["10-0", "9-10", "9-9", "9"], key=entry_order) == ["9", "9-9", "9-10", "10-0"]
