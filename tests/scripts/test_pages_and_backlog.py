"""``queries.list_messages`` and ``queries.get_backlog``: what lists and ``coord queues`` show."""

from __future__ import annotations

import pytest

from coord import queries
from coord.errors import CursorInvalid
from coord.models.messages import MessageStatus
from coord.models.tasks import Pool, Priority
from coord.queries import MessagePage, PriorityBacklog
from coord.queries import messages as message_queries
from tests.scripts.cell import DAY, Cell


async def ids(cell: Cell, limit: int = 100, **asked: object) -> list[str]:
    """The ids of all pages."""
    found: list[str] = []
    cursor = None
    while True:
        page: MessagePage = await queries.list_messages(cell.redis, cell.keys, limit=limit, cursor=cursor, **asked)  # type: ignore[arg-type] # tests name them
        assert len(page.messages) <= limit
        found += [one.message_id for one in page.messages]
        cursor = page.next
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_messages_with_the_last_first(cell: Cell, limit: int) -> None:
    """Each once, however long the pages; by agent and by status."""
    await cell.register("a1")
    await cell.register("a2")
    for name, receiver in (("m1", "a1"), ("m2", "a2"), ("m3", "ghost"), ("m4", "a1")):
        await cell.deliver(name, receiver=receiver)
        cell.now += 1
    assert await ids(cell, limit) == ["m4", "m3", "m2", "m1"]
    assert await ids(cell, limit, agent_id="a1") == ["m4", "m1"]
    assert await ids(cell, limit, agent_id="s1", status=MessageStatus.DELIVERED) == ["m4", "m2", "m1"]
    assert await ids(cell, limit, status=MessageStatus.DEAD) == ["m3"]


async def test_the_history_of_an_agent(cell: Cell) -> None:
    """What it has sent, what it was sent, and what it could not get; the newest, for a day."""
    for agent in ("a1", "a2"):
        await cell.register(agent)
    for name, sender, receiver in (("m1", "a1", "a2"), ("m2", "a2", "a1"), ("m3", "s1", "a2"), ("m4", "a1", "a1")):
        await cell.deliver(name, sender=sender, receiver=receiver)
    await cell.deliver("m5", sender="s1", receiver="a1", protocol="peer_to_peer")
    assert await ids(cell, agent_id="a1") == ["m5", "m4", "m2", "m1"]
    assert await ids(cell, agent_id="a2") == ["m3", "m2", "m1"]
    assert DAY - 60_000 < await cell.redis.pttl(cell.keys.history("a1")) <= DAY
    batch = [await cell.delivery(f"n{n}", sender="a2", receiver="ghost") for n in range(1_500)]
    await cell.run(cell.scripts.deliver(batch))
    assert 1_000 <= await cell.redis.xlen(cell.keys.history("a2")) < 1_200


async def test_a_conversation(cell: Cell) -> None:
    """The messages with a correlation id, and the one that it is the id of; also of one agent alone."""
    for agent in ("a1", "a2"):
        await cell.register(agent)
    for name, receiver, conversation in (
        ("m1", "a1", ""),
        ("m2", "a2", "m1"),
        ("m3", "a1", "other"),
        ("m4", "a1", "m1"),
    ):
        await cell.deliver(name, receiver=receiver, correlation_id=conversation)
    assert await ids(cell, 1, conversation_id="m1") == ["m4", "m2", "m1"]
    assert await ids(cell, conversation_id="m1", agent_id="a2") == ["m2"]


async def test_the_recipients_of_a_message_in_pages(cell: Cell) -> None:
    """Each once, with its own status; a message to one agent has one."""
    team = [f"a{n}" for n in range(5)]
    for agent in ("lead", *team):
        await cell.register(agent)
    for agent in team:
        await cell.change_links("set_master", agent, "lead")
    await cell.deregister("a3")
    await cell.deliver("m1", sender="lead", receiver="subordinates", protocol="hierarchical")
    await cell.redis.delete(cell.keys.inbox("a1", "normal"))
    found, cursor = [], None
    while True:
        page = await queries.list_recipients(cell.redis, cell.keys, "m1", limit=2, cursor=cursor)
        assert page is not None
        found += [(one.agent_id, str(one.status), one.code) for one in page.recipients]
        cursor = page.next
        if cursor is None:
            break
    states = dict.fromkeys(team, ("delivered", "")) | {"a1": ("read", ""), "a3": ("dead", "agent_left")}
    assert found == [(agent, *states[agent]) for agent in team]

    await cell.deliver("m2", receiver="a0")
    page = await queries.list_recipients(cell.redis, cell.keys, "m2")
    assert page is not None
    assert [(one.agent_id, one.status) for one in page.recipients] == [("a0", MessageStatus.DELIVERED)]
    assert await queries.list_recipients(cell.redis, cell.keys, "ghost") is None
    with pytest.raises(CursorInvalid):
        await queries.list_recipients(cell.redis, cell.keys, "m1", cursor="x")


