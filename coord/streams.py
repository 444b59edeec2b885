"""Append facts to streams, and read them as a consumer of a group.

An entry that was read stays pending under its consumer's name until a script acknowledges and deletes it. So if any
process crashes in between, the entry is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from coord import codec
from coord.connection import DEMOTED
from coord.keys import Keys
from coord.models.facts import PARTS_OF, TYPE_OF
from coord.pipeline import pack, send_and_read

#: Maximum number of heartbeats in their stream, so that agents cannot fill a server while no registry runs. Heartbeats
#: are the only facts that may be lost.
HEARTBEATS_KEPT = 100_000


#: Bytes of a fact's JSON up to which it may share an entry: a longer one gains little, and nothing so short nests so
#: deep that the other facts of its entry could not be read.
MAX_BATCHED_BYTES = 1_024


def max_facts_per_entry(limit: int, max_bytes: int) -> int:
    """Return how many short facts may share an entry of ``max_bytes``, at most ``limit``; below 2: none may."""
    return min(limit, max_bytes // (MAX_BATCHED_BYTES + 1) - 1)


class Entry(Struct, frozen=True, gc=False):
    """An entry that was read from a stream."""

    stream: str  #: without the namespace
    id: str
    fields: dict[bytes, bytes]


#: Pending entries that are taken over in one round trip.
CLAIMED_AT_ONCE = 1_000
NO_LIMITS: Mapping[str, int] = {}
#: The types of facts that list others.
_LIST_TYPES = {TYPE_OF[fact].encode() for fact in PARTS_OF}


def count_facts(entry: Entry) -> int:
    """Return the number of facts in an entry; an upper bound, if a payload contains the text ``"task_id"``."""
    if entry.fields.get(b"type") not in _LIST_TYPES:
        return 1
    return max(1, entry.fields.get(b"data", b"").count(b'"task_id"'))


class Append(Struct, frozen=True, gc=False):
    """A fact, and the stream to which it is appended."""

    stream: str  #: without the namespace
    fact: Struct
    caller: str = ""  #: where the answer goes; empty: no answer
    data: bytes | None = None  #: the fact's JSON, if it is already encoded
    token: str = ""  #: of the agent that the fact is about; empty: none
    by: str = ""  #: who asks for it, for the audit; empty: the caller


def append_command(keys: Keys, item: Append) -> tuple[Any, ...]:
    """Return the command that appends a fact."""
    command: list[Any] = ["XADD", keys.of(item.stream)]
    if item.stream == "in:beats":
        command += ("MAXLEN", "~", HEARTBEATS_KEPT)
    command.append("*")
    for field in codec.encode_entry(
        item.fact, caller=item.caller, data=item.data, token=item.token, by=item.by
    ).items():
        command += field
    return tuple(command)


async def append(redis: Redis, keys: Keys, appends: Sequence[Append]) -> list[str]:
    """Append facts in one round trip; return their entry ids, in order.

    Raises:
        redis.exceptions.RedisError: the first error of any fact; others may have been appended.
    """
    pipe = redis.pipeline(transaction=False)
    for item in appends:
        pipe.execute_command(*append_command(keys, item))
    return [entry_id.decode() for entry_id in await pipe.execute()]


async def append_each(redis: Redis, packed: Sequence[bytes]) -> list[str | RedisError]:
    """Send packed commands of ``append_command`` in one round trip; return the entry id or the error of each, in order.

    Raises:
        redis.exceptions.RedisError: the round trip failed; any of the facts may have been appended.
    """
    answers = await send_and_read(redis, packed)
    refused = [index for index, answer in enumerate(answers) if isinstance(answer, DEMOTED)]
    if refused:
        # The server is no longer the primary: retry as after a lost connection, until the address leads to the new one.
        retried = await send_and_read(redis, [packed[index] for index in refused], to_raise=True)
        for index, answer in zip(refused, retried, strict=True):
            answers[index] = answer
    return [answer.decode() if isinstance(answer, bytes) else answer for answer in answers]


class Consumer:
    """A consumer of the group ``kind`` on several streams.

    Args:
        redis: a client of ``connect_worker``.
        keys: of the cell.
        kind: the kind of worker, which is the name of the group.
        name: of the consumer.
        streams: names without the namespace, in the order in which their entries are returned.
    """

    def __init__(self, redis: Redis, keys: Keys, kind: str, name: str, streams: Iterable[str]) -> None:
        self.redis = redis
        self.keys = keys
        self.kind = kind
        self.name = name
        self.streams = {keys.of(stream): stream for stream in streams}
        self._selected = self.streams  # those that are read

    def select(self, streams: Collection[str]) -> None:
        """Read only these of the streams from now on."""
        self._selected = {key: stream for key, stream in self.streams.items() if stream in streams}

    async def make_groups(self) -> None:
        """Create the group on every stream, from the beginning: entries that wait there already are work."""
        for key in self.streams:
            if await self._has_group(key):
                continue
            try:
                await self.redis.xgroup_create(key, self.kind, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def _has_group(self, key: str) -> bool:
        """Return True if the group exists. A server without memory refuses to create even an existing group."""
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
        fewer: Mapping[str, int] = NO_LIMITS,
    ) -> list[Entry]:
        """Read new entries, in the order of the streams.

        Args:
            count: maximum number of entries of each stream.
            block_ms: time to wait for entries, in ms; None: do not wait.
            sent: completed when the request has been sent.
            fewer: stream -> a lower maximum for it. It does not apply to a read that waits.
        """
        by_count: dict[int, list[str]] = {}
        for key, stream in self._selected.items():
            by_count.setdefault(min(count, fewer.get(stream, count)), []).append(key)
        if len(by_count) > 1:
            commands = [self._read_command(keys, limit, None) for limit, keys in by_count.items()]
            answers = await send_and_read(self.redis, commands, to_raise=True, sent=sent)
            if entries := self._entries(answers):
                return entries
        command = self._read_command(list(self._selected), count, block_ms)
        return self._entries(await send_and_read(self.redis, [command], to_raise=True, sent=sent))

    def _read_command(self, keys: Sequence[str], count: int, block_ms: int | None) -> bytes:
        blocks = () if block_ms is None else ("BLOCK", block_ms)
        new = [">"] * len(keys)
        return pack(("XREADGROUP", "GROUP", self.kind, self.name, "COUNT", count, *blocks, "STREAMS", *keys, *new))

    def _entries(self, answers: Sequence[Any]) -> list[Entry]:
        found = {key: entries for answer in answers for key, entries in (answer or {}).items()}
        return [
            Entry(stream, entry_id.decode(), _fields_of(pairs or ()))
            for key, stream in self._selected.items()
            for entry_id, pairs in found.get(key.encode(), ())
        ]

    async def read_pending(self, count: int) -> list[Entry]:
        """Return the entries that are pending for this consumer; the delivery counts do not change."""
        found: list[Entry] = []
        for key, stream in self._selected.items():
            pending = await self.redis.xpending_range(key, self.kind, "-", "+", count, consumername=self.name)
            found += await self._fetch(key, stream, [cast("bytes", item["message_id"]) for item in pending])
        return found

    async def claim_idle(self, idle_ms: int, count: int) -> list[Entry]:
        """Take over entries that have been pending with another consumer for ``idle_ms``; delivery counts stay."""
        found: list[Entry] = []
        for key, stream in self._selected.items():
            ids = await self.redis.xautoclaim(key, self.kind, self.name, idle_ms, "0-0", count=count, justid=True)
            found += await self._fetch(key, stream, ids)
        return found

    async def claim_all(self, streams: Collection[str]) -> int:
        """Take over every pending entry of these streams from all consumers; return how many others had read.

        The first entry of a stream that was read, and is pending for nobody, becomes pending for this consumer as well.
        """
        taken = 0
        for key, stream in self.streams.items():
            if stream not in streams:
                continue
            begin = "-"
            while found := await self.redis.xpending_range(key, self.kind, begin, "+", CLAIMED_AT_ONCE):
                others: list[Any] = [item["message_id"] for item in found if item["consumer"] != self.name.encode()]
                if others:
                    await self.redis.xclaim(key, self.kind, self.name, 0, others, justid=True)
                taken += len(others)
                begin = f"({cast('bytes', found[-1]['message_id']).decode()}"
            taken += await self._claim_first(key)
        return taken

    async def _claim_first(self, key: str) -> int:
        """Claim the first entry of a stream if the group has read it and it is pending for nobody; return 1 then."""
        groups = await self.redis.xinfo_groups(key)
        read_to = next(group["last-delivered-id"] for group in groups if group["name"] == self.kind.encode())
        first: list[Any] = await self.redis.execute_command("XRANGE", key, "-", read_to, "COUNT", 1)
        if not first or await self.redis.xpending_range(key, self.kind, first[0][0], first[0][0], 1):
            return 0
        await self.redis.xclaim(key, self.kind, self.name, 0, [first[0][0]], force=True, justid=True)
        return 1

    async def count_try(self, entry: Entry, tries: int | None = None) -> int:
        """Count an attempt to handle this entry on its own; return the number of attempts, including this one.

        Args:
            entry: the entry.
            tries: the number, if the caller knows better than the server: an interrupted attempt does not count.
        """
        key = self.keys.of(entry.stream)
        if tries is not None:
            # The first delivery counted as one, and was not an attempt on its own.
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
            # Trimmed, or handled by its previous consumer: nothing is left to do.
            await self.redis.xack(key, self.kind, *gone)
        return found


def _fields_of(pairs: Sequence[bytes]) -> dict[bytes, bytes]:
    if len(pairs) == 4:  # type and data only: most entries, at a third of the cost
        name, value, other, second = pairs
        return {name: value, other: second}
    parts = iter(pairs)
    return dict(zip(parts, parts, strict=True))
