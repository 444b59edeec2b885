"""The evaluation of a server's INFO and CONFIG."""

from __future__ import annotations

import pytest

from coord import embedded
from coord.errors import ServerUnfit
from coord.server_check import ADVISED_SETTINGS, evaluate_server

FIT = {"redis_version": "7.0.15", "maxmemory_policy": "noeviction", "maxmemory": 1 << 30, "aof_enabled": 0}
CONFIG = {"proto-max-bulk-len": "8388608", "appendfsync": "everysec", "save": ""}
#: The settings of a server with its defaults that coord's own server changes.
STOCK = {"hash-max-listpack-value": "64", "hash-max-listpack-entries": "128", "stream-node-max-bytes": "4096"}


@pytest.mark.parametrize(
    ("info", "product"),
    [
        ({"redis_version": "6.2.14"}, "redis 6.2.14"),
        ({"redis_version": "6.9"}, "redis 6.9"),
        ({"redis_version": "7.2.4", "valkey_version": "7.1.0"}, "valkey 7.1.0"),
        ({}, "redis 0"),
    ],
)
def test_a_server_that_is_too_old_is_refused(info: dict[str, str], product: str) -> None:
    """Below Redis 7.0 or Valkey 7.2, whose own version counts, not the one that it shows to old clients."""
    with pytest.raises(ServerUnfit, match=f"{product} is too old"):
        evaluate_server({"maxmemory_policy": "noeviction"} | info, CONFIG, allow_eviction=False)


def test_a_server_without_a_limit_is_warned_of() -> None:
    """It would take the machine's memory instead of refusing new tasks."""
    (warning,) = evaluate_server(FIT | {"maxmemory": 0}, CONFIG, allow_eviction=False).warnings
    assert "no maxmemory is set" in warning
    assert evaluate_server(FIT, CONFIG, allow_eviction=False).warnings == []


def test_a_replica_is_refused() -> None:
    """Every write would fail there; the message names its primary."""
    with pytest.raises(ServerUnfit, match="replica of main:6379"):
        evaluate_server(
            FIT | {"role": "slave", "master_host": "main", "master_port": 6379}, CONFIG, allow_eviction=False
        )


@pytest.mark.parametrize(
    ("info", "config", "text"),
    [
        ({"aof_enabled": 1}, {"appendfsync": "everysec"}, "last second can be lost"),
        ({"aof_enabled": 1}, {"appendfsync": "always"}, "is on disk"),
        ({"aof_enabled": 1}, {"appendfsync": "no"}, "half a minute"),
        ({"aof_enabled": 1}, None, "fsync unknown"),
        ({}, {"save": "3600 1"}, "snapshots only (save 3600 1)"),
        ({}, {"save": ""}, "everything is lost"),
        ({}, None, "snapshots unknown"),
    ],
)
def test_durability_is_a_sentence(info: dict[str, int], config: dict[str, str] | None, text: str) -> None:
    """What an acknowledgement survives, for each kind of persistence."""
    merged = None if config is None else CONFIG | config
    assert text in evaluate_server(FIT | info, merged, allow_eviction=False).durability


def test_a_huge_bulk_limit_is_a_warning() -> None:
    """Redis's default lets one entry take 512 MiB."""
    report = evaluate_server(FIT, CONFIG | {"proto-max-bulk-len": str(512 << 20)}, allow_eviction=False)
    assert report.warnings == [
        "proto-max-bulk-len is 512 MiB: a single entry can take that much memory; 8 MiB is plenty"
    ]


def test_a_stock_server_is_advised() -> None:
    """The setting, the command that changes it, and what it saves; coord works without it."""
    report = evaluate_server(FIT, CONFIG | STOCK, allow_eviction=False)
    (advice,) = report.advice
    assert advice.startswith("hash-max-listpack-value is 64: CONFIG SET hash-max-listpack-value 1024 (and keep it in ")
    assert "saves a quarter of the memory of each waiting task" in advice
    assert report.warnings == []


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, []),
        ({"hash-max-listpack-value": "1024", "stream-node-max-bytes": "1024"}, []),
        ({"hash-max-listpack-value": "4096"}, []),
        ({"hash-max-listpack-entries": "8"}, ["hash-max-listpack-entries"]),
        ({"stream-node-max-bytes": "65536"}, ["stream-node-max-bytes"]),
        ({"stream-node-max-bytes": "0"}, ["stream-node-max-bytes"]),
        ({"stream-node-max-bytes": "4kb"}, []),
        ({"hash-max-listpack-value": "64", "stream-node-max-bytes": "8192"},
         ["hash-max-listpack-value", "stream-node-max-bytes"]),
    ],
)  # fmt: skip
def test_only_what_costs_memory_is_advised(config: dict[str, str], named: list[str]) -> None:
    """A better value is left alone, and what cannot be read is not guessed."""
    report = evaluate_server(FIT, CONFIG | config, allow_eviction=False)
    assert [sentence.partition(" is ")[0] for sentence in report.advice] == named


def test_our_own_servers_need_no_advice() -> None:
    """The embedded one, whose options compose.yaml shares."""
    options = dict(zip(embedded.CONFIG[::2], embedded.CONFIG[1::2], strict=True))
    bytes_of = {"4kb": "4096"}
    config = {name: bytes_of.get(value, value) for name in ADVISED_SETTINGS if (value := options.get(f"--{name}"))}
    assert set(config) == set(ADVISED_SETTINGS)
    assert evaluate_server(FIT, CONFIG | config, allow_eviction=False).advice == []


def test_without_config_there_is_no_advice() -> None:
    """Managed servers forbid CONFIG, also to change it."""
    assert evaluate_server(FIT, None, allow_eviction=False).advice == []
