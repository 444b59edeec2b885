"""The files of the dashboard: what is served and how, and that the modules become one script within its limit."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from coord.config import Settings
from coord.gateway.app import GatewayApp, make_app
from coord.gateway.backend import Backend
from coord.gateway.compact import compact
from coord.gateway.dashboard import dashboard
from coord.gateway.script import join
from tests.asgi import ask
from tests.repo.documents import ROOT

FOLDER = ROOT / "coord" / "gateway" / "ui"
#: Bytes of all JavaScript as it is sent, compressed.
SCRIPT_LIMIT = 60 * 1024
PACKED = {"Accept-Encoding": "br, gzip"}


@pytest.fixture
def app(namespace: str) -> GatewayApp:
    """A gateway without Redis, with security on: files need neither."""
    settings = Settings(namespace=namespace, gateway_security=True)
    return make_app(Backend(settings), settings)


async def test_the_page_names_files_that_browsers_keep(app: GatewayApp) -> None:
    """Each file of the page exists, with its type; the page itself is checked with each visit."""
    for prefix in ("", "/v1"):
        moved = await ask(app, "GET", f"{prefix}/ui")
        assert (moved.status, moved.headers["location"]) == (307, "ui/")
        page = await ask(app, "GET", f"{prefix}/ui/")
        assert (page.status, page.headers["cache-control"]) == (200, "no-cache")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        names = re.findall(r'(?:href|src)="([^"#.][^"]*)"', page.data.decode())
        assert len(names) >= 5
        for name in names:
            found = await ask(app, "GET", f"{prefix}/ui/{name}")
            assert (found.status, found.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
            kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
            assert found.headers["content-type"].startswith(kind)


async def test_the_page_runs_no_script_but_its_files(app: GatewayApp) -> None:
    """The policy of a page allows no inline script, and the page has none."""
    page = await ask(app, "GET", "/ui/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "script-src" not in policy
    assert re.findall(r"<script(?![^>]* src=)|\son\w+=|javascript:", page.data.decode()) == []


async def test_a_page_that_is_known_keeps_its_policy(app: GatewayApp) -> None:
    """A browser takes the headers of the response that has no body: with another policy the page would not load."""
    page = await ask(app, "GET", "/ui/")
    again = await ask(app, "GET", "/ui/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status == 304
    assert again.headers["content-security-policy"] == page.headers["content-security-policy"]


async def test_a_file_is_sent_once(app: GatewayApp) -> None:
    """A tag that is known is not sent again; a compressed file has a tag of its own."""
    plain = await ask(app, "GET", "/ui/app.css")
    packed = await ask(app, "GET", "/ui/app.css", headers=PACKED)
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    assert plain.headers["etag"] != packed.headers["etag"]
    for headers, answer in (({}, plain), (PACKED, packed)):
        tag = answer.headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = await ask(app, "GET", "/ui/app.css", headers={**headers, "If-None-Match": known})
            assert (again.status, again.data, again.headers["etag"]) == (304, b"", tag)
            assert "content-length" not in again.headers
        changed = await ask(app, "GET", "/ui/app.css", headers={**headers, "If-None-Match": '"other"'})
        assert changed.status == 200


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [("gzip", True), ("*", True), ("br;q=1, gzip;q=0.5", True), ("gzip;q=0", False), ("gzip;q=0.0", False),
     ("br", False), ("", False), ("x-gzip-like", False)],
)  # fmt: skip
async def test_compression_is_negotiated(app: GatewayApp, accepted: str, is_packed: bool) -> None:
    """Who does not accept gzip gets the file as it is."""
    answer = await ask(app, "GET", "/ui/app.js", headers={"Accept-Encoding": accepted})
    assert ("content-encoding" in answer.headers) == is_packed
    font = await ask(app, "GET", "/ui/vendor/inter.woff2", headers={"Accept-Encoding": accepted})
    assert "content-encoding" not in font.headers


async def test_no_other_file_is_served(app: GatewayApp) -> None:
    """A path is looked up among the files of the page, so none leads out of the folder."""
    folder = dashboard().folder
    for path in (
        "nothing.js", "../app.py", f"{folder}/../../app.py", "..%2fapp.py", "/etc/passwd", "vendor", "vendor/",
        "pages/fleet.js", f"{folder}/", f"{folder}/nothing.css", "app.css/app.css", "%00", "app.py",
    ):  # fmt: skip
        answer = await ask(app, "GET", f"/ui/{path}")
        assert (answer.status, answer.code) == (404, "not_found"), path
    older = await ask(app, "GET", f"/ui/{'0' * len(folder)}/app.css")
    assert (older.status, older.headers["cache-control"]) == (200, "no-cache")


def test_the_script_stays_small() -> None:
    """All of it together, with the library: a phone on a slow network opens it in a second."""
    sizes = {path: len(found.packed or found.plain) for path, found in dashboard().files.items() if path.endswith("js")}
    assert {"app.js", "theme.js", "vendor/uplot.js"} == set(sizes)
    assert sum(sizes.values()) <= SCRIPT_LIMIT, sizes


def test_every_library_has_its_licence() -> None:
    """A library, or a font, and its licence have the same name."""
    vendored = {path.name for path in (FOLDER / "vendor").iterdir()}
    for name in vendored:
        if not name.endswith(".txt"):
            assert f"{name.rpartition('.')[0]}.LICENSE.txt" in vendored
    assert all("Copyright" in (FOLDER / "vendor" / name).read_text() for name in vendored if name.endswith(".txt"))


def _sources() -> list[Path]:
    return [
        path for path in FOLDER.rglob("*") if path.suffix in {".js", ".css", ".html"} and "vendor" not in path.parts
    ]


def test_no_source_names_another_host() -> None:
    """Only the namespace of SVG looks like one."""
    for path in _sources():
        hosts = set(re.findall(r"(?:https?:)?//[\w-]+\.[\w./-]+", path.read_text()))
        assert hosts <= {"http://www.w3.org/2000/svg"}, path


def test_no_source_parses_markup() -> None:
    """Data becomes text of an element, so nothing that an agent or a task is called can run."""
    for path in _sources():
        text = path.read_text()
        for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert name not in re.sub(r"(?m)^\s*(?:\*|/\*\*|//).*$", "", text), f"{path}: {name}"


def test_lines_are_short() -> None:
    """As those of Python."""
    for path in _sources():
        long = [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
        assert long == [], path


MODULES = {
    "a.js": '/** The first. */\nimport { b, c as d } from "./x/b.js";\nimport {\n  e,\n} from "./e.js";\n\n// Runs.\n'
    'export const later = () => import("./x/f.js");\n  console.log(`${b}${d()} // ${e}`);\n',
    "x/b.js": 'import { e } from "../e.js";\nexport const b = e;\nexport function c() {}\n',
    "x/f.js": 'import { later } from "../a.js";\nexport async function f() {}\nexport class G {}\n',
    "e.js": "export const e = 1;\n",
}


def test_modules_are_joined() -> None:
    """Each stands before those that import it; what is imported later may import what is above."""
    assert join(MODULES, "a.js") == (
        "const _e=(()=>{const e=1;\nreturn{e};})();\n"
        "const _x_b=(()=>{const{e}=_e;const b=e;function c(){}\nreturn{b,c};})();\n"
        "const _a=(()=>{const{b,c:d}=_x_b;const{e}=_e;"
        "const later=()=>Promise.resolve().then(()=>_x_f);console.log(`${b}${d()} // ${e}`);\nreturn{later};})();\n"
        "const _x_f=(()=>{const{later}=_a;async function f(){}\nclass G{}\nreturn{f,G};})();\n"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('import { a } from "./missing.js";\n', "a.js imports missing.js, which does not exist"),
        ('import { a } from "./a.js";\n', "a.js imports itself through a.js"),
        ('import a from "./e.js";\n', "is not supported"),
        ('import * as all from "./e.js";\n', "is not supported"),
        ('export { a } from "./e.js";\n', "is not supported"),
        ("export default 1;\n", "is not supported"),
        ("export let a = 1;\n", "is not supported"),
    ],
)
def test_a_module_that_cannot_be_joined_is_named(source: str, message: str) -> None:
    """When the gateway is tested, and not in a browser."""
    with pytest.raises(ValueError, match=re.escape(message)):
        join({"a.js": source, "e.js": "export const e = 1;\n"}, "a.js")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("const a = 1; // one\nlet b /* two */ = [ 1, 2, ];\n", "const a=1;let b=[1,2];"),
        ("f({\n  a,\n  b: c,\n});\n", "f({a,b:c});"),
        ("a = b\n++c\nd()\ne()\n", "a=b\n++c\nd()\ne()"),
        ("x = a + +b - -c + ++d;", "x=a+ +b- -c+ ++d;"),
        ("return typeof a in b;", "return typeof a in b;"),
        ("const f = () => {\n  g();\n}\nconst h = 1;", "const f=()=>{g();}\nconst h=1;"),
        ("a ( 'it\\'s // no  comment' , \"/* nor */\" )", "a('it\\'s // no  comment',\"/* nor */\")"),
        ('x = a / b / c; y = z.split( / [/"] , \\/ /g );', 'x=a/b/c;y=z.split(/ [/"] , \\/ /g);'),
        ("return /a  b/.test( c );", "return/a  b/.test(c);"),
        ("`a  ${ b ? `  c ${ {d: 1}.d }  ` : '}' }  // e`  + f", "`a  ${ b ? `  c ${ {d: 1}.d }  ` : '}' }  // e`+f"),
        ("a.b\n  .c()\n  ?.d\n  : e", "a.b.c()?.d:e"),
    ],
)
def test_a_script_is_compact(source: str, wanted: str) -> None:
    """What is between quotes stays, and so does a line end that may end a statement."""
    assert compact(source) == wanted
    assert compact(wanted) == wanted


@pytest.mark.parametrize("source", ["a = 'b;\nc", "`a ${b", "`a ${`b`", "x = /a\n"])
def test_a_text_without_an_end_is_named(source: str) -> None:
    """And not read to the end of the script."""
    with pytest.raises(ValueError, match="has no end"):
        compact(source)
