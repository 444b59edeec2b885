"""What the scripts take and answer: one Struct for each kind of entry in a batch, and the call that carries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import Struct

from coord.models.memory import Memory

T = TypeVar("T")
Arg = str | bytes | int


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One script with its arguments, and how its answer is read."""

    script: str
    args: list[Arg]
    parse: Callable[[Any], T]


class TaskBatch(Struct, frozen=True):
    """What a script of tasks answers."""

    words: list[str]  #: one for each entry, in their order
    loads: dict[str, int]  #: agent -> tasks in flight, true at that moment, of each agent that was touched
    pools: dict[str, tuple[int, float]]  #: pool -> length and head's score, of each pool that was touched
    pools_rev: int  #: rises whenever a pool begins or ceases to have waiting tasks
    raised: int  #: by how much this very call raised it
    due: int = 0  #: wake only: what is due and was left for the next call


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
    options: dict[str, int]  #: deadline timeout max_attempts backoff_ms backoff_max_ms, where given


class Placement(Struct, frozen=True):
    """One planned assignment for ``dispatch``: the next task of ``pool`` to ``agent_id`` as of ``rev``."""

    pool: str
    agent_id: str
    rev: int
    lease: str
    explanation: bytes  #: JSON, recorded with the task


class Loss(Struct, frozen=True):
    """One lost agent for ``reclaim``."""

    entry: str
    agent_id: str
    term: int


class LeaseLoss(Struct, frozen=True):
    """One lease that its agent no longer holds, for ``forfeit``."""

    entry: str
    agent_id: str
    task_id: str
    lease: str


class LeaseList(Struct, frozen=True):
    """The leases that an agent says it holds, for ``audit``."""

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


class Registration(Struct, frozen=True):
    """One agent for ``register``."""

    entry: str
    caller: str
    agent_id: str
    incarnation: str
    interval_ms: int | None
    digest: str
    facets: str
    fields: dict[str, str | bytes | int | float]


class Beat(Struct, frozen=True):
    """One heartbeat for ``beat``."""

    entry: str
    caller: str
    agent_id: str
    incarnation: str
    leases: int | None
    metrics: dict[str, float]
    deaf: bool = False


class Change(Struct, frozen=True):
    """One change of status for ``change``."""

    entry: str
    caller: str
    agent_id: str
    incarnation: str
    status: str
    metrics: dict[str, float]


class Departure(Struct, frozen=True):
    """One agent for ``deregister``."""

    entry: str
    caller: str
    agent_id: str
    incarnation: str


class Expiry(Struct, frozen=True):
    """What ``expire`` answers."""

    stale: int
    repeated: int
    forgotten: int
    observed: int  #: ms on the observed clock


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


class Relief(Struct, frozen=True):
    """What ``relieve`` answers."""

    memory: Memory  #: as it was found
    records: int  #: that gave up what they held
    bytes: int  #: that they held
    is_more: bool  #: there is more to free: call again


class DeadLetterEntry(Struct, frozen=True):
    """One entry for ``bury``."""

    stream: str
    entry: str
    kind: bytes
    data: bytes
    whole: bool  #: nothing was cut off, so it may be appended anew as it is
    caller: str
    code: str
    reason: str


class Replay(Struct, frozen=True):
    """One failed task for ``replay``."""

    entry: str
    task_id: str
    caller: str


class SettingChange(Struct, frozen=True):
    """One setting for ``configure``; without a value it is given back to the distributors' environment."""

    entry: str
    caller: str
    name: str
    value: str | None


class Draining(Struct, frozen=True):
    """One agent for ``drain``."""

    entry: str
    caller: str
    agent_id: str
    begins: bool


class Redelivery(Struct, frozen=True):
    """One dead message for ``redeliver``."""

    entry: str
    caller: str
    message_id: str
    ttl_ms: int


class EntryReplay(Struct, frozen=True):
    """One buried entry for ``unbury``."""

    entry: str
    caller: str
    dead_id: str


class Purge(Struct, frozen=True):
    """One request for ``purge``: a dead letter, or those that died ``age_ms`` before the request or earlier."""

    entry: str
    caller: str
    dead_id: str
    age_ms: int | None


def read_words(raw: Any) -> list[str]:
    """The words that a script answers."""
    return [word.decode() for word in raw[0]]


def read_task_batch(raw: Any) -> TaskBatch:
    """What a script of tasks answers."""
    words, loads, pools, rev, raised = raw[:5]
    return TaskBatch(
        words=[word.decode() for word in words],
        loads={loads[i].decode(): int(loads[i + 1]) for i in range(0, len(loads), 2)},
        pools={pools[i].decode(): (int(pools[i + 1]), float(pools[i + 2])) for i in range(0, len(pools), 3)},
        pools_rev=int(rev),
        raised=int(raised),
        due=int(raw[5]) if len(raw) > 5 else 0,
    )
