"""Arguments and answers of the scripts: a Struct for each kind of entry in a batch, and the call that carries them.

Where a script has a row in ``Scripts``, the fields of the Struct, in their order, are the arguments of an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import Struct

from coord.models.cell import Memory
from coord.models.explanations import WaitingReason
from coord.models.ids import EntryOrder, entry_order

T = TypeVar("T")
Arg = str | bytes | int


#: name -> value of what a script reads as ``LIMITS``. Values have no spaces.
Limits = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A script with its arguments, and how its answer is read."""

    script: str
    limits: Limits  #: in addition to those of every script
    args: list[Arg]
    parse: Callable[[Any], T]


class TaskBatch(Struct, frozen=True):
    """The answer of a script of tasks."""

    words: list[str]  #: one for each entry, in their order
    loads: dict[str, int]  #: agent -> tasks in flight after the script, of each agent that was touched
    pools: dict[str, tuple[int, float]]  #: pool -> length and score of its first task, of each pool that was touched
    pools_rev: int  #: rises whenever a pool starts or stops having waiting tasks
    raised: int  #: how much this call raised it
    loads_at: EntryOrder | None = None  #: of the entry of ``log:loads`` with these loads; None: they were not shared
    freed: Mapping[str, int] = {}  #: agent -> slots that the script freed (negative: took), if the loads were shared
    due: int = 0  #: run_alarms only: what is due and was left for the next call
    timed_out: tuple[str, ...] = ()  #: run_alarms only: the leases of the attempts that took too long


class Report(Struct, frozen=True):
    """One agent's report for ``settle``."""

    entry: str  #: consumed when all reports that follow one another in it are settled
    kind: str  #: started, progressed, completed, failed, released, refused
    task_id: str
    lease: str
    caller: str = ""
    started_ms_ago: int | None = None
    data: bytes = b""
    code: str = ""
    message: str = ""
    retryable: bool = False
    pool: str = ""  #: of a refused one: where the task waits for another agent
    definition: bytes = b""  #: of that pool


class Submission(Struct, frozen=True):
    """One task for ``admit``."""

    entry: str
    priority: str
    task_id: str
    digest: str
    pool: str
    score: int
    run_at: int | None
    caller: str
    notify: bool
    body: bytes
    options: Mapping[str, int | bytes]  #: any of deadline timeout max_attempts backoff_ms backoff_max_ms preferences


class Placement(Struct, frozen=True):
    """One planned assignment for ``dispatch``: a task of ``pool`` to ``agent_id`` as of ``rev``."""

    pool: str
    agent_id: str
    rev: int
    lease: str
    explanation: bytes  #: JSON, recorded with the task
    task_id: str = ""  #: the task, if ``pool`` is a named queue; empty: the next one
    task_type: str = ""
    load: float = 0  #: of the agent without this task, with work from elsewhere
    expected_ms: float | None = None  #: of the pool
    other_id: str = ""  #: agent that gets the task if ``agent_id`` is full; only of an agent's last placement in a plan
    other_rev: int = 0


class EjectionNotice(Struct, frozen=True):
    """An ejection for ``learn``: an agent gets no tasks of a type for a while."""

    agent_id: str
    task_type: str
    ms: int  #: that it lasts from now on; 0: it has ended before its time
    failure_rate: str  #: of the agent, 0 to 1
    others_rate: str  #: mean of the other agents
    in_a_row: int


class WaitingCount(Struct, frozen=True):
    """The answer of ``count_waiting``."""

    counts: dict[WaitingReason, int]  #: waiting tasks for each reason; those of earlier calls included
    other_ms: int | None = None  #: another process counts; this one may in so many ms


class Loss(Struct, frozen=True):
    """One lost agent for ``reclaim``."""

    entry: str
    agent_id: str
    term: int


class LeaseLoss(Struct, frozen=True):
    """One lease that its agent no longer holds, for ``reclaim_lease``."""

    entry: str
    agent_id: str
    task_id: str
    lease: str


