"""Every number and switch of coord, with its unit and its reason: each is the environment variable ``COORD_<NAME>``.

``load`` refuses what it does not know: a misspelt variable is answered with the nearest real one, a value that does
not fit with what is expected. Nothing else in coord reads ``COORD_*``.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from coord.errors import ConfigError

PREFIX = "COORD_"

#: Names that the predecessor's installations already set; the ``COORD_`` name wins where both are given.
ALIASES = {
    "AITBC_REDIS_URL": "redis_url",
    "AITBC_COORDINATOR_PORT": "gateway_port",
    "AITBC_LOG_LEVEL": "log_level",
}

#: Options of commands that are not called like their field.
OPTIONS = {"gateway_host": "--host", "gateway_port": "--port"}

#: Variables that are no settings: ``scripts/venv`` reads COORD_PYTHON, and a program that an agent runs is told of its
#: task; a ``coord`` that it runs in turn must not take them for mistakes.
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


#: What an operator may set while the workers run (``setting.set``); it holds over what their environment says.
LIVE = ("health_threshold", "strategy")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one process; ``_ms`` is milliseconds, ``_s`` seconds, ``_bytes`` bytes.

    ``Settings()`` holds the defaults. Values that come from outside go through ``load``, which validates them.
    """

    # Where Redis is, and how long it may take.

    #: redis://, rediss:// or unix://; None: the endpoint file of a running ``coord up``, else 127.0.0.1:6379.
    redis_url: str | None = None
    #: The first part of every key, as a cluster hash tag ``{coord}``: one namespace is one cell, on one primary.
    namespace: Namespace = "coord"
    #: Where ``coord up`` writes, and clients look up, where Redis is; None: see ``endpoint_path``.
    endpoint_file: str | None = None
    #: Accept a maxmemory-policy that evicts. Off: eviction loses acknowledged tasks without a word.
    allow_eviction: bool = False
    #: Time to open a connection; a server across a continent needs 0.5 s with TLS, and one that stands still for 2 s
    #: (CLIENT PAUSE, the fork of a large one) is reached all the same.
    connect_timeout_s: Seconds = 2.5
    #: How long the server may be silent while it owes an answer, on top of any BLOCK; then the connection is half-open
    #: and another one is made. Above 2 s, so that a server that stands still for so long is no alarm; with
    #: ``read_block_ms`` below 3 s, within which every process notices.
    answer_timeout_s: Seconds = 2.4
    #: The longest BLOCK of a read. An idle worker or agent reads again this often.
    read_block_ms: Milliseconds = 500

    # Logs of the processes.

    #: The least severe level that is written.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: auto: a readable console on a terminal, JSON lines elsewhere.
    log_format: Literal["auto", "json", "console"] = "auto"

    # Workers.

    #: Entries that one round trip handles at most: large enough to hide the latency, small enough for an urgent task.
    batch: Count = 256
    #: Bytes that one round trip handles at most: what Redis is blocked for stays within a few ms.
    batch_bytes: Bytes = 4 * MIB
    #: A worker that has not renewed its presence for this long is gone.
    presence_ttl_s: Seconds = 15.0
    #: Entries pending this long with a sibling are taken over; above any healthy batch, below a person's patience.
    reclaim_idle_ms: Milliseconds = 5_000
    #: Larger entries are refused: payload, result and message body each travel in one.
    max_entry_bytes: Bytes = MIB

    # Placement.

    #: How the best agent is chosen until an operator sets another strategy.
    strategy: Name = "least_connections"
    #: Agents below this health (0..1) get no task.
    health_threshold: Share = 0.5

    # A task's attempts.

    #: Attempts per task unless it says otherwise; two retries outlive most passing faults.
    max_attempts: Count = 3
    #: Wait before the first retry; doubles per attempt, with full jitter.
    backoff_ms: Milliseconds = 1_000
    #: The longest wait between attempts: 5 minutes.
    backoff_max_ms: Milliseconds = 300_000
    #: How often a task may be given back by agents that had started it before that counts as failing.
    max_releases: CountOrZero = 10
    #: An assignment that its agent has not claimed by then is taken back.
    start_timeout_ms: Milliseconds = 60_000
    #: What a running task has to stop after a cancel before the cancel is forced.
    cancel_grace_ms: Milliseconds = 10_000
    #: One attempt's limit on an agent that declares no incarnation, since nothing else would show its loss: 1 h.
    default_timeout_no_incarnation_ms: Milliseconds = 3_600_000

    # Agents, as the coordinator sees them.

    #: Tasks at once for an agent that declares no capacity.
    default_capacity: Count = 100
    #: Beats missed before an agent with a declared interval is stale.
    missed_beats: Count = 3
    #: Silence before an agent that declares no interval is stale.
    agent_timeout_s: Seconds = 300.0
    #: How long an agent that left is remembered: 30 days.
    departed_ttl_s: Seconds = 30.0 * DAY_S

    # Agents, as the SDK runs them.

    #: Between two beats; with three missed ones, a dead agent's tasks are placed anew after 15 s.
    heartbeat_interval_s: Seconds = 5.0
    #: Tasks at once of an agent that does not say.
    capacity: Count = 8

    # What is kept: by age and by count, so that memory is bounded.

    #: Finished tasks: 24 h …
    terminal_ttl_s: Seconds = 1.0 * DAY_S
    #: … and at most this many.
    terminal_entries: Count = 100_000
    #: Dead letters (tasks and messages): 7 days, so that a weekend does not hide a failure.
    dead_ttl_s: Seconds = 7.0 * DAY_S
    #: Entries of dead:in, where undecodable entries lie …
    dead_in_entries: Count = 10_000
    #: … and their bytes: each keeps up to 4 KiB, so that at least 3,000 of the largest stay.
    dead_in_bytes: Bytes = 16 * MIB
    #: Records of refused submissions: 1 h …
    refused_ttl_s: Seconds = 3_600.0
    #: … and at most this many, apart from the other finished ones.
    refused_entries: Count = 10_000
    #: Waiting tasks: at this number urgent ones are refused, at 80 % of it low ones.
    max_backlog_tasks: Count = 100_000
    #: The same limit in bytes of waiting tasks' bodies.
    max_backlog_bytes: Bytes = GIB
    #: Entries of each log stream (MAXLEN ~). Of log:tasks, events, many to an entry …
    log_entries: Count = 100_000
    #: … and bytes of each: 600 for each of as many entries, where an event holds 60 to 3,000.
    log_bytes: Bytes = 64 * MIB
    #: Bytes of log:progress: an event has up to 1 KiB and matters for seconds, so this log is the smallest.
    progress_log_bytes: Bytes = 8 * MIB
    #: Answers waiting for one caller …
    replies_entries: Count = 10_000
    #: … their bytes: a hundred callers that are away take less than 1 GiB …
    replies_bytes: Bytes = 8 * MIB
    #: … bytes of a result up to which it travels in the reply; a larger one is in the record alone, once in memory …
    reply_data_bytes: Bytes = 16 * KIB
    #: … and how long after the last one.
    replies_ttl_s: Seconds = 3_600.0

    # Messages.

    #: Messages waiting for one agent; what is above is refused, so that one deaf agent cannot fill the server.
    inbox_entries: Count = 10_000
    #: Room that the critical lane has beyond that: a full inbox still takes a cancel.
    inbox_critical_extra: CountOrZero = 1_000
    #: A message's life unless it says otherwise.
    message_ttl_s: Seconds = 300.0

    # The HTTP gateway.

    #: The address that it binds: this machine's own unless ``gateway_allow_open`` says that others may come.
    gateway_host: str = "127.0.0.1"
    #: Its port; 0: any free one.
    gateway_port: Port = 9001
    #: Bind an address that other machines reach. Off: there is no authentication yet, so who reaches it may do all.
    gateway_allow_open: bool = False
    #: How long a write waits for the worker's answer before it is called accepted.
    gateway_wait_s: Seconds = 2.0
    #: How long Redis may take before a request is answered 503: below what HTTP clients usually wait.
    gateway_redis_s: Seconds = 5.0
    #: How long a body may take to arrive.
    gateway_body_s: Seconds = 30.0
    #: Requests at once; what is above is answered 503, so that memory is bounded.
    gateway_requests: Count = 1_000

    @property
    def endpoint_path(self) -> Path:
        """The endpoint file: as set, else under $XDG_RUNTIME_DIR (gone after a reboot, as it should be), else state."""
        if self.endpoint_file:
            return Path(self.endpoint_file).expanduser()
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        base = Path(runtime) if runtime else Path("~/.local/state").expanduser()
        return base / "coord" / "endpoint.json"


