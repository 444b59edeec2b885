"""The work of the agents of examples, without a cell: what they find, and what they refuse."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from coord import NonRetryable
from examples.conversation.glossary import SYMBOLS
from examples.map_reduce import counter
from examples.research_team.library import Library, Quote, cover, terms
from examples.research_team.team import Findings, Roles
from examples.web_apps import primes

DOCUMENT = """# Lamps

A keeper trims the lamp of the lighthouse at dusk. Whales do not
care about lamps at all, as far as anybody knows.

* In winter the lamp burns for sixteen hours a night.
1. Too short.

| a table of lamps | is left out here, whatever it says |

```
lamp = Lamp("code is left out too, with its lamps")
```
"""


class StandIn:
    """What the handlers of these examples use of a task."""

    task_id = "t"
    attempt = 1
    cancelled = False

    def __init__(self) -> None:
        self.progress: list[dict[str, int]] = []

    def report_progress(self, value: dict[str, int]) -> None:
        """Keep it."""
        self.progress.append(value)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Two documents, and a file beside their folder."""
    (tmp_path / "docs" / "below").mkdir(parents=True)
    (tmp_path / "docs" / "lamps.md").write_text(DOCUMENT)
    (tmp_path / "docs" / "below" / "whales.md").write_text("Whales sing in the deep, and one of them knows a lamp.\n")
    (tmp_path / "secret.md").write_text("A sentence that no reader should see.\n")
    return Library(tmp_path / "docs")


def test_sentences_of_paragraphs_and_lists_have_their_lines(library: Library) -> None:
    """Over the ends of lines; no headings, tables, code, and nothing too short to say anything."""
    assert list(library.quotes("lamps.md")) == [
        Quote("lamps.md", 3, "A keeper trims the lamp of the lighthouse at dusk."),
        Quote("lamps.md", 3, "Whales do not care about lamps at all, as far as anybody knows."),
        Quote("lamps.md", 6, "In winter the lamp burns for sixteen hours a night."),
    ]


def test_terms_leave_out_common_words_and_endings() -> None:
    """So that a question finds an answer in other forms of its words."""
    assert terms("How does the keeper trim lamps?") == terms("A keeper trims its lamp") == {"keeper", "trim", "lamp"}


def test_the_library_finds_documents_and_sentences(library: Library) -> None:
    """The documents that say most come first; one that says nothing about the question is left out."""
    assert library.relevant("Where do whales sing?", 5) == ["below/whales.md", "lamps.md"]
    assert library.relevant("Who is a keeper?", 5) == ["lamps.md"]
    assert library.relevant("zebra", 5) == []
    assert [quote.line for quote in library.best("lamps.md", "lamp in winter", 1)] == [6]
    assert library.best("lamps.md", "zebra", 3) == []


@pytest.mark.parametrize("path", ["../secret.md", "/etc/hostname", "none.md", "", "docs/../../secret.md"])
def test_a_path_outside_the_documents_is_refused(library: Library, path: str) -> None:
    """Any client can submit it."""
    with pytest.raises(NonRetryable, match="no_such_document"):
        library.best(path, "sentence", 3)


def test_quotes_cover_a_question_together() -> None:
    """The second sentence adds what the first one lacks, before one that repeats it."""
    first = Quote("a", 1, "A keeper trims the lamp at dusk.")
    same = Quote("a", 2, "The keeper trims the lamp again.")
    other = Quote("b", 1, "A whale sings in the deep water.")
    assert cover([first, same, other], "keeper trims lamp while a whale sings", 2) == [first, other]


def test_the_reviewer_finds_invented_quotes_and_gaps(library: Library) -> None:
    """A quote has to be in its document, at its line."""
    real = Quote("lamps.md", 6, "In winter the lamp burns for sixteen hours a night.")
    invented = msgspec.structs.replace(real, text="In winter the lamp burns for two hours a night.")
    found = Roles(library).reviewer(Findings("lamp in winter, and a zebra", [real, invented]), StandIn())  # type: ignore[arg-type]
    assert found == {"wrong": [invented], "missing": ["zebra"]}


def test_the_ledger_has_a_line_for_each_execution(library: Library, tmp_path: Path) -> None:
    """The task and the attempt."""
    roles = Roles(library, ledger=tmp_path / "ledger")
    for _ in range(2):
        roles.writer(Findings("lamp", []), StandIn())  # type: ignore[arg-type]
    assert (tmp_path / "ledger").read_text() == "t attempt 1\n" * 2


def test_words_are_counted_and_kept_by_frequency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of the content that the task names."""
    path = tmp_path / "text"
    path.write_text("Lamp lamp whale, the lamp; whale über\n")
    digest = sha256(path.read_bytes()).hexdigest()
    assert counter.count_words(counter.File(str(path), digest)) == {"lamp": 3, "whale": 2, "über": 1}
    monkeypatch.setattr(counter, "KEEP", 2)
    assert list(counter.most_common(Counter({"c": 1, "b": 2, "a": 2}))) == ["a", "b"]
    with pytest.raises(NonRetryable, match=r"changed: .* has changed since"):
        counter.count_words(counter.File(str(path), "0"))
    with pytest.raises(NonRetryable, match=r"unreadable: .*: No such file"):
        counter.count_words(counter.File(str(tmp_path / "none"), "0"))


@pytest.mark.parametrize(
    ("below", "expected"),
    [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (10, 4), (49, 15), (50, 15), (122, 30), (10**6, 78_498)],
)
def test_primes_are_counted(below: int, expected: int) -> None:
    """Known numbers, at the ends and over several segments."""
    task = StandIn()
    assert primes.count_primes(primes.Count(below), task) == {"primes": expected}  # type: ignore[arg-type]
    assert [value["examined"] for value in task.progress[-1:]] == ([below] if below > 2 else [])


def test_a_cancelled_count_stops() -> None:
    """Before the next segment."""
    task = StandIn()
    task.cancelled = True
    primes.count_primes(primes.Count(10**9), task)  # type: ignore[arg-type]
    assert task.progress == []


def test_the_glossary_knows_symbols_by_their_names() -> None:
    """Signs of currency, mathematics and others; no letters."""
    assert (SYMBOLS["EURO SIGN"], SYMBOLS["INFINITY"], SYMBOLS["SNOWMAN"]) == ("€", "∞", "☃")
    assert "LATIN SMALL LETTER A" not in SYMBOLS