async def test_a_message_whose_record_has_ended_is_not_listed(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page looks at so much of the log and no more; its cursor goes on."""
    monkeypatch.setattr(message_queries, "STEP", 2)
    monkeypatch.setattr(message_queries, "BUDGET", 4)
    await cell.register("a1")
    for n in range(6):
        await cell.deliver(f"m{n}")
    await cell.redis.delete(*(cell.keys.message(f"m{n}") for n in range(1, 6)))
    first = await queries.list_messages(cell.redis, cell.keys)
    assert first.messages == ()
    assert first.next is not None
    assert await ids(cell) == ["m0"]


async def test_a_cursor_of_another_list(cell: Cell) -> None:
    """An error, not an empty page."""
    with pytest.raises(CursorInvalid, match="leave it out"):
        await queries.list_messages(cell.redis, cell.keys, cursor="held:a1:t1")


async def test_what_waits(cell: Cell) -> None:
    """By priority with what is in flight and not yet taken; by pool, the one that is served next first."""
    await cell.register()
    await cell.assign("held")
    await cell.submit("later", run_at=cell.now + 60_000)
    await cell.submit("low", priority="low", pool="p-low")
    await cell.submit("urgent", priority="urgent", pool="p-urgent")
    await cell.submit("urgent-2", priority="urgent", pool="p-urgent")
    await cell.submission("unread", priority="high")
    found = await queries.get_backlog(cell.redis, cell.keys)
    assert found.priorities == (
        PriorityBacklog(Priority.URGENT, 0, 0, 2, 0, 0),
        PriorityBacklog(Priority.CRITICAL, 0, 0, 0, 0, 0),
        PriorityBacklog(Priority.HIGH, 1, 0, 0, 0, 0),
        PriorityBacklog(Priority.NORMAL, 0, 1, 0, 1, 0),
        PriorityBacklog(Priority.LOW, 0, 0, 1, 0, 0),
    )
    assert [(one.pool, one.definition, one.length, one.head, one.head_priority) for one in found.pools] == [
        ("p-urgent", Pool("echo"), 2, "urgent", Priority.URGENT),
        ("p-low", Pool("echo"), 1, "low", Priority.LOW),
    ]
    # The cell's clock is set by hand and ahead of the server's: a head is never younger than nothing.
    assert [one.head_age for one in found.pools] == [0, 0]


async def test_more_pools_than_are_asked_for(cell: Cell) -> None:
    """Those with the first heads are listed and the others are counted; without a limit all are listed."""
    for number in range(5):
        await cell.submit(f"t{number}", pool=f"p{number}")
    found = await queries.get_backlog(cell.redis, cell.keys, 2)
    assert ([one.pool for one in found.pools], found.unlisted) == (["p0", "p1"], 3)
    found = await queries.get_backlog(cell.redis, cell.keys)
    assert ([one.pool for one in found.pools], found.unlisted) == ([f"p{number}" for number in range(5)], 0)


async def test_nothing_waits(cell: Cell) -> None:
    """Every priority is named all the same."""
    found = await queries.get_backlog(cell.redis, cell.keys)
    assert [one.priority for one in found.priorities] == list(Priority)
    assert found.pools == ()


async def test_a_long_conversation_in_pages(cell: Cell) -> None:
    """Every message once, the newest first: with answers, whatever the size of a page, and by its index alone."""
    await cell.register("a1")
    await cell.register("a2")
    cell.change_settings(hop_limit=100)
    await cell.deliver("m0", sender="a1", receiver="a2")
    for number in range(1, 7):
        sender, receiver = ("a2", "a1") if number % 2 else ("a1", "a2")
        await cell.deliver(f"m{number}", sender=sender, receiver=receiver, reply_to=f"m{number - 1}")
    await cell.redis.delete(cell.keys.of("log:messages"))
    newest_first = [f"m{number}" for number in range(6, -1, -1)]
    for limit in range(1, 9):
        assert await ids(cell, limit, conversation_id="m0") == newest_first
    assert await ids(cell, 2, conversation_id="m0", agent_id="a1") == newest_first
    assert await ids(cell, conversation_id="m3") == ["m3"]
