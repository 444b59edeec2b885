"""Connections without a server: URLs, where Redis is looked for, and the verdict on what a server says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from coord.config import Settings
from coord.connection import DEFAULT_URL, connect, judge, locate, safe_url
from coord.endpoint import write_endpoint
from coord.errors import ConfigError, ServerUnfit

FIT = {"redis_version": "7.0.15", "maxmemory_policy": "noeviction", "maxmemory": 1 << 30, "aof_enabled": 0}
CONFIG = {"proto-max-bulk-len": "8388608", "appendfsync": "everysec", "save": ""}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "expected redis://"),
        ("localhost:6379", "localhost"),
        ("http://h:1", "http://h:1"),
        ("redis://", "redis://"),
        ("unix://", "unix://"),
        ("redis://h:port", "redis://h:port"),
        ("redis://h:99999", "99999"),
        ("redis://h/zero", "redis://h/zero"),
        ("redis://h?retry_on_timeout=1", "retry_on_timeout"),
        ("redis://h?protocol=2", "protocol"),
        ("redis://h?db=x", "db"),
        ("redis://u:hidden@h/zero", "redis://u:***@h/zero"),
    ],
)
def test_a_bad_url_is_named(url: str, says: str) -> None:
    """ConfigError names the URL, never its password; options that would undo this module are refused."""
    with pytest.raises(ConfigError) as caught:
        connect(url, Settings())
    assert says in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_bad_url_of_the_environment_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one may have forgotten that it is set; a URL that came another way has no variable."""
    monkeypatch.setenv("COORD_REDIS_URL", "http://u:hidden@h:1")
    with pytest.raises(ConfigError, match=r"^COORD_REDIS_URL='http://u:\*\*\*@h:1' is not a Redis URL"):
        connect("http://u:hidden@h:1", Settings())
    with pytest.raises(ConfigError, match=r"^'http://h:1' is not a Redis URL"):
        connect("http://h:1", Settings())


def test_a_password_is_never_shown() -> None:
    """safe_url is what messages and logs carry."""
    assert safe_url("rediss://ann:p%40ss@h:1/2?ssl_password=x") == "rediss://ann:***@h:1/2?***"
    assert safe_url("redis://:secret@h") == "redis://:***@h"
    assert safe_url("unix:///run/r.sock") == "unix:///run/r.sock"


def test_redis_is_found_by_setting_then_endpoint_then_default(tmp_path: Path) -> None:
    """What is named; else COORD_REDIS_URL; else a live `coord up`; else this machine."""
    path = tmp_path / "e.json"
    here = Settings(endpoint_file=str(path))
    assert locate(here) == (DEFAULT_URL, here)
    write_endpoint(path, "redis://127.0.0.1:7001/0", None, "coord")
    assert locate(here) == ("redis://127.0.0.1:7001/0", here)
    told = Settings(endpoint_file=str(path), redis_url="redis://r:1")
    assert locate(told) == ("redis://r:1", told)
    assert locate(told, "redis://named:1") == ("redis://named:1", told)


def test_the_namespace_of_a_coord_up_is_followed_with_its_server(tmp_path: Path) -> None:
    """Whoever finds a `coord up` is in its cell; one's own namespace, or one's own server, stands over that."""
    path = tmp_path / "e.json"
    write_endpoint(path, "redis://127.0.0.1:7001/0", None, "theirs")
    here = Settings(endpoint_file=str(path))
    assert locate(here)[1].namespace == "theirs"
    assert locate(Settings(endpoint_file=str(path), namespace="mine"))[1].namespace == "mine"
    assert locate(here, "redis://named:1")[1].namespace == "coord"


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
        judge({"maxmemory_policy": "noeviction"} | info, CONFIG, allow_eviction=False)


def test_a_server_without_a_limit_is_warned_of() -> None:
    """It would take the machine's memory instead of refusing new tasks."""
    (said,) = judge(FIT | {"maxmemory": 0}, CONFIG, allow_eviction=False).warnings
    assert "no maxmemory is set" in said
    assert judge(FIT, CONFIG, allow_eviction=False).warnings == []


def test_a_replica_is_refused() -> None:
    """Every write would fail there; the message names its primary."""
    with pytest.raises(ServerUnfit, match="replica of main:6379"):
        judge(FIT | {"role": "slave", "master_host": "main", "master_port": 6379}, CONFIG, allow_eviction=False)


@pytest.mark.parametrize(
    ("info", "config", "says"),
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
def test_durability_is_said_in_a_sentence(info: dict[str, int], config: dict[str, str] | None, says: str) -> None:
    """What an acknowledgement survives, for each kind of persistence."""
    merged = None if config is None else CONFIG | config
    assert says in judge(FIT | info, merged, allow_eviction=False).durability


def test_a_huge_bulk_limit_is_a_warning() -> None:
    """Redis's default lets one entry take 512 MiB."""
    report = judge(FIT, CONFIG | {"proto-max-bulk-len": str(512 << 20)}, allow_eviction=False)
    assert report.warnings == [
        "proto-max-bulk-len is 512 MiB: a single entry can take that much memory; 8 MiB is plenty"
    ]
