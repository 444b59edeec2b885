"""The data dictionary: every key that coord has in Redis, with its type, fields, units, time to live and writer.

All keys begin with the namespace as a Redis Cluster hash tag, ``{coord}:``, so that the keys of a script share a slot.
Times are milliseconds since 1970 on the server's clock unless stated otherwise. *Observed* times are on the clock of
the key ``clock``, which stands still while the coordinator or Redis is unavailable.

Facts, appended by callers and deleted by the worker that handled them (no TTL; normally empty)

====================================  ======  ==============================================================
in:registry, in:beats                 stream  facts of agents; heartbeats (``in:beats``) are capped and may be lost
in:tasks:{priority}                   stream  submissions, one stream for each priority
in:reports                            stream  reports of agents about the tasks that they hold
in:requests                           stream  requests of clients about tasks: cancel
in:losses                             stream  agents and leases that were lost, appended by scripts of the registry
in:messages:{lane}                    stream  messages to agents
in:links                              stream  changes that agents make to their links and to their master
in:control:{kind}                     stream  facts of operators for the workers of a kind
====================================  ======  ==============================================================

Agents, written by the registry

====================================  ======  ==============================================================
agent:{id}                            hash    agent_id agent_type status version capabilities services tags (JSON
                                              arrays) endpoints metadata labels location (JSON objects; a location may
                                              be empty) capacity (tasks) weight heartbeat_interval (ms, absent: none
                                              declared) incarnation incarnations (the last eight, spaces between) term
                                              rev resumes_as (its status before it turned stale) drained_from (the
                                              status that it reports while an operator imposes one) imposed
                                              (maintenance; absent: draining) drain_id (the last effective fact of an
                                              operator) deaf (1: it does not read its inbox) looked_obs (observed ms
                                              of the last look at its inbox) probe (the order ``read_inbox`` that it
                                              has not read yet: entry id and observed ms) unread (ms at which it was
                                              found to leave its inbox unread; absent: it does not) delivery (over
                                              HTTP: push or poll; absent: it reads its inbox from Redis) polled_obs
                                              (observed ms of its last poll) unpolled (1: it has to poll, and does
                                              not) ask
                                              asked_at (last request for its leases, ms) suspects (leases missing from
                                              its list) registration_time last_heartbeat (ms) registered_obs beat_obs
                                              (observed ms) beats (observed ms of the last ten, commas between)
                                              health_score (0..1) health_parts (freshness, regularity, penalties for
                                              load, status, ejection and deafness; spaces between) leases (as last
                                              reported) fact_id registered_id
                                              beat_id (ids of the last effective status, registration and heartbeat)
                                              digest (of what it declares) facets (spaces between)
                                              metric:{name} (one load metric) shown (the report in ``log:reports``
                                              that is the newest: cpu memory outside_load ms) ejected (JSON: the task
                                              types that it gets no tasks of, each with until and for_ms; written by
                                              the distributor). No TTL while the
                                              agent is present; removed with its entry in ``agents:departed``
agents:active                         set     placeable agents: they may get work now
agents:all                            set     every agent that has a record
agents:pushed                         set     agents that are present, and get their tasks pushed over HTTP
agents:expiry                         zset    agent -> observed ms at which it turns stale
agents:departed                       zset    agent -> ms at which it left or turned stale; earlier for an agent that is
                                              forgotten sooner than others
agents:health                         zset    agent -> minus its health_score, so the healthiest come first; 1 of an
                                              agent that left. Discovery pages through it
agents:reported                       set     agents whose load has changed since the last event in ``log:reports``
agents:lost                           zset    agent -> ms at which its loss is announced again; removed when its tasks
                                              of the terms that ended have been taken back
agents:by:{facet}:{value}             set     agents with that capability, service, type, tag, label or status; the
                                              value is percent-encoded
agents:facets                         set     ``{facet}:{value}`` of each of these sets that has members, but for status
token:{id}                            hash    of an enrolled agent: current, previous (SHA-256 of its tokens, in hex),
                                              previous_until (ms), fact_id (the last effective fact of an operator).
                                              No TTL while it has a token; as long as the record of a departed agent
                                              once its token is revoked
tokens                                hash    SHA-256 of a token -> the agent that has it, or had it until it was
                                              replaced: a hint, ``token:{id}`` says what is valid
api_key:{id}                          hash    of a key of the HTTP API: digest (SHA-256 of the key, in hex) role
                                              agent_id (of the role agent) name created_at (ms) created_by (a client)
                                              expires_at (ms; absent: never). No TTL: it is there until it is revoked
api_keys                              zset    key of the HTTP API -> ms of its last use, written by gateways once a
                                              minute at most; 0: never
clock                                 hash    observed (ms), ticked_at (ms) of the agents' clock, by the registry;
                                              attempts (ms), attempts_at (ms) of the attempts' clock, by the
                                              distributor: see ``workers/lua/lib/tasks.lua``; requests (ms), requests_at
                                              (ms) of the clock of requests, by the router: see
                                              ``workers/lua/lib/requests.lua``
====================================  ======  ==============================================================

Tasks, written by the distributor

====================================  ======  ==============================================================
task:{id}                             hash    state, submission (priority caller has_extras submitted_at score pool
                                              digest, spaces between; caller: receives the outcome, or empty;
                                              has_extras: 1 if there are fields of the next kind), body (the JSON as
                                              submitted); if the task has them: run_at deadline timeout (ms)
                                              max_attempts backoff_ms backoff_max_ms preferences (JSON: location
                                              affinity_key) avoid (agents of failed attempts, the last one first)
                                              attempt (number before this assignment) failures releases (by agents that
                                              had started it) returns (by agents that had not); once they apply:
                                              assignment (lease agent_id entry has_alarm term attempt assigned_at
                                              start_by timeout_at placement, spaces between, 0 for no limit; entry:
                                              inbox id, has_alarm: 1 if it may have an alarm, placement: JSON; start_by
                                              and timeout_at on the clock of attempts)
                                              started_at cancel_at cancel_by (on that clock) queued_at (ms: it waits
                                              since then, after a delay, a retry or a replay) progress progress_at (ms
                                              of its last event) attempts (one JSON object a line) result error (JSON)
                                              finished_at replay_id (the request that last replayed it) entry (of a
                                              refused submission) dropped (1: result, progress and most of the body were
                                              dropped to free memory). No TTL: the index of its outcome owns it
inflight:{agent}                      set     tasks assigned to the agent and not settled; its size is the agent's load
queue:{pool}                          zset    task -> aged priority: submitted ms less the head start of its priority. A
                                              pool has two queues: of tasks that are popped; and, with ``.named`` after
                                              the pool's id, of tasks that a plan names, because they have preferences
                                              or avoid agents
pools                                 hash    pool -> its definition (JSON), present while a task waits; a named queue
                                              has a row of its own. Empty if a requeue added the row; then the body of
                                              any waiting task has it
pools:changed                         zset    pool -> pools_rev when its row was last added or removed, or the
                                              order of a named queue changed; the newest 10,000
alarms                                zset    waiting task -> the earlier of its run time and its deadline, ms
deadlines                             zset    held task -> its deadline, ms
limits                                zset    held task -> the earlier of its timeout and the end of a cancel's grace,
                                              ms on the clock of attempts
unclaimed                             zset    agent -> ms on the clock of attempts at which its claims are checked: the
                                              earliest ``start_by`` of a task that it may not have claimed, or earlier;
                                              0, by the registry: the agent was found to be deaf
suspended                             hash    agent -> its ``beat_id fact_id registered_id`` when it returned a task
                                              before starting it, for a reason that applies to the next task as well.
                                              Dispatch gives it nothing until one of these has changed
tasks:terminal, tasks:dead            zset    completed, cancelled, expired; failed: task -> ms of its end. Record and
                                              member are removed together: after 24 h, failed ones after 7 days, or if
                                              there are too many. A replayed or purged task is removed at once
tasks:relieved                        string  ms of the end and id, a space between, of the last ended task that was
                                              examined to free memory
tasks:refused                         zset    task -> ms at which it was refused. Record and member are removed
                                              together: after 1 h, or if there are too many
tombstones                            zset    task -> ms of a cancel that arrived before its task
counters                              hash    {state}:{priority} (gauge for an unfinished state, total for an outcome);
                                              totals: submitted:{priority} prioritized_to:{priority}
                                              prioritized_from:{priority} replayed:{priority} retried released replayed
                                              reports_duplicate
                                              reports_stale messages_delivered messages_dead messages_replayed
                                              requests_timed_out buried unburied tokens_refused results_dropped
                                              results_dropped_bytes dead_letters_dropped; backlog_bytes; pools_rev;
                                              task_events (ever written to log:tasks) forgotten_rev (the highest rev
                                              of the agents that were removed) forgotten_at (ms of the last removal)
                                              plans_refused (the agent was not as the plan saw it) plans_late (the task
                                              had left its queue). All scripts, also the registry's, update them
histograms                            hash    {name}:{bucket} (observations; a bucket is its upper bound in ms, or inf)
                                              and {name}:sum (ms) of durations of tasks: wait:{priority}, until it is
                                              assigned; distribution, from there until it starts; run:{how}, from
                                              there until the attempt ends: completed, or how it ended else. See
                                              ``workers/lua/lib/histograms.lua``
task_types                            hash    task type -> tasks ever admitted; of 1,000 types, further ones under no
                                              name
====================================  ======  ==============================================================

Delivery, written by the router; assignments by the distributor, orders to agents by it and by the registry

====================================  ======  ==============================================================
inbox:{agent}:{lane}                  stream  no group: the agent reads and deletes. Fields: message_type, data (JSON),
                                              then task_id lease attempt incarnation of an assignment; order, and ask or
                                              task_id lease reason, of an order (link_changed, list_leases, read_inbox,
                                              stop_task); id sender_id receiver_id priority timestamp expires_at, and
                                              correlation_id reply_to protocol reply_by (ms) failed late hops
                                              traceparent where it has them, of a message. Removed with its agent
message:{id}                          hash    body digest (of what was sent; ``coordinator``: its answer) sender_id
                                              receiver_id message_type protocol priority status sent_at expires_at
                                              reason inbox_entry (of its only receiver), code (of a dead one); where
                                              it has them correlation_id reply_to conversation (its id), parent (the
                                              message before it in its chain of answers), hops (messages before it in
                                              that chain) reply_by (ms) request (of a request: open answered timed_out
                                              refused) requested_by (the client that gets the reply among its replies)
                                              failed late (1: of a reply) traceparent; of a broadcast entry (of its
                                              fact) recipients (their number) chunk (recipients in an item of the
                                              next two lists) delivered dead (so far). TTL: the message's own and
                                              1 h; none while it is a dead letter or an open request
recipients:{id}                       list    agents to which a broadcast goes, in chunks: ids with spaces between.
                                              Complete before it is delivered to any of them. TTL that of the message
outcomes:{id}                         list    for each of these chunks that was delivered the outcome of each agent,
                                              spaces between: the id of the entry in its inbox, or a code. TTL the same
conversation:{id}                     zset    message -> its number in the conversation. It begins with the first
                                              answer, or with the first message that names the conversation; at most as
                                              many as the budget of a conversation, and as many answers of the
                                              coordinator. TTL that of the last record
requests                              zset    request that waits -> its deadline, ms on the clock of requests
idempotency:{digest}                  string  digest of a request with an Idempotency-Key, then of its response the
                                              status, the Location or -, and the body. Written by gateways; {digest} of
                                              the caller, the path and the key. TTL: 1 day; less while it is handled
copies:{message}                      hash    agent -> ``delivered`` and the entry in its inbox, or ``dead`` and a
                                              code: of a message to all subordinates, and of a broadcast the copies that
                                              ended unread. TTL that of the message's record
messages:expiring                     zset    inbox, entry and message, spaces between -> ms at which a router looks
                                              whether it was read: 2 s after it expires
history:{agent}                       stream  messages that it has sent, or that were delivered to it: message_id; the
                                              newest 1,000. TTL 24 h after the last one
lanes                                 hash    of each lane of messages (critical high normal low) its lease: epoch, a
                                              slash, and the router that delivers its messages (empty: nobody).
                                              observed, ticked_at (ms): the clock of lanes, see
                                              ``workers/lua/hold_lanes.lua``
lanes:routers                         zset    router (name, # and a mark of its process) -> ms of its last sign of life
                                              on the clock of lanes
pushes                                hash    shard of the agents to which tasks are pushed -> push worker that has it;
                                              observed, ticked_at (ms): the clock of pushes, see
                                              ``workers/lua/share_pushes.lua``
pushes:workers                        zset    push worker (name, # and a mark of its process) -> ms of its last sign of
                                              life on the clock of pushes
messages:dead                         zset    message -> ms; undeliverable or expired, until it is replayed, purged, or
                                              removed with its record: after 7 days, or if there are too many
links:{agent}                         hash    other agent -> state (linked, requested: by this agent, asked: by the
                                              other one), ms, who made it (agent or operator), spaces between; 1,000.
                                              Both agents of a link have it. Removed with either agent
masters                               hash    agent -> its master. Removed with either agent
subordinates:{agent}                  set     agents of which it is the master; 100. Removed with it
replies:{caller}                      stream  answers to a caller's facts and outcomes of its tasks, by the worker that
                                              handled them; 10,000 and 8 MiB. An outcome whose data is above 16 KiB has
                                              ``at`` (``record``) in its place. TTL 1 h
====================================  ======  ==============================================================

Running, written by workers of every kind

====================================  ======  ==============================================================
settings                              hash    live settings of operators: strategy, health_threshold, ejection,
                                              avoid_failed_agent, rare_skills_first, record_plans, full_scores (on,
                                              off); rules with :{task type} after the name for tasks of that type
worker:{kind}:{name}                  hash    presence: pid host version started_at handled per_s (entries a second;
                                              requests of a gateway, which writes its own, kind ``gateway``)
                                              lag_ms progress_at (time of this report) idle_ms (since its last
                                              iteration) require_tokens (on, off) and for a distributor
                                              setting:{name} (the value of its environment) and strategies (those
                                              that are not coord's: name=package, spaces between), for a router lanes
                                              (that it holds, spaces between). TTL 15 s
workers:{kind}                        zset    name -> ms of its last presence
waiting                               hash    the waiting tasks by reason, as a distributor counted them: counted_at
                                              (ms) queued scheduled (totals then), {reason} (number of queued tasks; 0
                                              if absent), by (the process that counts), seen_at (ms; after some seconds
                                              of silence another process counts). TTL 5 min
dead:in                               stream  entries that could not be handled: stream id type data (first 4 KiB) whole
                                              (1: data is complete, so it may be replayed) caller by code reason;
                                              10,000 and 16 MiB
log:agents, log:messages              stream  events; capped by entries and by bytes
log:tasks                             stream  events; capped by events and by bytes. The events of one kind in a batch
                                              are one entry: each field holds a value for each task, with spaces
                                              between. seq: the number of its last event since the cell was created
log:progress                          stream  progress of tasks: task.progressed, at most one for each task and second;
                                              data (JSON, up to 1 KiB) or bytes (the size of a larger value). Capped by
                                              entries and by fewer bytes
log:reports                           stream  the load that agents report: agents.reported, at most one a second; capped
                                              as ``log:progress``
log:learned                           stream  what distributors have learned of the agents: agents.learned, one a second
                                              at most for each distributor, with by (the process) and data (JSON that
                                              only distributors read); capped as ``log:progress``
log:plans                             stream  what distributors planned on and what they chose, while the setting
                                              record_plans is on: plans.recorded, one for each plan, with version (of
                                              the format), by (the process), segment, number (in the segment; 0 is a
                                              snapshot) and data (JSON); capped by entries and by bytes
log:loads                             stream  the loads that distributors change, while there are several: by (the
                                              process), loads (agent and load after the change in turn, spaces between);
                                              the newest 500 entries, which only distributors read
log:control                           stream  settings changed, dead letters purged, entries replayed, memory freed;
                                              capped by entries and by bytes
log:audit                             stream  what operators have changed, written by the script that makes the change:
                                              type (of the fact), by (who asked for it), outcome (the word of the
                                              script), data (of the fact, up to 4 KiB); capped by entries and by bytes
size:{stream}                         string  of each log, ``dead:in`` and replies:{caller}: the bytes of its newest
                                              section, then the ids at which the newest three sections begin, spaces
                                              between. A section is a quarter of the cap. TTL that of the stream
====================================  ======  ==============================================================

Gateways, written by them

====================================  ======  ==============================================================
gateway:requests:{caller}:{window}    string  requests of a caller (``key:``, ``user:`` or ``agent:`` and an id, or
                                              ``address:`` and an address; percent-encoded) in a minute, or refused
                                              credentials (``refused:`` and an address). Gateways take several at once.
                                              TTL 3 min
gateway:ticket:{digest}               string  whom a ticket for one stream of events stands for (JSON), by its SHA-256.
                                              Removed when it is used. TTL 30 s
gateway:refreshed:{id}                string  1: the refresh token with this id was used. TTL that of the token
gateway:socket:{agent}                string  the id of the WebSocket that receives the inbox of an agent: the last that
                                              asked for it. Gateways track it. TTL 1 h; set again while it is open
====================================  ======  ==============================================================
"""

