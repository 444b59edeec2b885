"""All settings of coord, with units and reasons: each is an environment variable ``COORD_<NAME>``.

``load`` rejects unknown variables and invalid values. The message names the nearest known variable, or what is
expected. ``coord.program_settings`` only warns of unknown variables. No other module reads ``COORD_*``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from coord.errors import ConfigError
from coord.suggestions import closest

PREFIX = "COORD_"

#: Names that installations of the predecessor already set. If both are set, the ``COORD_`` name takes precedence.
ALIASES = {
    "AITBC_REDIS_URL": "redis_url",
    "AITBC_COORDINATOR_PORT": "gateway_port",
    "AITBC_LOG_LEVEL": "log_level",
}

#: Command line options with a name that differs from the name of their field.
OPTIONS = {"gateway_host": "--host", "gateway_port": "--port", "agent_token_file": "--token-file"}

#: ``COORD_*`` variables that are not settings. ``scripts/venv`` reads COORD_PYTHON; ``coord agent`` sets the others for
#: the program that it runs. A ``coord`` command that such a program runs must accept them.
FOREIGN = frozenset(
    {"COORD_PYTHON", "COORD_AGENT_ID", "COORD_TASK_ID", "COORD_TASK_TYPE", "COORD_ATTEMPT", "COORD_PROGRESS_FD"}
)

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
DAY_S = 86_400

Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Bytes = Annotated[int, Meta(ge=KIB)]
Share = Annotated[float, Meta(ge=0, le=1)]
Namespace = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Port = Annotated[int, Meta(ge=0, le=65_535)]


#: Settings that an operator can change at run time (``setting.set``). The value takes precedence over the environment.
LIVE = (
    "avoid_failed_agent",
    "ejection",
    "full_scores",
    "health_threshold",
    "rare_skills_first",
    "record_plans",
    "strategy",
)
#: Those of them that can be set for the tasks of one type as well. The value takes precedence over that of the cell.
PER_TYPE = ("avoid_failed_agent", "ejection", "rare_skills_first", "strategy")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one process; ``_ms`` is milliseconds, ``_s`` seconds, ``_bytes`` bytes.

    ``Settings()`` holds the defaults. Values that come from outside go through ``load``, which validates them.
    """

    # Redis connection

    #: Address of the Redis server: a redis://, rediss:// or unix:// URL. Unset: the address of ``cell``; without one,
    #: the address in the endpoint file of a running ``coord up``; without that, 127.0.0.1:6379.
    redis_url: str | None = None
    #: First part of every key, as a Redis Cluster hash tag (``{coord}``). One namespace is one cell, on one primary.
    namespace: Namespace = "coord"
    #: File in which ``coord up`` publishes the address of Redis, and in which clients look it up. Unset:
    #: ``$XDG_RUNTIME_DIR/coord/endpoint.json``; without that variable, ``~/.local/state/coord/endpoint.json``.
    endpoint_file: str | None = None
    #: Name of the cell to use, from the configuration file; ``local`` is a running ``coord up``. ``COORD_REDIS_URL``
    #: takes precedence. Unset: the default of that file.
    cell: str | None = None
    #: Configuration file with named cells. Unset: ``$XDG_CONFIG_HOME/coord/config.toml``; without that variable,
    #: ``~/.config/coord/config.toml``.
    config_file: str | None = None
    #: Accept a server with a maxmemory-policy that evicts keys. Off by default, because eviction silently loses
    #: acknowledged tasks.
    allow_eviction: bool = False
    #: Timeout for opening a connection. A server on another continent needs 0.5 s with TLS. The default also covers a
    #: server that is unresponsive for 2 s (CLIENT PAUSE, or the fork of a large server).
    connect_timeout_s: Seconds = 2.5
    #: Time that the server may take to answer, in addition to any BLOCK. After this timeout the connection counts as
    #: half-open, and coord reconnects. The default is above 2 s, so that a server that is unresponsive for 2 s causes
    #: no reconnect. Together with ``read_block_ms`` it is below 3 s, so every process detects a half-open connection
    #: within 3 s.
    answer_timeout_s: Seconds = 2.4
    #: Longest BLOCK of a read. An idle worker or agent repeats its read at this interval.
    read_block_ms: Milliseconds = 500

    # Logging

    #: Least severe level that is logged.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: Format of the log: ``json`` for JSON lines, ``console`` for a readable log, ``auto`` for ``console`` on a
    #: terminal and ``json`` elsewhere.
    log_format: Literal["auto", "json", "console"] = "auto"

    #: Record spans with OpenTelemetry in gateways, clients and agents; needs the extra ``coord[otel]``.
    #: ``OTEL_TRACES_EXPORTER`` and the other variables of OpenTelemetry say where they go.
    tracing: bool = False

    # Workers

    #: Maximum number of facts that a worker handles in one round trip. Large enough to hide the latency of the round
    #: trip, small enough that an urgent task does not wait long.
    batch: Count = 256
    #: Maximum number of bytes that a worker handles in one round trip. It keeps the time for which Redis is blocked
    #: within a few milliseconds.
    batch_bytes: Bytes = 4 * MIB
    #: A worker that has not renewed its presence for this long counts as absent.
    presence_ttl_s: Seconds = 15.0
    #: Entries that have been pending with another worker for this long are taken over. The default is longer than any
    #: healthy batch takes, and short enough for a person who waits.
    reclaim_idle_ms: Milliseconds = 5_000
    #: Maximum size of an entry; larger entries are refused. A payload, a result and the body of a message each travel
    #: in one entry.
    max_entry_bytes: Bytes = MIB

    # Placement

    #: Placement strategy: how coord chooses among the eligible agents.
    strategy: Name = "least_connections"
    #: Minimum health of an agent. Agents below it get no tasks.
    health_threshold: Share = 0.5
    #: Under every strategy, give an agent no tasks of a type for a while if it fails far more of them than others do.
    ejection: bool = True
    #: Under every strategy, give a task another agent after an attempt that failed, if another can do it.
    avoid_failed_agent: bool = True
    #: Under every strategy, use first the agents whose other capabilities are least in demand, as ``capability_based``
    #: does. The strategy chooses among agents that are alike in this. Agents with rare skills stay free for the tasks
    #: that need them.
    rare_skills_first: bool = False
    #: Record what distributors plan on and what they choose in ``log:plans``, for ``coord simulate replay``. Off,
    #: because it costs time and memory: about 80 bytes for each task.
    record_plans: bool = False
    #: Store the scores of the best agents, with every term of them, in the record of each task. Off, because it costs
    #: time and up to 800 bytes for each task; without it, all tasks of a batch share a short explanation.
    full_scores: bool = False

    # Task attempts

    #: Attempts for a task that does not specify its own number. Two retries outlast most transient faults.
    max_attempts: Count = 3
    #: Upper limit of the backoff before the first retry. It doubles with each further retry; the actual delay is random
    #: between 0 and that limit (full jitter).
    backoff_ms: Milliseconds = 1_000
    #: Maximum backoff between two attempts.
    backoff_max_ms: Milliseconds = 300_000
    #: Number of times that agents may return a task after starting it. The next return fails the task.
    max_releases: CountOrZero = 10
    #: Time in which an agent must claim an assigned task. After it the task is assigned again.
    start_timeout_ms: Milliseconds = 60_000
    #: Time in which a running task must stop after a cancel request. After it the cancel is forced.
    cancel_grace_ms: Milliseconds = 10_000
    #: Timeout of one attempt on an agent that declares no incarnation, for tasks without a timeout of their own.
    #: Without an incarnation, coord cannot detect in any other way that the agent lost the task.
    default_timeout_no_incarnation_ms: Milliseconds = 3_600_000

    # Agents, coordinator side

    #: Capacity of an agent that declares none: the number of tasks that it may hold at once.
    default_capacity: Count = 100
    #: Number of missed heartbeats after which an agent that declares a heartbeat interval becomes stale.
    missed_beats: Count = 3
    #: Time without a heartbeat after which an agent that declares no heartbeat interval becomes stale.
    agent_timeout_s: Seconds = 300.0
    #: Time for which the record of an agent that left or became stale is kept.
    departed_ttl_s: Seconds = 30.0 * DAY_S

    #: Refuse the facts of an agent, also the messages that name it as their sender, unless they carry its token
    #: (``coord agents enrol``). Registries and routers read it: set it for all of them. Off by default, because every
    #: agent must have a token before. It is no live setting, so that no fact can turn it off.
    require_tokens: bool = False

    # Agents, agent side

    #: Token of a Python agent or of ``coord agent``, from ``coord agents enrol``. Clients that send messages as this
    #: agent use it too. Without ``COORD_REQUIRE_TOKENS`` the workers ignore it.
    agent_token: str | None = None
    #: File with the token instead. It is read again when it changes, so a rotated token needs no restart.
    agent_token_file: str | None = None

    #: Interval between two heartbeats of a Python agent or of ``coord agent``. With the default of three missed
    #: heartbeats, the tasks of a dead agent are placed on other agents after 15 s.
    heartbeat_interval_s: Seconds = 5.0
    #: Capacity of a Python agent or of ``coord agent`` that specifies none.
    capacity: Count = 8

    # Retention: limits by age, by number and by bytes keep memory bounded.

    #: Time for which tasks that completed, expired or were cancelled are kept.
    terminal_ttl_s: Seconds = 1.0 * DAY_S
    #: Maximum number of these tasks. The same limit applies separately to failed tasks.
    terminal_entries: Count = 100_000
    #: Time for which dead letters (failed tasks and undelivered messages) are kept. Seven days, so that a failure is
    #: still there after a weekend.
    dead_ttl_s: Seconds = 7.0 * DAY_S
    #: Maximum number of entries that no worker could decode or handle (stream ``dead:in``). The same limit applies
    #: separately to dead messages.
    dead_in_entries: Count = 10_000
    #: Maximum size of the stream ``dead:in``. Each of its entries keeps up to 4 KiB, so at least 3,000 of the largest
    #: ones fit.
    dead_in_bytes: Bytes = 16 * MIB
    #: Time for which the records of refused submissions are kept.
    refused_ttl_s: Seconds = 3_600.0
    #: Maximum number of these records. They do not count towards ``terminal_entries``.
    refused_entries: Count = 10_000
    #: Maximum number of waiting tasks. Urgent tasks are refused at this number, low ones already at 80 % of it.
    max_backlog_tasks: Count = 100_000
    #: The same limit for the total size of the bodies of waiting tasks.
    max_backlog_bytes: Bytes = GIB
    #: Maximum number of entries in each log stream (MAXLEN ~). In ``log:tasks`` it limits events, because one entry
    #: holds many.
    log_entries: Count = 100_000
    #: Maximum size of each other log stream. An event takes 60 to 3,000 bytes; the default allows
    #: about 600 for each of 100,000 events.
    log_bytes: Bytes = 64 * MIB
    #: Maximum size of the streams ``log:progress``, ``log:reports`` and ``log:learned``. A progress event takes up to
    #: 1 KiB and matters for seconds only, so these logs are the smallest.
    progress_log_bytes: Bytes = 8 * MIB
    #: Maximum number of answers that wait for one client.
    replies_entries: Count = 10_000
    #: Maximum size of the answers that wait for one client. The answers for a hundred absent clients stay below 1 GiB.
    replies_bytes: Bytes = 8 * MIB
    #: Maximum size of a result that is included in the answer. A larger result is only in the record of its task, so it
    #: is in memory once.
    reply_data_bytes: Bytes = 16 * KIB
    #: Time for which the answers for a client are kept after the last one.
    replies_ttl_s: Seconds = 3_600.0

    # Messages

    #: Maximum number of entries in each lane of an agent's inbox. Further messages are refused, so that an agent that
    #: does not read cannot fill the server.
    inbox_entries: Count = 10_000
    #: Additional entries in the critical lane, so that a full inbox still accepts a cancel.
    inbox_critical_extra: CountOrZero = 1_000
    #: Time to live of a message that does not specify its own.
    message_ttl_s: Seconds = 300.0
    #: Maximum number of answers in a chain of messages of which each answers the one before. The next answer becomes a
    #: dead letter, so that agents that answer each other without end are stopped.
    hop_limit: Count = 16
    #: Maximum number of messages of one conversation. Further ones become dead letters.
    conversation_messages: Count = 1_000

    # HTTP gateway

    #: Address that the gateway binds. Any other than a loopback address requires ``gateway_security``.
    gateway_host: str = "127.0.0.1"
    #: Port that the gateway binds. 0 selects any free port.
    gateway_port: Port = 9001
    #: Every request needs a credential: an API key, a JWT, or the token of an agent; and push workers refuse private
    #: addresses as endpoints. Off by default, because only programs on this machine reach a loopback address.
    gateway_security: bool = False
    #: Maximum number of requests of one credential in a minute, in all gateways together, if ``gateway_security`` is
    #: on. 0: no limit. Heartbeats and health checks do not count.
    gateway_rate: CountOrZero = 6_000
    #: The same for the requests of an address without a credential, such as logins.
    gateway_open_rate: CountOrZero = 120
    #: Maximum number of refused credentials of one address in a minute. After them the gateway answers every other
    #: credential from there with 429, and does not check it.
    gateway_refused_rate: Count = 20
    #: Addresses or networks of reverse proxies, with commas between. The gateway believes their headers
    #: ``X-Forwarded-For`` and ``X-Forwarded-Proto``, and those of nobody else.
    gateway_trusted_proxies: str | None = None
    #: Origins whose web pages may use the gateway, with commas between, such as ``https://ops.example.org``. Unset:
    #: only pages of the gateway itself.
    gateway_cors_origins: str | None = None
    #: Secret for JWTs that are signed with HS256: 32 characters at least. The gateway issues and accepts such JWTs.
    gateway_jwt_secret: str | None = None
    #: RSA key for JWTs that are signed with RS256, as PEM or as the path of a file. With a private key the gateway
    #: issues and accepts such JWTs; with a public key it only accepts them.
    gateway_jwt_key: str | None = None
    #: Issuer of the JWTs, claim ``iss``. Unset: not checked.
    gateway_jwt_issuer: str | None = None
    #: Audience of the JWTs, claim ``aud``. Unset: not checked.
    gateway_jwt_audience: str | None = None
    #: Time for which a JWT that the gateway issues is valid.
    gateway_jwt_ttl_s: Seconds = 900.0
    #: Time for which a refresh token is valid.
    gateway_refresh_ttl_s: Seconds = 7.0 * DAY_S
    #: Time for which a write request waits for the answer of a worker. After it the gateway answers 202 (accepted).
    gateway_wait_s: Seconds = 2.0
    #: Timeout for Redis. After it the gateway answers 503. The default is below the usual timeout of HTTP clients.
    gateway_redis_s: Seconds = 5.0
    #: Timeout for receiving the body of a request.
    gateway_body_s: Seconds = 30.0
    #: Maximum number of concurrent requests. The gateway answers further ones with 503, so that memory is bounded.
    gateway_requests: Count = 1_000
    #: Maximum number of listeners to events, of /events and /ws together; one credential has a tenth of them at most.
    #: The gateway answers further ones with 503.
    gateway_listeners: Count = 5_000

    # Push workers

    #: Time for which the endpoint of an agent may be silent while a task is pushed to it. An agent that needs longer
    #: responds with 202 and reports later.
    push_timeout_s: Seconds = 5.0
    #: Maximum number of connections of a push worker. One agent gets a tenth of them at most.
    push_connections: Count = 1_000
    #: Networks with commas between, such as ``10.0.0.0/8``. With ``gateway_security``, push workers connect to public
    #: addresses and to these networks only.
    push_networks: str | None = None

    @property
    def endpoint_path(self) -> Path:
        """The endpoint file: as set, else under $XDG_RUNTIME_DIR, which a reboot empties, else under ~/.local/state.

        Raises:
            ConfigError: this user has no home directory, and no setting names another path.
        """
        if (path := self.endpoint_place) is None:
            raise ConfigError("there is no home directory for the endpoint file; set COORD_ENDPOINT_FILE to a path")
        return path

    @property
    def endpoint_place(self) -> Path | None:
        """The same, but None if this user has no home directory and no setting names another path.

        Raises:
            ConfigError: the setting names the home directory of a user that has none.
        """
        if self.endpoint_file:
            return expand_home(self.endpoint_file, f"COORD_ENDPOINT_FILE={self.endpoint_file}")
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        try:
            base = Path(runtime) if runtime else Path("~/.local/state").expanduser()
        except RuntimeError:
            return None
        return base / "coord" / "endpoint.json"


