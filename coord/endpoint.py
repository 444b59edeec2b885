"""The endpoint file: where a running ``coord up`` says where its Redis is. Who reads it gets a live one or nothing.

The file is JSON, readable by its owner only: ``{"url", "data_dir", "namespace", "pid", "started"}``. ``pid`` is the
process that wrote it (``coord up`` itself), ``started`` that process's start in seconds since 1970, so that a pid
which the system has given to another process is not taken for it.
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
    """What an endpoint file says."""

    #: redis://, rediss:// or unix://, as ``connection.connect`` takes it.
    url: str
    #: The embedded server's data folder; None when ``coord up`` was given a Redis.
    data_dir: str | None
    namespace: str
    pid: int
    #: Start of process ``pid``, seconds since 1970.
    started: float


def write_endpoint(path: Path, url: str, data_dir: Path | None, namespace: str) -> Endpoint:
    """Write the file in one step (a reader sees the old one or the new one), mode 0600, in this process's name."""
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
    """The endpoint, or None: no file, not ours to trust, unreadable, its writer is gone, or its socket is."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            # Whoever can write this file decides where our payloads go. (Windows knows no owner ids.)
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid not in {os.getuid(), 0}:
                return None
            endpoint = msgspec.json.decode(file.read(), type=Endpoint)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return endpoint if _writer_lives(endpoint) and _socket_exists(endpoint.url) else None


def remove_endpoint(path: Path | None) -> bool:
    """Remove the file if this process wrote it; says whether it did. Another's stays."""
    endpoint = read_endpoint(path)
    if path is None or endpoint is None or endpoint.pid != os.getpid():
        return False
    path.unlink(missing_ok=True)
    return True


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step, with mode 0600."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def process_started(pid: int) -> float | None:
    """Start of a process in seconds since 1970; None when there is none, or only a zombie of it."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except (psutil.Error, ValueError):
        return None


def _writer_lives(endpoint: Endpoint) -> bool:
    started = process_started(endpoint.pid)
    # Start times are rounded to a clock tick, and shift a little when the wall clock is set.
    return started is not None and abs(started - endpoint.started) < 2


def _socket_exists(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return True
    try:
        return stat.S_ISSOCK(Path(unquote(parts.path)).stat().st_mode)
    except OSError:
        return False
