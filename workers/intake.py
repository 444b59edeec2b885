"""Brings entries to a service: decodes them, handles them in one round trip, and retries those that fail.

An entry that fails in a batch is retried on its own, up to three times; each try is counted before it is made. After
three failed tries the entry becomes a dead letter. An entry that cannot be decoded becomes one at once. Transient
errors (a lost connection, a loading or a full server) never count: they are raised, and everything stays pending.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors

from coord import codec, logs
from coord.errors import CoordError
from coord.models.facts import OF_CLIENTS, SPEAKER, AgentHeartbeat, MessageSent, parts_of
from coord.models.ids import entry_ms
from coord.streams import Consumer, Entry
from workers.service import Failure, ReceivedFact, Service
from workers.transitions import DeadLetterEntry, SpokenFact

log = logs.get_logger()

#: Tries of an entry on its own before it becomes a dead letter.
TRIES = 3
#: Bytes of a dead letter's data that are kept.
KEPT_DATA_BYTES = 4096
#: Bytes of its type that are kept.
KEPT_TYPE_BYTES = 128
#: Bytes that are kept of who asked for it: as many as the audit keeps.
KEPT_BY_BYTES = 256
#: Characters of the reason that are kept.
REASON_KEPT = 1000
#: Agents of refused facts that one line of the log names.
MOST_NAMED = 20

#: Errors that no entry causes: the server is unavailable, loading, full, failing over, lost its scripts or its slot
#: (AskError is MovedError's base), or its operator revoked a permission.
TRANSIENT = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.NoScriptError,
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
    redis_errors.ClusterDownError,
    redis_errors.AskError,
    redis_errors.TryAgainError,
    redis_errors.NoPermissionError,
    OSError,
)
TRANSIENT_WORDS = (
    "NOGROUP",
    "UNBLOCKED",
    "NOREPLICAS",
    "MASTERDOWN",
    "UNKILLABLE",
    "BUSY ",
    "MISCONF",
    "OOM ",
    "LOADING",
)


def is_transient(error: BaseException) -> bool:
    """Return True if an error will pass without a change, so that no entry caused it."""
    if isinstance(error, TRANSIENT):
        return True
    # The words count only in errors of the server: another error may quote what a caller wrote.
    return isinstance(error, redis_errors.RedisError) and any(word in str(error) for word in TRANSIENT_WORDS)


class Intake:
    """Brings entries to one service, and moves those that cannot be handled to the dead letters."""

    def __init__(self, service: Service, consumer: Consumer) -> None:
        self.service = service
        self.consumer = consumer
        self.handled = 0  #: facts since the start
        self.lag_ms = 0  #: age of the last fact when it was handled
        self._scripts = service.cell.scripts
        self._max_bytes = service.cell.settings.max_entry_bytes
        self._requires_tokens = service.cell.settings.require_tokens
        self._tries: dict[tuple[str, str], int] = {}

    async def handle(self, entries: Sequence[Entry]) -> None:
        """Handle a batch in one round trip, then its failures one by one.

        Raises:
            redis.exceptions.RedisError: a transient one; the entries concerned are still pending.
        """
        received = await self._decode(entries)
        if not received:
            return
        try:
            failures = await self.service.handle(received)
        except Exception as error:
            if is_transient(error):
                raise
            log.exception("worker.batch_failed", entries=len(received))
            failures = [Failure(item.entry, str(error)) for item in received]
        self._count(received, len(failures))
        if failures:
            await self.handle_alone([failure.entry for failure in failures])

    async def handle_alone(self, entries: Sequence[Entry]) -> None:
        """Handle each entry on its own. Raises as ``handle``."""
        for entry in entries:
            key = (entry.stream, entry.id)
            known = self._tries.get(key)
            tries = await self.consumer.count_try(entry, None if known is None else known + 1)
            self._tries[key] = tries
            if tries > TRIES:
                await self._dead_letter([(entry, "entry_buried", "its worker ended three times while it was tried")])
                continue
            try:
                why = await self._try(entry, tries)
            except Exception as error:
                if is_transient(error):
                    await self._take_back(entry, tries)
                raise
            if key in self.service.deferred:
                # It waits for another entry, which is not a failure.
                await self._take_back(entry, tries)
            elif why is None:
                self._tries.pop(key, None)
            elif tries >= TRIES:
                await self._dead_letter([(entry, "entry_buried", f"failed {tries} times by itself; last: {why}")])

    async def _take_back(self, entry: Entry, tries: int) -> None:
        """Do not count a try: neither here nor on the server, where the next process reads the count."""
        self._tries[entry.stream, entry.id] = tries - 1
        with contextlib.suppress(redis_errors.RedisError, OSError):
            await self.consumer.count_try(entry, tries - 1)

    async def _try(self, entry: Entry, tries: int) -> str | None:
        """Handle one entry on its own; return why it failed, or None. A transient error is raised."""
        received = await self._decode([entry])
        if not received:
            return None
        try:
            failures = await self.service.handle(received)
        except Exception as error:
            if is_transient(error):
                raise
            log.exception("worker.entry_failed", stream=entry.stream, entry=entry.id, tries=tries)
            return str(error) or type(error).__name__
        if failures:
            log.warning("worker.entry_failed", stream=entry.stream, entry=entry.id, tries=tries, why=failures[0].why)
            return failures[0].why
        self._count(received, 0)
        return None

    async def _decode(self, entries: Sequence[Entry]) -> list[ReceivedFact[Any]]:
        received: list[ReceivedFact[Any]] = []
        bad: list[tuple[Entry, str, str]] = []
        service, checked = self.service, self.service.checked
        for entry, fact in zip(entries, codec.decode_facts(entries, self._max_bytes), strict=True):
            try:
                if isinstance(fact, CoordError):
                    raise fact
                if type(fact) in checked:
                    service.check(fact)
            except CoordError as error:
                bad.append((entry, error.code, str(error)))
            else:
                caller = codec.caller_of(entry.fields) if b"caller" in entry.fields else ""
                received.append(ReceivedFact(entry, fact, caller))
        if bad:
            await self._dead_letter(bad)
        return await self._with_token(received) if self._requires_tokens else received

    async def _with_token(self, received: list[ReceivedFact[Any]]) -> list[ReceivedFact[Any]]:
        """Return the facts without those of agents that lack the agent's token; these are refused.

        This is a round trip of its own, and no call before the others in one: if it failed, for example because the
        server has lost its scripts, the others would be carried out without it.
        """
        spoken: dict[int, SpokenFact] = {}
        for place, (entry, fact, caller) in enumerate(received):
            field = SPEAKER.get(type(fact))
            if field is not None and not entry.stream.startswith("in:control:"):
                token = entry.fields.get(b"token")
                digest = hashlib.sha256(token).hexdigest() if token else ""
                agent_id = getattr(fact, field)
                answer_to = caller or (agent_id if _is_answered_if_refused(fact) else "")
                may_be_client = type(fact) in OF_CLIENTS
                spoken[place] = SpokenFact(entry.id, entry.stream, answer_to, agent_id, digest, may_be_client)
        if not spoken:
            return received
        (words,) = await self._scripts.run(self._scripts.check_tokens(self.service.kind, list(spoken.values())))
        refused = {place: word for place, word in zip(spoken, words, strict=True) if word != "OK"}
        if not refused:
            return received
        failed = [(place, word) for place, word in refused.items() if word.startswith("ERROR ")]
        if failed:
            why = "its token cannot be checked: "
            await self._dead_letter(
                [(received[place].entry, "entry_buried", why + word.removeprefix("ERROR ")) for place, word in failed]
            )
        agents = dict.fromkeys(spoken[place].agent_id for place in refused)
        log.warning(
            "tokens.refused", facts=len(refused), agents=" ".join([*agents][:MOST_NAMED]), kind=self.service.kind
        )
        return [item for place, item in enumerate(received) if place not in refused]

    async def _dead_letter(self, bad: Sequence[tuple[Entry, str, str]]) -> None:
        letters = [
            DeadLetterEntry(
                stream=entry.stream,
                entry=entry.id,
                kind=entry.fields.get(b"type", b"")[:KEPT_TYPE_BYTES],
                data=entry.fields.get(b"data", b"")[:KEPT_DATA_BYTES],
                whole=_is_kept_whole(entry),
                caller=codec.caller_of(entry.fields),
                by=entry.fields.get(b"by", b"")[:KEPT_BY_BYTES],
                code=code,
                reason=reason[:REASON_KEPT],
            )
            for entry, code, reason in bad
        ]
        await self._scripts.run(self._scripts.dead_letter(self.service.kind, letters))
        for letter in letters:
            self._tries.pop((letter.stream, letter.entry), None)
            log.warning(
                "entry.buried", stream=letter.stream, entry=letter.entry, code=letter.code, reason=letter.reason
            )

    def _count(self, received: Sequence[ReceivedFact[Any]], failed: int) -> None:
        self.handled += sum(len(parts_of(item.fact)) for item in received) - failed
        self.lag_ms = max(0, int(time.time() * 1000) - entry_ms(received[-1].entry.id))


def _is_answered_if_refused(fact: Any) -> bool:
    """Return True if an agent gets the refusal of its fact although it names no caller.

    A heartbeat is answered only if something is wrong, and a request by its reply, which never comes if it is refused.
    """
    return type(fact) is AgentHeartbeat or (type(fact) is MessageSent and fact.reply_by is not None)


def _is_kept_whole(entry: Entry) -> bool:
    """Return True if a dead letter keeps all of an entry, so that it can be replayed."""
    kind, data = entry.fields.get(b"type"), entry.fields.get(b"data")
    return kind is not None and len(kind) <= KEPT_TYPE_BYTES and data is not None and len(data) <= KEPT_DATA_BYTES
