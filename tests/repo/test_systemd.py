"""The systemd units of examples/: systemd takes them, the programs their commands, the settings their variables."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coord import config
from coord.keys import KINDS
from tests.commands import parse

FOLDER = Path(__file__).parents[2] / "examples" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
#: Where the units expect coord's environment.
BIN = "/usr/local/lib/coord/bin/"


def values(unit: Path, name: str) -> list[str]:
    """The values of a directive."""
    lines = unit.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.partition("=")[0] == name]


def words(unit: Path, instance: str) -> list[str]:
    """What systemd starts: specifiers and doubled characters replaced, split."""
    (line,) = values(unit, "ExecStart")
    plain = re.sub(r"%(.)", lambda found: {"i": instance, "%": "%"}[found[1]], line)
    return [word.replace("$$", "$") for word in shlex.split(plain)]


def environment() -> dict[str, str]:
    """The environment file, as systemd reads it."""
    lines = (FOLDER / "coord.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", ["", "-1", "-12"])
def test_a_worker_of_each_kind_can_be_started_in_any_number(kind: str, number: str) -> None:
    """The shell of the unit takes the number off; what it runs is taken by coord's own parser."""
    shell, option, script, zero = words(FOLDER / "coord-worker@.service", kind + number)
    shown = script.replace("exec ", "printf '%s\\n' ", 1)
    said = subprocess.run([shell, option, shown, zero], capture_output=True, text=True, check=True).stdout
    command = said.splitlines()
    assert command == [f"{BIN}coord", "worker", kind]
    assert parse(command) == ["coord", "worker"]


def test_the_gateway_is_started() -> None:
    """Its command is taken by coord's own parser; unless told otherwise it binds the loopback."""
    assert parse(words(FOLDER / "coord-gateway.service", "")) == ["coord", "gateway"]
    assert config.load(environment()).gateway_host == "127.0.0.1"


def test_all_have_the_same_rights() -> None:
    """What hardens one hardens the others."""
    hardening = re.compile(r"^(?:Protect|Private|Restrict|System|Lock|Dynamic|NoNew|Cap|UMask).*$", re.MULTILINE)
    first, *others = [hardening.findall(unit.read_text()) for unit in UNITS]
    assert len(first) > 10
    assert all(other == first for other in others)


def test_the_environment_is_taken() -> None:
    """By the loader of the settings; every unit reads that file."""
    assert config.load(environment()).redis_url == "redis://127.0.0.1:6379/0"
    assert {tuple(values(unit, "EnvironmentFile")) for unit in UNITS} == {("/etc/coord/coord.env",)}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_comes_back_and_may_do_little(unit: Path) -> None:
    """Started again for as long as it takes, with the time to finish; no root, no rights."""
    answer = config.Settings().answer_timeout_s + config.Settings().read_block_ms / 1000
    assert (values(unit, "Restart"), values(unit, "StartLimitIntervalSec")) == (["always"], ["0"])
    assert float(values(unit, "TimeoutStopSec")[0].removesuffix("s")) > answer
    assert (values(unit, "DynamicUser"), values(unit, "CapabilityBoundingSet")) == (["yes"], [""])
    assert values(unit, "NoNewPrivileges") == ["yes"]


def test_an_agent_may_finish_its_tasks() -> None:
    """However long they take; and only it gets the signal, so that its programs finish theirs."""
    unit = FOLDER / "coord-agent@.service"
    assert (values(unit, "KillMode"), values(unit, "TimeoutStopSec")) == (["mixed"], ["infinity"])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_it(unit: Path, tmp_path: Path) -> None:
    """Without a word; asked of systemd itself, where it is installed."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on PATH")
    here = tmp_path / unit.name
    # systemd looks whether the program is there; the environment is where the tests run.
    here.write_text(unit.read_text().replace(BIN, f"{Path(sys.executable).parent}/"))
    asked = tmp_path / unit.name.replace("@.", "@distributor-2.")
    found = subprocess.run([analyze, "verify", "--man=no", str(asked)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
