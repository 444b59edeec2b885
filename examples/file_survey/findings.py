"""What the agents found out about the folder. It says nothing of who did what when: the same files give the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from examples.main_job.outcome import Outcome

#: Rows that a person reads.
SHOWN = 10


class Module(msgspec.Struct, frozen=True):
    """A Python file."""

    path: str
    lines: int
    classes: int
    functions: int  #: with methods
    public: int
    documented: int


class Duplicates(msgspec.Struct, frozen=True):
    """Files with the same content."""

    bytes: int  #: of each
    paths: tuple[str, ...]

    @property
    def wasted(self) -> int:
        """Bytes that all but one of them take."""
        return self.bytes * (len(self.paths) - 1)


class Failure(msgspec.Struct, frozen=True, order=True):
    """A task that has no result."""

    path: str
    task_type: str
    code: str
    message: str


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; lists are in the order in which they are shown."""

    files: int
    bytes: int
    empty_files: int
    lines: int
    blank_lines: int
    words: int
    python_files: int  #: that parse
    classes: int
    functions: int
    methods: int
    public: int
    documented: int
    biggest: tuple[Module, ...]
    imports: tuple[tuple[str, int], ...]  #: package, files that import it
    common_words: tuple[tuple[str, int], ...]  #: word, files in which it is one of the ten most common
    duplicates: tuple[Duplicates, ...]  #: the most wasteful first; empty files are not counted
    failures: tuple[Failure, ...]  #: by path


def findings(outcomes: Sequence[Outcome]) -> Findings:
    """Put the results of all tasks together."""
    of: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        if one.is_done:
            of[one.job.kind.task_type].append(one)
    texts, outlines, digests = of["text_stats"], of["python_outline"], of["content_digest"]

    def total(among: list[Outcome], field: str) -> int:
        return sum(one.result[field] for one in among)

    return Findings(
        files=len(digests),
        bytes=total(digests, "bytes"),
        empty_files=sum(not one.result["bytes"] for one in digests),
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
        imports=_most_common(name for one in outlines for name in one.result["imports"]),
        common_words=_most_common(word for one in texts for word, _ in one.result["top_words"]),
        duplicates=_duplicates(digests),
        failures=tuple(
            sorted(
                Failure(one.job.file.path, one.job.kind.task_type, one.code, one.message)
                for one in outcomes
                if not one.is_done
            )
        ),
    )


def _biggest(texts: list[Outcome], outlines: list[Outcome]) -> tuple[Module, ...]:
    lines = {one.job.file.path: one.result["lines"] for one in texts}
    modules = [
        Module(
            path=one.job.file.path,
            lines=lines.get(one.job.file.path, 0),
            classes=one.result["classes"],
            functions=one.result["functions"] + one.result["methods"],
            public=one.result["public"],
            documented=one.result["documented"],
        )
        for one in outlines
    ]
    return tuple(sorted(modules, key=lambda module: (-module.lines, module.path))[:SHOWN])


def _most_common(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    counted = Counter(names)
    return tuple(sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:SHOWN])


def _duplicates(digests: list[Outcome]) -> tuple[Duplicates, ...]:
    same: dict[tuple[str, int], list[str]] = defaultdict(list)
    for one in digests:
        if one.result["bytes"]:
            same[one.result["sha256"], one.result["bytes"]].append(one.job.file.path)
    groups = [Duplicates(size, tuple(sorted(paths))) for (_, size), paths in same.items() if len(paths) > 1]
    return tuple(sorted(groups, key=lambda group: (-group.wasted, group.paths)))
