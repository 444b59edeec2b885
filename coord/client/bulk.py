"""Operations on all tasks that match a query: pages of ids, and one request of an operator for each.

A worker changes the tasks of a request in one atomic step, so a killed program leaves no task half changed. A repeated
operation does the rest: a task that was changed does not match any more, and a running task that was asked to stop is
skipped. A task that was replayed may fail again, so the id of an operation holds the time of its beginning, and only
tasks that had failed by then are replayed.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from time import monotonic

import msgspec
from msgspec import Struct

from coord import queries
from coord.arguments import as_seconds, check_limit
from coord.client.connection import ClientConnection
from coord.client.submission import build_fact
from coord.connection import reading
from coord.context import acting_for
from coord.errors import CoordError, FactInvalid, QueryInvalid, ResultTimeout, Unavailable
from coord.models.facts import TasksChangeRequested
from coord.models.operations import ACTIONS, BulkAction, BulkResult
from coord.models.query import Query
from coord.models.task_query import TASKS
from coord.models.tasks import Priority
from coord.streams import Append
from coord.suggestions import not_one_of

#: Tasks of one request: some milliseconds of the server's time.
AT_ONCE = 200
#: Tasks that are counted in one step.
COUNTED_AT_ONCE = 10_000
#: Characters of a query that the audit keeps; the last one of a longer query is an ellipsis.
_QUERY_KEPT = 512
#: A limit of more tasks than a cell can have.
_ALL = 10**12
#: Bytes of an id in a request, at most; of everything else in it, without the reason.
_ID_BYTES, _REST_BYTES = 132, 4_096
_STREAM = "in:control:distributor"


class _Effect(Struct):
    done: int
    skipped: dict[str, int]
    stopping: int = 0  # a distributor of an earlier version does not count them


_effect = msgspec.json.Decoder(_Effect)


class BulkOperation:
    """One operation.

    Args:
        connection: of the client.
        action: what is done.
        query: text or parsed; it must have a term.
        priority: the new one; with ``prioritize``.
        reason: of a cancel.
        operation: id of an operation that is continued.
    """

    def __init__(
        self,
        connection: ClientConnection,
        action: BulkAction,
        query: str | Query,
        *,
        priority: Priority | str | None = None,
        reason: str = "",
        operation: str | None = None,
    ) -> None:
        if action not in ACTIONS:
            raise FactInvalid(not_one_of("action", action, ACTIONS))
        if (action == "prioritize") != (priority is not None):
            raise FactInvalid("priority is needed with the action prioritize, and with no other")
        if priority is not None and priority not in set(Priority):
            raise FactInvalid(not_one_of("priority", str(priority), [one.value for one in Priority]))
        self._connection = connection
        self.action = action
        self._fact_action, states = ACTIONS[action]
        self._priority = None if priority is None else Priority(priority)
        self._reason = reason
        given = TASKS.parse(query) if isinstance(query, str) else query
        if not given.terms:
            raise QueryInvalid("the query is empty; write id:* if you mean all tasks")
        self._given = str(given)
        self.query = given.with_term("state", states)
        if self._priority is not None:
            others = [one for one in Priority if one is not self._priority]
            self.query = self.query.with_term("priority", others)
        self._begun = None if operation is None else _begin_of(operation)
        self.operation = operation or ""
        #: The numbers as far as the operation went; None until a request is answered, or waits for a distributor.
        self.result: BulkResult | None = None

    async def count(self, limit: int | None = None, cursor: str | None = None, *, once: bool = False) -> BulkResult:
        """Count the tasks that match; change nothing.

        Args:
            limit: stop after so many.
            cursor: continue there.
            once: examine at most 10,000 tasks.
        """
        most = _checked_limit(limit)
        matched = 0
        async with aclosing(await self._walk(cursor)) as walk:
            while True:
                with reading():
                    page = await walk.page(min(COUNTED_AT_ONCE, most - matched))
                matched += len(page.ids)
                if page.next is None or once or matched >= most:
                    return BulkResult(action=self.action, query=str(self.query), matched=matched, next=page.next)

    async def run(
        self,
        *,
        timeout: float,
        limit: int | None = None,
        cursor: str | None = None,
        within: float | None = None,
        on_progress: Callable[[BulkResult], None] = lambda _result: None,
    ) -> BulkResult:
        """Change the tasks that match.

        Args:
            timeout: seconds to wait for the answer to each request.
            limit: stop after so many matching tasks; None: all.
            cursor: continue there.
            within: begin no further request after so many seconds; None: no limit.
            on_progress: called after each request.

        Raises:
            ServerUnavailable, ServerFull: Redis does not answer, or is out of memory; the error has the id of the
                operation, and ``result`` the numbers so far.
            FactInvalid: an argument does not fit.
            CoordError: a distributor refused a request.
        """
        timeout = as_seconds(timeout, "timeout")
        most = _checked_limit(limit)
        self.result = None
        await self.begin()
        ends_at = None if within is None else monotonic() + within
        try:
            async with aclosing(await self._walk(cursor)) as walk:
                while True:
                    result = await self._change_page(walk, most, timeout)
                    on_progress(result)
                    is_over = ends_at is not None and monotonic() >= ends_at
                    if result.next is None or result.unanswered or is_over or result.matched >= most:
                        return result
        except CoordError as error:
            if isinstance(error, Unavailable) or self.result is not None:
                error.args = (f"{error}{self.advice}",)
            raise

    @property
    def advice(self) -> str:
        """The end of an error in the middle of the operation: what it has done, and how to continue it."""
        if not self.operation:
            return ""
        done = 0 if self.result is None else self.result.done
        changed = f"{done:,} task{' was' if done == 1 else 's were'} changed"
        return f"; {changed}, and operation {self.operation} continues with the others"

    async def begin(self) -> str:
        """Give the operation an id, unless it has one; return the id."""
        if self._begun is None:
            with reading():
                self._begun = await queries.get_time(self._connection.redis)
            self.operation = f"{self._begun}-{secrets.token_hex(4)}"
        return self.operation

    @property
    def _size(self) -> int:
        """Tasks of one request, so that it fits into an entry."""
        room = self._connection.settings.max_entry_bytes - _REST_BYTES - 4 * len(self._reason)
        return max(1, min(AT_ONCE, room // _ID_BYTES))

    async def _walk(self, cursor: str | None) -> queries.TaskWalk:
        connection = self._connection
        with reading():
            return await queries.open_task_walk(
                connection.redis, connection.keys, self.query, settings=connection.settings, cursor=cursor
            )

    async def _change_page(self, walk: queries.TaskWalk, most: int, timeout: float) -> BulkResult:
        """Change the tasks of the next page; return the numbers with those of the pages before."""
        before = self.result or BulkResult(action=self.action, query=str(self.query), matched=0)
        with reading():
            page = await walk.page(min(self._size, most - before.matched))
        effect = await self._request(page.ids, timeout) if page.ids else _Effect(0, {})
        self.result = BulkResult(
            action=self.action,
            query=str(self.query),
            matched=before.matched + len(page.ids),
            done=before.done + (0 if effect is None else effect.done),
            stopping=before.stopping + (0 if effect is None else effect.stopping),
            skipped=dict(Counter(before.skipped) + Counter({} if effect is None else effect.skipped)),
            unanswered=len(page.ids) if effect is None else 0,
            next=page.next,
            operation=self.operation,
        )
        return self.result

    async def _request(self, ids: tuple[str, ...], timeout: float) -> _Effect | None:
        """Have the tasks changed; None: no distributor answered in time, and the request waits for one."""
        connection = self._connection
        request = TasksChangeRequested(
            action=self._fact_action,
            task_ids=ids,
            priority=self._priority,
            reason=self._reason,
            before=self._begun if self._fact_action == "replay" else None,
            query=_kept(self._given),
            operation=self.operation,
        )
        fact, data = build_fact(_STREAM, TasksChangeRequested, request, connection.settings.max_entry_bytes)
        append = Append(_STREAM, fact, connection.caller, data, by=acting_for.get())
        try:
            answer = (await connection.request(append, timeout, "distributor")).answer
        except ResultTimeout:
            return None
        if not answer.ok:
            raise answer.error
        return _effect.decode(answer.data)


def _checked_limit(limit: int | None) -> int:
    if limit is None:
        return _ALL
    check_limit(limit)
    return limit


def _kept(query: str) -> str:
    """Return a query for the audit, which keeps its beginning."""
    return query if len(query) <= _QUERY_KEPT else f"{query[: _QUERY_KEPT - 1]}…"


def _begin_of(operation: str) -> int:
    begin, _, mark = operation.partition("-")
    if not begin.isdecimal() or len(begin) > 15 or not mark.isalnum() or len(mark) > 16:
        raise FactInvalid(f"operation {operation[:60]!r} is no id of an operation, such as 1767225600000-9f2c01ab")
    return int(begin)
