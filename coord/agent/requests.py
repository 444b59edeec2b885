"""The requests of an agent that wait for a reply, and its replies to the requests of others.

The coordinator keeps the deadline of a request, and its answer is a message as well. So each request ends with a
message in the inbox. A reply that no coroutine waits for (the process was restarted, or the wait was cancelled) is
handled like any other message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from coord.agent.outgoing import Outgoing
from coord.client.answers import Answer, Answers, Appended
from coord.client.requests import END_S, unended, value_of
from coord.client.submission import message_append
from coord.codec import BAD_JSON, decode_message
from coord.errors import ConfigError, CoordError, ResultTimeout, ServerUnavailable
from coord.logs import get_logger
from coord.models.messages import COORDINATOR, AgentMessage
from coord.models.tasks import Lane
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ErrorAnswer
from coord.streams import Append

log = get_logger()

#: End of the id of a reply. A request that is handled twice gets one reply: the second one has the same id.
REPLY = ".reply"
MAX_ID = 128
#: Maximum length of the message in a failed reply; the rest is cut off.
MAX_MESSAGE = 4_096

Fields = Mapping[bytes, bytes]


class _Waiting(NamedTuple):
    """A request that waits."""

    reply: asyncio.Future[AgentMessage]
    senders: tuple[bytes, bytes]  #: who can end it: its receiver, and the coordinator


class Requests:
    """The requests and replies of one agent process.

    Args:
        agent_id: id of the agent.
        link: the connection for writes.
        outgoing: appends the facts of the agent. A request is answered only if its token is refused.
        max_bytes: maximum size of an entry.
    """

    def __init__(self, agent_id: str, link: ReconnectingConnection, outgoing: Outgoing, max_bytes: int) -> None:
        self._agent_id = agent_id
        self._link = link
        self._outgoing = outgoing
        self._max_bytes = max_bytes
        self._lanes = [outgoing.keys.inbox(agent_id, lane) for lane in Lane]
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[bytes, _Waiting] = {}  # by id of the request
        self._taken: set[tuple[int, bytes]] = set()  # entries of replies that are being deleted
        self._end: CoordError | None = None

    async def send(self, append: Append, receiver_id: str, timeout: float) -> Any:
        """Append a request and return the payload of its reply.

        Raises:
            CoordError: as ``value_of``; or the agent is stopped meanwhile.
            TokenMissing, TokenInvalid: the cell requires the token of this agent.
            ResultTimeout: neither a reply nor the coordinator has ended the request.
        """
        if self._end is not None:
            raise self._end
        message_id = append.fact.message_id.encode()  # type: ignore[attr-defined]
        reply: asyncio.Future[AgentMessage] = self._loop.create_future()
        self._waiting[message_id] = _Waiting(reply, (receiver_id.encode(), COORDINATOR.encode()))
        appended = _AppendedRequest(self._outgoing.answers, append.stream, reply)
        try:
            self._outgoing.start_append(append, _AppendedRequest.learn_entry, appended)
            message = await asyncio.wait_for(reply, timeout + END_S)
        except TimeoutError:
            raise ResultTimeout(unended(receiver_id, timeout)) from None
        finally:
            del self._waiting[message_id]
            appended.forget()
        return value_of(message)

    def take(self, lane: int, entry: bytes, fields: Fields) -> bool:
        """Pass a message on to the coroutine that waits for it; return False if none does."""
        if self.is_deleting(lane, entry):
            return True
        waiting = self._waiting.get(fields.get(b"reply_to", b""))
        if waiting is None or waiting.reply.done() or fields.get(b"sender_id") not in waiting.senders:
            return False
        try:
            waiting.reply.set_result(decode_message(fields))
        except (KeyError, ValueError, *BAD_JSON) as error:
            log.error(  # noqa: TRY400 -- the message is enough
                "message.unreadable", agent_id=self._agent_id, entry=entry.decode(), error=repr(error)
            )
            return False
        self.delete(lane, entry)
        return True

    def is_deleting(self, lane: int, entry: bytes) -> bool:
        """Return True if an entry is done with, and Redis has not answered its deletion yet."""
        return (lane, entry) in self._taken

    def delete(self, lane: int, entry: bytes) -> None:
        """Delete an entry that is done with; until Redis has answered, it is not taken again."""
        self._taken.add((lane, entry))
        self._link.send_until_answered(pack(("XDEL", self._lanes[lane], entry)), self._deleted, (lane, entry))

    async def reply(self, request: AgentMessage, payload: Any, *, failed: bool = False) -> None:
        """Reply to a request; return when Redis has the reply. Arguments as of ``start_reply``."""
        answered: asyncio.Future[Any] = self._loop.create_future()
        self.start_reply(request, payload, _resolve, answered, failed=failed)
        answer = await answered
        if isinstance(answer, ErrorAnswer):
            log.error("reply.refused", agent_id=self._agent_id, message_id=request.id, error=str(answer))

    def start_reply(
        self,
        request: AgentMessage,
        payload: Any,
        callback: Callable[[Any, Any], None],
        context: Any,
        *,
        failed: bool = False,
    ) -> None:
        """Reply to a request; a reply that cannot be sent fails the request.

        Args:
            request: the message.
            payload: of the reply.
            callback: called as ``callback(context, answer)`` with the answer of Redis.
            context: passed on.
            failed: the payload says why the request failed, see ``failure``.
        """
        try:
            append = self._reply_append(request, payload, failed=failed)
        except CoordError as error:
            append = self._reply_append(request, failure(error.code, f"the reply cannot be sent: {error}"), failed=True)
        self._outgoing.start_append(append, callback, context)

    def close(self, error: CoordError | None = None) -> None:
        """End all waits; the replies are handled when the agent runs again."""
        self._end = (
            self._end
            or error
            or ConfigError(
                f"agent '{self._agent_id}' was stopped while it waited for a reply; it finds the reply in its inbox"
            )
        )
        for waiting in list(self._waiting.values()):
            if not waiting.reply.done():
                waiting.reply.set_exception(self._end)
                waiting.reply.exception()  # marks it as retrieved, so asyncio logs no warning

    def _reply_append(self, request: AgentMessage, payload: Any, *, failed: bool) -> Append:
        fields = {
            "message_id": request.id[: MAX_ID - len(REPLY)] + REPLY,
            "sender_id": self._agent_id,
            "receiver_id": request.sender_id,
            "payload": payload,
            "reply_to": request.id,
            "failed": failed or None,
            "traceparent": request.traceparent,
        }
        return message_append(fields, request.priority, "", self._max_bytes)

    def _deleted(self, place: tuple[int, bytes], _answer: Any) -> None:
        self._taken.discard(place)


def failure(code: str, message: str, detail: Any = None) -> dict[str, Any]:
    """Return the payload of a failed reply."""
    told = {"code": code, "message": message[:MAX_MESSAGE]}
    return told if detail is None else told | {"detail": detail}


class _AppendedRequest:
    """Ends the wait for a reply if Redis or the coordinator refuses the request."""

    __slots__ = ("_answers", "_fact", "_reply", "_stream")

    def __init__(self, answers: Answers, stream: str, reply: asyncio.Future[AgentMessage]) -> None:
        self._answers = answers
        self._stream = stream
        self._reply = reply
        self._fact: Appended | None = None

    def learn_entry(self, answer: Any) -> None:
        """Take the answer of Redis: the id of the entry, or why it was refused for good."""
        if self._reply.done():
            return
        if isinstance(answer, ErrorAnswer):
            self._reply.set_exception(ServerUnavailable(f"Redis refused the request: {answer}"))
            return
        self._fact = self._stream, answer.decode()
        self._answers.expect(self._fact, self._receive)

    def forget(self) -> None:
        """Expect no answer any more."""
        if self._fact is not None:
            self._answers.forget(self._fact)

    def _receive(self, answer: Answer) -> None:
        if not answer.ok and not self._reply.done():
            self._reply.set_exception(answer.error)


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():
        future.set_result(answer)
