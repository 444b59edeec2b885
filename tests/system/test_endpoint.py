"""The endpoint file: believed only while what it points to is there."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from coord.endpoint import read_endpoint, remove_endpoint, write_endpoint


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Folders are made, the file is private, and nothing else is left beside it."""
    path = tmp_path / "run" / "endpoint.json"
    written = write_endpoint(path, "redis://127.0.0.1:7000/0", tmp_path, "cell")
    assert read_endpoint(path) == written
    assert (written.url, written.data_dir, written.pid) == ("redis://127.0.0.1:7000/0", str(tmp_path), os.getpid())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["endpoint.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": 1}', "\udcff"])
def test_a_missing_or_corrupt_file_is_no_endpoint(tmp_path: Path, content: str) -> None:
    """Nothing there and nonsense there are the same."""
    path = tmp_path / "endpoint.json"
    assert read_endpoint(path) is None
    path.write_text(content, errors="surrogateescape")
    assert read_endpoint(path) is None


def test_a_dead_writer_is_no_endpoint(tmp_path: Path) -> None:
    """A `coord up` that was killed leaves its file behind; nobody follows it."""
    path = tmp_path / "endpoint.json"
    write = (
        "import sys; from pathlib import Path; from coord.endpoint import write_endpoint;"
        "write_endpoint(Path(sys.argv[1]), 'redis://127.0.0.1:1/0', None, 'x')"
    )
    subprocess.run([sys.executable, "-c", write, str(path)], check=True)
    assert path.exists()
    assert read_endpoint(path) is None


def test_a_reused_pid_is_no_endpoint(tmp_path: Path) -> None:
    """The pid lives, but as another process, started at another time."""
    path = tmp_path / "endpoint.json"
    write_endpoint(path, "redis://127.0.0.1:1/0", None, "x")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"started": psutil.Process().create_time() - 60}))
    assert read_endpoint(path) is None


def test_a_socket_that_is_gone_is_no_endpoint(tmp_path: Path) -> None:
    """A unix:// URL is believed only while its socket exists."""
    path = tmp_path / "endpoint.json"
    place = tmp_path / "a b.sock"
    write_endpoint(path, f"unix://{str(place).replace(' ', '%20')}", None, "x")
    assert read_endpoint(path) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        assert read_endpoint(path) is not None


def test_only_one_s_own_file_is_removed(tmp_path: Path) -> None:
    """A second `coord up` that ends does not take the first one's file away."""
    path = tmp_path / "endpoint.json"
    write_endpoint(path, "redis://127.0.0.1:1/0", None, "x")
    content = json.loads(path.read_text())
    parent = psutil.Process(os.getppid())
    path.write_text(json.dumps(content | {"pid": parent.pid, "started": parent.create_time()}))
    assert not remove_endpoint(path)
    assert path.exists()
    write_endpoint(path, "redis://127.0.0.1:1/0", None, "x")
    assert remove_endpoint(path)
    assert not path.exists()
