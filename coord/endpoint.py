"""The endpoint file: a running ``coord up`` publishes the address of its Redis there. Stale files are ignored.

The file is JSON, readable only by its owner: ``{"url", "data_dir", "namespace", "pid", "started"}``. ``pid`` is the
process that wrote it (``coord up`` itself). ``started`` is the start of that process in seconds since 1970, so that
another process which got the same pid later is not mistaken for it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
import psutil


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The content of an endpoint file."""

    #: redis://, rediss:// or unix:// URL, for ``connection.connect``.
    url: str
    #: Data folder of the embedded server; None if ``coord up`` uses another Redis.
    data_dir: str | None
    namespace: str
    pid: int
    #: Start of process ``pid``, seconds since 1970.
    started: float


def write_endpoint(path: Path, url: str, data_dir: Path | None, namespace: str) -> Endpoint:
    """Write the endpoint file of this process atomically, with mode 0600."""
    endpoint = Endpoint(
        url=url,
        data_dir=None if data_dir is None else str(data_dir),
        namespace=namespace,
        pid=os.getpid(),
        started=psutil.Process().create_time(),
    )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, msgspec.json.format(msgspec.json.encode(endpoint), indent=2) + b"\n")
    return endpoint


def read_endpoint(path: Path | None) -> Endpoint | None:
    """Return the endpoint; None if there is no trustworthy file, or its writer or its socket no longer exists."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            # A user who can write this file decides where payloads go. (Windows has no owner ids.)
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid not in {os.getuid(), 0}:
                return None
            endpoint = msgspec.json.decode(file.read(), type=Endpoint)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return endpoint if _writer_lives(endpoint) and _socket_exists(endpoint.url) else None


def remove_endpoint(path: Path | None) -> bool:
    """Remove the file if this process wrote it; return True if it was removed."""
    endpoint = read_endpoint(path)
    if path is None or endpoint is None or endpoint.pid != os.getpid():
        return False
    path.unlink(missing_ok=True)
    return True


def write_private(path: Path, content: bytes) -> None:
    """Replace a file atomically, with mode 0600."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def process_started(pid: int) -> float | None:
    """Return the start of a process in seconds since 1970; None if it does not exist or is a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except (psutil.Error, ValueError):
        return None


def _writer_lives(endpoint: Endpoint) -> bool:
    started = process_started(endpoint.pid)
    # Start times are rounded to a clock tick, and shift slightly when the wall clock is changed.
    return started is not None and abs(started - endpoint.started) < 2


def _socket_exists(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return True
    try:
        return stat.S_ISSOCK(Path(unquote(parts.path)).stat().st_mode)
    except OSError:
        return False
