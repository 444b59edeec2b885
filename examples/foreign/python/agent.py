"""An agent in Python, written from docs/protocol.md with redis-py alone: `python agent.py ID`.

Its capability is `digest`: wait until the file `{"path": …}` exists, as in a folder where other programs drop files
(they rename complete files into it), and return `{"sha256": …, "bytes": …}`. COORD_REDIS_URL is the URL of Redis.

It answers each message with its payload; of the message `{"ask": AGENT, "protocol": …}` it first requests the answer
from that agent. It accepts every link, and takes the agent in COORD_MASTER as its master.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import exceptions as errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

URL = os.environ.get("COORD_REDIS_URL", "redis://127.0.0.1:6379")
# Goes with each fact about this agent; without a token, nothing does.
TOKEN: dict[Any, Any] = {"token": token} if (token := os.environ.get("COORD_AGENT_TOKEN")) else {}
PREFIX = "{" + os.environ.get("COORD_NAMESPACE", "coord") + "}:"
MASTER = os.environ.get("COORD_MASTER")
INTERVAL_S = float(os.environ.get("COORD_HEARTBEAT_INTERVAL_S", "5"))
ANSWER_S = float(os.environ.get("COORD_ANSWER_TIMEOUT_S", "10"))
LANES = ("critical", "high", "normal", "low")
CAPACITY = 4
#: Seconds that another agent has to reply to a request.
REPLY_S = 10
BLOCK_MS = 1_000
#: Seconds that running work gets to finish at shutdown, and that the last facts get to reach the registry.
GRACE_S, LEAVE_S = 30.0, 10.0
#: Number of outcomes that are kept, in case a fail-over brings their assignments back.
KEPT = 1_000
#: Errors of a server that is no longer the primary.
DEMOTED = (errors.ReadOnlyError, errors.MovedError, errors.ClusterDownError)
#: Temporary errors: no answer, or one of these …
TEMPORARY = (
    OSError, errors.ConnectionError, errors.TimeoutError, errors.OutOfMemoryError, errors.AskError,
    errors.TryAgainError, errors.MasterDownError, *DEMOTED,
)  # fmt: skip
#: … or an error that starts with one of these words.
TEMPORARY_WORDS = ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")

Fields = dict[str, str]


class Fatal(Exception):
    """The agent must stop; the message is the reason."""


@dataclass
class Attempt:
    """An assignment: first waiting, then claimed, then running."""

    lane: int
    entry: str
    fields: Fields
    stop_reason: str = ""
    work: asyncio.Task[dict[str, Any]] | None = None

    def stop(self, reason: str) -> None:
        """Stop the work; if the claim has no answer yet, the work does not start."""
        self.stop_reason = reason or "stopped"
        if self.work is not None:
            self.work.cancel()


class Agent:
    """One process of an agent, from its registration to its deregistration."""

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.incarnation = str(uuid.uuid4())  # new for each process
        self.caller = self.incarnation  # so all answers there are for this process
        self.lanes = [f"{PREFIX}inbox:{agent_id}:{lane}" for lane in LANES]
        self.replies = f"{PREFIX}replies:{self.caller}"
        # Without this, redis-py repeats a command after a lost answer; the result of a repeated claim is unclear.
        limit_s = BLOCK_MS / 1000 + ANSWER_S
        self.redis = Redis.from_url(
            URL, decode_responses=True, protocol=2, socket_timeout=limit_s, retry=Retry(NoBackoff(), 0)
        )
        self.waiting: dict[str, Attempt] = {}  # by lease: read, not claimed yet
        self.held: dict[str, Attempt] = {}  # by lease: from before its claim until its report is appended
        self.outcomes: dict[str, tuple[str, dict[str, Any]]] = {}  # by lease: latest outcomes
        self.answers: dict[str, str] = {}  # entry id in in:registry of an own fact -> "" or an error code
        self.answers_changed = asyncio.Condition()
        self.jobs: set[asyncio.Task[None]] = set()
        self.failure: asyncio.Future[None] | None = None  # error of a job
        self.asked: dict[str, Fields] = {}  # id of an own request -> the message that it is for
        self.is_draining = False
        self.has_left = False  # it deregisters: a heartbeat or a registration after that would bring it back
        self.needs_master = False  # it has registered, and has not set its master since
        self.ahead_ms = 0.0  # the server's clock minus time.monotonic

    # Append facts.

    async def append(self, stream: str, kind: str, fact: dict[str, Any], caller: str = "") -> str:
        """Append a fact, with retries until Redis answers (a repeated fact changes nothing); return its entry id."""
        fields = {"type": kind, "data": json.dumps(fact)} | ({"caller": caller} if caller else {})
        fields |= TOKEN if stream != "in:reports" else {}
        while True:
            if self.has_left and kind == "agent.registered":
                return ""
            try:
                entry = str(await self.redis.xadd(PREFIX + stream, fields))  # type: ignore[arg-type] # str is a field
            except (errors.RedisError, OSError) as error:
                is_temporary = isinstance(error, TEMPORARY) or str(error).startswith(TEMPORARY_WORDS)
                if not is_temporary or isinstance(error, errors.AuthenticationError):
                    raise Fatal(f"{stream}: {error}") from error
                await self.reconnect_if_demoted(error)
                await asyncio.sleep(0.5)
            else:
                self.ahead_ms = int(entry.partition("-")[0]) - time.monotonic() * 1000
                return entry

    async def reconnect_if_demoted(self, error: Exception) -> None:
        """Reconnect if the server is no longer the primary: the address may belong to another server now."""
        if isinstance(error, DEMOTED) or "UNBLOCKED" in str(error):
            await self.redis.connection_pool.disconnect()

    async def register(self) -> str:
        """Register; a repeated registration with the same incarnation is a refresh."""
        self.needs_master = MASTER is not None
        fact = {
            "agent_id": self.agent_id, "agent_type": "worker", "incarnation": self.incarnation,
            "capabilities": ["digest"], "tags": ["foreign"], "capacity": CAPACITY, "heartbeat_interval": INTERVAL_S,
        }  # fmt: skip
        return await self.append("in:registry", "agent.registered", fact, self.caller)

    async def send_heartbeats(self) -> None:
        """Send heartbeats; one may get lost, so it is not repeated."""
        while not self.has_left:
            fact = {"agent_id": self.agent_id, "incarnation": self.incarnation, "leases": len(self.held)}
            fields: dict[Any, Any] = {"type": "agent.heartbeat", "data": json.dumps(fact), "caller": self.caller}
            fields |= TOKEN
            with suppress(errors.RedisError, OSError):
                await self.redis.xadd(PREFIX + "in:beats", fields, maxlen=100_000, approximate=True)
            await asyncio.sleep(INTERVAL_S)

    async def report(self, lease: str, kind: str, fact: dict[str, Any]) -> None:
        """Report an outcome; the lease is held until Redis has the report."""
        await self.append("in:reports", kind, fact)
        self.outcomes[lease] = (kind, fact)
        if len(self.outcomes) > KEPT:
            del self.outcomes[next(iter(self.outcomes))]
        self.held.pop(lease, None)

    # Read inbox and replies.

    async def read(self) -> None:
        """Read lanes and replies, from the beginning after each connect."""
        cursors: dict[Any, Any] = {}
        while True:
            try:
                if not cursors:
                    await self.register()
                    cursors = dict.fromkeys([*self.lanes, self.replies], "0")
                streams: Any = await self.redis.xread(cursors, count=64, block=BLOCK_MS)
            except (errors.RedisError, OSError) as error:
                print(f"{self.agent_id}: Redis is unavailable: {error}", file=sys.stderr)
                cursors = {}
                await self.reconnect_if_demoted(error)
                await asyncio.sleep(0.2)
                continue
            for stream, entries in streams:  # in the order of the request
                for entry, fields in entries:
                    cursors[stream] = entry
                    if stream == self.replies:
                        await self.on_answer(fields)
                    else:
                        await self.on_entry(self.lanes.index(stream), entry, fields)
            self.claim()

    async def on_answer(self, fields: Fields) -> None:
        """Handle an answer to facts of this process."""
        code = fields.get("code", "")
        if code == "unknown_agent":
            await self.register()
        elif code not in ("", "agent_not_found"):  # agent_not_found: it has left already
            raise Fatal(f"{code}: {fields['message']}")
        elif not code and self.needs_master and fields["stream"] == "in:registry":  # the registry knows it now
            self.needs_master = False
            await self.append("in:links", "master.set", {"agent_id": self.agent_id, "master_id": MASTER})
        async with self.answers_changed:
            if (
                fields["stream"] == "in:registry"
            ):  # an entry id is unique in its stream only, and only these answers are awaited
                self.answers.update(dict.fromkeys(fields["fact"].split(), code))
            while len(self.answers) > KEPT:
                del self.answers[next(iter(self.answers))]
            self.answers_changed.notify_all()

    async def on_entry(self, lane: int, entry: str, fields: Fields) -> None:
        """Handle an entry of a lane."""
        order = fields.get("order")
        if "lease" in fields and not order:
            self.offer(Attempt(lane, entry, fields))
            return
        if order == "stop_task":
            lease, reason = fields["lease"], fields.get("reason", "")
            if lease in self.waiting:
                self.start(self.give_back(lease, reason))
            elif lease in self.held:
                self.held[lease].stop(reason)
        elif order == "list_leases":
            self.start(self.list_leases(fields["ask"]))
        elif order == "link_changed":
            if fields["change"] == "requested":
                fact = {"agent_id": self.agent_id, "peer_id": fields["agent_id"]}
                await self.append("in:links", "link.accepted", fact)
        elif "id" in fields:
            if time.monotonic() * 1000 + self.ahead_ms >= int(fields["expires_at"]):
                return  # the router removes it, and records that it expired
            await self.on_message(fields)
        with suppress(errors.RedisError, OSError):  # after an error it is read again, which changes nothing
            await self.redis.xdel(self.lanes[lane], entry)

    def offer(self, attempt: Attempt) -> None:
        """Queue an assignment, unless it is known already or belongs to another process."""
        lease = attempt.fields["lease"]
        if attempt.fields.get("incarnation", "") not in ("", self.incarnation) or lease in self.waiting | self.held:
            return
        if lease in self.outcomes:
            self.start(self.report(lease, *self.outcomes[lease]))
            return
        self.waiting[lease] = attempt
        if self.is_draining:
            self.start(self.give_back(lease, "the agent is draining"))

    async def list_leases(self, ask: str) -> None:
        """Report which leases it holds."""
        leases = {lease: attempt.fields["task_id"] for lease, attempt in self.held.items()}
        fact = {"agent_id": self.agent_id, "incarnation": self.incarnation, "ask": ask, "leases": leases}
        await self.append("in:registry", "agent.leases_listed", fact)

    async def on_message(self, fields: Fields) -> None:
        """Answer with the payload (a ping also with the id), or with what another agent replies to a request."""
        payload, reply_to = json.loads(fields["data"]), fields.get("reply_to", "")
        if reply_to in self.asked:
            await self.reply(self.asked[reply_to], payload, failed="failed" in fields)
            del self.asked[reply_to]
        elif reply_to or fields.get("protocol") == "broadcast":
            return  # answers and broadcasts are not answered
        elif isinstance(payload, dict) and "ask" in payload:
            message_id = f"{fields['id'][:122]}.ask"  # the same if it is handled twice
            self.asked[message_id] = fields
            fact = {
                "message_id": message_id, "sender_id": self.agent_id, "receiver_id": payload["ask"],
                "protocol": payload.get("protocol"), "reply_by": REPLY_S, "caused_by": fields["id"],
                "payload": {"from": self.agent_id}, "traceparent": fields.get("traceparent"),
            }  # fmt: skip
            await self.append("in:messages:normal", "message.sent", fact)
        else:
            more = {"agent_id": self.agent_id} if fields["message_type"] == "heartbeat" else None
            await self.reply(fields, payload | more if more else payload)

    async def reply(self, fields: Fields, payload: Any, *, failed: bool = False) -> None:
        """Send the reply to a message."""
        fact = {
            "message_id": f"{fields['id'][:122]}.reply",  # the same if it is handled twice
            "sender_id": self.agent_id, "receiver_id": fields["sender_id"], "reply_to": fields["id"],
            "payload": payload, "failed": failed, "traceparent": fields.get("traceparent"),
        }  # fmt: skip
        await self.append("in:messages:normal", "message.sent", fact)

    # Run tasks.

    def start(self, job: Any) -> None:
        """Run a job beside the reading."""
        task = asyncio.create_task(job)
        self.jobs.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Stop the agent if a job has failed."""
        self.jobs.discard(task)
        if self.failure and not self.failure.done() and not task.cancelled() and (error := task.exception()):
            self.failure.set_exception(error)

    def claim(self) -> None:
        """Start waiting attempts, highest lane first, up to the capacity."""
        while self.waiting and len(self.held) < CAPACITY and not self.is_draining:
            lease = min(self.waiting, key=lambda lease: self.waiting[lease].lane)
            attempt = self.held[lease] = self.waiting.pop(lease)
            self.start(self.run(lease, attempt))

    async def give_back(self, lease: str, reason: str) -> None:
        """Return an unclaimed task; the report also deletes the entry from the lane."""
        attempt = self.held[lease] = self.waiting.pop(lease)
        fact = {"task_id": attempt.fields["task_id"], "lease": lease, "reason": reason}
        await self.report(lease, "task.released", fact)

    async def run(self, lease: str, attempt: Attempt) -> None:
        """Claim a task by deleting its entry, run it, and report the outcome."""
        fact: dict[str, Any] = {"task_id": attempt.fields["task_id"], "lease": lease}
        kind = "task.released"
        try:
            is_claimed = await self.redis.xdel(self.lanes[attempt.lane], attempt.entry) == 1
        except (errors.RedisError, OSError):
            is_claimed = False  # the entry may or may not have been deleted
        if not is_claimed or attempt.stop_reason or self.is_draining:
            fact["reason"] = attempt.stop_reason or ("the agent is draining" if is_claimed else "claim in doubt")
        else:
            started = time.monotonic()
            work = attempt.work = asyncio.create_task(digest(json.loads(attempt.fields["data"])))
            if not (await asyncio.wait([work], timeout=0.1))[0]:
                await self.append("in:reports", "task.started", fact | {"started_ms_ago": 100})
                await asyncio.wait([work])
            if work.cancelled():
                fact["reason"] = attempt.stop_reason
            elif error := work.exception():
                kind = "task.failed"
                fact |= {"code": "unreadable", "message": str(error)[:2_000], "retryable": False}
            else:
                kind = "task.completed"
                fact["result"] = work.result()
            if kind != "task.released":
                fact["started_ms_ago"] = int((time.monotonic() - started) * 1000)
        await self.report(lease, kind, fact)
        self.claim()

    # Shut down.

    async def drain(self) -> None:
        """Accept nothing new, finish or return all tasks, then deregister."""
        me = {"agent_id": self.agent_id, "incarnation": self.incarnation}
        self.is_draining = True
        for lease in list(self.waiting):
            self.start(self.give_back(lease, "the agent is draining"))
        status = await self.append("in:registry", "agent.status_changed", me | {"status": "draining"}, self.caller)
        await self.answered(status)  # earlier assignments have been read by now
        if self.jobs:
            await asyncio.wait(self.jobs, timeout=GRACE_S)
        for attempt in self.held.values():
            attempt.stop("the agent is shutting down")
        if self.jobs:
            await asyncio.wait(self.jobs, timeout=LEAVE_S)
        self.has_left = True
        await self.answered(await self.append("in:registry", "agent.deregistered", me, self.caller))

    async def answered(self, entry: str) -> None:
        """Wait until the registry has answered a fact, with a timeout."""
        async with self.answers_changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.answers_changed.wait_for(lambda: entry in self.answers), LEAVE_S)

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; raises ``Fatal``."""
        shutdown = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, shutdown.set)
        self.failure = asyncio.get_running_loop().create_future()
        heartbeats, reading = asyncio.create_task(self.send_heartbeats()), asyncio.create_task(self.read())
        fatal: list[asyncio.Future[None]] = [reading, self.failure]
        ending: asyncio.Future[Any] = asyncio.create_task(shutdown.wait())
        await asyncio.wait([ending, *fatal], return_when=asyncio.FIRST_COMPLETED)
        if shutdown.is_set():
            limit = GRACE_S + 3 * LEAVE_S  # in case Redis is unavailable for longer
            draining: asyncio.Future[None] = asyncio.create_task(self.drain())
            await asyncio.wait([draining, *fatal], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        heartbeats.cancel()
        for future in fatal:
            if future.done():
                future.result()  # raises the reason
        reading.cancel()
        await self.redis.aclose()


async def digest(task: dict[str, Any]) -> dict[str, Any]:
    """The work: wait for a file and compute its digest."""
    path = Path(task["payload"]["path"])
    while not path.exists():  # noqa: ASYNC110 -- there is no event for a new file, and the check is fast
        await asyncio.sleep(0.05)
    content = await asyncio.to_thread(path.read_bytes)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


if __name__ == "__main__":
    try:
        asyncio.run(Agent(sys.argv[1]).serve())
    except Fatal as error:
        sys.exit(f"{sys.argv[1]}: {error}")
