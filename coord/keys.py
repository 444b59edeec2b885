"""Every key that coord has in Redis: its name, type, fields with units, time to live, and who writes it.

All begin with the namespace as a Redis Cluster hash tag, ``{coord}:``, so that a script's keys share a slot. Times are
milliseconds since 1970 on the server's clock unless said otherwise; *observed* ones are on the clock of ``clock``,
which stands still while the coordinator or Redis is away.

Facts, appended by callers and deleted by the worker that handled them (no TTL; empty when all is well)

====================================  ======  ==============================================================
in:registry, in:beats                 stream  agents' facts; beats are capped, the only ones that may be lost
in:tasks:{priority}                   stream  submissions, one stream for each priority
in:reports                            stream  what agents say of the tasks that they hold
in:requests                           stream  what clients ask about tasks: cancel
in:losses                             stream  agents given up and leases lost, appended by the registry's own scripts
in:messages:{lane}                    stream  messages to agents
in:control:{kind}                     stream  what operators tell the workers of a kind
====================================  ======  ==============================================================

Agents, written by the registry

====================================  ======  ==============================================================
agent:{id}                            hash    agent_id agent_type status version capabilities services tags (JSON
                                              arrays) endpoints metadata labels location (JSON objects; a location may
                                              be empty) capacity
                                              (tasks) weight heartbeat_interval (ms, absent: none declared)
                                              incarnation incarnations (the last eight, spaces between) term rev
                                              resumes_as (its status before it turned stale) drained_from (what it says
                                              of itself while an operator drains it) drain_id (the operator's last word
                                              that counted) deaf (1: it does not read its inbox) ask asked_at (the last
                                              question for its leases, ms) suspects (leases missing from its list)
                                              registration_time last_heartbeat (ms) registered_obs beat_obs (observed
                                              ms) beats (observed ms of the last ten, commas between) health_score
                                              (0..1) leases (as last reported) fact_id registered_id beat_id (ids of the
                                              last status, registration and beat that counted) digest (of
                                              what eligibility can see) facets (spaces between) metric:{name} (one
                                              load metric). No TTL while the agent is here; forgotten with its
                                              ``agents:departed`` entry
agents:active                         set     placeable: may be given work now
agents:all                            set     every agent that has a record
agents:expiry                         zset    agent -> observed ms at which it turns stale
agents:departed                       zset    agent -> ms at which it left or turned stale
agents:lost                           zset    agent -> ms at which its loss is announced again; gone when what it had in
                                              the terms that ended was taken back
agents:by:{facet}:{value}             set     agents with that capability, service, type, tag, label or status; the
                                              value is percent-encoded
clock                                 hash    observed (ms), ticked_at (ms) of the agents' clock, by the registry;
                                              attempts (ms), attempts_at (ms) of the attempts' clock, by the
                                              distributor: see ``workers/lua/lib/tasks.lua``
====================================  ======  ==============================================================

Tasks, written by the distributor

====================================  ======  ==============================================================
task:{id}                             hash    state, submission (priority caller more submitted_at score pool digest,
                                              spaces between; caller: empty, or told the outcome; more: 1 when there
                                              are fields of the next kind), body (the JSON as submitted); when the task
                                              has them: run_at deadline timeout (ms) max_attempts backoff_ms
                                              backoff_max_ms attempt (those before this assignment) failures releases
                                              (by agents that had started it) returns (by agents that had not);
                                              once they apply: assignment (lease agent_id entry has_alarm term
                                              attempt assigned_at start_by timeout_at placement, spaces between, 0 for
                                              no limit; entry: inbox id, has_alarm: 1 when it may have
                                              one, placement: JSON; start_by and timeout_at on the
                                              clock of attempts)
                                              started_at cancel_at cancel_by (on that clock) progress progress_at (ms of
                                              its last event) attempts (one JSON object a line)
                                              result error (JSON) finished_at replay_id (the request that last set it
                                              going again) entry (of a refused submission) dropped (1: result, progress
                                              and most of the body were dropped to free memory). No TTL: the index of
                                              its end owns it
inflight:{agent}                      set     tasks assigned to the agent and not settled; its size is the agent's load
queue:{pool}                          zset    task -> aged priority: submitted ms less the head start of its priority
pools                                 hash    pool -> its definition (JSON), present while a task waits; empty when a
                                              requeue made it, then any waiting task's body tells it
pools:changed                         zset    pool -> pools_rev of when it last began or ceased to have waiting tasks;
                                              the newest 10,000
alarms                                zset    waiting task -> the earlier of its run time and its deadline, ms
deadlines                             zset    held task -> its deadline, ms
limits                                zset    held task -> the earlier of its timeout and the end of a cancel's grace,
                                              ms on the clock of attempts
unclaimed                             zset    agent -> ms on the clock of attempts at which run_alarms looks whether
                                              it has claimed its tasks, the earliest ``start_by`` of what it
                                              may not have claimed or sooner
suspended                             hash    agent -> its ``beat_id fact_id registered_id`` when it returned a task
                                              that it had not started, for a reason that holds for the next one too.
                                              Dispatch gives it nothing until one of these has changed
tasks:terminal, tasks:dead            zset    completed, cancelled, expired; failed: task -> ms of its end. Record
                                              and place are forgotten together: after 24 h, failed ones after 7 days, or
                                              when there are too many. A replayed or purged one leaves at once
tasks:relieved                        string  ms and id, a space between, of the end of the last ended task that was
                                              looked at to free memory
tasks:refused                         zset    task -> ms at which it was refused. Record and place are forgotten
                                              together: after 1 h, or when there are too many
tombstones                            zset    task -> ms of a cancel that came before its task
counters                              hash    {state}:{priority} (gauge for a state that ends, total for one that does
                                              not); totals: submitted:{priority} retried released replayed
                                              reports_duplicate reports_stale messages_delivered messages_dead
                                              messages_replayed buried unburied results_dropped results_dropped_bytes;
                                              backlog_bytes; pools_rev; task_events
                                              (ever written to log:tasks). Every script's, the registry's too
====================================  ======  ==============================================================

Delivery, written by the router; assignments by the distributor, orders to agents by it and by the registry

====================================  ======  ==============================================================
inbox:{agent}:{lane}                  stream  no group: the agent reads and deletes. Fields: message_type, data (JSON),
                                              then task_id lease attempt incarnation of an assignment; order, and ask or
                                              task_id lease reason, of an order (list_leases, stop_task); id sender_id
                                              receiver_id priority timestamp expires_at, and correlation_id reply_to
                                              where it has them, of a message. Forgotten with its agent
message:{id}                          hash    body digest sender_id receiver_id message_type priority status sent_at
                                              expires_at reason; of a dead one correlation_id reply_to. TTL: the
                                              message's own, at least 1 h; none while it is a dead letter
messages:dead                         zset    message -> ms; undeliverable or expired, until it is replayed, purged, or
                                              forgotten with its record: after 7 days, or when there are too many
replies:{caller}                      stream  answers to a caller's facts and outcomes of its tasks, by whoever handled
                                              them; 10,000 and 8 MiB. An outcome whose data is above 16 KiB has ``at``
                                              (``record``) in its place. TTL 1 h
====================================  ======  ==============================================================

Running, written by workers of every kind

====================================  ======  ==============================================================
settings                              hash    what operators change live: strategy, health_threshold
worker:{kind}:{name}                  hash    presence: pid host version started_at handled per_s (entries a second)
                                              lag_ms progress_at (when it said so) idle_ms (since its loop came round)
                                              and a distributor's setting:{name} (what its environment says). TTL 15 s
workers:{kind}                        zset    name -> ms of its last presence
dead:in                               stream  entries that were buried: stream id type data (first 4 KiB) whole (1: that
                                              is all of it, so it may be replayed) caller code reason; 10,000 and
                                              16 MiB
log:agents, log:messages              stream  what happened; capped by entries and by bytes
log:tasks                             stream  what happened; capped by events and by bytes. The events of one kind in a
                                              batch are one entry: each field holds a value for each task, with spaces
                                              between. seq: the number of its last event since the cell began
log:progress                          stream  how far tasks are: task.progressed, one for each task and second at most;
                                              data (JSON, up to 1 KiB) or bytes (the size of a larger value). Capped by
                                              entries and by fewer bytes
log:control                           stream  settings changed, dead letters purged, entries replayed, memory freed;
                                              capped by entries and by bytes
size:{stream}                         string  of each log, ``dead:in`` and replies:{caller}: the bytes of its newest
                                              section, then the ids at which the newest three sections begin, spaces
                                              between. A section is a quarter of the cap. TTL that of the stream
====================================  ======  ==============================================================
"""

