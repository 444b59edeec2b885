"""Any order of requests, replies, answers and silence: each request ends once, and the limits of conversations hold."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from coord import queries
from coord.models.messages import MessageRecord
from tests.ledger import assert_ledger
from tests.scripts.cell import Cell
from workers.transitions import Delivery

AGENTS = ["a1", "a2", "a3"]
STEPS = 150
HOPS, BUDGET = 1, 6


class Walk:
    """Random steps in one cell; remembers messages, so that they are answered late, twice, or in turn."""

    def __init__(self, cell: Cell, seed: int) -> None:
        self.cell = cell
        self.random = random.Random(seed)
        self.sent: list[Delivery] = []
        self.unread: list[Delivery] = []  # appended, and not delivered yet
        self.steps: list[Callable[[], Awaitable[object]]] = [
            self.request, self.request, self.reply, self.reply, self.answer, self.begin, self.deliver, self.deliver,
            self.repeat, self.later, self.tick, self.tick, self.be_absent, self.register, self.leave,
        ]  # fmt: skip

    async def append(self, sender: str, receiver: str, **options: object) -> None:
        """Append a message; sometimes it is delivered at once."""
        number = len(self.sent)
        one = await self.cell.delivery(f"m{number}", sender=sender, receiver=receiver, digest=f"d{number}", **options)  # type: ignore[arg-type]
        self.sent.append(one)
        self.unread.append(one)
        if self.random.random() < 0.7:
            await self.deliver()

    async def request(self) -> None:
        """Of an agent, perhaps in a conversation, perhaps to nobody."""
        receiver = self.random.choice([*AGENTS, "ghost"])
        conversation = self.random.choice(["", "", "talk"])
        wait_ms = self.random.choice([500, 2_000])
        await self.append(self.random.choice(AGENTS), receiver, reply_by_ms=wait_ms, correlation_id=conversation)

    async def reply(self) -> None:
        """To any request, perhaps late, perhaps not the first, perhaps of somebody else."""
        requests = [one for one in self.sent if one.reply_by_ms]
        if requests:
            chosen = self.random.choice(requests[-8:])
            sender = self.random.choice([*3 * [chosen.receiver_id], "a1"])
            await self.append(sender, chosen.sender_id, reply_to=chosen.message_id)

    async def begin_with_each_end(self) -> None:
        """A request to nobody, one that is answered in time, and one that nobody answers."""
        await self.append("a1", "ghost", reply_by_ms=500)
        await self.append("a1", "a2", reply_by_ms=500)
        await self.append("a2", "a1", reply_to="m1")
        await self.append("a1", "a3", reply_by_ms=500)
        await self.end()

    async def answer(self) -> None:
        """A message that another one caused; it may be a request itself."""
        if self.sent:
            cause = self.random.choice(self.sent[-4:]).message_id
            wait_ms = self.random.choice([None, 500])
            await self.append(*self.random.sample(AGENTS, 2), caused_by=cause, reply_by_ms=wait_ms)

    async def begin(self) -> None:
        """A message that begins a conversation, or has none."""
        await self.append(*self.random.sample(AGENTS, 2), correlation_id=self.random.choice(["", "talk"]))

    async def deliver(self) -> None:
        """A router delivers what it has read, in order."""
        batch, self.unread = self.unread, []
        await self.cell.run(self.cell.scripts.deliver(batch))

    async def repeat(self) -> None:
        """The same message is appended again."""
        if self.sent:
            one = self.random.choice(self.sent)
            entry = await self.cell.append(f"in:messages:{one.lane}", "message.sent")
            fields = {name: getattr(one, name) for name in one.__struct_fields__}
            self.unread.append(Delivery(**fields | {"entry": entry}))

    async def later(self) -> None:
        """Time passes."""
        self.cell.now += self.random.choice([10, 200, 900])

    async def tick(self) -> None:
        """A router ticks, as it does often."""
        await self.cell.end_requests()

    async def be_absent(self) -> None:
        """No router works for a while; then one ticks."""
        self.cell.now += 5_000
        await self.cell.end_requests(absent=True)

    async def register(self) -> None:
        """An agent comes, or comes back."""
        agent = self.random.choice(AGENTS)
        await self.cell.register(agent, incarnation=f"i{self.random.randrange(1000)}")

    async def leave(self) -> None:
        """An agent leaves; its inbox stays."""
        agent = self.random.choice(AGENTS)
        record = await queries.get_agent(self.cell.redis, self.cell.keys, agent)
        if record is not None:
            await self.cell.deregister(agent, incarnation=record.incarnation)

    async def end(self) -> None:
        """All is delivered, and every deadline passes."""
        await self.deliver()
        for _ in range(4):
            self.cell.now += 3_000
            await self.cell.end_requests()

    async def record(self, message_id: str) -> MessageRecord:
        """The record of a message, which must be there."""
        found = await queries.get_message(self.cell.redis, self.cell.keys, message_id)
        assert found is not None, message_id
        return found

    async def check(self) -> None:
        """Each request ended in one way only, and its requester has heard exactly that."""
        heard: dict[str, list[dict[str, str]]] = {}
        for agent in AGENTS:
            for entry in await self.cell.stream(f"inbox:{agent}:normal"):
                if "reply_to" in entry:
                    heard.setdefault(entry["reply_to"], []).append(entry)
        ways: Counter[str] = Counter()
        for one in self.sent:
            record = await self.record(one.message_id)
            assert record.hops <= HOPS or record.status == "dead"
            if not one.reply_by_ms:
                continue
            got = heard.get(one.message_id, [])
            told = Counter(entry["id"].partition(".")[2] for entry in got if entry["sender_id"] == "coordinator")
            # What another agent says in answer to the request ends nothing.
            in_time = [entry for entry in got if entry["sender_id"] == one.receiver_id and "late" not in entry]
            assert record.request is not None
            ways[record.request] += 1
            if record.request == "answered":
                assert (in_time != [], told) == (True, Counter()), one
            else:
                word = {"timed_out": "timeout", "refused": "refused"}[record.request]
                assert (in_time, told) == ([], Counter({word: 1})), one
        assert ways.keys() == {"answered", "timed_out", "refused"}, "the walk is not what it should be"
        for conversation in ("talk", *(one.message_id for one in self.sent)):
            members = await self.cell.redis.zrange(self.cell.keys.conversation(conversation), 0, -1)
            own = [raw for raw in members if b"." not in raw]  # the coordinator's answers are beyond the budget
            assert len(own) <= BUDGET


@pytest.mark.guarantee("requests-in-any-order")
@pytest.mark.parametrize("seed", range(4))
async def test_each_request_ends_once_whatever_happens(cell: Cell, seed: int) -> None:
    """⚠ Late, repeated and crossing replies, absences, agents that leave: the indexes are right at each moment."""
    cell.change_settings(hop_limit=HOPS, conversation_messages=BUDGET)
    walk = Walk(cell, seed)
    for agent in AGENTS:
        await cell.register(agent)
    await walk.begin_with_each_end()
    for number in range(STEPS):
        await walk.random.choice(walk.steps)()
        if number % 10 == 0:
            await assert_ledger(cell.redis, cell.keys)
    await walk.end()
    await walk.check()
