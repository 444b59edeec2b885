"""The facts that callers append: one frozen Struct for each ``type``, and the types that each stream may carry.

An entry has ``type`` (dotted, past tense), ``data`` (one JSON object) and optionally ``caller``. These Structs are the
schemas of ``data``. Durations are in seconds, times are RFC 3339 with an offset.

Operators' facts are on ``in:control:{registry,distributor,router}``: one stream for each kind of worker. A *dead
letter* is an item that coord gave up on and keeps for a while: a failed task, an undelivered message, or an entry that
could not be handled (``dead:in``). The worker that is responsible for the item replays it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import astuple

from coord.errors import IdInvalid
from coord.models.agents import AgentStatus, AgentType, InboxDelivery, Location
from coord.models.api_keys import CallerRole, KeyId
from coord.models.ids import SUBORDINATES, EntryId, Id, check_id, not_reserved
from coord.models.messages import COORDINATOR, MessageType, Protocol, RecipientFilter
from coord.models.tasks import Lane, Priority, Seconds, TasksSubmitted, TaskSubmitted, Text
from coord.models.tracing import TraceParent

_NO_PAYLOAD = msgspec.Raw(b"{}")
_NO_DETAIL = msgspec.Raw(b"null")
#: Of a failure's detail, which is recorded with every failed task.
DETAIL_BYTES = 4_096
Name = Annotated[str, Meta(max_length=128)]
#: Several are stored with spaces between them, so an incarnation contains none.
Incarnation = Annotated[str, Meta(max_length=128, pattern=r"^\S*\Z")]
Names = Annotated[tuple[Text, ...], Meta(max_length=256)]
Metrics = Annotated[dict[Text, float], Meta(max_length=64)]
Lease = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Explanation = Annotated[str, Meta(max_length=4096)]
#: Milliseconds since a task was started, at most a year.
Elapsed = Annotated[int, Meta(ge=0, le=31_536_000_000)]
#: SHA-256 of an agent's token or of an API key: the text itself is in no fact.
TokenDigest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class AgentRegistered(Struct, frozen=True, omit_defaults=True):
    """An agent describes itself. A repetition with the same incarnation, or without one, is a refresh."""

    agent_id: Id
    agent_type: AgentType
    incarnation: Incarnation = ""  #: random, one for each agent process; empty if the caller has none
    capabilities: Names = ()
    services: Names = ()
    endpoints: dict[Text, str] = {}
    metadata: dict[str, Any] = {}
    tags: Names = ()
    labels: Annotated[dict[Text, Annotated[str, Meta(max_length=256)]], Meta(max_length=64)] = {}
    version: Name = ""
    location: Location | None = None
    capacity: Annotated[int, Meta(ge=0, le=100_000)] | None = None  #: tasks that it may hold at once
    weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    heartbeat_interval: Annotated[float, Meta(ge=0.05, le=86_400)] | None = None  #: seconds
    delivery: InboxDelivery | None = None  #: over HTTP; None: the agent reads its inbox from Redis

    def __post_init__(self) -> None:
        check_agent_id(self.agent_id)


class AgentStatusChanged(Struct, frozen=True, omit_defaults=True):
    """The status of an agent changes; metrics are merged into the previous ones."""

    agent_id: Id
    status: AgentStatus
    incarnation: Incarnation = ""
    load_metrics: Metrics = {}


class AgentDeregistered(Struct, frozen=True, omit_defaults=True):
    """An agent leaves. Tasks that it still holds go to other agents."""

    agent_id: Id
    incarnation: Incarnation = ""
    #: Seconds until its record is removed, if that is sooner than usual: an id that was generated is never used again.
    forget_after: Annotated[float, Meta(ge=0, le=1e10)] | None = None


class AgentHeartbeat(Struct, frozen=True, omit_defaults=True):
    """An agent is alive. The only fact that may be lost."""

    agent_id: Id
    incarnation: Incarnation = ""
    load_metrics: Metrics = {}
    leases: Annotated[int, Meta(ge=0)] | None = None  #: number of leases that the agent holds
    deaf: bool = False  #: it does not read its inbox at the moment, so it gets nothing new
    polled: bool = False  #: its inbox was polled over HTTP


class AgentLeasesListed(Struct, frozen=True, omit_defaults=True):
    """An agent lists its leases on request. A lease counts from before its claim is sent until its report is in."""

    agent_id: Id
    incarnation: Incarnation
    ask: EntryId  #: id of the request that this answers
    leases: Annotated[dict[Lease, Id], Meta(max_length=100_000)]  #: lease -> task id


class TaskStarted(Struct, frozen=True, omit_defaults=True):
    """The handler has been running for a while. The outcome of a shorter one carries ``started_ms_ago`` instead."""

    task_id: Id
    lease: Lease
    started_ms_ago: Elapsed = 0  #: ms before this entry was appended


class TaskProgressed(Struct, frozen=True, omit_defaults=True):
    """The handler reports its progress; any JSON."""

    task_id: Id
    lease: Lease
    progress: msgspec.Raw = _NO_PAYLOAD


class TaskCompleted(Struct, frozen=True, omit_defaults=True):
    """The handler succeeded; the result is any JSON."""

    task_id: Id
    lease: Lease
    result: msgspec.Raw = msgspec.Raw(b"null")
    started_ms_ago: Elapsed | None = None


class TasksCompleted(Struct, frozen=True):
    """Many handlers succeeded: an agent that completes thousands of tasks a second reports several in one entry."""

    completed: Annotated[tuple[TaskCompleted, ...], Meta(min_length=1, max_length=256)]


class TaskFailed(Struct, frozen=True, omit_defaults=True):
    """The handler failed. If ``retryable`` is false, the task fails even if attempts are left."""

    task_id: Id
    lease: Lease
    code: Name = "handler_failed"
    message: Explanation = ""
    retryable: bool = True
    started_ms_ago: Elapsed | None = None
    detail: msgspec.Raw = _NO_DETAIL  #: any JSON, for programs; more than ``DETAIL_BYTES`` are not kept


class TaskReleased(Struct, frozen=True, omit_defaults=True):
    """The agent returns the task unfinished; this does not count as an attempt.

    With the code ``draining`` or ``no_slot`` the agent would return the next task as well, so it gets nothing until the
    registry has handled a later fact of that agent. With ``no_handler`` the agent does not get this task again, and the
    task fails if no other agent is registered that may have a handler. Any other code is information for people.
    """

    task_id: Id
    lease: Lease
    reason: Explanation = ""
    code: Name = "released"
    started_ms_ago: Elapsed | None = None  #: None: the task was not started


class TaskCancelRequested(Struct, frozen=True, omit_defaults=True):
    """A client no longer wants the task."""

    task_id: Id
    reason: Explanation = ""


class AgentLost(Struct, frozen=True, omit_defaults=True):
    """The registry declares an agent lost: its tasks of this term and of earlier terms go to other agents."""

    agent_id: Id
    term: Annotated[int, Meta(ge=0)]


class LeaseLost(Struct, frozen=True, omit_defaults=True):
    """The registry finds that an agent no longer holds a lease: the task goes to another agent."""

    agent_id: Id
    task_id: Id
    lease: Lease


class MessageSent(Struct, frozen=True, omit_defaults=True):
    """A message to an agent, or to all subordinates of the sender. Its priority is the stream it was appended to."""

    message_id: Id
    sender_id: Id
    receiver_id: Id  #: an agent; with the protocol ``hierarchical`` also ``SUBORDINATES``
    message_type: MessageType = MessageType.DIRECT
    payload: msgspec.Raw = _NO_PAYLOAD
    ttl: Seconds | None = None  #: seconds
    correlation_id: Id | None = None  #: of the conversation
    reply_to: Id | None = None  #: id of a message
    protocol: Protocol | None = None  #: None: the one that the message type names, otherwise direct
    receipt: bool = False  #: the answer says who has it
    caused_by: Id | None = None  #: id of the message whose handler sent this one
    reply_by: Seconds | None = None  #: seconds that its sender waits for a reply; None: it is no request
    failed: bool = False  #: it replies that the request failed
    traceparent: TraceParent | None = None

    def __post_init__(self) -> None:
        not_reserved(self.message_id, "message_id")
        named = PROTOCOL_OF.get(self.message_type)
        if named is not None and self.protocol not in {None, named, Protocol.DIRECT}:
            raise ValueError(
                f"message_type {self.message_type.value!r} has the protocol {named.value!r}, not {self.protocol!r}; "
                "leave protocol out"
            )
        _check_sender(self.sender_id)
        if self.receiver_id == SUBORDINATES and self.rule is not Protocol.HIERARCHICAL:
            raise ValueError(f"receiver_id {SUBORDINATES!r} needs the protocol 'hierarchical', not {self.rule.value!r}")
        if self.reply_by is not None and self.receiver_id == SUBORDINATES:
            raise ValueError("reply_by: a request goes to one agent; send one to each subordinate")
        if self.is_answered and len(self.message_id) > REQUEST_ID:
            raise ValueError(
                f"message_id of a request has at most {REQUEST_ID} characters, not {len(self.message_id)}, because the "
                "ids of its answers begin with it"
            )

    @property
    def is_answered(self) -> bool:
        """True if the coordinator answers it, or the reply ends a wait."""
        return self.reply_by is not None or self.receiver_id == COORDINATOR

    @property
    def rule(self) -> Protocol:
        """The protocol whose rule the message must meet."""
        return self.protocol or PROTOCOL_OF.get(self.message_type, Protocol.DIRECT)

    @property
    def topic(self) -> MessageType:
        """The type that the receiver sees: a direct message with a protocol has the type of its protocol."""
        return self.message_type if self.message_type is not MessageType.DIRECT else MessageType(self.rule)


#: Maximum length of the id of a request: its answers have its id and a suffix, such as ``.timeout``.
REQUEST_ID = 120
#: Message types that name a protocol.
PROTOCOL_OF = {MessageType.PEER_TO_PEER: Protocol.PEER_TO_PEER, MessageType.HIERARCHICAL: Protocol.HIERARCHICAL}

Note = Annotated[str, Meta(max_length=256)]


class LinkRequested(Struct, frozen=True, omit_defaults=True):
    """An agent asks another one for a link. If that one has asked as well, they are linked."""

    agent_id: Id
    peer_id: Id
    note: Note = ""  #: for the other agent

    def __post_init__(self) -> None:
        _check_pair(self.agent_id, self.peer_id, "peer_id")


class LinkAccepted(Struct, frozen=True, omit_defaults=True):
    """An agent accepts the request of another one: they are linked."""

    agent_id: Id
    peer_id: Id  #: the agent that has asked

    def __post_init__(self) -> None:
        _check_pair(self.agent_id, self.peer_id, "peer_id")


class LinkRemoved(Struct, frozen=True, omit_defaults=True):
    """Ends the link between two agents, or the request of either of them."""

    agent_id: Id
    peer_id: Id
    note: Note = ""  #: for the other agent

    def __post_init__(self) -> None:
        _check_pair(self.agent_id, self.peer_id, "peer_id")


class LinkMade(Struct, frozen=True, omit_defaults=True):
    """An operator links two agents, without their consent."""

    agent_id: Id
    peer_id: Id

    def __post_init__(self) -> None:
        _check_pair(self.agent_id, self.peer_id, "peer_id")


class MasterSet(Struct, frozen=True, omit_defaults=True):
    """Sets the master of an agent, in place of an earlier one."""

    agent_id: Id
    master_id: Id

    def __post_init__(self) -> None:
        _check_pair(self.agent_id, self.master_id, "master_id")


class MasterCleared(Struct, frozen=True, omit_defaults=True):
    """Takes an agent away from its master."""

    agent_id: Id


#: Types of a message that several agents may get: ``broadcast``, and the topics.
_BROADCAST_TYPES = tuple(
    kind
    for kind in MessageType
    if kind not in {MessageType.DIRECT, MessageType.HIERARCHICAL, MessageType.PEER_TO_PEER, MessageType.TASK_ASSIGNMENT}
)


class MessageBroadcast(Struct, frozen=True, omit_defaults=True):
    """A message to every agent that matches a filter, never to the sender. Its priority is its stream."""

    message_id: Id
    sender_id: Id
    filter: RecipientFilter = RecipientFilter()
    message_type: MessageType = MessageType.BROADCAST
    payload: msgspec.Raw = _NO_PAYLOAD
    ttl: Seconds | None = None  #: seconds
    correlation_id: Id | None = None
    caused_by: Id | None = None  #: id of the message whose handler sent it
    traceparent: TraceParent | None = None

    def __post_init__(self) -> None:
        not_reserved(self.message_id, "message_id")
        _check_sender(self.sender_id)
        if self.message_type not in _BROADCAST_TYPES:
            valid = ", ".join(_BROADCAST_TYPES)
            raise ValueError(f"message_type {self.message_type.value!r} cannot be broadcast, only {valid}")


#: Age of a dead letter in seconds; 0 selects all that exist when the fact is appended.
Age = Annotated[float, Meta(ge=0, le=315_360_000)]
Value = Annotated[str, Meta(min_length=1, max_length=128)] | float


class StrategySet(Struct, frozen=True, omit_defaults=True):
    """Sets the strategy of tasks that name none of their own."""

    strategy: Text
    task_type: Text | None = None  #: only tasks of this type
    by: Text | None = None  #: who sets it, for the log
    reason: Text | None = None  #: why, for the audit


class SettingSet(Struct, frozen=True, omit_defaults=True):
    """Sets a setting of the distributors at run time; ``null`` resets it to the value of their environment.

    With a task type it is set for the tasks of that type only, and ``null`` resets it to the value of the cell.
    """

    name: Text
    value: Value | None
    task_type: Text | None = None
    by: Text | None = None  #: who sets it, for the log
    reason: Text | None = None  #: why, for the audit


class TaskReplayed(Struct, frozen=True, omit_defaults=True):
    """Retries a failed task: same id, fresh attempts, history kept."""

    task_id: Id


#: What ``TasksChangeRequested`` does with its tasks.
TaskAction: TypeAlias = Literal["cancel", "replay", "prioritize"]


class TasksChangeRequested(Struct, frozen=True, omit_defaults=True):
    """An operator cancels, replays or prioritizes many tasks: those that a query has found.

    A task that is not in a state for it is skipped. The answer says how many were changed, and why others not.
    """

    action: TaskAction
    task_ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=256)]
    priority: Priority | None = None  #: the new one; with prioritize
    reason: Annotated[str, Meta(max_length=4_096)] = ""  #: of a cancel
    before: Annotated[int, Meta(ge=0)] | None = None  #: ms since 1970; replay only tasks that had failed by then
    query: Annotated[str, Meta(max_length=512)] = ""  #: that has found them, for the audit
    operation: Annotated[str, Meta(max_length=64)] = ""  #: id of the operation of which this is a part, for the audit

    def __post_init__(self) -> None:
        if (self.action == "prioritize") != (self.priority is not None):
            raise ValueError("priority is needed with the action prioritize, and with no other")


class DeadPurged(Struct, frozen=True, omit_defaults=True):
    """Removes dead letters: failed tasks on the distributor's stream, messages on the router's.

    Either one dead letter, or those that died ``older_than`` seconds before this fact or earlier, oldest first. One
    fact removes at most 1,000; the answer says how many are left.
    """

    dead_id: Id | None = None  #: id of a task or a message
    older_than: Age | None = None

    def __post_init__(self) -> None:
        _check_exclusive(self.dead_id, self.older_than, "dead_id")


class AgentDrained(Struct, frozen=True, omit_defaults=True):
    """Drains an agent: it finishes its tasks and gets no new ones, whatever it reports, until resumed or gone."""

    agent_id: Id


class AgentMaintenanceBegun(Struct, frozen=True, omit_defaults=True):
    """Puts an agent into maintenance: as draining, with the status ``maintenance``. It replaces a drain."""

    agent_id: Id


class AgentResumed(Struct, frozen=True, omit_defaults=True):
    """Ends the draining or the maintenance of an agent: its status is again the one that it last reported."""

    agent_id: Id


class AgentRemoved(Struct, frozen=True, omit_defaults=True):
    """Removes an agent as if it had left. Its tasks go to other agents."""

    agent_id: Id


class AgentsPruned(Struct, frozen=True, omit_defaults=True):
    """Removes the records of agents that left, or turned stale, ``older_than`` seconds before this fact or earlier.

    One fact removes at most 200; the answer says how many are left.
    """

    older_than: Age


class AgentEnrolled(Struct, frozen=True, omit_defaults=True):
    """Gives an agent its first token: an operator made it and sends only its digest."""

    agent_id: Id
    token_sha256: TokenDigest

    def __post_init__(self) -> None:
        check_agent_id(self.agent_id)


class AgentTokenRotated(Struct, frozen=True, omit_defaults=True):
    """Replaces the token of an agent; the earlier one is valid for a while."""

    agent_id: Id
    token_sha256: TokenDigest
    #: Seconds for which the earlier token stays valid; 0: it is invalid at once.
    grace: Annotated[float, Meta(ge=0, le=2_592_000)] = 3_600.0


class AgentTokenRevoked(Struct, frozen=True, omit_defaults=True):
    """Revokes the tokens of an agent at once, the earlier one as well."""

    agent_id: Id


class ApiKeyCreated(Struct, frozen=True, omit_defaults=True):
    """Makes a key of the HTTP API valid: an operator made it and sends only its digest."""

    key_id: KeyId
    key_sha256: TokenDigest
    role: CallerRole
    agent_id: Id | None = None  #: the only agent that it may act for; with the role agent
    name: Name = ""
    #: Seconds from now on for which it is valid; None: until it is revoked.
    lifetime: Annotated[float, Meta(ge=1, le=315_360_000)] | None = None

    def __post_init__(self) -> None:
        if (self.role is CallerRole.AGENT) != (self.agent_id is not None):
            raise ValueError("agent_id is needed with the role agent, and with no other")


class ApiKeyRevoked(Struct, frozen=True, omit_defaults=True):
    """Revokes a key of the HTTP API at once."""

    key_id: KeyId


class MessageReplayed(Struct, frozen=True, omit_defaults=True):
    """Delivers a dead message as if it had been sent now."""

    message_id: Id
    ttl: Seconds | None = None  #: seconds from now; default: that of the router's settings


class EntryReplayed(Struct, frozen=True, omit_defaults=True):
    """Appends an entry of ``dead:in`` to its original stream again; handled by the workers that read that stream."""

    entry_id: EntryId  #: in dead:in


class EntriesPurged(Struct, frozen=True, omit_defaults=True):
    """Removes entries of ``dead:in``, of any original stream; with the limits of ``DeadPurged``."""

    entry_id: EntryId | None = None  #: in dead:in
    older_than: Age | None = None

    def __post_init__(self) -> None:
        _check_exclusive(self.entry_id, self.older_than, "entry_id")


#: kind of worker -> the facts on its control stream.
CONTROL_FACTS: dict[str, tuple[type[Struct], ...]] = {
    "registry": (
        AgentDrained,
        AgentMaintenanceBegun,
        AgentResumed,
        AgentRemoved,
        AgentsPruned,
        AgentEnrolled,
        AgentTokenRotated,
        AgentTokenRevoked,
        ApiKeyCreated,
        ApiKeyRevoked,
        EntryReplayed,
        EntriesPurged,
    ),
    "distributor": (
        StrategySet,
        SettingSet,
        TaskCancelRequested,
        TaskReplayed,
        TasksChangeRequested,
        DeadPurged,
        EntryReplayed,
    ),
    "router": (MessageReplayed, DeadPurged, EntryReplayed, LinkMade, LinkRemoved, MasterSet, MasterCleared),
}


def check_agent_id(agent_id: str) -> str:
    """Return the id of an agent that may register.

    Raises:
        IdInvalid: it does not fit, or is a reserved word, or stands for something else than an agent.
    """
    check_id(agent_id, "agent_id")
    if agent_id == COORDINATOR:
        raise IdInvalid(f"agent_id must not be {COORDINATOR!r}: messages to it are for the coordinator itself")
    if agent_id == SUBORDINATES:
        raise IdInvalid(f"agent_id must not be {SUBORDINATES!r}: the word stands for all subordinates of a sender")
    return agent_id


def _check_sender(sender_id: str) -> None:
    if sender_id == COORDINATOR:
        raise ValueError(f"sender_id must not be {COORDINATOR!r}: only the coordinator itself sends in this name")


def _check_pair(agent_id: str, other_id: str, name: str) -> None:
    if agent_id == other_id:
        raise ValueError(f"{name} must be another agent than agent_id, not also {other_id!r}")


def _check_exclusive(dead_id: str | None, age: float | None, name: str) -> None:
    if (dead_id is None) == (age is None):
        raise ValueError(f"give either {name} or older_than")


Fact = (
    AgentRegistered
    | AgentStatusChanged
    | AgentDeregistered
    | AgentHeartbeat
    | AgentLeasesListed
    | TaskSubmitted
    | TasksSubmitted
    | TaskStarted
    | TaskProgressed
    | TaskCompleted
    | TasksCompleted
    | TaskFailed
    | TaskReleased
    | TaskCancelRequested
    | AgentLost
    | LeaseLost
    | MessageSent
    | LinkRequested
    | LinkAccepted
    | LinkRemoved
    | LinkMade
    | MasterSet
    | MasterCleared
    | MessageBroadcast
    | AgentDrained
    | AgentMaintenanceBegun
    | AgentResumed
    | AgentRemoved
    | AgentsPruned
    | AgentEnrolled
    | AgentTokenRotated
    | AgentTokenRevoked
    | ApiKeyCreated
    | ApiKeyRevoked
    | StrategySet
    | SettingSet
    | TaskReplayed
    | TasksChangeRequested
    | MessageReplayed
    | EntryReplayed
    | DeadPurged
    | EntriesPurged
)

#: fact -> its ``type`` on the wire.
TYPE_OF: dict[type[Struct], str] = {
    AgentRegistered: "agent.registered",
    AgentStatusChanged: "agent.status_changed",
    AgentDeregistered: "agent.deregistered",
    AgentHeartbeat: "agent.heartbeat",
    AgentLeasesListed: "agent.leases_listed",
    TaskSubmitted: "task.submitted",
    TasksSubmitted: "tasks.submitted",
    TaskStarted: "task.started",
    TaskProgressed: "task.progressed",
    TaskCompleted: "task.completed",
    TasksCompleted: "tasks.completed",
    TaskFailed: "task.failed",
    TaskReleased: "task.released",
    TaskCancelRequested: "task.cancel_requested",
    AgentLost: "agent.lost",
    LeaseLost: "lease.lost",
    MessageSent: "message.sent",
    LinkRequested: "link.requested",
    LinkAccepted: "link.accepted",
    LinkRemoved: "link.removed",
    LinkMade: "link.made",
    MasterSet: "master.set",
    MasterCleared: "master.cleared",
    MessageBroadcast: "message.broadcast",
    AgentDrained: "agent.drained",
    AgentMaintenanceBegun: "agent.maintenance_begun",
    AgentResumed: "agent.resumed",
    AgentRemoved: "agent.removed",
    AgentsPruned: "agents.pruned",
    AgentEnrolled: "agent.enrolled",
    AgentTokenRotated: "agent.token_rotated",
    AgentTokenRevoked: "agent.token_revoked",
    ApiKeyCreated: "api_key.created",
    ApiKeyRevoked: "api_key.revoked",
    StrategySet: "strategy.set",
    SettingSet: "setting.set",
    TaskReplayed: "task.replayed",
    TasksChangeRequested: "tasks.change_requested",
    MessageReplayed: "message.replayed",
    EntryReplayed: "entry.replayed",
    DeadPurged: "dead.purged",
    EntriesPurged: "entries.purged",
}

_REPORTS = (TaskStarted, TaskProgressed, TaskCompleted, TasksCompleted, TaskFailed, TaskReleased)

#: stream (without its namespace) -> the facts that it may carry. Others are invalid there.
STREAM_FACTS: dict[str, tuple[type[Struct], ...]] = {
    "in:registry": (AgentRegistered, AgentStatusChanged, AgentDeregistered, AgentLeasesListed),
    "in:beats": (AgentHeartbeat,),
    "in:reports": _REPORTS,
    "in:losses": (AgentLost, LeaseLost),
    "in:requests": (TaskCancelRequested,),
    **{f"in:tasks:{priority}": (TaskSubmitted, TasksSubmitted) for priority in Priority},
    "in:links": (LinkRequested, LinkAccepted, LinkRemoved, MasterSet, MasterCleared),
    **{f"in:messages:{lane}": (MessageSent, MessageBroadcast) for lane in Lane},
    **{f"in:control:{kind}": facts for kind, facts in CONTROL_FACTS.items()},
}

#: fact of an agent about itself -> its field that names the agent. With ``require_tokens`` its entry needs the token of
#: that agent, but not on a control stream: an operator's fact. Reports are not listed: their leases protect them.
SPEAKER: dict[type[Struct], str] = {
    AgentRegistered: "agent_id",
    AgentStatusChanged: "agent_id",
    AgentDeregistered: "agent_id",
    AgentLeasesListed: "agent_id",
    AgentHeartbeat: "agent_id",
    MessageSent: "sender_id",
    MessageBroadcast: "sender_id",
    LinkRequested: "agent_id",
    LinkAccepted: "agent_id",
    LinkRemoved: "agent_id",
    MasterSet: "agent_id",
    MasterCleared: "agent_id",
}
#: Facts of ``SPEAKER`` that clients append as well. A sender that is no agent needs no token.
OF_CLIENTS: frozenset[type[Struct]] = frozenset({MessageSent, MessageBroadcast})

#: fact that lists others in its only field -> the facts that it lists.
PARTS_OF: dict[type[Struct], type[Struct]] = {TasksCompleted: TaskCompleted, TasksSubmitted: TaskSubmitted}


def parts_of(fact: Struct) -> tuple[Any, ...]:
    """Return the facts that a fact lists; the fact itself if it is not a list."""
    return astuple(fact)[0] if type(fact) in PARTS_OF else (fact,)
