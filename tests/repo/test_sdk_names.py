"""docs/sdk.md names every option of the SDK with its default, and every public method."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import coord
from coord import Agent, Client, TaskSpec, errors
from coord.client.admin import Admin
from coord.config import Settings
from tests.repo.documents import ROOT

TEXT = (ROOT / "docs" / "sdk.md").read_text()
#: Parts of ``Client`` for coord's own programs.
INTERNAL = frozenset({"connection"})


def table(header: str) -> dict[str, str]:
    """The rows of an options table: option -> its default as the document shows it."""
    _, _, rest = TEXT.partition(f"| {header} | type | default | meaning |\n")
    rows: dict[str, str] = {}
    for line in rest.splitlines()[1:]:
        if not line.startswith("| `"):
            break
        name, _, default, _ = line.strip("| ").split(" | ", 3)
        rows[name.strip("`")] = default.strip("`")
    return rows


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Name -> default of each parameter."""
    found = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in found if one.name != "self"}


def agent_options() -> list[str]:
    """The arguments table of ``Agent``, which is the first."""
    return list(table("argument"))


def client_options() -> dict[str, str]:
    """The arguments table of ``Client``, which is the second."""
    _, _, rest = TEXT.partition("\n## Client\n")
    rows = rest.partition("| argument | type | default | meaning |\n")[2].split("\n\n")[0].splitlines()[1:]
    return {row.split(" | ")[0].strip("| `"): row.split(" | ")[2].strip("`") for row in rows}


def test_every_option_of_an_agent_is_there() -> None:
    """In the order of the signature; plain defaults are true."""
    assert agent_options() == list(parameters(Agent))
    defaults = parameters(Agent)
    for name in ("agent_type", "weight", "drain_timeout"):
        assert table("argument")[name].strip('"') == str(defaults[name])
    settings = Settings()
    assert table("argument")["capacity"] == f"COORD_CAPACITY`, {settings.capacity}"
    assert table("argument")["heartbeat_interval"] == f"COORD_HEARTBEAT_INTERVAL_S`, {settings.heartbeat_interval_s:g}"


def test_every_option_of_a_client_is_there() -> None:
    """In the order of the signature."""
    assert list(client_options()) == list(parameters(Client))
    assert client_options()["reach_s"] == str(parameters(Client)["reach_s"])


def test_every_option_of_a_task_is_there() -> None:
    """The fields of ``TaskSpec`` besides type and payload."""
    assert [*table("option")] == [
        field for field in TaskSpec.__struct_fields__ if field not in {"task_type", "payload"}
    ]


def test_every_option_of_a_message_is_there() -> None:
    """The keyword arguments of ``Client.send``."""
    _, _, rest = TEXT.partition("| option of `send` | type | default | meaning |\n")
    rows = re.findall(r"^\| `(\w+)` \|", rest.split("\n\n")[0], re.MULTILINE)
    assert rows == [name for name in parameters(Client.send) if name not in {"receiver_id", "payload"}]


@pytest.mark.parametrize("kind", [Agent, Client, Admin])
def test_every_public_method_is_there(kind: type) -> None:
    """Each is named in code."""
    internal = INTERNAL if kind is Client else set()
    public = {name for name in dir(kind) if not name.startswith("_")} - internal
    assert {name for name in public if not re.search(rf"`[^`]*\b{name}\b[^`]*`", TEXT)} == set()


def test_every_public_name_is_imported() -> None:
    """The first block imports all that ``coord`` offers."""
    (names,) = re.findall(r"^from coord import \(\n(.*?)^\)$", TEXT, re.MULTILINE | re.DOTALL)
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(coord.__all__) == {*names.replace(",", " ").split(), *classes}
    for name in coord.__all__:
        assert getattr(coord, name)
