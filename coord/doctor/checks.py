"""The checks: each finds problems of one area in a snapshot, or says in one finding that all is well. No I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from coord.doctor.agents import Affected
from coord.doctor.machine import SECRET, Machine
from coord.doctor.snapshot import Snapshot
from coord.errors import ServerUnfit
from coord.keys import CONSUMES, GATEWAY, PUSH
from coord.models.cell import PLACE_UP_TO, REFUSE_ABOVE, RELIEVE_ABOVE, WAITS_FOR, WorkerRecord
from coord.models.findings import Finding, Level
from coord.models.tasks import TaskState
from coord.server_check import evaluate_server
from coord.units import duration, size

#: Milliseconds after which a waiting entry is late; a batch takes milliseconds.
LATE_MS = 5_000
#: Milliseconds after which entries that wait are an error: nobody handles them, or far too few do.
VERY_LATE_MS = 60_000
#: Milliseconds without progress after which a worker is stuck; an idle one makes progress every two seconds.
STUCK_MS = 10_000
#: Two clocks that differ by more than this are wrong.
CLOCK_MS = 2_000
#: Shares of maxclients.
CONNECTIONS_WARN, CONNECTIONS_ERROR = 0.8, 0.95
#: Bytes by which a replica may lag behind.
REPLICA_BYTES = 16 * 1024 * 1024
#: Names in a message.
NAMED = 3
#: reason of deaf agents -> what it means, and the next step.
DEAF: Mapping[str, tuple[str, str]] = {
    "reported": ("as the agent reports: it does not read its inbox", "restart it; `coord agents show ID`"),
    "unread": ("it sends heartbeats and does not read its inbox", "restart it; `coord agents show ID`"),
    "unpolled": (
        "nothing reads its inbox over HTTP", "poll /agents/ID/inbox or register endpoints.http; `coord agents show ID`",
    ),
    "": ("for reasons that were not read: too many agents are unhealthy", "`coord agents list`"),
}  # fmt: skip
#: kind of dead letters -> one, several, and the next step.
DEAD_LETTERS: Mapping[str, tuple[str, str, str]] = {
    "task": ("failed task", "failed tasks", "`coord tasks retry --query state:failed` runs all again"),
    "message": ("undelivered message", "undelivered messages", "coord dead replay delivers them again"),
    "entry": ("entry that was not handled", "entries that were not handled", "coord dead replay appends them again"),
}
#: Findings of the ledger that are listed.
LEDGER = 10

Findings = Iterator[Finding]


def check_server(snapshot: Snapshot) -> Findings:
    """Check the version, the settings and the durability of the server, and that it accepts writes."""
    if snapshot.refusal:
        yield _error(
            "server.writes",
            f"the server refuses writes, so nothing is submitted, placed or reported: {snapshot.refusal}",
            "free memory or disk, or point COORD_REDIS_URL at the primary; then writes go on by themselves",
        )
    info = snapshot.info
    if info is None:
        return
    try:
        report = evaluate_server(info, snapshot.config, allow_eviction=snapshot.allow_eviction)
    except ServerUnfit as error:
        yield _error("server.unfit", str(error), "change this before anything else")
        return
    if report.policy != "noeviction":
        yield _warning(
            "server.eviction",
            f"maxmemory-policy is {report.policy}: a full server silently drops tasks",
            "`CONFIG SET maxmemory-policy noeviction`, and keep it in the server's configuration",
        )
    if not report.maxmemory:
        yield _warning(
            "server.maxmemory",
            "no maxmemory is set: when memory runs out, the system kills the server before it can refuse new tasks",
            "`CONFIG SET maxmemory` to less than the machine has, and keep it in the server's configuration",
        )
    if report.durability.startswith(("none", "snapshots", "no AOF")):
        yield _warning(
            "server.durability",
            f"durability: {report.durability}",
            "`CONFIG SET appendonly yes`, and keep it in the server's configuration",
        )
    for field, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(field, "ok") != "ok":
            yield _error(
                "server.disk",
                f"the last write of the {what} failed ({field} is {info[field]})",
                "see the server's log; free or enlarge its disk",
            )
    for sentence in report.advice:
        name, _, rest = sentence.partition(": ")
        yield Finding(Level.OK, "server.advice", name, rest)
    yield _ok("server", f"{report.product} {report.version}; {report.durability}")


def check_memory(snapshot: Snapshot) -> Findings:
    """Check how full the memory of the server is."""
    memory = snapshot.statistics.memory
    if memory is None:
        return
    fullness = f"the server's memory is {memory.share:.0%} full ({size(memory.used)} of {size(memory.maximum)})"
    advice = "`coord ps` shows what holds it; free that, or raise maxmemory"
    if memory.is_too_full_to_place:
        yield _error("memory.full", f"{fullness}, so no task is placed (above {PLACE_UP_TO:.0%})", advice)
    elif memory.is_nearly_full:
        yield _error("memory.full", f"{fullness}, so submissions are refused (above {REFUSE_ABOVE:.0%})", advice)
    elif memory.share > RELIEVE_ABOVE:
        yield _warning("memory.high", f"{fullness}, so results of ended tasks are dropped", advice)
    else:
        yield _ok("memory", fullness if memory.maximum else f"the server uses {size(memory.used)} of memory")


def check_replication(snapshot: Snapshot) -> Findings:
    """Check that replicas are connected and follow."""
    info = snapshot.info
    if info is None or info.get("role") != "master" or not int(info.get("connected_slaves", 0)):
        return
    offset, late = int(info.get("master_repl_offset", 0)), list[str]()
    for number in range(int(info["connected_slaves"])):
        replica = info.get(f"slave{number}")
        if not isinstance(replica, dict):
            continue
        place = f"{replica.get('ip')}:{replica.get('port')}"
        behind = offset - int(replica.get("offset", offset))
        if replica.get("state") != "online":
            late.append(f"{place} is {replica.get('state')}")
        elif behind > REPLICA_BYTES:
            late.append(f"{place} is {size(behind)} behind")
    if late:
        yield _warning(
            "replication.lag",
            f"{'; '.join(late)}: a fail-over to it now would lose acknowledged tasks",
            "see the log of the replica, and the network between them",
        )
    else:
        yield _ok("replication", f"{_count(int(info['connected_slaves']), 'replica')} online")


def check_connections(snapshot: Snapshot) -> Findings:
    """Check the connections of the server against its limit."""
    info = snapshot.info or {}
    clients, limit = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    if not limit:
        return
    text = f"{clients:,} of {limit:,} connections are in use"
    if clients > CONNECTIONS_WARN * limit:
        make = _error if clients > CONNECTIONS_ERROR * limit else _warning
        yield make(
            "connections.many",
            f"{text}; further ones are refused at the limit",
            "`CONFIG SET maxclients` higher (and `ulimit -n` of the server), or share a Client in each process",
        )
    else:
        yield _ok("connections", text)


def check_clocks(snapshot: Snapshot) -> Findings:
    """Compare the clocks of this machine, of workers and of agents with the server's."""
    problems = 0
    offset = snapshot.clock_offset
    if offset is not None and abs(offset) > CLOCK_MS + snapshot.clock_error:
        problems += 1
        yield _warning(
            "clocks.here",
            f"this machine's clock is {duration(abs(offset))} {'ahead of' if offset > 0 else 'behind'} the server's: "
            "deadlines and run times that are given as points in time are wrong by that",
            "synchronize both machines (timedatectl set-ntp true, or chronyc tracking)",
        )
    early = {
        worker.name: worker.started_at - snapshot.now
        for worker in snapshot.processes
        if worker.started_at - snapshot.now > CLOCK_MS
    }
    early |= {
        registration.agent_id: registration.created_at - registration.at
        for registration in snapshot.registrations
        if registration.created_at - registration.at > CLOCK_MS
    }
    if early:
        problems += 1
        worst = max(early.values())
        yield _warning(
            "clocks.others",
            f"the clocks of {_names(early)} are ahead of the server's, by up to {duration(worst)}",
            "synchronize their machines (timedatectl set-ntp true)",
        )
    if not problems and offset is not None:
        accuracy = f" (measured to {duration(snapshot.clock_error)})"
        yield _ok("clocks", f"this machine and the server differ by {duration(abs(offset))}{accuracy}")


