"""Handler of ``/system``: the processes of the cell, its streams, its server, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from coord.doctor import Snapshot, diagnose
from coord.gateway.routes import Call
from coord.gateway.schemas import iso
from coord.models.cell import WorkerRecord
from coord.models.findings import Finding
from coord.models.statistics import StreamStatistics


class StreamGroup(Struct, frozen=True, kw_only=True):
    """A stream of facts and the group of workers that reads it; what the gateway may not read is null."""

    stream: str
    group: str
    length: int | None  #: entries that were not handled yet
    lag: int | None  #: of these, entries that no worker has read
    pending: int | None  #: of these, entries that a worker has read
    oldest_ms: int | None  #: age of the oldest entry; 0: there is none

    @classmethod
    def of(cls, found: StreamStatistics) -> StreamGroup:
        """Build it from the statistics of the stream."""
        is_known = found.entries is not None and found.pending is not None
        return cls(
            stream=found.stream,
            group=found.kind,
            length=found.entries,
            lag=max(0, (found.entries or 0) - (found.pending or 0)) if is_known else None,
            pending=found.pending,
            oldest_ms=found.oldest_ms,
        )


class RedisServer(Struct, frozen=True, kw_only=True):
    """The server, as it describes itself."""

    product: str  #: valkey or redis
    version: str
    role: str  #: master or slave
    uptime_s: int
    used_memory: int  #: bytes
    maxmemory: int  #: bytes; 0: no limit
    maxmemory_policy: str
    clients: int
    maxclients: int
    replicas: int
    commands_per_s: int
    persistence: str  #: aof, rdb or none, as far as INFO says
    last_save_ok: bool  #: the last write of the append-only file and the last snapshot succeeded

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> RedisServer:
        """Build it from the answer of INFO."""
        is_valkey = "valkey_version" in info or info.get("server_name") == "valkey"
        has_aof, has_snapshot = info.get("aof_enabled") == 1, int(info.get("rdb_saves", 0)) > 0
        return cls(
            product="valkey" if is_valkey else "redis",
            version=str(info.get("valkey_version") or info.get("redis_version", "")),
            role=str(info.get("role", "")),
            uptime_s=int(info.get("uptime_in_seconds", 0)),
            used_memory=int(info.get("used_memory", 0)),
            maxmemory=int(info.get("maxmemory", 0)),
            maxmemory_policy=str(info.get("maxmemory_policy", "")),
            clients=int(info.get("connected_clients", 0)),
            maxclients=int(info.get("maxclients", 0)),
            replicas=int(info.get("connected_slaves", 0)),
            commands_per_s=int(info.get("instantaneous_ops_per_sec", 0)),
            persistence="aof" if has_aof else "rdb" if has_snapshot else "none",
            last_save_ok=all(
                info.get(field, "ok") == "ok" for field in ("aof_last_write_status", "rdb_last_bgsave_status")
            ),
        )


class SystemFound(Struct, frozen=True, kw_only=True):
    """GET /system."""

    status: str = "success"
    processes: list[WorkerRecord]  #: workers and gateways, as ``coord ps --json``; times in ms since 1970
    streams: list[StreamGroup]
    server: RedisServer | None  #: null: the gateway may not read it
    findings: list[Finding]  #: as ``coord doctor``, without those of a single machine
    timestamp: str

    @classmethod
    def of(cls, found: Snapshot) -> SystemFound:
        """Build it from a snapshot of the cell."""
        return cls(
            processes=list(found.processes),
            streams=[StreamGroup.of(stream) for stream in found.statistics.streams],
            server=None if found.info is None else RedisServer.of(found.info),
            findings=diagnose(found),
            timestamp=iso(found.now),
        )


class SystemQuery(Struct, frozen=True):
    """The query of GET /system."""

    ledger: bool = False


async def system(call: Call[None, SystemQuery]) -> SystemFound:
    """Return the workers and gateways, the streams, the server, and what is wrong; with ``ledger`` after a full check.

    The answer is at most a second old. The check of the ledger reads every record, so its answer may be 30 s old.
    """
    scrapes = call.gateway.scrapes
    return SystemFound.of(await (scrapes.checked_system() if call.query.ledger else scrapes.system()))