from __future__ import annotations

from urllib.parse import quote

from coord.models.tasks import Lane, Priority

TASK_STREAMS: tuple[str, ...] = tuple(f"in:tasks:{priority}" for priority in Priority)
MESSAGE_STREAMS: tuple[str, ...] = tuple(f"in:messages:{lane}" for lane in Lane)

#: kind of worker -> the streams it consumes, most urgent first; in one read, each stream has a limited share.
CONSUMES: dict[str, tuple[str, ...]] = {
    "registry": ("in:registry", "in:control:registry", "in:beats"),
    "distributor": ("in:reports", "in:losses", "in:control:distributor", "in:requests", *TASK_STREAMS),
    "router": ("in:control:router", "in:links", *MESSAGE_STREAMS),
}

#: Every kind of worker. Push workers consume no facts: they read inboxes.
PUSH = "push"
KINDS: tuple[str, ...] = (*CONSUMES, PUSH)
#: The kind of the presence of gateways, which read no stream of facts.
GATEWAY = "gateway"

#: Keys without a TTL (a test checks that every other key has one); ``*`` is one variable part.
WITHOUT_TTL: tuple[str, ...] = (
    "in:*",
    "log:*",
    "size:log:*",
    "dead:in",
    "size:dead:in",
    "agent:*",
    "agents:*",
    "token:*",
    "tokens",
    "api_key:*",
    "api_keys",
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
    "histograms",
    "task_types",
    "inbox:*",
    "lanes",
    "lanes:*",
    "pushes",
    "pushes:*",
    "messages:dead",
    "requests",
    "messages:expiring",
    "links:*",
    "masters",
    "subordinates:*",
    "settings",
    "workers:*",
)