def check_workers(snapshot: Snapshot) -> Findings:
    """Check that each kind of worker runs and makes progress."""
    found = [
        *missing_workers(snapshot.processes, snapshot.pushed),
        *stuck_workers(snapshot.processes, snapshot.now),
        *missing_tokens(snapshot.processes),
    ]
    yield from found
    versions = defaultdict[str, list[str]](list)
    for process in snapshot.processes:
        versions[process.version].append(process.name)
    if len(versions) > 1:
        listed = "; ".join(f"{version}: {_names(names)}" for version, names in sorted(versions.items()))
        yield _warning(
            "workers.versions", f"processes have different versions of coord ({listed})", "restart the old ones"
        )
    elif not found:
        kinds = [(kind, sum(one.kind == kind for one in snapshot.processes)) for kind in (*CONSUMES, PUSH, GATEWAY)]
        yield _ok("workers", ", ".join(f"{number} {kind}" for kind, number in kinds if number))


def missing_workers(processes: Sequence[WorkerRecord], pushed: int, kinds: Iterable[str] = CONSUMES) -> Findings:
    """Find kinds of workers of which none runs.

    Args:
        processes: those that run.
        pushed: agents to which tasks are pushed.
        kinds: the kinds that must run, besides push workers.
    """
    running = {process.kind for process in processes}
    for kind in kinds:
        if kind not in running:
            yield _error(
                "workers.missing",
                f"no {kind} is running, so {WAITS_FOR[kind]} wait",
                f"start one: `coord worker {kind}`",
            )
    if pushed and PUSH not in running:
        yield _error(
            "workers.missing",
            f"no push worker is running, so the {WAITS_FOR[PUSH]} wait ({pushed} agents)",
            "start one: `coord worker push`",
        )


