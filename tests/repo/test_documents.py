"""The documents name only what there is: commands, settings, files, links; and their code compiles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coord import config
from tests.commands import is_known, parse
from tests.repo.documents import ROOT, Command, blocks, commands, inline, links

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: The documents whose commands a newcomer types.
TYPED = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("command-line", "getting-started", "http", "operating", "programs")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
#: Programs of others that a document may name.
OTHERS = frozenset({
    ".", "cat", "cd", "chmod", "cp", "curl", "docker", "export", "git", "grep", "head", "install", "jq", "kill",
    "kubectl", "mkdir", "openssl", "pip", "printf", "prometheus", "promtool", "redis-cli", "rm", "seq", "sleep",
    "systemctl", "tee", "valkey-server", "xargs",
})  # fmt: skip
#: In inline code: words of a command that stand for something.
COMMAND_WORDS = re.compile(r"coord( [a-z]+)*")


def name_of(document: Path) -> str:
    """The document in a test's name."""
    return document.name


def each_command() -> list[tuple[Path, Command]]:
    """Every command that is typed, with its document."""
    return [(document, command) for document in TYPED for command in commands(document)]


@pytest.mark.parametrize(("document", "command"), each_command(), ids=lambda one: getattr(one, "name", None) or "")
def test_a_command_is_taken(document: Path, command: Command) -> None:
    """By its program's own parser; one of this repository is there; its variables are settings."""
    config.load({name: value for name, value in command.variables.items() if name.startswith(config.PREFIX)})
    if not command.words:
        return
    program = command.words[0]
    if is_known(command.words):
        parse(command.words)
    elif program in {"python", "python3"}:
        assert command.words[1] == "-m" or "/" not in command.words[1] or (ROOT / command.words[1]).is_file()
    elif "/" in program and not program.startswith(("/", "./")):
        assert (ROOT / program).is_file(), f"{document.name}:{command.line}: there is no {program}"
    elif not program.startswith(("/", "./")):
        functions = re.findall(r"^(\w+)\(\) \{", document.read_text(), re.MULTILINE)
        assert program.removesuffix("()") in {*OTHERS, *functions}, (
            f"{document.name}:{command.line}: {program} is neither ours nor known"
        )


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_command_in_the_text_exists(document: Path) -> None:
    """``coord tasks list`` in a sentence or a table is a command, whatever options follow."""
    for code in inline(document):
        found = COMMAND_WORDS.match(code)
        if found and found[0] != "coord" and not code.startswith("coord."):
            parse([*found[0].split(), "--help"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_setting_in_the_text_exists(document: Path) -> None:
    """By its full name; a name that ends in ``_`` or ``*`` stands for many."""
    known = {config.variable_of(field) for field in config.Settings.__struct_fields__} | config.FOREIGN
    named = set(re.findall(r"COORD_[A-Z0-9_]+[A-Z0-9](?![A-Z0-9_*…])", document.read_text()))
    assert {name for name in named - known if not config.is_service_variable(name, "tcp://")} == set()


def test_defaults_in_the_table_of_settings_are_true() -> None:
    """Each default of docs/operating.md is what the settings say."""
    rows = re.findall(r"^\| (`COORD_[^|]*) \| (`[^|]*) \|", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    assert len(rows) > 5
    for names, values in rows:
        variables, defaults = re.findall(r"`(\w+)`", names), re.findall(r"`([^`]+)`", values)
        assert len(variables) == len(defaults)
        for variable, default in zip(variables, defaults, strict=True):
            settings = config.load({variable: default})
            assert settings == config.Settings(), f"{variable} is not {default} by default"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_python_in_it_compiles(document: Path) -> None:
    """Each block by itself; those of the first pages are run as well, see tests/system."""
    for block in blocks(document):
        if block.language == "python":
            compile(block.text, f"{document.name}:{block.line}", "exec", dont_inherit=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_link_leads_somewhere(document: Path) -> None:
    """Every link into this repository."""
    assert [link for link in links(document) if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_section_that_is_linked_is_there(document: Path) -> None:
    """Every link to a heading, in the same document or another one."""
    found = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text())
    linked = [(document.parent / name if name else document, section) for name, section in found]
    assert [(path.name, section) for path, section in linked if section not in sections(path)] == []


def sections(document: Path) -> set[str]:
    """The fragments of a document's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_file_in_the_text_is_there(document: Path) -> None:
    """A path into this repository in inline code."""
    paths = [
        code for code in inline(document) if re.fullmatch(r"(coord|docs|examples|scripts|tests|workers)/\S+", code)
    ]
    plain = [path for path in paths if not set(path) & set("*{…")]
    assert [path for path in plain if not (ROOT / path).exists()] == []
