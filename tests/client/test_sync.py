"""The client for programs without an event loop is that for those with one, method by method."""

from __future__ import annotations

import ast
import gc
import inspect
import subprocess
import sys
from typing import Any

import pytest

from coord import Client, SyncClient, SyncTaskHandle, TaskHandle
from coord.client import blocking
from coord.client.admin import Admin
from coord.client.mirror import INTERNAL, _part_of
from coord.config import Settings
from coord.errors import ConfigError, FactInvalid, ServerUnavailable
from tests.sync_stub import STUB, stub

SyncAdmin = _part_of(Admin)


def public(kind: type) -> dict[str, Any]:
    """The public attributes of a class, without what belongs on the loop."""
    return {
        name: inspect.getattr_static(kind, name)
        for name in dir(kind)
        if not name.startswith("_") and name not in INTERNAL
    }


@pytest.mark.parametrize(("kind", "mirror"), [(Client, SyncClient), (TaskHandle, SyncTaskHandle), (Admin, SyncAdmin)])
def test_it_has_the_same_methods_with_the_same_arguments(kind: type, mirror: type) -> None:
    """And none of them is a coroutine; what is new in one is in the other without another line."""
    assert public(kind).keys() == public(mirror).keys()
    for name, attribute in public(kind).items():
        twin = public(mirror)[name]
        if not inspect.isfunction(attribute):
            assert isinstance(twin, property), name
            continue
        assert not inspect.iscoroutinefunction(twin), name
        assert not inspect.isasyncgenfunction(twin), name
        signature = inspect.signature(twin)
        assert signature.parameters == inspect.signature(attribute).parameters, name
        assert "Async" not in str(signature.return_annotation)
        assert inspect.getdoc(twin)


def test_the_stub_has_its_types() -> None:
    """Editors and type checkers do not see what is made at run time; ``scripts/sync-stub`` writes the stub."""
    written = [ast.dump(one) for one in ast.parse(STUB.read_text()).body if isinstance(one, ast.ClassDef)]
    made = [ast.dump(one) for one in ast.parse(stub()).body if isinstance(one, ast.ClassDef)]
    assert written == made, "run .venv/bin/python scripts/sync-stub"


def test_it_is_made_as_the_other_one() -> None:
    """With the same arguments, which are checked when it is made; no server is needed for that."""
    assert inspect.signature(SyncClient).parameters == inspect.signature(Client).parameters
    with pytest.raises(ConfigError, match="url: expected text"):
        SyncClient(5)  # type: ignore[arg-type]
    gc.collect()  # one that could not be made is forgotten as well


def test_no_server_is_said_so(settings: Settings, unused_port: int) -> None:
    """At each call, as by ``Client``; opening a closed client is required before further calls."""
    client = SyncClient(f"redis://127.0.0.1:{unused_port}", settings=settings, reach_s=0.1)
    for _ in range(2):
        with pytest.raises(ServerUnavailable):
            client.submit("echo")
    with pytest.raises(ServerUnavailable), SyncClient(f"redis://127.0.0.1:{unused_port}", reach_s=0.1):
        pass
    client.close()
    with pytest.raises(ConfigError, match=r"the client is closed: open it again with open\(\)"):
        client.counters()


def test_it_is_not_called_on_its_own_loop(settings: Settings) -> None:
    """It would wait for itself for ever."""
    client = SyncClient("redis://127.0.0.1:1", settings=settings)

    async def call() -> None:
        client.counters()

    with pytest.raises(ConfigError, match="cannot be called on its own event loop; use Client there"):
        blocking.background_loop().run(call())


def test_parts_of_the_client_are_parts_of_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client holds is shown without its coroutines too; what has none is shown as it is."""

    class Part:
        """As ``client.admin`` is."""

        async def double(self, number: int) -> int:
            """Return twice the number."""
            return number * 2

    Part.__module__ = "coord.client.part"

    async def opened(_self: Client) -> None:
        return None

    monkeypatch.setattr(Client, "open", opened)
    client: Any = SyncClient("redis://127.0.0.1:1", settings=settings)
    client._inner.part = Part()
    assert client.part.double(3) == 6
    assert client.settings is settings
    with pytest.raises(AttributeError, match="'SyncClient' object has no attribute 'connection'"):
        _ = client.connection
    with pytest.raises(FactInvalid, match="expected tasks"):
        client.submit_many(5)


#: The child lets go of a connection that it has a copy of; its parent still gets what comes in there.
FORK = """
import asyncio, os, socket, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: fork in a process with threads
from coord.client import blocking

ours, theirs = socket.socketpair()
received, loop = threading.Event(), blocking.background_loop()

def read():
    ours.recv(10)
    received.set()

async def watch():
    asyncio.get_running_loop().add_reader(ours, read)

loop.run(watch())
if (pid := os.fork()) == 0:
    loop._loop.remove_reader(ours)
    os._exit(0)
os.waitpid(pid, 0)
theirs.send(b"data")
print(received.wait(20))
"""


def test_a_forked_child_takes_no_connection_from_its_parent() -> None:
    """An event loop's list of sockets in the kernel would be shared by both."""
    ended = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == ("True\n", "")