from __future__ import annotations

from urllib.parse import quote

from coord.models.tasks import Lane, Priority

TASK_STREAMS: tuple[str, ...] = tuple(f"in:tasks:{priority}" for priority in Priority)
MESSAGE_STREAMS: tuple[str, ...] = tuple(f"in:messages:{lane}" for lane in Lane)

#: kind of worker -> the streams it consumes, most pressing first: within one read, each has its bounded share.
CONSUMES: dict[str, tuple[str, ...]] = {
    "registry": ("in:registry", "in:control:registry", "in:beats"),
    "distributor": ("in:reports", "in:losses", "in:control:distributor", "in:requests", *TASK_STREAMS),
    "router": ("in:control:router", *MESSAGE_STREAMS),
}

#: Keys that live without a TTL (a test holds every other key to one); a ``*`` stands for one variable part.
WITHOUT_TTL: tuple[str, ...] = (
    "in:*",
    "log:*",
    "size:log:*",
    "dead:in",
    "size:dead:in",
    "agent:*",
    "agents:*",
    "clock",
    "task:*",
    "inflight:*",
    "queue:*",
    "pools",
    "pools:changed",
    "alarms",
    "deadlines",
    "limits",
    "unclaimed",
    "suspended",
    "tasks:*",
    "tombstones",
    "counters",
    "inbox:*",
    "messages:dead",
    "settings",
    "workers:*",
)


