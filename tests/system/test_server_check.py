"""The check of a server at start: an unsuitable server is refused with the reason, and its durability is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from coord.config import Settings
from coord.connection import connect_worker
from coord.embedded import EmbeddedServer
from coord.errors import ServerUnfit
from coord.server_check import check_server


async def test_the_embedded_server_is_fit(tmp_path: Path) -> None:
    """Its report names Valkey by Valkey's version, and has nothing to warn of: its AOF is on, its memory bounded."""
    server = EmbeddedServer.start(tmp_path)
    redis = connect_worker(server.url, Settings())
    try:
        report = await check_server(redis, Settings())
    finally:
        await redis.aclose()
        server.stop()
    assert report.product == "valkey"
    assert int(report.version.split(".")[0]) >= 8
    assert (report.policy, report.cluster_enabled, report.proto_max_bulk_len) == ("noeviction", False, 8 << 20)
    assert report.durability.startswith("AOF, fsync every second")
    assert (report.maxmemory > 0, report.warnings, report.advice) == (True, [], [])


async def test_debian_s_redis_is_fit(debian_server: EmbeddedServer) -> None:
    """Redis 7.0 is accepted."""
    async with connect_worker(debian_server.url, Settings()) as redis:
        assert (await check_server(redis, Settings())).product == "redis"


async def test_a_server_with_its_defaults_is_advised(redis: Redis) -> None:
    """What coord itself sets is worth setting, and the advice works as it is typed."""
    await redis.config_set("hash-max-listpack-value", 64)
    (advice,) = (await check_server(redis, Settings())).advice
    assert advice.startswith("hash-max-listpack-value is 64: ")
    command = advice.partition(": ")[2].partition(" (")[0]
    await redis.execute_command(*command.split())
    assert (await check_server(redis, Settings())).advice == []


async def test_a_server_that_evicts_is_refused_unless_allowed(redis: Redis) -> None:
    """An evicting server drops acknowledged tasks; the message says how to change that."""
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ServerUnfit, match=r"allkeys-lru.*CONFIG SET maxmemory-policy noeviction"):
            await check_server(redis, Settings())
        report = await check_server(redis, Settings(allow_eviction=True))
        assert any("allkeys-lru" in warning for warning in report.warnings)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_a_server_that_forbids_config_is_judged_by_info(redis: Redis, server: EmbeddedServer) -> None:
    """Managed servers forbid CONFIG: coord goes on and says what it could not check."""
    await redis.acl_setuser("managed", enabled=True, nopass=True, keys="*", commands=["+@all", "-config"])
    try:
        url = f"unix://managed:x@{server.socket_path}"
        async with connect_worker(url, Settings()) as managed:
            report = await check_server(managed, Settings())
    finally:
        await redis.acl_deluser("managed")
    assert report.proto_max_bulk_len is None
    assert report.policy == "noeviction"
    assert any("CONFIG is forbidden" in warning for warning in report.warnings)
