"""Appending facts, and reading them as one consumer of a group.

An entry that was read stays pending under its consumer's name until a script has acknowledged and deleted it, so
whatever dies in between, someone reads it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from coord import codec
from coord.connection import DEMOTED
from coord.keys import Keys
from coord.models.facts import PARTS_OF, TYPE_OF
from coord.pipeline import pack, send_and_read

#: Beats kept at most: the only facts that may be lost, so a fleet cannot fill a server whose registry is away.
BEATS_KEPT = 100_000


class Entry(Struct, frozen=True, gc=False):
    """One entry as it was read."""

    stream: str  #: without the namespace
    id: str
    fields: dict[bytes, bytes]


NONE: Mapping[str, int] = {}
#: The types of facts that list others.
_LISTS = {TYPE_OF[fact].encode() for fact in PARTS_OF}


def count_of(entry: Entry) -> int:
    """How many facts an entry tells, or more where one quotes the name of a field."""
    if entry.fields.get(b"type") not in _LISTS:
        return 1
    return max(1, entry.fields.get(b"data", b"").count(b'"task_id"'))


class Append(Struct, frozen=True, gc=False):
    """One fact and where it goes."""

    stream: str  #: without the namespace
    fact: Struct
    caller: str = ""  #: where the answer goes; empty for none
    data: bytes | None = None  #: the fact's JSON, where it was made already


def command_of(keys: Keys, one: Append) -> tuple[Any, ...]:
    """The command that appends a fact."""
    command: list[Any] = ["XADD", keys.of(one.stream)]
    if one.stream == "in:beats":
        command += ("MAXLEN", "~", BEATS_KEPT)
    command.append("*")
    for field in codec.entry_of(one.fact, caller=one.caller, data=one.data).items():
        command += field
    return tuple(command)


async def append(redis: Redis, keys: Keys, appends: Sequence[Append]) -> list[str]:
    """Append facts in one round trip; their entry ids, in order.

    Raises:
        redis.exceptions.RedisError: the first error that any of them had; others may have been appended.
    """
    pipe = redis.pipeline(transaction=False)
    for one in appends:
        pipe.execute_command(*command_of(keys, one))
    return [entry.decode() for entry in await pipe.execute()]


async def append_each(redis: Redis, packed: Sequence[bytes]) -> list[str | RedisError]:
    """Send packed commands of ``command_of`` in one round trip; the entry id or the error of each, in order.

    Raises:
        redis.exceptions.RedisError: of the round trip itself; any of the facts may have been appended.
    """
    told = await send_and_read(redis, packed)
    turned_away = [place for place, one in enumerate(told) if isinstance(one, DEMOTED)]
    if turned_away:
        # Not the primary any more: repeated as if the connection had been lost, until the address leads to the new one.
        again = await send_and_read(redis, [packed[place] for place in turned_away], to_raise=True)
        for place, entry in zip(turned_away, again, strict=True):
            told[place] = entry
    return [one.decode() if isinstance(one, bytes) else one for one in told]


class Consumer:
    """One consumer of the group ``kind`` on ``streams``."""

    def __init__(self, redis: Redis, keys: Keys, kind: str, name: str, streams: Iterable[str]) -> None:
        self.redis = redis
        self.keys = keys
        self.kind = kind
        self.name = name
        self.streams = {keys.of(stream): stream for stream in streams}

    async def make_groups(self) -> None:
        """Make the group on every stream, from the beginning (never ``$``: what waits there already is work)."""
        for key in self.streams:
            if await self._has_group(key):
                continue
            try:
                await self.redis.xgroup_create(key, self.kind, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def _has_group(self, key: str) -> bool:
        """Whether the group is there: a server out of memory refuses to make even one that exists."""
        try:
            groups = await self.redis.xinfo_groups(key)
        except ResponseError:  # no such key
            return False
        return any(group["name"] == self.kind.encode() for group in groups)

    async def read_new(
        self,
        count: int,
        block_ms: int | None,
        sent: asyncio.Future[None] | None = None,
        fewer: Mapping[str, int] = NONE,
    ) -> list[Entry]:
        """New entries in the streams' order; waits ``block_ms`` at most.

        Args:
            count: entries of each stream at most.
            block_ms: None: what is there.
            sent: done when the server has been asked.
            fewer: stream -> entries of it at most, where that is less and there is something to read.
        """
        of_count: dict[int, list[str]] = {}
        for key, stream in self.streams.items():
            of_count.setdefault(min(count, fewer.get(stream, count)), []).append(key)
        if len(of_count) > 1:
            commands = [self._reading(keys, most, None) for most, keys in of_count.items()]
            answers = await send_and_read(self.redis, commands, to_raise=True, sent=sent)
            if entries := self._entries(answers):
                return entries
        command = self._reading(list(self.streams), count, block_ms)
        return self._entries(await send_and_read(self.redis, [command], to_raise=True, sent=sent))

    def _reading(self, keys: Sequence[str], count: int, block_ms: int | None) -> bytes:
        blocks = () if block_ms is None else ("BLOCK", block_ms)
        new = [">"] * len(keys)
        return pack(("XREADGROUP", "GROUP", self.kind, self.name, "COUNT", count, *blocks, "STREAMS", *keys, *new))

    def _entries(self, answers: Sequence[Any]) -> list[Entry]:
        found = {key: entries for answer in answers for key, entries in (answer or {}).items()}
        return [
            Entry(stream, entry_id.decode(), _fields_of(pairs or ()))
            for key, stream in self.streams.items()
            for entry_id, pairs in found.get(key.encode(), ())
        ]

    async def own_pending(self, count: int) -> list[Entry]:
        """What was delivered to this consumer and is not acknowledged; leaves the delivery counts alone."""
        found: list[Entry] = []
        for key, stream in self.streams.items():
            pending = await self.redis.xpending_range(key, self.kind, "-", "+", count, consumername=self.name)
            found += await self._fetch(key, stream, [cast("bytes", one["message_id"]) for one in pending])
        return found

    async def claim_idle(self, idle_ms: int, count: int) -> list[Entry]:
        """Take over what a consumer has left unacknowledged for ``idle_ms``; leaves the delivery counts alone."""
        found: list[Entry] = []
        for key, stream in self.streams.items():
            ids = await self.redis.xautoclaim(key, self.kind, self.name, idle_ms, "0-0", count=count, justid=True)
            found += await self._fetch(key, stream, ids)
        return found

    async def count_try(self, entry: Entry, tries: int | None = None) -> int:
        """Count a try of this entry by itself; how many there have been, this one included.

        ``tries`` is given by whoever knows better than the server, because a try that was cut off does not count.
        """
        key = self.keys.of(entry.stream)
        if tries is not None:
            # The first delivery counted one, and was no try by itself.
            await self.redis.xclaim(key, self.kind, self.name, 0, [entry.id], retrycount=tries + 1, justid=True)
            return tries
        await self.redis.xclaim(key, self.kind, self.name, 0, [entry.id])
        pending = await self.redis.xpending_range(key, self.kind, entry.id, entry.id, 1)
        return int(pending[0]["times_delivered"]) - 1 if pending else 1

    async def _fetch(self, key: str, stream: str, ids: Sequence[bytes]) -> list[Entry]:
        if not ids:
            return []
        pipe = self.redis.pipeline(transaction=False)
        for entry_id in ids:
            pipe.xrange(key, entry_id, entry_id)
        found: list[Entry] = []
        gone: list[bytes] = []
        for entry_id, answer in zip(ids, await pipe.execute(), strict=True):
            if answer:
                found.append(Entry(stream, entry_id.decode(), answer[0][1]))
            else:
                gone.append(entry_id)
        if gone:
            # Trimmed, or handled by the consumer it was taken from: nothing is left to do.
            await self.redis.xack(key, self.kind, *gone)
        return found


def _fields_of(pairs: Sequence[bytes]) -> dict[bytes, bytes]:
    if len(pairs) == 4:  # a type and its data: most entries, at a third of the cost
        name, value, other, second = pairs
        return {name: value, other: second}
    parts = iter(pairs)
    return dict(zip(parts, parts, strict=True))
