"""Facts of an agent of which it awaits the answers: messages that it sends, and changes of its links."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from coord.client.answers import Answer, Answers
from coord.errors import ConfigError, CoordError, ResultTimeout
from coord.keys import Keys
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ErrorAnswer
from coord.streams import Append, append_command


class Outgoing:
    """Appends facts, and waits for their answers; reads records.

    Args:
        agent_id: id of the agent.
        link: the connection for writes.
        keys: of the cell.
        answers: to the facts of this agent.
        token: returns the token of the agent; empty: none.
    """

    def __init__(
        self, agent_id: str, link: ReconnectingConnection, keys: Keys, answers: Answers, token: Callable[[], str] = str
    ) -> None:
        self.keys = keys
        self.answers = answers
        self._agent_id = agent_id
        self._link = link
        self._token = token
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._is_closed = False

    def start_append(self, append: Append, callback: Callable[[Any, Any], None], context: Any) -> None:
        """Append a fact with the token of the agent; call ``callback(context, answer)`` with the answer of Redis."""
        spoken = replace(append, token=self._token())
        self._link.send_until_answered(pack(append_command(self.keys, spoken)), callback, context)

    async def append(self, append: Append) -> str:
        """Append a fact with the token of the agent; return its entry id when Redis has it.

        Raises:
            CoordError: Redis refuses it.
            ConfigError: the agent has stopped.
        """
        answered: asyncio.Future[Any] = self._loop.create_future()
        self.start_append(append, _resolve, answered)
        entry: str = self._accepted(await self._wait(answered), "XADD", self.keys.of(append.stream)).decode()
        return entry

    async def request(self, append: Append, timeout: float, worker: str = "router") -> tuple[str, Answer]:
        """Append a fact and wait for its answer, which may be an error; return its entry id and the answer.

        Raises:
            ResultTimeout: no answer within ``timeout`` seconds; the fact waits for a worker.
            CoordError, ConfigError: as ``append``.
        """
        answered: asyncio.Future[Answer] = self._loop.create_future()

        def receive(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        try:
            async with asyncio.timeout(timeout):
                entry = await self.append(append)
                self.answers.expect((append.stream, entry), receive)
                return entry, await self._wait(answered)
        except TimeoutError:
            raise ResultTimeout(f"no {worker} answered within {timeout:g} s; the request waits for one") from None

    async def read(self, *command: Any) -> Any:
        """Send a command until it is answered; return the answer.

        Raises:
            CoordError: Redis refuses the command.
            ConfigError: the agent has stopped.
        """
        answered: asyncio.Future[Any] = self._loop.create_future()
        self._link.send_until_answered(pack(command), _resolve, answered)
        return self._accepted(await self._wait(answered), *command[:2])

    def close(self) -> None:
        """End what waits."""
        self._is_closed = True
        for future in self._waiting:
            if not future.done():
                future.set_exception(self._stopped())

    async def _wait(self, future: asyncio.Future[Any]) -> Any:
        if self._is_closed:
            raise self._stopped()
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)

    def _accepted(self, answer: Any, command: str, key: str) -> Any:
        """Return an answer of Redis, unless it is an error."""
        if isinstance(answer, ErrorAnswer):
            raise CoordError(f"agent '{self._agent_id}' may not {command} {key}: {answer}")
        return answer

    def _stopped(self) -> ConfigError:
        return ConfigError(f"agent '{self._agent_id}' has stopped")


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():
        future.set_result(answer)