def stuck_workers(processes: Iterable[WorkerRecord], now: int) -> Findings:
    """Find processes that make no progress; ``now`` is the server's clock in ms."""
    for process in processes:
        if now - process.progress_at > STUCK_MS:
            yield _error(
                "workers.stuck",
                f"{process.name} (pid {process.pid} on {process.host}) has made no progress for "
                f"{duration(now - process.progress_at)}",
                "see its log",
            )


def missing_tokens(processes: Iterable[WorkerRecord]) -> Findings:
    """Find workers that do not require the tokens of agents, although others do."""
    checking = [process for process in processes if process.kind in {"registry", "router"}]  # they read facts of agents
    if any(process.require_tokens for process in checking):
        for process in checking:
            if not process.require_tokens:
                yield _error(
                    "workers.tokens",
                    f"{process.name} (pid {process.pid} on {process.host}) requires no tokens of agents, and others do",
                    "start it with COORD_REQUIRE_TOKENS=on",
                )


def check_streams(snapshot: Snapshot) -> Findings:
    """Check how long entries wait in each stream, and whose entries are pending."""
    problems = False
    for stream in snapshot.statistics.streams:
        age = snapshot.oldest.get(stream.stream, 0)
        if age > LATE_MS and stream.entries:
            problems = True
            make = _error if age > VERY_LATE_MS else _warning
            yield make(
                "streams.lag",
                f"{stream.stream}: {_count(stream.entries, 'entry', 'entries')} for group {stream.kind}, "
                f"the oldest for {duration(age)}",
                f"see `coord ps`; add a worker if it goes on: `coord worker {stream.kind}`",
            )
    present = {process.name for process in snapshot.processes}
    kinds = {stream: kind for kind, streams in CONSUMES.items() for stream in streams}
    for name, consumers in snapshot.pending.items():
        kind = kinds[name]
        for consumer, number in consumers.items():
            # A worker without presence may just have started; one that is there takes over after some seconds.
            if consumer not in present and snapshot.oldest.get(name, 0) > LATE_MS:
                problems = True
                yield _warning(
                    "streams.abandoned",
                    f"{name}: {_count(number, 'entry', 'entries')} pending with {consumer}, which is not running",
                    f"another {kind} takes over after some seconds; if none runs: `coord worker {kind}`",
                )
    if not problems:
        entries = sum(stream.entries or 0 for stream in snapshot.statistics.streams)
        oldest = max(snapshot.oldest.values(), default=0)
        waits = f", the oldest for {duration(oldest)}" if entries else ""
        yield _ok("streams", f"{_count(entries, 'entry', 'entries')} to handle{waits}")


def check_settings(snapshot: Snapshot, machine: Machine | None = None) -> Findings:
    """Compare the settings of workers, and look for variables that are no settings."""
    problems = False
    for name, message in (machine.unknown_variables if machine else {}).items():
        problems = True
        yield _warning("settings.unknown", message, f"`unset {name}`")
    for setting, values in _differing(snapshot.environments):
        problems = True
        yield _warning(
            "settings.differ",
            f"distributors have different values of {setting}: {values}",
            f"start all with the same value, or set it for all with coord settings set {setting}",
        )
    known = {f"COORD_{setting.upper()}" for values in snapshot.environments.values() for setting in values}
    for kind, environments in (machine.environments if machine else {}).items():
        for variable, values in _differing(environments, "(not set)"):
            if variable not in known:  # these were compared above, on all machines
                problems = True
                yield _warning(
                    "settings.differ",
                    f"processes of kind {kind} on this machine have different values of {variable}: {values}",
                    "start them with the same value",
                )
    if not problems:
        yield _ok("settings", f"{_count(len(snapshot.environments), 'distributor')} with the same settings")