class Keys:
    """Builds the keys of one namespace.

    ``prefix`` is the only key that is passed to a script: it routes the call, and the script derives all keys from it.
    """

    __slots__ = ("namespace", "prefix")

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.prefix = f"{{{namespace}}}:"

    def of(self, name: str) -> str:
        """Return the full key of a name, such as ``in:reports`` or ``alarms``."""
        return self.prefix + name

    def agent(self, agent_id: str) -> str:
        """Return the key of an agent's record."""
        return f"{self.prefix}agent:{agent_id}"

    def token(self, agent_id: str) -> str:
        """Return the key of the digests of an agent's tokens."""
        return f"{self.prefix}token:{agent_id}"

    def api_key(self, key_id: str) -> str:
        """Return the key of the record of a key of the HTTP API."""
        return f"{self.prefix}api_key:{key_id}"

    def inflight(self, agent_id: str) -> str:
        """Return the key of the tasks in flight on an agent."""
        return f"{self.prefix}inflight:{agent_id}"

    def facet(self, facet: str, value: str) -> str:
        """Return the key of the agents that have a value of a facet."""
        return f"{self.prefix}agents:by:{facet}:{encode_facet(value)}"

    def task(self, task_id: str) -> str:
        """Return the key of a task's record."""
        return f"{self.prefix}task:{task_id}"

    def tasks_in(self, priority: str) -> str:
        """Return the stream on which tasks of a priority are submitted."""
        return f"{self.prefix}in:tasks:{priority}"

    def queue(self, pool: str) -> str:
        """Return the key of the waiting tasks of a pool."""
        return f"{self.prefix}queue:{pool}"

    def inbox(self, agent_id: str, lane: str) -> str:
        """Return the stream of one lane of an agent's inbox."""
        return f"{self.prefix}inbox:{agent_id}:{lane}"

    def message(self, message_id: str) -> str:
        """Return the key of a message's record."""
        return f"{self.prefix}message:{message_id}"

    def conversation(self, conversation_id: str) -> str:
        """Return the key of the messages of a conversation."""
        return f"{self.prefix}conversation:{conversation_id}"

    def copies(self, message_id: str) -> str:
        """Return the key of the copies of a message to several agents."""
        return f"{self.prefix}copies:{message_id}"

    def history(self, agent_id: str) -> str:
        """Return the stream of the messages of an agent."""
        return f"{self.prefix}history:{agent_id}"

    def links(self, agent_id: str) -> str:
        """Return the key of the links of an agent."""
        return f"{self.prefix}links:{agent_id}"

    def subordinates(self, agent_id: str) -> str:
        """Return the key of the subordinates of an agent."""
        return f"{self.prefix}subordinates:{agent_id}"

    def socket(self, agent_id: str) -> str:
        """Return the key of the WebSocket that receives the inbox of an agent."""
        return f"{self.prefix}gateway:socket:{agent_id}"

    def replies(self, caller: str) -> str:
        """Return the stream of the answers to a caller."""
        return f"{self.prefix}replies:{caller}"

    def worker(self, kind: str, name: str) -> str:
        """Return the key of a worker's presence."""
        return f"{self.prefix}worker:{kind}:{name}"


def encode_facet(value: str) -> str:
    """Return a facet's value for a key name: percent-encoded, so that it contains no colon, brace or space."""
    return quote(value, safe="")