class LeaseList(Struct, frozen=True):
    """The leases that an agent holds by its own account, for ``check_leases``."""

    entry: str
    agent_id: str
    incarnation: str
    ask: str
    leases: dict[str, str]  #: lease -> task id


class CancelRequest(Struct, frozen=True):
    """One request for ``cancel``."""

    entry: str
    task_id: str
    caller: str
    reason: str
    is_operators: bool = False  #: its entry is in the stream of operators


class Registration(Struct, frozen=True):
    """One agent for ``register``."""

    entry: str
    caller: str
    agent_id: str
    incarnation: str
    interval_ms: int | None
    delivery: str  #: push or poll, over HTTP; empty: the agent reads its inbox from Redis
    digest: str
    facets: str
    fields: dict[str, str | bytes | int | float]


class Heartbeat(Struct, frozen=True):
    """One heartbeat for ``heartbeat``."""

    entry: str
    caller: str
    agent_id: str
    incarnation: str
    leases: int | None
    deaf: bool
    polled: bool  #: its inbox was polled over HTTP
    fields: dict[str, float]  #: metric:{name} -> value, see ``metric_fields``


class StatusChange(Struct, frozen=True):
    """One agent's new status for ``change_status``."""

    entry: str
    caller: str
    agent_id: str
    incarnation: str
    status: str
    fields: dict[str, float]  #: metric:{name} -> value, see ``metric_fields``


class Departure(Struct, frozen=True):
    """One agent for ``deregister``."""

    entry: str
    caller: str
    agent_id: str
    incarnation: str
    forget_after_ms: int | None = None  #: until its record is removed; None: as long as the settings say


class LivenessTick(Struct, frozen=True):
    """The answer of ``tick_liveness``: numbers of agents, and the clock."""

    stale: int
    repeated: int
    forgotten: int
    observed: int  #: ms on the observed clock
    lost: tuple[str, ...] = ()  #: ids of the agents that turned stale


class Delivery(Struct, frozen=True):
    """One message for ``deliver``."""

    entry: str
    lane: str
    caller: str
    message_id: str
    digest: str
    sender_id: str
    receiver_id: str
    message_type: str
    ttl_ms: int
    payload: bytes
    correlation_id: str
    reply_to: str
    protocol: str = "direct"
    receipt: bool = False
    caused_by: str = ""
    reply_by_ms: int | None = None  #: how long its sender waits for a reply; None: it is no request
    failed: bool | None = None
    traceparent: str = ""
    result: bytes = b""  #: what the coordinator answers itself, JSON; empty: nothing
    result_failed: bool | None = None


class LinkChange(Struct, frozen=True):
    """One change of a link or of the hierarchy for ``change_links``."""

    entry: str
    stream: str  #: without namespace; that of operators needs no consent
    caller: str
    kind: str  #: request, accept, remove, link, set_master, clear_master
    agent_id: str
    other_id: str = ""
    note: str = ""


class Broadcast(Struct, frozen=True):
    """One broadcast for ``freeze_recipients`` and ``deliver_broadcast``."""

    entry: str
    lane: str
    caller: str
    message_id: str
    digest: str
    sender_id: str
    message_type: str
    ttl_ms: int
    payload: bytes
    correlation_id: str
    caused_by: str
    traceparent: str


class LaneShare(Struct, frozen=True):
    """The answer of ``hold_lanes``."""

    leases: dict[str, str]  #: lane -> lease, of the lanes that the router holds
    excess: tuple[str, ...] = ()  #: lanes that it should give up, because others hold fewer
    behind: tuple[str, ...] = ()  #: lanes of which another router has read entries that were not handled


class Relief(Struct, frozen=True):
    """The answer of ``relieve``."""

    memory: Memory  #: before the call
    records: int  #: that lost result, payload and progress
    bytes: int  #: that the call freed
    is_more: bool  #: there is more to free: call again
    letters: int = 0  #: dead letters of messages that were removed


class DeadLetterEntry(Struct, frozen=True):
    """One entry for ``dead_letter``."""

    stream: str
    entry: str
    kind: bytes
    data: bytes
    whole: bool  #: nothing was cut off, so it may be appended again
    caller: str
    by: bytes  #: who asked for it, if it says so
    code: str
    reason: str


