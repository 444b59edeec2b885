"""Check that a server suits coord: version, settings, durability, and whether it holds the whole namespace.

It also advises on settings that cost memory: which are worth changing, and what the change saves. The embedded server
and compose.yaml have the recommended values; a server of another origin usually has its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.config import MIB, Settings
from coord.errors import ServerUnfit
from coord.keys import Keys


class Recommendation(NamedTuple):
    """A setting, its worst good value, and what a good value saves."""

    name: str
    limit: int  #: the smallest or largest good value
    is_minimum: bool  #: True if smaller values are worse; False if larger ones are, or 0, which means no limit
    typed: str  #: the recommended value, as typed in a command
    saving: str


#: Measured with 5,000 waiting tasks of 130 bytes of payload on Valkey 9: 675 bytes a task instead of 889.
RECOMMENDATIONS = (
    Recommendation(
        "hash-max-listpack-value", 1024, is_minimum=True, typed="1024",
        saving="a quarter of the memory of each waiting task, about 210 bytes of 890",
    ),
    Recommendation(
        "hash-max-listpack-entries", 32, is_minimum=True, typed="128",
        saving="about a quarter of the memory of each task and agent with more fields than that",
    ),
    Recommendation(
        "stream-node-max-bytes", 4096, is_minimum=False, typed="4kb",
        saving="up to a node of memory for each stream, which is freed only when all of its entries are handled, "
        "and time for each append",
    ),
)  # fmt: skip
#: The settings to read.
ADVISED_SETTINGS = tuple(recommendation.name for recommendation in RECOMMENDATIONS)


def advise(config: Mapping[str, str] | None) -> list[str]:
    """Return a sentence for each setting that is worth changing: its value, the command, and what it saves.

    Args:
        config: values of CONFIG GET; None if CONFIG is forbidden. A missing or unreadable setting gets no advice.
    """
    return [
        f"{wanted.name} is {value}: CONFIG SET {wanted.name} {wanted.typed} "
        f"(and keep it in the server's configuration) saves {wanted.saving}"
        for wanted in RECOMMENDATIONS
        if (value := (config or {}).get(wanted.name, "")).isdecimal() and _is_worse(int(value), wanted)
    ]


def _is_worse(value: int, wanted: Recommendation) -> bool:
    if wanted.is_minimum:
        return value < wanted.limit
    return value > wanted.limit or value == 0


#: Above this, one command can take a noticeable part of a server's memory.
BULK_WARNING_BYTES = 64 * MIB


class ServerReport(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a server, as found at start."""

    product: str  #: ``valkey`` or ``redis``
    version: str  #: of the product: 9.1.2
    cluster_enabled: bool
    maxmemory: int  #: bytes; 0 means no limit
    policy: str  #: maxmemory-policy
    proto_max_bulk_len: int | None  #: bytes; None if CONFIG is forbidden
    durability: str  #: a sentence: which failures an acknowledged write survives
    warnings: list[str]  #: sentences for the operator; the server is usable nevertheless
    advice: list[str] = []  #: settings that are worth changing, and what that saves


async def check_server(redis: Redis, settings: Settings) -> ServerReport:
    """Read the properties of the server; refuse a server that would lose tasks.

    Raises:
        ServerUnfit: the server is too old, evicts keys (unless ``allow_eviction``), is a replica, or is a cluster node
            that does not have the namespace's slot or is migrating it; says what to change.
    """
    info = await redis.info()
    config: dict[str, str] | None
    try:
        answer = await redis.config_get("proto-max-bulk-len", "appendfsync", "save", *ADVISED_SETTINGS)
        config = {_text(key): _text(value) for key, value in answer.items()}
    except redis_errors.ResponseError:  # managed servers forbid or rename CONFIG
        config = None
    report = evaluate_server(info, config, allow_eviction=settings.allow_eviction)
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
        pass  # the cluster is down, and workers wait for it; or CLUSTER is forbidden


async def check_migration(redis: Redis, namespace: str) -> None:
    """Check that this cluster node is not migrating the namespace's slot to another node, key by key.

    Raises:
        ServerUnfit: it is migrating the slot, so a script would find only some of its keys.
        RedisError: the node does not answer, or does not have the slot (``MovedError``).
    """
    key = Keys(namespace).of("settings")
    try:
        await redis.exists(key)
    except redis_errors.MovedError:
        raise
    except redis_errors.AskError as error:  # the key was migrated already; MovedError is a subclass
        raise _migrating(namespace, error.slot_id) from None
    slot = int(await redis.execute_command("CLUSTER", "KEYSLOT", key))
    nodes: bytes = await redis.execute_command("CLUSTER", "NODES")
    (mine,) = [line for line in nodes.splitlines() if b"myself" in line.split()[2].split(b",")]
    if any(word.startswith(b"[%d->-" % slot) for word in mine.split()):
        raise _migrating(namespace, slot)


def _migrating(namespace: str, slot: int) -> ServerUnfit:
    return ServerUnfit(
        f"slot {slot} of namespace {namespace!r} is being migrated, so scripts find only some of its keys: "
        f"finish the migration, or cancel it (CLUSTER SETSLOT {slot} STABLE), before you start workers again"
    )


def evaluate_server(
    info: Mapping[str, object], config: Mapping[str, str] | None, *, allow_eviction: bool
) -> ServerReport:
    """Evaluate the answers of a server; no I/O.

    Args:
        info: the answer of INFO.
        config: values of CONFIG GET; None if CONFIG is forbidden.
        allow_eviction: accept a maxmemory-policy that evicts keys.

    Raises:
        ServerUnfit: as ``check_server``.
    """
    product = "valkey" if "valkey_version" in info or info.get("server_name") == "valkey" else "redis"
    # Valkey reports redis_version 7.2.4 for old clients; its own version is in another field.
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
                f"maxmemory-policy is {policy}, so a full server would silently drop tasks; "
                "run CONFIG SET maxmemory-policy noeviction (and keep it in the server's configuration), "
                "or accept the loss with COORD_ALLOW_EVICTION=true"
            )
        warnings.append(f"maxmemory-policy is {policy}: a full server silently drops tasks")
    if maxmemory == 0:
        warnings.append(
            "no maxmemory is set: when memory runs out, the system kills the server before it can refuse new tasks"
        )
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
        advice=advise(config),
    )


def _durability(info: Mapping[str, object], config: Mapping[str, str] | None) -> str:
    if str(info.get("aof_enabled", 0)) == "1":
        return {
            "always": "AOF, fsync on every write: what was acknowledged is on disk",
            "everysec": "AOF, fsync every second: the last second can be lost if the machine dies",
            "no": "AOF, fsync left to the system: up to half a minute can be lost if the machine dies",
        }.get((config or {}).get("appendfsync", ""), "AOF, fsync unknown: ask the operator of the server")
    if config is None:
        return "no AOF; snapshots unknown: ask the operator of the server"
    if config.get("save"):
        return f"snapshots only (save {config['save']}): everything since the last one is lost if the server dies"
    return "none: everything is lost if the server ends"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))[:2]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