def _differing(environments: Mapping[str, Mapping[str, str]], unset: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield each setting with several values, and its values with the processes that have them.

    Args:
        environments: process -> its settings.
        unset: stands for the value of a process without the setting; None: such a process is left out.
    """
    for name in sorted({name for values in environments.values() for name in values}):
        holders = defaultdict[str, list[str]](list)
        for process, values in environments.items():
            if (value := values.get(name, unset)) is not None:
                holders[value].append(process)
        if len(holders) > 1:
            shown = {value: f"value {number}" if name in SECRET else value for number, value in enumerate(holders, 1)}
            yield name, "; ".join(f"{shown[value]} in {_names(names)}" for value, names in holders.items())


def check_processes(machine: Machine) -> Findings:
    """Look for records of processes that have ended, and for programs without their agent."""
    for name in machine.gone:
        yield _warning(
            "processes.gone",
            f"{name} ended without deregistering; its record expires by itself",
            "see its log; start another one",
        )
    for orphan in machine.orphans:
        yield _warning(
            "processes.orphan",
            f"pid {orphan.pid} ({orphan.command}) runs task {orphan.task_id} of agent {orphan.agent_id}, "
            "which has ended: its result goes nowhere",
            f"`kill -- -{orphan.pid}`",  # its process group
        )
    if not machine.gone and not machine.orphans:
        yield _ok("processes", f"no orphaned process on {machine.host}")


def check_agents(snapshot: Snapshot) -> Findings:
    """Look for agents that are silent, deaf, ejected or in error."""
    counted = snapshot.statistics
    problems = list(_agent_problems(snapshot))
    yield from problems
    if not counted.active_agents and counted.total(TaskState.QUEUED):
        yield _error(
            "agents.none",
            f"{_count(counted.total(TaskState.QUEUED), 'task')} queued, and no agent may get work",
            "start one (docs/getting-started.md), or see why: `coord agents list`",
        )
    elif not problems:
        yield _ok("agents", f"{counted.active_agents:,} of {counted.total_agents:,} may get work")


def _agent_problems(snapshot: Snapshot) -> Findings:
    """Yield one finding for all agents with the same problem."""
    found = snapshot.agents
    if found.silent.number:
        ago = f", the last {duration(max(0, snapshot.now - found.silent_since))} ago" if found.silent_since else ""
        yield _warning(
            "agents.silent",
            f"{_agents(found.silent)} stopped sending heartbeats within the last hour: {_affected(found.silent)}{ago}",
            f"see whether they run and reach Redis: `coord agents show {found.silent.agent_ids[0]}`",
        )
    for reason, deaf in found.deaf.items():
        cause, advice = DEAF[reason]
        shown = deaf.agent_ids[0] if deaf.agent_ids else "ID"
        names = f": {_affected(deaf)}" if deaf.agent_ids else ""
        yield _warning(
            "agents.deaf", f"{_agents(deaf)} deaf, without new tasks ({cause}){names}", advice.replace("ID", shown)
        )
    if found.failing.number:
        names = f": {_affected(found.failing)}" if found.failing.agent_ids else ""
        shown = f"`coord agents show {found.failing.agent_ids[0]}`" if names else "`coord agents list --status error`"
        yield _warning(
            "agents.error",
            f"{_agents(found.failing)} in status error, without new tasks{names}",
            f"see its log; {shown}",
        )
    if found.ejected.number:
        yield _warning(
            "agents.ejected",
            f"no tasks of type {_names(found.ejected_types)} for {_affected(found.ejected)}: "
            "too many of them failed there",
            f"`coord tasks list --agent {found.ejected.agent_ids[0]} --state failed`",
        )


def _agents(affected: Affected) -> str:
    """Return how many agents are affected: 2 agents, at least 20,000 agents."""
    return f"{'' if affected.is_exact else 'at least '}{_count(affected.number, 'agent')}"


def _affected(affected: Affected) -> str:
    """Return the first ids, and the number of the others."""
    return _names(affected.agent_ids, affected.number, "" if affected.is_exact else "at least ")


def check_waiting(snapshot: Snapshot) -> Findings:
    """Look for tasks that no agent may get."""
    counts, waiting = snapshot.statistics.waiting, snapshot.statistics.total(TaskState.QUEUED)
    parked = {
        reason: number for reason, number in (counts.reasons if counts else {}).items() if reason.is_parked and number
    }
    if parked:
        listed = ", ".join(f"{number:,} {reason}" for reason, number in parked.items())
        yield _warning(
            "tasks.parked",
            f"{_count(sum(parked.values()), 'task')} that no agent may get: {listed}",
            f"`coord tasks list reason:{min(parked)}` shows them, `coord pools` what they need",
        )
    elif waiting and counts is None:
        yield _warning(
            "tasks.uncounted",
            f"{_count(waiting, 'task')} waiting, and the reasons are not known: "
            "no distributor has counted the waiting tasks within the last 5 minutes",
            "see whether a distributor runs: `coord ps`; coord tasks explain says why a task waits",
        )
    else:
        yield _ok(
            "tasks",
            f"{_count(waiting, 'task')} waiting, each for an agent that is there" if waiting else "no task waits",
        )


def check_dead_letters(snapshot: Snapshot) -> Findings:
    """Count what coord gave up on."""
    numbers = {kind: number for kind, number in snapshot.statistics.dead_letters.items() if number}
    for kind, number in numbers.items():
        what, plural, again = DEAD_LETTERS[kind]
        are_kept = "is kept as a dead letter" if number == 1 else "are kept as dead letters"
        advice = f"`coord dead list --kind {kind}` shows them, {again}"
        yield _warning("dead_letters", f"{_count(number, what, plural)} {are_kept}", advice)
    if not numbers:
        yield _ok("dead_letters", "there are none")


def check_ledger(snapshot: Snapshot) -> Findings:
    """Report differences between counters and records, if they were compared."""
    report = snapshot.ledger
    if report is None:
        return
    for finding in report.findings[:LEDGER]:
        yield _error(
            "ledger", f"{finding.code} {finding.key}: {finding.message}", "report this; `coord fsck` lists all"
        )
    if not report.findings:
        compared = "" if report.compared else "; totals were not compared: the cell is too busy"
        yield _ok("ledger", f"counters and records of {_count(report.tasks, 'task')} agree{compared}")


def check_permissions(snapshot: Snapshot) -> Findings:
    """Report what the user of this connection may not read."""
    if snapshot.denied:
        yield _warning(
            "permissions",
            f"this user may not: {', '.join(snapshot.denied)}; so not everything was checked",
            "connect as an operator (`coord acl operator` prints the rights)",
        )
    else:
        yield _ok("permissions", "this user may read all that was checked")


def diagnose(snapshot: Snapshot, machine: Machine | None = None) -> list[Finding]:
    """Return the findings of all checks, area by area; those of an area without problems have the level ok.

    Args:
        snapshot: the cell.
        machine: processes of this machine; None: not looked at.
    """
    found = [finding for check in CHECKS for finding in check(snapshot)]
    found += check_settings(snapshot, machine)
    return found if machine is None else [*found, *check_processes(machine)]


def _names(names: Iterable[str], number: int | None = None, least: str = "") -> str:
    """Return the first names, and the number of the others.

    Args:
        names: all of them, or some.
        number: of all; None: as many as ``names``.
        least: stands before the number of the others.
    """
    listed = list(names)
    shown = listed[:NAMED]
    rest = (len(listed) if number is None else number) - len(shown)
    return ", ".join(shown) + (f" and {least}{rest:,} more" if rest > 0 else "")


def _count(number: int, what: str, plural: str | None = None) -> str:
    """Return a number with its noun: no entries, 1 entry, 2,000 entries."""
    noun = what if number == 1 else plural or f"{what}s"
    return f"{number:,} {noun}" if number else f"no {noun}"


def _ok(code: str, message: str) -> Finding:
    return Finding(Level.OK, code, message)


def _warning(code: str, message: str, advice: str) -> Finding:
    return Finding(Level.WARNING, code, message, advice)


def _error(code: str, message: str, advice: str) -> Finding:
    return Finding(Level.ERROR, code, message, advice)


#: The checks of a snapshot, in the order in which a person looks for a cause.
CHECKS: tuple[Callable[[Snapshot], Findings], ...] = (
    check_server,
    check_memory,
    check_replication,
    check_connections,
    check_clocks,
    check_permissions,
    check_workers,
    check_streams,
    check_agents,
    check_waiting,
    check_dead_letters,
    check_ledger,
)
