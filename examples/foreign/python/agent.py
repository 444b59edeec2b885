"""An agent of coord in Python, with nothing but redis-py and docs/protocol.md: `python agent.py ID`.

It can `digest`: wait until the file `{"path": …}` is there, as in a folder where others drop files (rename them into
it when they are whole), and answer `{"sha256": …, "bytes": …}`. COORD_REDIS_URL says where Redis is.
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
PREFIX = "{" + os.environ.get("COORD_NAMESPACE", "coord") + "}:"
INTERVAL_S = float(os.environ.get("COORD_HEARTBEAT_INTERVAL_S", "5"))
ANSWER_S = float(os.environ.get("COORD_ANSWER_TIMEOUT_S", "10"))
LANES = ("critical", "high", "normal", "low")
CAPACITY = 4
BLOCK_MS = 1_000
#: What running work has to end once the agent is told to; and what the last words have to reach the registry.
GRACE_S, FAREWELL_S = 30.0, 10.0
#: Outcomes that are remembered, in case a fail-over brings their assignments back.
REMEMBERED = 1_000
#: The server is no primary any more.
DEMOTED = (errors.ReadOnlyError, errors.MovedError, errors.ClusterDownError)
#: What another try may mend: no answer, or an error that passes …
PASSING = (
    OSError, errors.ConnectionError, errors.TimeoutError, errors.OutOfMemoryError, errors.AskError,
    errors.TryAgainError, errors.MasterDownError, *DEMOTED,
)  # fmt: skip
#: … or one that begins so.
FOR_NOW = ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")

Fields = dict[str, str]


class GivenUp(Exception):
    """The agent must not go on; the message says why."""


@dataclass
class Attempt:
    """An assignment: remembered, then claimed, then worked on."""

    lane: int
    entry: str
    fields: Fields
    stop_reason: str = ""
    work: asyncio.Task[dict[str, Any]] | None = None

    def stop(self, reason: str) -> None:
        """End the work; if the claim is still on its way, it will not begin."""
        self.stop_reason = reason or "stopped"
        if self.work is not None:
            self.work.cancel()


class Agent:
    """One process of an agent, from its registration to its farewell."""

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.incarnation = str(uuid.uuid4())  # drawn once for each process
        self.caller = self.incarnation  # so whatever is answered there is for this process
        self.lanes = [f"{PREFIX}inbox:{agent_id}:{lane}" for lane in LANES]
        self.replies = f"{PREFIX}replies:{self.caller}"
        # redis-py would repeat a command whose answer it missed; a claim that is repeated is in doubt.
        limit_s = BLOCK_MS / 1000 + ANSWER_S
        self.redis = Redis.from_url(
            URL, decode_responses=True, protocol=2, socket_timeout=limit_s, retry=Retry(NoBackoff(), 0)
        )
        self.waiting: dict[str, Attempt] = {}  # by lease: read, and not claimed yet
        self.held: dict[str, Attempt] = {}  # by lease: from before the claim is sent until its report is answered
        self.told: dict[str, tuple[str, dict[str, Any]]] = {}  # by lease: the outcomes of late
        self.answers: dict[str, str] = {}  # entry id in in:registry of a fact of ours -> "" or an error's code
        self.news = asyncio.Condition()
        self.jobs: set[asyncio.Task[None]] = set()
        self.failure: asyncio.Future[None] | None = None  # of a job
        self.is_draining = False
        self.ahead_ms = 0.0  # of the server's clock before time.monotonic

    # What it says.

    async def tell(self, stream: str, kind: str, fact: dict[str, Any], caller: str = "") -> str:
        """Append a fact, again and again until Redis has answered: twice does no harm. Its entry id."""
        fields = {"type": kind, "data": json.dumps(fact)} | ({"caller": caller} if caller else {})
        while True:
            try:
                entry = str(await self.redis.xadd(PREFIX + stream, fields))  # type: ignore[arg-type] # str is a field
            except (errors.RedisError, OSError) as error:
                is_passing = isinstance(error, PASSING) or str(error).startswith(FOR_NOW)
                if not is_passing or isinstance(error, errors.AuthenticationError):
                    raise GivenUp(f"{stream}: {error}") from error
                await self.leave_demoted(error)
                await asyncio.sleep(0.5)
            else:
                self.ahead_ms = int(entry.partition("-")[0]) - time.monotonic() * 1000
                return entry

    async def leave_demoted(self, error: Exception) -> None:
        """Connect anew if the server is no primary any more: the address may lead elsewhere by now."""
        if isinstance(error, DEMOTED) or "UNBLOCKED" in str(error):
            await self.redis.connection_pool.disconnect()

    async def register(self) -> str:
        """Say what it is; the same incarnation again is a refresh."""
        fact = {
            "agent_id": self.agent_id, "agent_type": "worker", "incarnation": self.incarnation,
            "capabilities": ["digest"], "tags": ["foreign"], "capacity": CAPACITY, "heartbeat_interval": INTERVAL_S,
        }  # fmt: skip
        return await self.tell("in:registry", "agent.registered", fact, self.caller)

    async def beat(self) -> None:
        """Live; a beat may get lost, so it is not repeated."""
        while True:
            fact = {"agent_id": self.agent_id, "incarnation": self.incarnation, "leases": len(self.held)}
            fields: dict[Any, Any] = {"type": "agent.heartbeat", "data": json.dumps(fact), "caller": self.caller}
            with suppress(errors.RedisError, OSError):
                await self.redis.xadd(PREFIX + "in:beats", fields, maxlen=100_000, approximate=True)
            await asyncio.sleep(INTERVAL_S)

    async def report(self, lease: str, kind: str, fact: dict[str, Any]) -> None:
        """Tell an outcome; the lease is held until Redis has it."""
        await self.tell("in:reports", kind, fact)
        self.told[lease] = (kind, fact)
        if len(self.told) > REMEMBERED:
            del self.told[next(iter(self.told))]
        self.held.pop(lease, None)

    # What it is told.

    async def read(self) -> None:
        """Read the lanes and the replies, from the beginning after each connect."""
        cursors: dict[Any, Any] = {}
        while True:
            try:
                if not cursors:
                    await self.register()
                    cursors = dict.fromkeys([*self.lanes, self.replies], "0")
                streams: Any = await self.redis.xread(cursors, count=64, block=BLOCK_MS)
            except (errors.RedisError, OSError) as error:
                print(f"{self.agent_id}: Redis is away: {error}", file=sys.stderr)
                cursors = {}
                await self.leave_demoted(error)
                await asyncio.sleep(0.2)
                continue
            for stream, entries in streams:  # in the order in which they were asked for
                for entry, fields in entries:
                    cursors[stream] = entry
                    if stream == self.replies:
                        await self.hear(fields)
                    else:
                        await self.take(self.lanes.index(stream), entry, fields)
            self.claim()

    async def hear(self, fields: Fields) -> None:
        """An answer to facts of this process."""
        code = fields.get("code", "")
        if code == "unknown_agent":
            await self.register()
        elif code not in ("", "agent_not_found"):  # that one says that it has left already
            raise GivenUp(f"{code}: {fields['message']}")
        async with self.news:
            if fields["stream"] == "in:registry":  # an entry id is unique in its stream only, and these are waited for
                self.answers.update(dict.fromkeys(fields["fact"].split(), code))
            while len(self.answers) > REMEMBERED:
                del self.answers[next(iter(self.answers))]
            self.news.notify_all()

    async def take(self, lane: int, entry: str, fields: Fields) -> None:
        """An entry of a lane."""
        kind, order = fields["message_type"], fields.get("order")
        if kind == "task_assignment":
            self.offer(Attempt(lane, entry, fields))
            return
        if kind == "coordination" and order == "stop_task":
            lease, reason = fields["lease"], fields.get("reason", "")
            if lease in self.waiting:
                self.start(self.give_back(lease, reason))
            elif lease in self.held:
                self.held[lease].stop(reason)
        elif kind == "coordination" and order == "list_leases":
            self.start(self.list_leases(fields["ask"]))
        elif kind == "direct":
            await self.answer(fields)
        with suppress(errors.RedisError, OSError):  # or it is read again, which does no harm
            await self.redis.xdel(self.lanes[lane], entry)

    def offer(self, one: Attempt) -> None:
        """Remember an assignment, unless it is known already or another process's."""
        lease = one.fields["lease"]
        if one.fields.get("incarnation", "") not in ("", self.incarnation) or lease in self.waiting | self.held:
            return
        if lease in self.told:
            self.start(self.report(lease, *self.told[lease]))
            return
        self.waiting[lease] = one
        if self.is_draining:
            self.start(self.give_back(lease, "the agent is draining"))

    async def list_leases(self, ask: str) -> None:
        """Say which leases it holds."""
        leases = {lease: one.fields["task_id"] for lease, one in self.held.items()}
        fact = {"agent_id": self.agent_id, "incarnation": self.incarnation, "ask": ask, "leases": leases}
        await self.tell("in:registry", "agent.leases_listed", fact)

    async def answer(self, fields: Fields) -> None:
        """A message: send its payload back, unless that is what it is, or it is too late."""
        if "reply_to" in fields or time.monotonic() * 1000 + self.ahead_ms >= int(fields["expires_at"]):
            return
        fact = {
            "message_id": str(uuid.uuid5(uuid.NAMESPACE_OID, fields["id"])),  # handled twice, it is sent once
            "sender_id": self.agent_id, "receiver_id": fields["sender_id"], "reply_to": fields["id"],
            "payload": json.loads(fields["data"]),
        }  # fmt: skip
        await self.tell("in:messages:normal", "message.sent", fact)

    # What it does.

    def start(self, job: Any) -> None:
        """Run something beside the reading."""
        task = asyncio.create_task(job)
        self.jobs.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Whatever a job could not cope with ends the agent."""
        self.jobs.discard(task)
        if self.failure and not self.failure.done() and not task.cancelled() and (error := task.exception()):
            self.failure.set_exception(error)

    def claim(self) -> None:
        """Begin what is remembered, highest lane first, as far as there is room."""
        while self.waiting and len(self.held) < CAPACITY and not self.is_draining:
            lease = min(self.waiting, key=lambda one: self.waiting[one].lane)
            one = self.held[lease] = self.waiting.pop(lease)
            self.start(self.attempt(lease, one))

    async def give_back(self, lease: str, reason: str) -> None:
        """Give back what was not claimed; the report takes the entry out of the lane too."""
        one = self.held[lease] = self.waiting.pop(lease)
        fact = {"task_id": one.fields["task_id"], "lease": lease, "reason": reason}
        await self.report(lease, "task.released", fact)

    async def attempt(self, lease: str, one: Attempt) -> None:
        """Claim a task by deleting its entry, do it, and tell what became of it."""
        fact: dict[str, Any] = {"task_id": one.fields["task_id"], "lease": lease}
        kind = "task.released"
        try:
            is_ours = await self.redis.xdel(self.lanes[one.lane], one.entry) == 1
        except (errors.RedisError, OSError):
            is_ours = False  # it was deleted or not: nobody can tell
        if not is_ours or one.stop_reason or self.is_draining:
            fact["reason"] = one.stop_reason or ("the agent is draining" if is_ours else "claim in doubt")
        else:
            begun = time.monotonic()
            one.work = asyncio.create_task(digest(json.loads(one.fields["data"])))
            if not (await asyncio.wait([one.work], timeout=0.1))[0]:
                await self.tell("in:reports", "task.started", fact | {"started_ms_ago": 100})
                await asyncio.wait([one.work])
            if one.work.cancelled():
                fact["reason"] = one.stop_reason
            elif error := one.work.exception():
                kind = "task.failed"
                fact |= {"code": "unreadable", "message": str(error)[:2_000], "retryable": False}
            else:
                kind = "task.completed"
                fact["result"] = one.work.result()
            if kind != "task.released":
                fact["started_ms_ago"] = int((time.monotonic() - begun) * 1000)
        await self.report(lease, kind, fact)
        self.claim()

    # Its end.

    async def drain(self) -> None:
        """Nothing new; finish or give back what there is; leave."""
        me = {"agent_id": self.agent_id, "incarnation": self.incarnation}
        self.is_draining = True
        for lease in list(self.waiting):
            self.start(self.give_back(lease, "the agent is draining"))
        status = await self.tell("in:registry", "agent.status_changed", me | {"status": "draining"}, self.caller)
        await self.answered(status)  # what was assigned until then has been read by now
        if self.jobs:
            await asyncio.wait(self.jobs, timeout=GRACE_S)
        for one in self.held.values():
            one.stop("the agent is shutting down")
        if self.jobs:
            await asyncio.wait(self.jobs, timeout=FAREWELL_S)
        await self.answered(await self.tell("in:registry", "agent.deregistered", me, self.caller))

    async def answered(self, entry: str) -> None:
        """Wait until the registry has answered a fact, but not for ever."""
        async with self.news:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait_for(lambda: entry in self.answers), FAREWELL_S)

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; raises ``GivenUp``."""
        told_to_end = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told_to_end.set)
        self.failure = asyncio.get_running_loop().create_future()
        beating, reading = asyncio.create_task(self.beat()), asyncio.create_task(self.read())
        fatal: list[asyncio.Future[None]] = [reading, self.failure]
        ending: asyncio.Future[Any] = asyncio.create_task(told_to_end.wait())
        await asyncio.wait([ending, *fatal], return_when=asyncio.FIRST_COMPLETED)
        if told_to_end.is_set():
            limit = GRACE_S + 3 * FAREWELL_S  # Redis may be away for longer
            draining: asyncio.Future[None] = asyncio.create_task(self.drain())
            await asyncio.wait([draining, *fatal], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        beating.cancel()
        for one in fatal:
            if one.done():
                one.result()  # raises why it must stop
        reading.cancel()
        await self.redis.aclose()


async def digest(task: dict[str, Any]) -> dict[str, Any]:
    """The work: wait for a file, and take its fingerprint."""
    path = Path(task["payload"]["path"])
    while not path.exists():  # noqa: ASYNC110 -- a file tells nobody that it has come; a look is quick
        await asyncio.sleep(0.05)
    content = await asyncio.to_thread(path.read_bytes)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


if __name__ == "__main__":
    try:
        asyncio.run(Agent(sys.argv[1]).serve())
    except GivenUp as why:
        sys.exit(f"{sys.argv[1]}: {why}")