class Keys:
    """Builds the names of the keys of one namespace.

    ``prefix`` is handed to every script as its only key: it routes the call, and the script builds the rest from it.
    """

    __slots__ = ("namespace", "prefix")

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.prefix = f"{{{namespace}}}:"

    def of(self, name: str) -> str:
        """The full key of a name without variable parts, such as ``in:reports`` or ``alarms``."""
        return self.prefix + name

    def agent(self, agent_id: str) -> str:
        """An agent's record."""
        return f"{self.prefix}agent:{agent_id}"

    def inflight(self, agent_id: str) -> str:
        """The tasks in flight on an agent."""
        return f"{self.prefix}inflight:{agent_id}"

    def facet(self, facet: str, value: str) -> str:
        """The agents that have a value of a facet."""
        return f"{self.prefix}agents:by:{facet}:{encode_facet(value)}"

    def task(self, task_id: str) -> str:
        """A task's record."""
        return f"{self.prefix}task:{task_id}"

    def tasks_in(self, priority: str) -> str:
        """The stream on which tasks of a priority are submitted."""
        return f"{self.prefix}in:tasks:{priority}"

    def messages_in(self, lane: str) -> str:
        """The stream on which messages of a priority are sent."""
        return f"{self.prefix}in:messages:{lane}"

    def queue(self, pool: str) -> str:
        """The waiting tasks of a pool."""
        return f"{self.prefix}queue:{pool}"

    def inbox(self, agent_id: str, lane: str) -> str:
        """One lane of an agent's inbox."""
        return f"{self.prefix}inbox:{agent_id}:{lane}"

    def message(self, message_id: str) -> str:
        """A message's record."""
        return f"{self.prefix}message:{message_id}"

    def replies(self, caller: str) -> str:
        """A caller's answers."""
        return f"{self.prefix}replies:{caller}"

    def worker(self, kind: str, name: str) -> str:
        """A worker's presence."""
        return f"{self.prefix}worker:{kind}:{name}"


def encode_facet(value: str) -> str:
    """A facet's value as it stands in a key name: percent-encoded, so that it holds no colon, brace or space."""
    return quote(value, safe="")
