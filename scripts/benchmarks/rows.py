"""The rows of the table: the driver of each, its options, and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """One number of a row."""

    name: str  #: name in the output of the driver
    unit: str
    better: Literal["more", "less"] = "less"
    floor: str = ""  #: the figure of the row ``floor`` that it is divided by
    judged: bool = False  #: ``--against`` fails if it is worse than that of the other commit
    wanted: str = ""  #: target of the project


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    what: str
    driver: str
    options: dict[str, Any]
    quick: dict[str, Any]  #: options that ``--quick`` changes
    figures: tuple[Figure, ...]
    own: bool = True  #: it runs coord; False: bare redis-py, which is the same for every commit

    @property
    def can_be_profiled(self) -> bool:
        """True if its driver has the option ``profile``."""
        return self.driver in {"drain", "flow"}


def _per_s(floor: str = "", wanted: str = "", name: str = "per_s") -> Figure:
    return Figure(name, "tasks/s", "more", floor, judged=True, wanted=wanted)


def _cpu(*names: str, floor: str = "", wanted: str = "") -> tuple[Figure, ...]:
    """Return figures of CPU time in µs per task; that of the server is compared with the floor."""
    redis = Figure("redis_us", "µs/task", floor=floor and f"{floor}_redis_us", wanted=wanted)
    commands = Figure("commands", "calls/task", floor=floor and f"{floor}_commands")
    others = (Figure(f"{name}_us", "µs/task", floor=floor and f"{floor}_{name}_us") for name in names)
    return (redis, commands, *others)


_DRAIN = {"tasks": 20_000, "agents": 50, "distributors": 1}
_SMALL = {"tasks": 4_000}

ROWS: tuple[Row, ...] = (
    Row(
        "floor", "the same hops with bare redis-py and one minimal script", "floor",
        {"tasks": 20_000, "agents": 50}, _SMALL,
        (
            Figure("drain_per_s", "tasks/s", "more"),
            Figure("drain_redis_us", "µs/task"),
            Figure("drain_commands", "calls/task"),
            Figure("drain_distributor_us", "µs/task"),
            Figure("drain_agents_us", "µs/task"),
            Figure("end_to_end_per_s", "tasks/s", "more"),
            Figure("end_to_end_redis_us", "µs/task"),
            Figure("end_to_end_commands", "calls/task"),
            Figure("end_to_end_client_us", "µs/task"),
            Figure("end_to_end_distributor_us", "µs/task"),
            Figure("end_to_end_agents_us", "µs/task"),
        ),
        own=False,
    ),
    Row(
        "drain", "waiting tasks, 50 agents, one distributor", "drain", _DRAIN, _SMALL,
        (
            _per_s("end_to_end_per_s", "≥ 0.5 of the floor"),
            *_cpu("distributor", "agents", floor="end_to_end", wanted="≤ 2.7 times the floor's"),
        ),
    ),
    Row(
        "drain2", "the same with two distributors", "drain", {**_DRAIN, "distributors": 2}, _SMALL,
        (
            _per_s("end_to_end_per_s", "no slower than one distributor"),
            *_cpu("distributor", "agents", floor="end_to_end"),
        ),
    ),
    Row(
        "end_to_end", "tasks submitted while others run", "flow", {"tasks": 20_000, "agents": 50}, _SMALL,
        (
            _per_s("end_to_end_per_s", "≥ 0.45 of the floor"),
            *_cpu("client", "distributor", "agents", floor="end_to_end", wanted="≤ 2.7 times the floor's"),
        ),
    ),
    Row(
        "awaited", "the same, and the client waits for every outcome", "flow",
        {"tasks": 20_000, "agents": 50, "notify": True}, _SMALL,
        (
            _per_s("end_to_end_per_s"),
            *_cpu("client", "distributor", "agents", floor="end_to_end"),
        ),
    ),
    Row(
        "latency", "200 tasks/s, from the submit call to the handler's start", "latency",
        {"tasks": 2_000, "agents": 50, "per_s": 200}, {"tasks": 400},
        (
            Figure("p50_ms", "ms", judged=True, wanted="< 2"),
            Figure("p95_ms", "ms"),
            Figure("p99_ms", "ms", wanted="< 6"),
            Figure("max_ms", "ms"),
        ),
    ),
    Row(
        "unserved", "latency of single tasks while 0 to 100,000 pools wait that no agent can serve", "unserved",
        {"tasks": 400, "per_s": 25, "sizes": {"none": 0, "few": 5_000, "more": 10_001, "many": 100_000}},
        {"tasks": 50, "sizes": {"none": 0, "few": 100, "more": 200, "many": 2_000}},
        (
            Figure("none_p50_ms", "ms"),
            Figure("few_p50_ms", "ms"),
            Figure("more_p50_ms", "ms"),
            Figure("many_p50_ms", "ms", wanted="≤ twice that of none"),
            Figure("none_p99_ms", "ms"),
            Figure("few_p99_ms", "ms"),
            Figure("more_p99_ms", "ms"),
            Figure("many_p99_ms", "ms"),
            Figure("none_idle_percent", "% of a core"),
            Figure("many_idle_percent", "% of a core", wanted="< 5"),
            Figure("many_mib", "MiB, distributor"),
        ),
    ),
    Row(
        "submit", "submit_many: appended by a client, admitted by one distributor", "intake",
        {"tasks": 20_000}, _SMALL,
        (
            _per_s(name="appended_per_s"),
            _per_s(name="admitted_per_s"),
            *_cpu("client", "distributor"),
            Figure("bytes", "bytes/queued task", judged=True, wanted="< 750"),
            Figure("all_bytes", "bytes/queued task, with log and replies"),
        ),
    ),
    Row(
        "pools", "100,000 tasks waiting in 100 pools", "drain",
        {**_DRAIN, "tasks": 100_000, "pools": 100}, {"tasks": 10_000},
        (_per_s("end_to_end_per_s"), *_cpu("distributor", "agents", floor="end_to_end")),
    ),
    Row(
        "fleet", "placements among 100 agents and among 10,000", "fleet",
        {"tasks": 20_000, "few": 100, "many": 10_000}, {"tasks": 4_000, "many": 1_000},
        (
            Figure("few_per_s", "placements/s", "more", judged=True),
            Figure("many_per_s", "placements/s", "more", judged=True, wanted="about the same"),
            Figure("few_distributor_us", "µs/placement"),
            Figure("many_distributor_us", "µs/placement"),
            Figure("few_redis_us", "µs/placement"),
            Figure("many_redis_us", "µs/placement"),
            Figure("many_idle_bytes", "bytes/idle agent", judged=True, wanted="< 10,240"),
        ),
    ),
    Row(
        "beats", "10,000 idle agents, each with a heartbeat every 10 s", "beats",
        {"agents": 10_000, "interval_s": 10.0, "for_s": 30.0}, {"agents": 1_000, "for_s": 3.0},
        (
            Figure("registry_percent", "% of a core"),
            Figure("redis_percent", "% of a core"),
            Figure("commands_per_minute", "calls/agent/min"),
            Figure("slowest_ms", "ms, slowest call"),
        ),
    ),
    Row(
        "discovery", "one page of agents by a mix of properties, among 10,000 agents", "discovery",
        {"agents": 10_000, "searches": 500, "sizes": {"twenty": 20, "hundred": 100}},
        {"agents": 1_000, "searches": 20},
        (
            Figure("twenty_p50_ms", "ms"),
            Figure("twenty_p99_ms", "ms", wanted="< 10"),
            Figure("hundred_p50_ms", "ms"),
            Figure("hundred_p99_ms", "ms"),
            Figure("twenty_client_ms", "ms of CPU"),
            Figure("twenty_redis_ms", "ms of CPU"),
            Figure("hundred_client_ms", "ms of CPU"),
            Figure("hundred_redis_ms", "ms of CPU"),
        ),
    ),
    Row(
        "messages", "direct messages that wait on all lanes, delivered by one router and by four", "messages",
        {"messages": 40_000, "agents": 100, "routers": {"one": 1, "four": 4}}, {"messages": 4_000},
        (
            Figure("one_per_s", "messages/s", "more", judged=True),
            Figure("four_per_s", "messages/s", "more", judged=True),
            Figure("one_router_us", "µs/message"),
            Figure("four_router_us", "µs/message"),
            Figure("one_redis_us", "µs/message"),
            Figure("four_redis_us", "µs/message"),
        ),
    ),
    Row(
        "broadcast", "broadcasts to 1,000 agents and to 10,000, one router", "messages",
        {"fleets": {"few": 1_000, "many": 10_000}, "broadcasts": 5}, {"fleets": {"few": 100, "many": 400}},
        (
            Figure("few_per_s", "copies/s", "more", judged=True),
            Figure("many_per_s", "copies/s", "more", judged=True),
            Figure("few_blocked_ms", "ms, longest time that Redis was blocked", wanted="< 5"),
            Figure("many_blocked_ms", "ms, longest time that Redis was blocked", wanted="< 5"),
            Figure("many_call_ms", "ms, median call for 16 copies"),
            Figure("few_redis_us", "µs/copy"),
            Figure("many_redis_us", "µs/copy"),
            Figure("many_router_us", "µs/copy"),
        ),
    ),
    Row(
        "aof", "the drain with an append-only file, synced every second", "drain", {**_DRAIN, "aof": True}, _SMALL,
        (_per_s("end_to_end_per_s"), *_cpu("distributor", "agents", floor="end_to_end")),
    ),
)  # fmt: skip

BY_NAME: dict[str, Row] = {row.name: row for row in ROWS}