class Replay(Struct, frozen=True):
    """One failed task for ``replay``."""

    entry: str
    task_id: str
    caller: str


class TasksChange(Struct, frozen=True):
    """One request for ``change_tasks``."""

    entry: str
    caller: str
    action: str  #: cancel, replay or prioritize
    task_ids: str  #: spaces between
    priority: str
    reason: str
    before_ms: int | None  #: replay only tasks that had failed by then
    note: bytes  #: for the audit: a JSON object without its last brace


class SettingChange(Struct, frozen=True):
    """One setting for ``configure``; without a value it is reset to what holds otherwise."""

    entry: str
    caller: str
    name: str
    task_type: str | None  #: None: for all tasks
    value: str | None
    by: str | None = None


class DrainRequest(Struct, frozen=True):
    """One request for ``drain``."""

    entry: str
    caller: str
    agent_id: str
    imposes: str  #: ``draining`` or ``maintenance``; empty: the agent resumes


class Pruning(Struct, frozen=True):
    """One request for ``prune``: agents that left at least ``age_ms`` before the request."""

    entry: str
    caller: str
    age_ms: int


class TokenChange(Struct, frozen=True):
    """One request for ``change_token``."""

    entry: str
    caller: str
    agent_id: str
    action: str  #: enrol, rotate or revoke
    digest: str = ""  #: of the new token
    grace_ms: int = 0  #: for which the earlier one stays valid


class PushShare(Struct, frozen=True):
    """The answer of ``share_pushes``."""

    held: frozenset[int]  #: the shards of this worker
    excess: int  #: how many of them it should give up


class ApiKeyChange(Struct, frozen=True):
    """One request for ``change_api_key``."""

    entry: str
    caller: str
    key_id: str
    action: str  #: create or revoke
    digest: str = ""  #: of the new key
    role: str = ""
    agent_id: str = ""
    name: str = ""
    lifetime_ms: int | None = None


class SpokenFact(Struct, frozen=True):
    """One fact of an agent about itself, for ``check_tokens``."""

    entry: str
    stream: str
    answer_to: str  #: gets the error if it is refused; empty: nobody
    agent_id: str
    digest: str  #: of the token that its entry carries; empty: none
    may_be_client: bool  #: a sender that is no agent needs no token


class Redelivery(Struct, frozen=True):
    """One dead message for ``redeliver``."""

    entry: str
    caller: str
    message_id: str
    ttl_ms: int


class EntryReplay(Struct, frozen=True):
    """One dead-lettered entry for ``requeue``."""

    entry: str
    caller: str
    dead_id: str


class Purge(Struct, frozen=True):
    """One request for ``purge``: one dead letter, or all that died at least ``age_ms`` before the request."""

    entry: str
    caller: str
    dead_id: str
    age_ms: int | None


def metric_fields(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return load metrics as fields of an agent's record."""
    return {f"metric:{name}": value for name, value in metrics.items()}


def read_words(raw: Any) -> list[str]:
    """Return the words that a script answers."""
    return [word.decode() for word in raw[0]]


def read_task_batch(raw: Any) -> TaskBatch:
    """Return the answer of a script of tasks."""
    words, loads, pools, rev, raised, shared = raw[:6]
    return TaskBatch(
        words=[word.decode() for word in words],
        loads={loads[i].decode(): int(loads[i + 1]) for i in range(0, len(loads), 2)},
        pools={pools[i].decode(): (int(pools[i + 1]), float(pools[i + 2])) for i in range(0, len(pools), 3)},
        pools_rev=int(rev),
        raised=int(raised),
        loads_at=entry_order(shared[0].decode()) if shared else None,
        freed={agent.decode(): count for agent, count in zip(loads[::2], shared[1], strict=True)} if shared else {},
        due=int(raw[6]) if len(raw) > 6 else 0,
        timed_out=tuple(lease.decode() for lease in raw[7]) if len(raw) > 7 else (),
    )
