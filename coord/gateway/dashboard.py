"""Handlers of the dashboard at ``/ui``: static files of the package, read and compressed once.

The page names its files in a folder that has the digest of all files (``/ui/3f2a91c04b5d/app.js``). So browsers keep
them for a year, and get new ones with the next version of the page. Without that folder (``/ui/app.js``) the same
files are checked with each use. Only the files of the package are served: a path is looked up, and never opened. The
modules are joined into one script (``coord/gateway/script.py``).
"""

from __future__ import annotations

import gzip
from functools import cache
from hashlib import sha256
from importlib.abc import Traversable
from importlib.resources import files
from typing import NamedTuple

from coord.gateway.errors import RequestError
from coord.gateway.routes import Answer, Call
from coord.gateway.script import join

#: Type of a file by the end of its name; files of other types are not served.
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "woff2": "font/woff2",
}
#: Types that are compressed already.
PACKED = {"woff2"}
#: The page, and the text in it that stands for the folder of its files.
PAGE, FOLDER = "index.html", b"{folder}"
#: The module that the page loads; it is served with all that it imports. These scripts are no modules.
ENTRY, SCRIPTS = "app.js", {"theme.js", "vendor/uplot.js"}

CHECKED = "no-cache"
KEPT = "public, max-age=31536000, immutable"


class File(NamedTuple):
    """A file of the dashboard."""

    content_type: str
    plain: bytes
    packed: bytes | None  #: compressed with gzip; None: that does not make it smaller
    digest: str


class Dashboard(NamedTuple):
    """The files of the dashboard."""

    files: dict[str, File]  #: path -> file
    folder: str  #: digest of all of them


async def page(call: Call[None, None]) -> Answer:
    """Return the page of the dashboard."""
    if not call.connection.scope["path"].endswith("/"):  # the page's own links are relative
        return Answer(None, 307, {"Location": "ui/"})
    return _answer(call, dashboard().files[PAGE], CHECKED)


async def file(call: Call[None, None]) -> Answer:
    """Return a file of the dashboard."""
    path = call.params["path"]
    found = dashboard()
    folder, _, rest = path.partition("/")
    is_kept = folder == found.folder
    # A page that is older than this gateway asks for an older folder, and gets what there is.
    is_older = len(folder) == len(found.folder) and folder not in found.files
    known = found.files.get(rest if is_kept or is_older else path)
    if known is None:
        raise RequestError("not_found", f"the dashboard has no file {path[:200]!r}; the page is at /ui")
    return _answer(call, known, KEPT if is_kept else CHECKED)


def _answer(call: Call[None, None], found: File, cache_control: str) -> Answer:
    packed = found.packed if _accepts_gzip(call.header(b"accept-encoding") or "") else None
    tag = f'"{found.digest}{"" if packed is None else "-gzip"}"'
    headers = {"Cache-Control": cache_control, "ETag": tag}
    if found.packed is not None:
        headers["Vary"] = "Accept-Encoding"
    if _matches(call.header(b"if-none-match") or "", tag):
        # The browser replaces the headers that it has by these; a page needs another policy than other responses.
        return Answer(None, 304, headers | {"Content-Type": found.content_type})
    if packed is not None:
        headers["Content-Encoding"] = "gzip"
    return Answer(packed or found.plain, 200, headers, found.content_type)


def _accepts_gzip(header: str) -> bool:
    """Return True if ``Accept-Encoding`` names gzip or ``*``, and not with ``q=0``."""
    for part in header.lower().split(","):
        name, _, quality = part.replace(" ", "").partition(";q=")
        if name in {"gzip", "*"}:
            return quality.strip("0.") != "" or quality == ""
    return False


def _matches(header: str, tag: str) -> bool:
    """Return True if ``If-None-Match`` names a tag; proxies may have made it a weak one."""
    return header.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in header.split(","))


@cache
def dashboard() -> Dashboard:
    """Return the files of the dashboard."""
    contents = dict(sorted(_read(files("coord.gateway") / "ui")))
    modules = {path for path in contents if path.endswith(".js")} - SCRIPTS
    contents[ENTRY] = join({path: contents.pop(path).decode() for path in modules}, ENTRY).encode()
    whole = sha256()
    for path, content in contents.items():
        whole.update(f"{path} {len(content)}\n".encode() + content)
    folder = whole.hexdigest()[:12]
    contents[PAGE] = contents[PAGE].replace(FOLDER, folder.encode())
    return Dashboard({path: _file(path, content) for path, content in contents.items()}, folder)


def _file(path: str, content: bytes) -> File:
    kind = path.rpartition(".")[2]
    packed = None if kind in PACKED else gzip.compress(content, mtime=0)
    if packed is not None and len(packed) >= len(content):
        packed = None
    return File(TYPES[kind], content, packed, sha256(content).hexdigest()[:16])


def _read(folder: Traversable, prefix: str = "") -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for one in folder.iterdir():
        if one.is_dir():
            found += _read(one, f"{prefix}{one.name}/")
        elif one.name.rpartition(".")[2] in TYPES:
            found.append((prefix + one.name, one.read_bytes()))
    return found
