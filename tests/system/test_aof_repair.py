"""A damaged append-only file: what `coord up` writes about it, and how `--repair-aof` cuts the damage off."""

from __future__ import annotations

from pathlib import Path

import pytest

from coord import Client
from coord.config import Settings
from coord.connection import connect_worker
from coord.embedded import EmbeddedServer
from coord.errors import ConfigError, DataFolderInUse, ServerUnavailable
from coord.up import data_dir
from coord.up.data_dir import repair_aof
from tests.coord_up import Start

#: What a crash may leave behind the last whole entry.
DAMAGES: dict[str, bytes] = {
    "zeroes": b"\0" * 4096,
    "garbage": bytes(range(128, 256)),
    "zeroes in an entry": b"*3\r\n$3\r\nSET\r\n" + b"\0" * 100,
    "an entry after zeroes": b"\0" * 100 + b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n",
}


async def _written(folder: Path, keys: int) -> Path:
    """Write so many keys with a server, end it, and return the file that has them."""
    server = EmbeddedServer.start(folder)
    async with connect_worker(server.url, Settings()) as redis:
        for number in range(keys):
            await redis.set(f"k{number}", "v")
    server.stop()
    (file,) = (folder / "appendonlydir").glob("*.incr.aof")
    return file


async def _keys(folder: Path) -> int:
    """Count the keys that a server finds there."""
    server = EmbeddedServer.start(folder)
    try:
        async with connect_worker(server.url, Settings()) as redis:
            return int(await redis.dbsize())
    finally:
        server.stop()


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_end_is_cut_off_and_kept(tmp_path: Path, damage: str) -> None:
    """The server refuses the file, and the error names the command that helps; after that it has every whole entry."""
    folder = tmp_path / "data"
    file = await _written(folder, 3)
    whole = file.read_bytes()
    file.write_bytes(whole + DAMAGES[damage])
    with pytest.raises(ServerUnavailable, match=f"`coord up --data {folder} --repair-aof` keeps a copy") as refused:
        EmbeddedServer.start(folder)
    assert "\n" not in str(refused.value)
    cut = repair_aof(folder)
    assert cut is not None
    assert (cut.file, cut.position, cut.size) == (file, len(whole), len(whole) + len(DAMAGES[damage]))
    assert ("no entry is lost" in str(cut)) == (damage == "zeroes")
    assert file.read_bytes() == whole
    assert cut.copy.read_bytes() == whole + DAMAGES[damage]
    assert cut.copy.parent == folder
    assert repair_aof(folder) is None
    assert await _keys(folder) == 3


async def test_half_an_entry_is_no_damage_to_a_server(tmp_path: Path) -> None:
    """It loads such a file by itself."""
    file = await _written(tmp_path, 3)
    file.write_bytes(file.read_bytes() + b"*3\r\n$3\r\nSET\r\n$2\r")
    assert await _keys(tmp_path) == 3


async def test_damage_before_a_newer_file_is_left(tmp_path: Path) -> None:
    """What follows it was written later, so nothing is cut off and the folder is named."""
    file = await _written(tmp_path, 3)
    newer = file.with_name(file.name.replace(".1.incr", ".2.incr"))
    newer.write_bytes(file.read_bytes())
    manifest = file.with_name("appendonly.aof.manifest")
    manifest.write_text(manifest.read_text() + f"file {newer.name} seq 2 type i\n")
    file.write_bytes(file.read_bytes() + b"\0")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=f"{file} is damaged, and newer files follow it"):
        repair_aof(tmp_path)
    assert file.read_bytes() == before


async def test_a_folder_in_use_is_left(tmp_path: Path) -> None:
    """A server that runs there writes to the file."""
    server = EmbeddedServer.start(tmp_path)
    try:
        with pytest.raises(DataFolderInUse, match="a Redis server runs on"):
            repair_aof(tmp_path)
    finally:
        server.stop()


def test_a_new_folder_has_no_damage(tmp_path: Path) -> None:
    """There is nothing to repair where nothing was written."""
    assert repair_aof(tmp_path) is None


@pytest.mark.parametrize("wrong", ["no copy", "no check"])
async def test_what_cannot_be_repaired_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Without a copy, or a program that checks it, the file stays as it was."""
    file = await _written(tmp_path, 3)
    file.write_bytes(file.read_bytes() + b"\0" * 10)
    before = file.read_bytes()
    if wrong == "no copy":

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("shutil.copy2", full)
        says = "cannot repair the append-only file in .*: No space left on device"
    else:
        monkeypatch.setattr(data_dir, "find_binary", lambda: Path("/bin/true"))
        says = "/bin/true does not check append-only files"
    with pytest.raises(ConfigError, match=says):
        repair_aof(tmp_path)
    assert file.read_bytes() == before


async def test_coord_up_repairs_and_starts(start: Start, tmp_path: Path) -> None:
    """Without the option it exits with 2 and one line that names it; with it, it logs what is lost and works."""
    file = await _written(tmp_path / "data", 3)
    file.write_bytes(file.read_bytes() + b"\0" * 100)
    refused = start()
    assert await refused.ended() == 2
    (line,) = refused.output.splitlines()
    assert line.startswith(f"coord: the append-only file in {tmp_path / 'data'} is damaged (")
    assert "--repair-aof" in line
    up = start("--repair-aof")
    endpoint = await up.ready()
    (repaired,) = up.events("aof.repaired")
    assert (repaired["level"], repaired["cut"]) == ("warning", 100)
    assert "all of them zero, so no entry is lost" in repaired["message"]
    async with Client(endpoint.url, settings=Settings()) as client:
        assert await client.connection.redis.get("k2") == b"v"
