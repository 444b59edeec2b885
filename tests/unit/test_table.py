"""Tables on a screen of 80 columns: ids in one piece, text at words, nothing lost but what may be."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from coord.cli.dead import Kind
from coord.cli.output import write_table
from coord.cli.ps import COLUMNS, NUMBERS, SPARE
from coord.cli.table import lay_out

UUID = "01a20502-60fe-7218-9b7a-d76854cceb48"
WHY = "TypeError: 'int' object is not subscriptable, and so on for as long as an exception likes to speak"


def laid(columns: Sequence[str], *rows: Sequence[str], width: int = 80, spare: Sequence[str] = ()) -> list[str]:
    """All lines of a table, none of them wider than the screen."""
    lines = [line for block in lay_out(columns, rows, width, spare=spare) for line in block]
    assert max(map(len, lines)) <= width
    return lines


def test_a_text_has_its_column_where_there_is_room() -> None:
    """It is wrapped at words, in its column."""
    assert laid(("task", "why"), ("t1", WHY), ("t2", "short")) == [
        "task  why",
        "t1    TypeError: 'int' object is not subscriptable, and so on for as long as an",
        "      exception likes to speak",
        "t2    short",
    ]


def test_dead_letters_keep_their_ids_whole() -> None:
    """What has no room beside the id goes below it, indented; a row that has nothing there is one line."""
    columns = ("kind", "id", "died", "what", "code", "why")
    died = "2026-11-22 20:46:16.324"
    text = laid(
        columns, (Kind.TASK, UUID, died, "summarize", "handler_failed", WHY), ("entry", "7-0", died, "x", "", "")
    )
    assert text == [
        "kind   id                                    died                     what",
        "    code            why",
        f"task   {UUID}  {died}  summarize",
        "    handler_failed  TypeError: 'int' object is not subscriptable, and so on for",
        "                    as long as an exception likes to speak",
        f"entry  7-0                                   {died}  x",
    ]


def test_workers_keep_their_names_whole() -> None:
    """A narrow screen does without the host and, where that is not enough, the version too."""
    row = ("distributor", "distributor-1-0952", "a-long-name-of-a-host", "16916", "0.1.0", "29.5 s", "214", "0.8",
           "1 ms", "4.1 s ago")  # fmt: skip
    (header, shown) = laid(COLUMNS, row, spare=SPARE)
    assert re.split(r" {2,}", header) == [one for one in COLUMNS if one not in {"host", "version"}]
    assert row[1] in shown
    (header, _) = laid(COLUMNS, row, width=120, spare=SPARE)
    assert re.split(r" {2,}", header) == list(COLUMNS)
    assert NUMBERS[-1] in header


def test_what_is_wider_than_the_screen_is_folded() -> None:
    """Nothing of it is lost."""
    text = laid(("task", "n", "why"), ("x" * 128, "7", ""))
    assert sum(line.count("x") for line in text) == 128
    assert text[-1].split() == ["7"]


def test_wide_letters_count_twice() -> None:
    """As a terminal shows them."""
    assert lay_out(("a", "b"), [("世界", "x"), ("y", "z")], 80)[1:] == [["世界  x"], ["y     z"]]


def test_a_terminal_s_width_is_obeyed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for when the table is written."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("NO_COLOR", "1")
    write_table(("id", "why"), [(UUID, "no agent could do it, and none came")])
    assert capsys.readouterr().out.splitlines()[-2:] == [UUID, "    no agent could do it, and none came"]
