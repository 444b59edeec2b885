"""The documentation as a site: it builds without a warning, its links lead somewhere, its reference is complete."""

from __future__ import annotations

import fcntl
import inspect
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET

import pytest
from click import Option

import coord
from coord.errors import CoordError
from coord.models.facts import TYPE_OF
from docs.generate import commands, errors, keys, navigation, python_names, scripts
from tests.repo.documents import ROOT
from tests.repo.protocol_document import rows_of
from tests.repo.test_script_headers import DICTIONARY, PARTS
from workers import lua

#: The first test of a process builds the site, or waits for another process that does.
pytestmark = pytest.mark.timeout(600)

DOCS = ROOT / "docs"
PICTURES = sorted((DOCS / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


class Built(NamedTuple):
    """The site, and what its build has printed."""

    folder: Path
    code: int
    output: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Built:
    """The site, built once for all processes of this run."""
    common = tmp_path_factory.getbasetemp()
    folder = (common if worker_id == "master" else common.parent) / "site"
    folder.mkdir(exist_ok=True)
    html, output, code = folder / "html", folder / "output", folder / "code"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not code.exists():
            options = ["--builder", "html", "--fail-on-warning", "--keep-going", "--quiet", "--no-color"]
            command = [
                sys.executable,
                "-m",
                "sphinx",
                *options,
                "--doctree-dir",
                str(folder / "doctrees"),
                str(DOCS),
                str(html),
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            output.write_text(done.stdout + done.stderr)
            code.write_text(str(done.returncode))
    return Built(html, int(code.read_text()), output.read_text())


class Page(HTMLParser):
    """What a page has: its anchors, its links, what it loads, its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self._text: list[str] = []
        self.feed(path.read_text())
        self.text = re.sub(r"\s+", " ", "".join(self._text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in {"index", "search", "next", "prev", "canonical"}:
            self.loaded.append(values.get("href", ""))
        if "src" in values:
            self.loaded.append(values["src"])

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self._text.append(data)


@cache
def page(path: Path) -> Page:
    """A page, read once."""
    return Page(path)


def pages(built: Built) -> list[Path]:
    """Every page of the site."""
    return sorted(built.folder.rglob("*.html"))


def reference(built: Built, name: str) -> Page:
    """A page of the reference."""
    return page(built.folder / "reference" / f"{name}.html")


def test_the_site_is_built_without_a_warning(built: Built) -> None:
    """A link to nothing, a page outside the navigation, a docstring that is no markup: each is a warning."""
    assert (built.code, built.output) == (0, "")
    assert {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")} <= {
        path.relative_to(built.folder).with_suffix("") for path in pages(built)
    }


def test_every_link_leads_somewhere(built: Built) -> None:
    """Inside the site, to a page and an anchor that exist; elsewhere, it is a URL."""
    wrong: list[tuple[str, str]] = []
    for path in pages(built):
        for link in page(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                is_right = parts.scheme == "https" and "." in (parts.hostname or "") and " " not in link
            else:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                is_right = target.is_file() and (
                    not parts.fragment or target.suffix != ".html" or unquote(parts.fragment) in page(target).anchors
                )
            if not is_right:
                wrong.append((str(path.relative_to(built.folder)), link))
    assert wrong == []


def test_no_page_loads_anything_from_another_host(built: Built) -> None:
    """No script, style, font or picture."""
    loaded = {one for path in pages(built) for one in page(path).loaded}
    assert {one for one in loaded if urlsplit(one).netloc} == set()
    assert len(loaded) > 5
    styles = "".join(path.read_text() for path in built.folder.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*", styles) == []


def test_every_command_is_in_the_reference(built: Built) -> None:
    """With each of its options, and its help."""
    found = reference(built, "commands")
    missing = [name for name, _ in commands.commands() if name.replace(" ", "-") not in found.anchors]
    for name, command in commands.commands():
        section = found.text.partition(f" {name}¶")[2].partition("¶")[0]
        spelled = [one for option in command.params if isinstance(option, Option) for one in option.opts]
        missing += [f"{name} {one}" for one in spelled if one not in section]
        first = re.split(r"[\s`]+", command.help)[0]
        missing += [name] * (first not in section)
    assert missing == []


def test_every_public_name_is_in_the_reference(built: Built) -> None:
    """Each class with its public methods; an error with its code, HTTP status and exit code."""
    python, told = reference(built, "python"), reference(built, "errors")
    assert {name for names in python_names.GROUPS.values() for name in names} == python_names.without_errors()
    missing: list[str] = []
    for name in python_names.without_errors():
        found = getattr(coord, name)
        shown = f"coord.{name}" if found.__name__ == name else f"{found.__module__}.{found.__name__}"
        names = [shown]
        if isinstance(found, type):
            names += [
                f"{shown}.{one}"
                for one in vars(found)
                if not one.startswith("_") and inspect.isfunction(vars(found)[one])
            ]
        missing += [one for one in names if one not in python.anchors]
    for error, _ in errors.walk(CoordError):
        values = f"{error.__name__} {errors.own_code(error)} {error.http_status} {error.exit_code}"
        is_there = f"coord.errors.{error.__name__}" in told.anchors and re.sub(r" +", " ", values) in told.text
        missing += [] if is_there else [error.__name__]
    assert missing == []
    public = {name for name in coord.__all__ if python_names.is_error(getattr(coord, name))}
    assert public <= {error.__name__ for error, _ in errors.walk(CoordError)}


def test_every_key_and_script_is_in_the_reference(built: Built) -> None:
    """A key with its type; a script with its purpose, its keys and its arguments."""
    text = reference(built, "keys").text
    named = {name for _, rows in keys.sections() for names, _, _ in rows for name in names.split(", ")}
    assert named == set(DICTIONARY) - {"in:*"}
    assert [name for name in named if name not in text] == []
    found = reference(built, "scripts")
    for name in (*lua.NAMES, *(f"lib/{part.removesuffix('.lua')}" for part in PARTS)):
        assert name.replace("/", "") in found.anchors, name
        source = (ROOT / "workers" / "lua" / f"{name}.lua").read_text()
        header = scripts.parse(source)
        assert header.purpose, name
        section = found.text.partition(f" {name}¶")[2].partition("¶")[0]
        said = [
            *header.keys,
            *(line.split("  ")[0] for line in header.arguments if line.startswith(("ARGV", "LIMITS"))),
        ]
        assert [one for one in said if one.split(" ")[0] not in section] == [], name


def test_every_fact_is_in_the_reference(built: Built) -> None:
    """With each of its fields, its type and its default."""
    text = reference(built, "facts").text
    for kind, name in TYPE_OF.items():
        section = text.partition(f" {name}¶")[2].partition("¶")[0]
        shown = [f"{row.name} {row.type} {row.default}" for row in rows_of(kind)]
        assert [one for one in shown if one not in section] == [], name


def test_the_navigation_has_every_page(built: Built) -> None:
    """The lists of the first page are the navigation; each link says what its page is about."""
    index = (DOCS / "index.md").read_text()
    listed = re.findall(r"^\* \[[^]]+\]\(([\w/-]+\.md)\): .+$", index, re.MULTILINE)
    assert sorted(listed) == sorted(
        str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.name != "index.md"
    )
    assert {link.partition("#")[0] for link in page(built.folder / "concepts.html").links} >= {
        one.replace(".md", ".html") for one in listed if one != "concepts.md"
    }


def test_a_page_has_one_title() -> None:
    """The first page and the navigation name it alike; so does its heading, except for decisions."""
    index = (DOCS / "index.md").read_text()
    listed = re.findall(r"^\* \[([^]]+)\]\(([\w/-]+)\.md\): ", index, re.MULTILINE)
    in_navigation = re.findall(r"^(.+) <([\w/-]+)>$", navigation.toctrees(index), re.MULTILINE)
    assert in_navigation == listed
    headings = {name: (DOCS / f"{name}.md").read_text().partition("\n")[0] for _, name in listed}
    different = [name for title, name in listed if headings[name] != f"# {title}"]
    assert [name for name in different if not name.startswith("decisions/")] == []


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_readable_everywhere(picture: Path) -> None:
    """Small, with a title and a description, for light and dark screens, with its text inside; some page shows it."""
    text = picture.read_text()
    root = ET.fromstring(text)  # noqa: S314 -- it is our own
    assert len(text) < 10_000
    assert root.findtext(f"{SVG}title")
    assert len(root.findtext(f"{SVG}desc") or "") > 40
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"(?:href|url)\W+\w+://", text) == []
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for one in root.iter(f"{SVG}text"):
        half = 0.55 * 14 * len(one.text or "")
        x, y = float(one.attrib["x"]), float(one.attrib["y"])
        left = {"middle": x - half / 2, "start": x, "end": x - half}[one.attrib["text-anchor"]]
        assert left >= 0, one.text
        assert left + half <= width, one.text
        assert 0 < y < height, one.text
    documents = [ROOT / "README.md", *DOCS.rglob("*.md")]
    assert any(f"pictures/{picture.name}" in document.read_text() for document in documents)
