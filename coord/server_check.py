"""Whether a server is fit for coord: its version and settings, what it loses, whether it has all of a namespace."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.config import MIB, Settings
from coord.errors import ServerUnfit
from coord.keys import Keys

#: Above this, one command can take a noticeable part of a server's memory.
BULK_WARNING_BYTES = 64 * MIB


class ServerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is and promises, as found at start."""

    product: str  #: ``valkey`` or ``redis``
    version: str  #: of the product: 9.1.2
    cluster_enabled: bool
    maxmemory: int  #: bytes; 0 means no limit
    policy: str  #: maxmemory-policy
    proto_max_bulk_len: int | None  #: bytes; None when CONFIG is forbidden
    durability: str  #: a sentence: what an acknowledgement survives
    warnings: list[str]  #: sentences for the operator; the server is usable all the same


async def check_server(redis: Redis, settings: Settings) -> ServerReport:
    """Ask the server what it is; one that would lose or mistreat tasks is refused.

    Raises:
        ServerUnfit: too old, evicting (unless ``allow_eviction``), a replica, or a node of a cluster that does not have
            the namespace's slot or is giving it away; says what to change.
    """
    info = await redis.info()
    config: dict[str, str] | None
    try:
        answer = await redis.config_get("proto-max-bulk-len", "appendfsync", "save")
        config = {_text(key): _text(value) for key, value in answer.items()}
    except redis_errors.ResponseError:  # managed servers forbid or rename CONFIG
        config = None
    report = judge(info, config, allow_eviction=settings.allow_eviction)
    if report.cluster_enabled:
        await _check_slot(redis, settings.namespace)
    return report


async def _check_slot(redis: Redis, namespace: str) -> None:
    try:
        await check_migration(redis, namespace)
    except redis_errors.MovedError as error:
        raise ServerUnfit(
            f"this node of the cluster does not have the slot of namespace {namespace!r}; {error.host}:{error.port} "
            "has it: point COORD_REDIS_URL there, best with an address that follows a fail-over"
        ) from None
    except (redis_errors.ClusterDownError, redis_errors.NoPermissionError):
        pass  # down for now: workers wait; or CLUSTER is forbidden here


async def check_migration(redis: Redis, namespace: str) -> None:
    """Look whether this node of a cluster is giving its slot of the namespace away, key by key.

    Raises:
        ServerUnfit: it is: a script would find some of its keys here, and others gone.
        RedisError: the node does not answer, or has no such slot (``MovedError``).
    """
    key = Keys(namespace).of("settings")
    try:
        await redis.exists(key)
    except redis_errors.MovedError:
        raise
    except redis_errors.AskError as error:  # of a key that is gone already; MovedError is one of these, too
        raise _migrating(namespace, error.slot_id) from None
    slot = int(await redis.execute_command("CLUSTER", "KEYSLOT", key))
    nodes: bytes = await redis.execute_command("CLUSTER", "NODES")
    (mine,) = [line for line in nodes.splitlines() if b"myself" in line.split()[2].split(b",")]
    if any(word.startswith(b"[%d->-" % slot) for word in mine.split()):
        raise _migrating(namespace, slot)


def _migrating(namespace: str, slot: int) -> ServerUnfit:
    return ServerUnfit(
        f"slot {slot}, that of namespace {namespace!r}, is being migrated, so scripts find only some of its keys: "
        f"finish the migration, or take it back (CLUSTER SETSLOT {slot} STABLE), before workers are started again"
    )


def judge(info: Mapping[str, object], config: Mapping[str, str] | None, *, allow_eviction: bool) -> ServerReport:
    """The verdict on an INFO answer and, where CONFIG is allowed, three of its values. Raises as ``check_server``."""
    product = "valkey" if "valkey_version" in info or info.get("server_name") == "valkey" else "redis"
    # Valkey calls itself Redis 7.2.4 for old clients' sake; its own version stands beside that.
    version = str(info.get("valkey_version") or info.get("redis_version") or "0")
    needed = (7, 2) if product == "valkey" else (7, 0)
    if _numbers(version) < needed:
        raise ServerUnfit(f"{product} {version} is too old: coord needs Redis 7.0, Valkey 7.2 or newer")
    if info.get("role") == "slave":
        raise ServerUnfit(
            f"this server is a read-only replica of {info.get('master_host')}:{info.get('master_port')}; "
            "point COORD_REDIS_URL at the primary"
        )
    policy = str(info.get("maxmemory_policy", "unknown"))
    maxmemory = int(str(info.get("maxmemory", 0)))
    warnings: list[str] = []
    if policy != "noeviction":
        if not allow_eviction:
            raise ServerUnfit(
                f"maxmemory-policy is {policy}, so a full server would drop tasks without a word; "
                "run CONFIG SET maxmemory-policy noeviction (and keep it in the server's configuration), "
                "or accept the loss with COORD_ALLOW_EVICTION=true"
            )
        warnings.append(f"maxmemory-policy is {policy}: a full server drops tasks without a word")
    if maxmemory == 0:
        warnings.append("no maxmemory is set: a full machine ends the server instead of refusing new tasks")
    bulk = int(config["proto-max-bulk-len"]) if config and "proto-max-bulk-len" in config else None
    if config is None:
        warnings.append("CONFIG is forbidden here, so proto-max-bulk-len, appendfsync and save could not be checked")
    elif bulk is not None and bulk > BULK_WARNING_BYTES:
        warnings.append(
            f"proto-max-bulk-len is {bulk // MIB} MiB: a single entry can take that much memory; 8 MiB is plenty"
        )
    return ServerReport(
        product=product,
        version=version,
        cluster_enabled=str(info.get("cluster_enabled", 0)) == "1",
        maxmemory=maxmemory,
        policy=policy,
        proto_max_bulk_len=bulk,
        durability=_durability(info, config),
        warnings=warnings,
    )


def _durability(info: Mapping[str, object], config: Mapping[str, str] | None) -> str:
    if str(info.get("aof_enabled", 0)) == "1":
        return {
            "always": "AOF, fsync on every write: what was acknowledged is on disk",
            "everysec": "AOF, fsync every second: the last second can be lost if the machine dies",
            "no": "AOF, fsync left to the system: up to half a minute can be lost if the machine dies",
        }.get((config or {}).get("appendfsync", ""), "AOF, fsync unknown: ask whoever runs the server")
    if config is None:
        return "no AOF; snapshots unknown: ask whoever runs the server"
    if config.get("save"):
        return f"snapshots only (save {config['save']}): everything since the last one is lost if the server dies"
    return "none: everything is lost if the server ends"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))[:2]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
