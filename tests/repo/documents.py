"""What stands in a Markdown document: its blocks of code, the commands in them, and its links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Words that end one command and begin another.
BETWEEN = frozenset({"|", "||", "&", "&&", ";"})
#: Words of the shell before a command.
KEYWORDS = frozenset({"until", "do", "done", "}"})
#: In a word: a command whose output the shell puts there.
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line of code, ``section`` the heading with ``##`` before it."""

    language: str
    text: str
    line: int
    section: str


@dataclass(frozen=True)
class Step:
    """A line of a session: what a person types, and what it prints."""

    typed: str
    shown: str


@dataclass(frozen=True)
class Command:
    """One command of a block: ``NAME=VALUE`` before it, its words, and what is redirected left out."""

    variables: dict[str, str]
    words: list[str]
    line: int


def blocks(document: Path) -> list[Block]:
    """Every fenced block of a document."""
    text = document.read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(one[1], one[2], text[: one.start(2)].count("\n") + 1, _section(text[: one.start()])) for one in found]


def steps(block: Block) -> list[Step]:
    """Each command of a ``console`` block, with the output below it; a line that begins with ``# `` is a comment."""
    text = re.sub(r"^# .*\n", "", block.text, flags=re.MULTILINE).replace("\\\n", " ")
    return [Step(one[1], one[2]) for one in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)]


def commands(document: Path) -> list[Command]:
    """Every command in the blocks that a person types: all of an ``sh`` block, ``$`` lines of a ``console`` block."""
    return [
        command
        for block in blocks(document)
        if block.language in {"sh", "console"}
        for line in typed(block)
        for command in split(line, block.line)
    ]


def typed(block: Block) -> list[str]:
    """The lines that a person types; a line that goes on after a backslash is one."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def inline(document: Path) -> list[str]:
    """Every piece of inline code."""
    prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def links(document: Path) -> list[str]:
    """Every link to a place in this repository, without its fragment."""
    found = re.findall(r"\]\(([^)]+)\)", document.read_text())
    return [one.partition("#")[0] for one in found if "://" not in one and not one.startswith("#")]


def split(line: str, number: int = 0) -> list[Command]:
    """The commands of a line: what stands between pipes and semicolons, and first what ``$(…)`` runs."""
    found = [command for inner in SUBSTITUTION.findall(line) for command in split(inner, number)]
    lexer = shlex.shlex(SUBSTITUTION.sub("X", line), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if word in BETWEEN:
            if words:
                found.append(_command(words, number))
            words = []
        elif set(word) <= set("<>&"):
            skip = True  # what follows is a file
        elif skip:
            skip = False
        else:
            words.append(word)
    return found


def without_reasons(output: str) -> str:
    """Return an output without the lines that say why a task waits: on a busy machine there are some."""
    return "".join(line for line in output.splitlines(keepends=True) if not line.startswith("waiting: "))


def _section(before: str) -> str:
    """Return the last heading with ``##`` in a text."""
    headings: list[str] = re.findall(r"^## (.+)$", before, re.MULTILINE)
    return headings[-1] if headings else ""


def _command(words: list[str], number: int) -> Command:
    variables: dict[str, str] = {}
    rest = words[1:] if words[0] in KEYWORDS else list(words)
    while rest and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", rest[0], re.DOTALL):
        name, _, value = rest.pop(0).partition("=")
        variables[name] = value
    return Command(variables, rest, number)