_TYPES: dict[str, Any] = {
    name: hint
    for name, hint in get_type_hints(Settings, include_extras=True).items()
    if name in Settings.__struct_fields__
}


def load(environ: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Read the settings: ``overrides`` (a command's options; None means not given) over ``environ`` over the defaults.

    Args:
        environ: variables to read; default ``os.environ``. An empty value counts as not given.
        overrides: values by field name, validated like the variables.

    Raises:
        ConfigError: names the variable or option, its value and what is expected; for an unknown one the nearest known.
    """
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for alias, field in ALIASES.items():
        if raw := source.get(alias, "").strip():
            values[field] = _convert(f"{alias}={raw!r}", field, raw.lower() if field == "log_level" else raw)
    for variable in sorted(source):
        if not variable.startswith(PREFIX) or variable in FOREIGN:
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


def within_memory(settings: Settings, maximum: int) -> Settings:
    """Cap streams by shares of a server's maxmemory (bytes; 0: none) too: together they take a sixth of a small one."""
    if not maximum:
        return settings
    shares = {"log_bytes": 32, "progress_log_bytes": 64, "replies_bytes": 64, "dead_in_bytes": 32}
    capped = {name: min(getattr(settings, name), maximum // parts) for name, parts in shares.items()}
    return msgspec.structs.replace(settings, **capped)


def live_text(name: str, value: object) -> str:
    """The value of a setting of ``LIVE`` as it is kept in ``settings``.

    Raises:
        ConfigError: it cannot be set live, or the value does not fit; names those that can, or what is expected.
    """
    if name not in LIVE:
        raise ConfigError(f"{name!r} cannot be set live, only {', '.join(LIVE)}")
    return _text(_convert(f"{name}={value!r}", name, value))


def variable_of(field: str) -> str:
    """The environment variable of a field: ``batch_bytes`` → ``COORD_BATCH_BYTES``."""
    return PREFIX + field.upper()


def option_of(field: str) -> str:
    """The option of ``coord``'s commands for a field: ``namespace`` → ``--namespace``."""
    return OPTIONS.get(field, "--" + field.replace("_", "-"))


def source_of(field: str, value: str) -> str:
    """The environment variable that gives a field this value, for messages; '' if none does."""
    aliases = [alias for alias, one in ALIASES.items() if one == field]
    return next((name for name in (variable_of(field), *aliases) if os.environ.get(name, "").strip() == value), "")


def to_environ(settings: Settings) -> dict[str, str]:
    """The variables that make a child process load the same settings: those that differ from their defaults."""
    default = Settings()
    changed = {
        field: value
        for field in settings.__struct_fields__
        if (value := getattr(settings, field)) != getattr(default, field)
    }
    return {variable_of(field): _text(value) for field, value in changed.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _convert(said: str, field: str, value: object) -> Any:
    try:
        converted = msgspec.convert(value, _TYPES[field], strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{said}: {_expected(field, str(error))}") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(f"{said}: expected a finite number")
    return converted


def _expected(field: str, said: str) -> str:
    if field == "namespace":
        return "expected 1 to 64 characters of A-Z a-z 0-9 . _ -"
    hint = _TYPES[field]
    if hint == Share:
        return "expected a number from 0 to 1"
    if getattr(hint, "__origin__", None) is Literal:
        return "expected one of " + ", ".join(hint.__args__)
    return said.replace("`", "").replace("Expected", "expected").replace(", got str", ", in digits")


def _check_together(settings: Settings) -> None:
    if settings.backoff_max_ms < settings.backoff_ms:
        raise ConfigError(
            f"COORD_BACKOFF_MAX_MS={settings.backoff_max_ms}: "
            f"expected at least COORD_BACKOFF_MS, which is {settings.backoff_ms}"
        )
    if settings.batch_bytes < settings.max_entry_bytes:
        raise ConfigError(
            f"COORD_BATCH_BYTES={settings.batch_bytes}: expected at least COORD_MAX_ENTRY_BYTES, "
            f"which is {settings.max_entry_bytes}, or the largest entry would fit no batch"
        )


def _unknown(variable: str) -> str:
    # Without the prefix, which all have in common, so that it makes nothing alike.
    said = variable.upper().removeprefix(PREFIX)
    known = [field.upper() for field in _TYPES]
    near = difflib.get_close_matches(said, known, n=1, cutoff=0.7) or [one for one in known if one.endswith(f"_{said}")]
    hint = f"did you mean {PREFIX}{near[0]}?" if near else "known settings are the fields of coord.config.Settings"
    return f"{variable} is not a setting; {hint}"
