"""The least Redis user of each role: which commands it may send, to which keys.

``FAMILIES`` is the table: a row for each family of keys of ``coord/keys.py``, a column for each role. Workers own all
of them. A test fails while a family has no row. A role reads with the commands that it sends, see ``READS``.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from coord.errors import ConfigError, ServerUnfit
from coord.keys import Keys
from coord.models.ids import check_id


class Role(StrEnum):
    """Who connects to the server."""

    AGENT = "agent"
    CLIENT = "client"
    WORKER = "worker"
    GATEWAY = "gateway"
    OPERATOR = "operator"


class Family(NamedTuple):
    """What each role does with a family of keys.

    ``a`` appends an entry, ``r`` reads, ``c`` counts entries without reading them, ``d`` deletes entries,
    ``w`` writes.
    """

    kind: str  #: type of the keys
    agent: str = ""
    client: str = ""
    gateway: str = ""
    operator: str = ""


#: family -> its row; ``*`` is a variable part, ``{agent}`` in the column of agents their own id.
FAMILIES: dict[str, Family] = {
    "in:registry": Family("stream", agent="a", gateway="ac", operator="r"),
    "in:beats": Family("stream", agent="a", gateway="ac", operator="r"),
    "in:reports": Family("stream", agent="a", gateway="arc", operator="r"),
    "in:requests": Family("stream", client="a", gateway="arc", operator="ar"),
    "in:losses": Family("stream", gateway="rc", operator="r"),
    "in:tasks:*": Family("stream", client="ar", gateway="arc", operator="ar"),
    "in:messages:*": Family("stream", agent="a", client="a", gateway="ac", operator="ar"),
    "in:links": Family("stream", agent="a", gateway="c", operator="r"),
    "in:control:distributor": Family("stream", gateway="ac", operator="ar"),
    "in:control:registry": Family("stream", gateway="ac", operator="ar"),
    "in:control:router": Family("stream", gateway="ac", operator="ar"),
    "agent:*": Family("hash", gateway="r", operator="r"),
    "agents:active": Family("set", gateway="r", operator="r"),
    "agents:all": Family("set", gateway="r", operator="r"),
    "agents:expiry": Family("zset", operator="r"),
    "agents:departed": Family("zset", gateway="r", operator="r"),
    "agents:reported": Family("set", operator="r"),
    "agents:pushed": Family("set", gateway="r", operator="r"),
    "agents:lost": Family("zset", operator="r"),
    "agents:by:*": Family("set", gateway="r", operator="r"),
    "agents:health": Family("zset", gateway="r", operator="r"),
    "agents:facets": Family("set", gateway="r", operator="r"),
    "token:*": Family("hash", gateway="r", operator="r"),
    "tokens": Family("hash", gateway="r", operator="r"),
    "api_key:*": Family("hash", gateway="r", operator="r"),
    "api_keys": Family("zset", gateway="rw", operator="r"),
    "clock": Family("hash", operator="r"),
    "task:*": Family("hash", client="r", gateway="r", operator="r"),
    "inflight:*": Family("set", gateway="r", operator="r"),
    "queue:*": Family("zset", gateway="r", operator="r"),
    "pools": Family("hash", gateway="r", operator="r"),
    "pools:changed": Family("zset", gateway="r", operator="r"),
    "alarms": Family("zset", gateway="r", operator="r"),
    "deadlines": Family("zset", operator="r"),
    "limits": Family("zset", operator="r"),
    "unclaimed": Family("zset", operator="r"),
    "suspended": Family("hash", gateway="r", operator="r"),
    "tasks:terminal": Family("zset", gateway="r", operator="r"),
    "tasks:dead": Family("zset", gateway="r", operator="r"),
    "tasks:relieved": Family("string", operator="r"),
    "tasks:refused": Family("zset", gateway="r", operator="r"),
    "tombstones": Family("zset", operator="r"),
    "counters": Family("hash", gateway="r", operator="r"),
    "histograms": Family("hash", gateway="r", operator="r"),
    "task_types": Family("hash", gateway="r", operator="r"),
    "inbox:{agent}:*": Family("stream", agent="rd", gateway="rd", operator="r"),
    "message:*": Family("hash", client="r", gateway="r", operator="r"),
    "messages:dead": Family("zset", gateway="r", operator="r"),
    "messages:expiring": Family("zset", operator="r"),
    "recipients:*": Family("list", client="r", gateway="r", operator="r"),
    "outcomes:*": Family("list", client="r", gateway="r", operator="r"),
    "copies:*": Family("hash", client="r", gateway="r", operator="r"),
    "conversation:*": Family("zset", client="r", gateway="r", operator="r"),
    "requests": Family("zset", gateway="c", operator="r"),
    "history:*": Family("stream", gateway="r", operator="r"),
    "links:{agent}": Family("hash", agent="r", gateway="r", operator="r"),
    "masters": Family("hash", agent="r", gateway="r", operator="r"),
    "subordinates:{agent}": Family("set", agent="r", gateway="r", operator="r"),
    "idempotency:*": Family("string", gateway="w", operator="r"),
    "lanes": Family("hash", operator="r"),
    "lanes:routers": Family("zset", operator="r"),
    "pushes": Family("hash", operator="r"),
    "pushes:workers": Family("zset", operator="r"),
    "replies:{agent}": Family("stream", agent="r", client="r", gateway="r", operator="r"),
    "settings": Family("hash", gateway="r", operator="r"),
    "worker:*": Family("hash", gateway="r", operator="r"),
    "worker:gateway:*": Family("hash", gateway="w"),
    "workers:*": Family("zset", gateway="r", operator="r"),
    "workers:gateway": Family("zset", gateway="w"),
    "waiting": Family("hash", gateway="r", operator="r"),
    "dead:in": Family("stream", gateway="c", operator="r"),
    "log:agents": Family("stream", gateway="r", operator="r"),
    "log:messages": Family("stream", gateway="r", operator="r"),
    "log:tasks": Family("stream", gateway="r", operator="r"),
    "log:progress": Family("stream", gateway="r", operator="r"),
    "log:reports": Family("stream", operator="r"),
    "log:learned": Family("stream", operator="r"),
    "log:plans": Family("stream", operator="r"),
    "log:loads": Family("stream", operator="r"),
    "log:control": Family("stream", gateway="r", operator="r"),
    "log:audit": Family("stream", gateway="r", operator="r"),
    "size:*": Family("string", operator="r"),
    "gateway:requests:*": Family("string", gateway="rw", operator="r"),
    "gateway:ticket:*": Family("string", gateway="rw", operator="r"),
    "gateway:refreshed:*": Family("string", gateway="rw", operator="r"),
    "gateway:socket:*": Family("string", gateway="rw", operator="r"),
}

#: type of a key -> the commands that read it.
READS: dict[str, tuple[str, ...]] = {
    "stream": ("xread", "xrange", "xrevrange", "xlen", "xpending", "xinfo|stream", "xinfo|groups"),
    "hash": ("hgetall", "hmget", "hget", "hkeys", "hlen", "hscan", "hstrlen", "hexists"),
    "set": ("smembers", "sismember", "smismember", "scard", "sscan", "sinter", "sintercard"),
    "zset": (
        "zrange",
        "zrevrange",
        "zrangebyscore",
        "zrank",
        "zrevrank",
        "zscore",
        "zmscore",
        "zcard",
        "zcount",
        "zscan",
    ),
    "list": ("lrange", "llen"),
    "string": ("get",),
}
#: type of a key -> the commands that count its entries, and read none of them: facts of agents have their tokens.
COUNTS: dict[str, tuple[str, ...]] = {"stream": ("xlen", "xpending"), "zset": ("zcard",)}
#: type of a key -> the commands that write it.
WRITES: dict[str, tuple[str, ...]] = {
    "hash": ("hset", "pexpire"),
    "string": ("set", "incrby", "getdel"),
    "zset": ("zadd", "zrem", "zremrangebyscore"),
}
#: Commands that read a key of any type.
_READS_OF_ANY = ("exists", "pttl", "memory|usage")
#: role -> the commands of ``READS`` that it sends; a role that is not here sends all of them, and ``_READS_OF_ANY``.
_SENDS: dict[Role, frozenset[str]] = {
    Role.AGENT: frozenset({"xread", "xrange", "hget", "hgetall", "smembers"}),
    Role.CLIENT: frozenset({"xread", "xrange", "xrevrange", "hgetall", "hmget", "lrange", "zrange"}),
    Role.GATEWAY: frozenset({*(name for names in READS.values() for name in names), "exists"} - {"xinfo|groups"}),
}
#: role -> its commands without keys. AUTH, HELLO and RESET need no permission.
COMMANDS: dict[Role, tuple[str, ...]] = {
    Role.AGENT: ("ping", "info"),  # INFO: a result must fit the server's memory
    Role.CLIENT: ("ping",),
    Role.GATEWAY: ("ping", "time", "info", "client|tracking"),
    Role.OPERATOR: ("ping", "time", "info", "scan", "dbsize", "config|get", "multi", "exec"),
    Role.WORKER: (
        "ping", "time", "info", "config|get", "client|setname", "client|tracking", "cluster|keyslot",
        "cluster|nodes", "script|load",
    ),
}  # fmt: skip
#: The commands of workers and of their scripts, on every key of the namespace.
WORKER_COMMANDS = (
    "evalsha", "exists", "del", "unlink", "pexpire", "pttl", "persist", "get", "set",
    "hget", "hmget", "hgetall", "hexists", "hlen", "hkeys", "hscan", "hset", "hsetnx", "hdel", "hincrby", "hstrlen",
    "sadd", "srem", "scard", "sismember", "smembers", "smismember", "spop", "sscan", "sinter", "sintercard",
    "rpush", "lindex", "llen",
    "zadd", "zrem", "zcard", "zcount", "zdiff", "zscore", "zmscore", "zrank", "zrange", "zrangebyscore", "zpopmin",
    "zremrangebyrank", "zremrangebyscore",
    "xadd", "xdel", "xack", "xtrim", "xlen", "xrange", "xrevrange", "xread", "xreadgroup", "xgroup|create",
    "xgroup|delconsumer", "xinfo|stream", "xinfo|groups", "xinfo|consumers", "xpending", "xclaim", "xautoclaim",
)  # fmt: skip


def user_name(role: Role, namespace: str, own_id: str | None = None) -> str:
    """Return the name of a user: ``coord-agent-ocr-1``, ``coord-worker``.

    Args:
        role: the role.
        namespace: of the cell.
        own_id: id of the agent; for other roles any id that distinguishes several users, or None.

    Raises:
        IdInvalid: the id does not fit.
        ConfigError: it is missing, and the role is that of an agent.
    """
    if own_id is None:
        if role is Role.AGENT:
            raise ConfigError("a user of an agent is for one agent; name it: coord acl agent ocr-1")
        return f"{namespace}-{role}"
    return f"{namespace}-{role}-{check_id(own_id, 'ID')}"


def rules(role: Role, namespace: str, own_id: str | None = None, *, selects: bool = False) -> list[str]:
    """Return the permissions of a user, as ``ACL SETUSER`` takes them: each an argument.

    Args:
        role: the role.
        namespace: of the cell.
        own_id: id of the agent.
        selects: the user may also choose another database than 0.
    """
    prefix = Keys(namespace).prefix
    plain = [f"+{command}" for command in (*COMMANDS[role], *(("select",) if selects else ()))]
    if role is Role.WORKER:
        return [f"~{prefix}*", *plain, *(f"+{command}" for command in WORKER_COMMANDS)]
    own = own_id if role is Role.AGENT and own_id is not None else "*"
    keys = {family: prefix + family.replace("{agent}", own) for family in FAMILIES}
    access = {family: getattr(row, role.value) for family, row in FAMILIES.items()}
    found = [*plain]
    found += _selector(["xadd"], "%W~", (keys[family] for family in FAMILIES if "a" in access[family]))
    found += _selector(["xdel"], "%W~", (keys[family] for family in FAMILIES if "d" in access[family]))
    for kind, commands in WRITES.items():
        written = (keys[family] for family, row in FAMILIES.items() if row.kind == kind and "w" in access[family])
        found += _selector(commands, "%RW~", written)
    for kind, commands in READS.items():
        sends = _SENDS.get(role, frozenset({*commands, *_READS_OF_ANY}))
        wanted = [command for command in (*commands, *_READS_OF_ANY) if command in sends]
        read = (keys[family] for family, row in FAMILIES.items() if row.kind == kind and "r" in access[family])
        found += _selector(wanted, "%R~", read)
    for kind, commands in COUNTS.items():
        counted = (keys[family] for family, row in FAMILIES.items() if row.kind == kind and "c" in access[family])
        found += _selector(commands, "%R~", counted)
    return found


def _selector(commands: Iterable[str], mode: str, patterns: Iterable[str]) -> list[str]:
    """Return a selector: these commands on these keys. None of them has an effect on other keys."""
    listed = [f"{mode}{pattern}" for pattern in patterns]
    return [f"({' '.join([*(f'+{command}' for command in commands), *listed])})"] if listed else []


def digest_of_password(password: str) -> str:
    """Return what stands for a password in ``ACL SETUSER``, so that no log of the server has it."""
    return "#" + sha256(password.encode()).hexdigest()


def command_line(name: str, password: str, permissions: Iterable[str]) -> str:
    """Return the command that sets a user, for ``redis-cli``.

    Args:
        name: of the user.
        password: with its sign: ``>text``, or ``#digest``.
        permissions: of ``rules``.
    """
    return " ".join(["ACL SETUSER", name, "reset", "on", password, *permissions])


async def set_user(redis: Redis, name: str, password: str | None, permissions: Iterable[str]) -> None:
    """Create a user, or replace its permissions.

    Args:
        redis: a connection of a user that may do this.
        name: of the user.
        password: replaces all passwords of the user; None: they stay.
        permissions: of ``rules``.

    Raises:
        ConfigError: the connected user may not do this, or is the one that would be set.
        ServerUnfit: the server cannot have such a user.
    """
    connected = "this user"
    try:
        connected = f"the user '{(await redis.execute_command('ACL', 'WHOAMI')).decode()}'"
        if connected == f"the user '{name}'":
            raise ConfigError(f"{connected} is connected, so it cannot be set; use an administrator's --redis-url")
        if password is None:
            if await redis.execute_command("ACL", "GETUSER", name) is None:
                raise ConfigError(f"there is no user '{name}' whose password could stay; leave out --keep-password")
            begin = ["resetkeys", "resetchannels", "-@all", "clearselectors"]
        else:
            begin = ["reset", digest_of_password(password)]
        await redis.execute_command("ACL", "SETUSER", name, *begin, "on", *permissions)
    except (NoPermissionError, AuthenticationError) as error:
        raise ConfigError(
            f"{connected} may not set users ({error}); connect as an administrator, such as "
            "--redis-url redis://default:PASSWORD@HOST, or hand over what `coord acl` prints without --apply"
        ) from error
    except ResponseError as error:
        raise ServerUnfit(
            f"the server refuses the user '{name}': {error}; it must be Redis 7.0 or Valkey 7.2"
        ) from error
