"""A process that cannot be measured: systemd hides ``/proc/stat`` (``ProcSubset=pid``), or no descriptor is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from coord import embedded, endpoint
from coord.agent import heartbeat
from coord.config import Settings
from coord.endpoint import UNKNOWN_START, is_same_start, process_started, read_endpoint, write_endpoint
from coord.up import gateway_check


def fails(*_args: Any, **_options: Any) -> Any:
    """Fail as a read of ``/proc/stat`` does."""
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/proc/stat")


@pytest.fixture
def fresh_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was measured yet."""
    monkeypatch.setattr(heartbeat, "_measured_at", float("-inf"))
    monkeypatch.setattr(heartbeat, "_FRESH_S", 0.0)
    monkeypatch.setattr(heartbeat, "_unknown", set())


@pytest.mark.usefixtures("fresh_metrics")
@pytest.mark.parametrize(
    "error", [FileNotFoundError("/proc/stat"), TypeError("7 arguments"), OSError(errno.EMFILE, "")]
)
def test_a_metric_that_cannot_be_measured_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    """The other one is reported, and there is one warning."""

    def fail(_interval: None) -> float:
        raise error

    monkeypatch.setattr(psutil, "cpu_percent", fail)
    for _ in range(3):
        assert list(heartbeat.system_load()) == ["memory"]
    assert "".join(capfd.readouterr()).count("agent.metric_unknown") == 1


@pytest.mark.usefixtures("fresh_metrics")
def test_a_metric_that_can_be_measured_again_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors come back."""
    with monkeypatch.context() as patched:
        patched.setattr(psutil, "cpu_percent", fails)
        assert "cpu" not in heartbeat.system_load()
    assert list(heartbeat.system_load()) == ["cpu", "memory"]


@pytest.mark.skipif(sys.platform != "linux", reason="the start without /proc/stat is read as on Linux")
def test_the_start_of_a_process_is_known_without_the_time_of_the_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same within two seconds, so a client outside the service finds its endpoint file trustworthy."""
    measured = process_started(os.getpid())
    monkeypatch.setattr(psutil.Process, "create_time", fails)
    assert process_started(os.getpid()) != UNKNOWN_START
    assert is_same_start(process_started(os.getpid()), measured)


def test_a_process_of_unknown_start_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor nothing can be read: a process that exists counts as the one that was started."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(psutil, "Process", fails)
    monkeypatch.setattr(endpoint, "_started_after_boot", lambda _pid: None)
    assert process_started(os.getpid()) == UNKNOWN_START
    assert process_started(ended.pid) is None
    assert is_same_start(UNKNOWN_START, 5.0)
    assert not is_same_start(None, 5.0)
    assert not is_same_start(3.0, 5.0)


def test_an_endpoint_file_is_written_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``coord up`` starts, and clients find it."""
    monkeypatch.setattr(psutil.Process, "create_time", fails)
    written = write_endpoint(tmp_path / "endpoint.json", "redis://127.0.0.1:1/0", None, "coord")
    assert read_endpoint(tmp_path / "endpoint.json") == written


def test_the_memory_of_the_machine_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it is the limit of the embedded server."""
    measured = psutil.virtual_memory().total
    monkeypatch.setattr(psutil, "virtual_memory", fails)
    assert abs(embedded._machine_memory() - measured) < measured / 4


async def test_a_gateway_whose_ports_cannot_be_listed_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer decides; one on any free port counts as ready while its process exists."""
    asked: list[int] = []

    def responds(_host: str, port: int) -> bool:
        asked.append(port)
        return True

    monkeypatch.setattr(psutil.Process, "net_connections", fails)
    monkeypatch.setattr(gateway_check, "_responds", responds)
    assert await gateway_check.is_ready(Settings(gateway_port=9001), os.getpid())
    assert await gateway_check.is_ready(Settings(gateway_port=0), os.getpid())
    assert asked == [9001]
