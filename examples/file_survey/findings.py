"""The findings about the folder. They do not depend on agents or times: the same files give the same findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from examples.file_survey.jobs import Outcome

#: Maximum rows of a table.
MAX_ROWS = 10


class Module(msgspec.Struct, frozen=True):
    """A Python file."""

    path: str
    lines: int
    classes: int
    functions: int  #: including methods
    public: int
    documented: int


class Duplicates(msgspec.Struct, frozen=True):
    """Files with the same content."""

    bytes: int  #: of each
    paths: tuple[str, ...]

    @property
    def wasted(self) -> int:
        """Bytes of all files but one."""
        return self.bytes * (len(self.paths) - 1)


class Failure(msgspec.Struct, frozen=True, order=True):
    """A task without a result."""

    path: str
    task_type: str
    code: str
    message: str


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All findings; lists are in the order in which they are shown."""

    files: int
    bytes: int
    empty_files: int
    lines: int
    blank_lines: int
    words: int
    python_files: int  #: Python files without syntax errors
    classes: int
    functions: int
    methods: int
    public: int
    documented: int
    biggest: tuple[Module, ...]
    imports: tuple[tuple[str, int], ...]  #: package and number of files that import it
    common_words: tuple[tuple[str, int], ...]  #: word and number of files in which it is one of the ten most common
    duplicates: tuple[Duplicates, ...]  #: the most wasteful first; empty files are not counted
    failures: tuple[Failure, ...]  #: by path


def findings(outcomes: Sequence[Outcome]) -> Findings:
    """Combine the results of all tasks."""
    by_type: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.is_done:
            by_type[outcome.job.kind.task_type].append(outcome)
    texts, outlines, digests = by_type["text_stats"], by_type["python_outline"], by_type["content_digest"]

    def total(outcomes: list[Outcome], field: str) -> int:
        return sum(outcome.result[field] for outcome in outcomes)

    return Findings(
        files=len(digests),
        bytes=total(digests, "bytes"),
        empty_files=sum(not outcome.result["bytes"] for outcome in digests),
        lines=total(texts, "lines"),
        blank_lines=total(texts, "blank_lines"),
        words=total(texts, "words"),
        python_files=len(outlines),
        classes=total(outlines, "classes"),
        functions=total(outlines, "functions"),
        methods=total(outlines, "methods"),
        public=total(outlines, "public"),
        documented=total(outlines, "documented"),
        biggest=_biggest(texts, outlines),
        imports=_most_common(name for outcome in outlines for name in outcome.result["imports"]),
        common_words=_most_common(word for outcome in texts for word, _ in outcome.result["top_words"]),
        duplicates=_duplicates(digests),
        failures=tuple(
            sorted(
                Failure(outcome.job.file.path, outcome.job.kind.task_type, outcome.code, outcome.message)
                for outcome in outcomes
                if not outcome.is_done
            )
        ),
    )


def _biggest(texts: list[Outcome], outlines: list[Outcome]) -> tuple[Module, ...]:
    lines = {outcome.job.file.path: outcome.result["lines"] for outcome in texts}
    modules = [
        Module(
            path=outcome.job.file.path,
            lines=lines.get(outcome.job.file.path, 0),
            classes=outcome.result["classes"],
            functions=outcome.result["functions"] + outcome.result["methods"],
            public=outcome.result["public"],
            documented=outcome.result["documented"],
        )
        for outcome in outlines
    ]
    return tuple(sorted(modules, key=lambda module: (-module.lines, module.path))[:MAX_ROWS])


def _most_common(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    counted = Counter(names)
    return tuple(sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MAX_ROWS])


def _duplicates(digests: list[Outcome]) -> tuple[Duplicates, ...]:
    same: dict[tuple[str, int], list[str]] = defaultdict(list)
    for outcome in digests:
        if outcome.result["bytes"]:
            same[outcome.result["sha256"], outcome.result["bytes"]].append(outcome.job.file.path)
    groups = [Duplicates(size, tuple(sorted(paths))) for (_, size), paths in same.items() if len(paths) > 1]
    return tuple(sorted(groups, key=lambda group: (-group.wasted, group.paths)))