#: Variables that Kubernetes sets for a service: NAME_SERVICE_HOST, NAME_SERVICE_PORT, the same for each named port, and
#: the four variables of each port. NAME_PORT is known by its value.
_SERVICE_NAME = re.compile(
    r"COORD(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")

#: Other words for true and false.
_SWITCH = {"on": "true", "off": "false"}

_TYPES: dict[str, Any] = {
    name: hint
    for name, hint in get_type_hints(Settings, include_extras=True).items()
    if name in Settings.__struct_fields__
}


def load(environ: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Read the settings: ``overrides`` take precedence over ``environ``, and ``environ`` over the defaults.

    Args:
        environ: variables to read; default ``os.environ``. An empty value counts as unset.
        overrides: values by field name, such as the options of a command; validated like variables. None: not given.

    Raises:
        ConfigError: a variable or option is unknown or invalid; names it, its value, and what is expected.
    """
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for alias, field in ALIASES.items():
        if (raw := source.get(alias, "").strip()) and not is_service_variable(alias, raw):
            values[field] = _convert(f"{alias}={raw!r}", field, raw.lower() if field == "log_level" else raw)
    for variable in sorted(source):
        if not variable.startswith(PREFIX) or variable in FOREIGN or is_service_variable(variable, source[variable]):
            continue
        field = variable.removeprefix(PREFIX).lower()
        if field not in _TYPES or variable != variable_of(field):
            raise ConfigError(_unknown(variable))
        if raw := source[variable].strip():
            values[field] = _convert(f"{variable}={raw!r}", field, raw)
    for field, value in overrides.items():
        if field not in _TYPES:
            raise ConfigError(_unknown(variable_of(field)))
        if value is not None:
            values[field] = _convert(f"{option_of(field)} {value!r}", field, value)
    settings = Settings(**values)
    _check_together(settings)
    return settings


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the ``COORD_*`` variables that are no settings, each with the message of its error."""
    unknown = [name for name, value in environ.items() if name.startswith(PREFIX) and _is_unknown(name, value)]
    return {name: _unknown(name) for name in sorted(unknown)}


def is_service_variable(name: str, value: str) -> bool:
    """Return True if Kubernetes sets a variable for a service that is called ``coord`` or ``coord-…``.

    It sets some for each service of a namespace in every container. ``COORD_GATEWAY_PORT`` and the name of an alias can
    be one too; their value is an address with a protocol then, and not a number.
    """
    return _SERVICE_NAME.fullmatch(name) is not None or (
        name.endswith("_PORT") and _SERVICE_ADDRESS.match(value.strip()) is not None
    )


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without settings of coord; variables of Kubernetes services stay."""
    return {
        name: value
        for name, value in environ.items()
        if not (name.startswith(PREFIX) or name in ALIASES) or is_service_variable(name, value)
    }


def _is_unknown(name: str, value: str) -> bool:
    field = name.removeprefix(PREFIX).lower()
    is_setting = field in _TYPES and name == variable_of(field)
    return not (is_setting or name in FOREIGN or is_service_variable(name, value))


def expand_home(path: str | Path, source: str) -> Path:
    """Return a path with ``~`` replaced; ``source``: the option or variable with its value, for the message.

    Raises:
        ConfigError: there is no such user, or it has no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise ConfigError(f"{source}: there is no home directory {user}; write the whole path") from None


def within_memory(settings: Settings, maximum: int) -> Settings:
    """Limit the sizes of streams also by shares of the server's maxmemory: together a sixth of it at most.

    Args:
        settings: the settings.
        maximum: maxmemory in bytes; 0: none.
    """
    if not maximum:
        return settings
    shares = {"log_bytes": 32, "progress_log_bytes": 64, "replies_bytes": 64, "dead_in_bytes": 32}
    capped = {name: min(getattr(settings, name), maximum // parts) for name, parts in shares.items()}
    return msgspec.structs.replace(settings, **capped)


def live_text(name: str, value: object, task_type: str | None = None) -> str:
    """Return the value of a live setting as text, as it is stored in the key ``settings``.

    Args:
        name: of the setting.
        value: of any type that the setting accepts.
        task_type: the type of the tasks that it is for; None: all.

    Raises:
        ConfigError: the setting cannot be set live, or the value is invalid; names the valid ones.
    """
    check_live(name, task_type)
    converted = _convert(f"{name}={value!r}", name, value)
    return ("off", "on")[converted] if isinstance(converted, bool) else _text(converted)


def check_live(name: str, task_type: str | None = None) -> None:
    """Check that a setting can be changed at run time, for all tasks or for those of one type.

    Raises:
        ConfigError: it cannot; names the settings that can, and the nearest of them.
    """
    known, where = (LIVE, "live") if task_type is None else (PER_TYPE, "for a task type")
    if name not in known:
        near = closest(name, known)
        step = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"{name!r} cannot be set {where}, only {', '.join(known)}{step}")


def variable_of(field: str) -> str:
    """Return the environment variable of a field: ``batch_bytes`` → ``COORD_BATCH_BYTES``."""
    return PREFIX + field.upper()


def option_of(field: str) -> str:
    """Return the command line option of a field: ``namespace`` → ``--namespace``."""
    return OPTIONS.get(field, "--" + field.replace("_", "-"))


def source_of(field: str, value: str) -> str:
    """Return the environment variable that sets a field to this value, for messages; '' if none does."""
    aliases = [alias for alias, target in ALIASES.items() if target == field]
    return next((name for name in (variable_of(field), *aliases) if os.environ.get(name, "").strip() == value), "")


def to_environ(settings: Settings) -> dict[str, str]:
    """Return the variables with which a child process loads the same settings: all that differ from their default."""
    default = Settings()
    changed = {
        field: value
        for field in settings.__struct_fields__
        if (value := getattr(settings, field)) != getattr(default, field)
    }
    return {variable_of(field): _text(value) for field, value in changed.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _convert(given: str, field: str, value: object) -> Any:
    if _TYPES[field] is bool and isinstance(value, str):
        value = _SWITCH.get(value.lower(), value)
    try:
        converted = msgspec.convert(value, _TYPES[field], strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{given}: {_expected(field, str(error))}") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(f"{given}: expected a finite number")
    return converted


def _expected(field: str, error: str) -> str:
    if field == "namespace":
        return "expected 1 to 64 characters of A-Z a-z 0-9 . _ -"
    hint = _TYPES[field]
    if hint == Share:
        return "expected a number from 0 to 1"
    if hint is bool:
        return "expected on or off"
    if getattr(hint, "__origin__", None) is Literal:
        return "expected one of " + ", ".join(hint.__args__)
    return error.replace("`", "").replace("Expected", "expected").replace(", got str", ", in digits")


def _check_together(settings: Settings) -> None:
    if settings.backoff_max_ms < settings.backoff_ms:
        raise ConfigError(
            f"COORD_BACKOFF_MAX_MS={settings.backoff_max_ms}: "
            f"expected at least COORD_BACKOFF_MS, which is {settings.backoff_ms}"
        )
    if settings.agent_token and settings.agent_token_file:
        raise ConfigError(
            f"COORD_AGENT_TOKEN is set, and a file with the token too ({settings.agent_token_file}); use one of them"
        )
    if settings.batch_bytes < settings.max_entry_bytes:
        raise ConfigError(
            f"COORD_BATCH_BYTES={settings.batch_bytes}: expected at least COORD_MAX_ENTRY_BYTES, "
            f"which is {settings.max_entry_bytes}, or the largest entry would fit no batch"
        )


def _unknown(variable: str) -> str:
    # The prefix is removed, because all names share it and it would make any two of them similar.
    name = variable.upper().removeprefix(PREFIX)
    known = [field.upper() for field in _TYPES]
    near = closest(name, known, cutoff=0.7) or next((field for field in known if field.endswith(f"_{name}")), None)
    hint = f"did you mean {PREFIX}{near}?" if near else "known settings are the fields of coord.config.Settings"
    return f"{variable} is not a setting; {hint}"
