"""Runs handlers: async ones on the loop, others in threads. What they return or raise becomes a report."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from coord import spans
from coord.agent.handlers import Handler, call_caught, describe, name_of, traceback_of
from coord.agent.reports import Reports
from coord.agent.task import Attempt, NonRetryable, Release, Retryable, Task
from coord.codec import BAD_JSON
from coord.context import Work, current_work
from coord.logs import get_logger
from coord.values import why_undecodable

log = get_logger()

#: Seconds after which a handler is reported as started; a shorter one reports this with its outcome.
STARTED_S = 0.1
#: Seconds that a handler has to stop before its slot counts as occupied for longer.
STUCK_S = 5.0
SHUTTING_DOWN = "the agent is shutting down"
#: Tasks that one line of the log names.
MOST_NAMED = 20


class _Assigned(msgspec.Struct):
    """The fields of a submitted task that an agent needs."""

    task_type: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    traceparent: str | None = None


_assigned = msgspec.json.Decoder(_Assigned).decode


class Runner:
    """The running handlers of one agent process.

    Args:
        agent_id: id of the agent.
        handlers: by task type.
        fallback: for task types that have no handler.
        threads: for handlers that are not async.
        reports: for the outcomes.
        on_ended: called after each attempt, when its report is sent.
        on_stuck: called with the number of handlers that still run although they must stop, whenever it changes.
    """

    def __init__(
        self,
        agent_id: str,
        handlers: Mapping[str, Handler],
        fallback: Handler | None,
        threads: ThreadPoolExecutor,
        reports: Reports,
        *,
        on_ended: Callable[[], None],
        on_stuck: Callable[[int], None],
    ) -> None:
        self.has_abandoned = False  #: a handler did not end in time, and may still run
        self._on_ended = on_ended
        self._on_stuck = on_stuck
        self._agent_id = agent_id
        self._handlers = handlers
        self._fallback = fallback
        self._threads = threads
        self._reports = reports
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._report_progress = self.progress  # bound once
        self._running: dict[str, Attempt] = {}
        self._stuck: set[str] = set()  # leases
        self._sweeper: asyncio.TimerHandle | None = None
        self._all_ended: asyncio.Event | None = None

    @property
    def running(self) -> int:
        """Number of running handlers."""
        return len(self._running)

    def runs(self, task: asyncio.Future[Any]) -> bool:
        """Return True if this is the asyncio task of a handler."""
        return any(attempt.future is task for attempt in self._running.values())

    def handler_of(self, task: asyncio.Future[Any]) -> str:
        """Return the name of the handler that an asyncio task runs, or ""; may be called from any thread."""
        for attempt in list(self._running.values()):
            handler = self._handlers.get(attempt.task_type, self._fallback)
            if attempt.future is task and handler is not None:
                return name_of(handler.call)
        return ""

    def start(self, attempt: Attempt) -> None:
        """Run the handler of a claimed attempt."""
        attempt.started_at = self._loop.time()
        task: Any = Task(attempt, self._report_progress)
        args: tuple[Any, ...] = (task,)
        try:
            assigned = _assigned(attempt.raw)
            attempt.task_type, attempt.raw = assigned.task_type, assigned.payload
            attempt.traceparent = assigned.traceparent
            handler = self._handlers.get(assigned.task_type, self._fallback)
            if handler is not None and handler.decode is not None:
                payload = handler.decode(assigned.payload)
                args = (payload, task) if handler.takes_task else (payload,)
        except Exception as error:  # noqa: BLE001 -- the checks of a Struct of the user may raise anything
            if isinstance(error, BAD_JSON):
                message = why_undecodable(bytes(attempt.raw), "payload", error)
            else:
                message = f"payload: {describe(error)}"
            self._reports.failed(attempt, "payload_invalid", message, retryable=False)
            self._on_ended()
            return
        if handler is None:
            attempt.started_at = 0.0  # nothing ran: the release does not count
            self._reports.released(attempt, self._no_handler(attempt.task_type), "no_handler")
            self._on_ended()
            return
        self._running[attempt.lease] = attempt
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(STARTED_S, self._sweep)
        function = handler.call
        if spans.recorder is not None:
            function = _recorded(spans.recorder, self._agent_id, handler, attempt)
        if handler.is_async:
            attempt.future = self._loop.create_task(self._run(function, args, attempt))
        else:
            call: tuple[Any, ...] = (call_caught, function, args)
            if attempt.traceparent is not None:
                call = (_call_within, Work(traceparent=attempt.traceparent), *call)
            attempt.future = self._loop.run_in_executor(self._threads, *call)
            attempt.future.add_done_callback(lambda future: self._thread_ended(attempt, future))

    def stop(self, attempt: Attempt, reason: str) -> None:
        """Stop an attempt: an async handler is cancelled; a handler in a thread sees ``Task.cancelled``."""
        if attempt.stop_reason is not None:
            return
        attempt.stop_reason = reason or "stopped"
        if isinstance(attempt.future, asyncio.Task):
            # Not at once: a coroutine that is cancelled before its first step never reports its end.
            self._loop.call_soon(attempt.future.cancel)
        self._loop.call_later(STUCK_S, self._check_stuck, attempt)

    def stop_all(self, reason: str) -> None:
        """Stop all running attempts."""
        for attempt in list(self._running.values()):
            self.stop(attempt, reason)

    def progress(self, attempt: Attempt, raw: bytes) -> None:
        """Report the progress of a handler; may be called from any thread."""
        if threading.get_ident() == self._thread:
            self._progress(attempt, raw)
        else:
            self._loop.call_soon_threadsafe(self._progress, attempt, raw)

    async def finish(self, grace_s: float | None, cancel_s: float) -> None:
        """Wait until the handlers have ended.

        Args:
            grace_s: seconds that they have, None for no limit; then they are stopped and their tasks given back.
            cancel_s: seconds that stopped ones have to clean up. Threads cannot be stopped: their results are dropped.
        """
        if await self._ended_within(grace_s):
            return
        given_back = [attempt.task_id for attempt in self._running.values()]
        log.warning(
            "tasks.given_back", agent_id=self._agent_id, count=len(given_back), task_ids=given_back[:MOST_NAMED]
        )
        self.stop_all(SHUTTING_DOWN)
        await self._ended_within(cancel_s)
        for attempt in list(self._running.values()):
            self.has_abandoned = True
            log.warning("task.abandoned", agent_id=self._agent_id, task_id=attempt.task_id)
            self._reports.released(attempt, SHUTTING_DOWN, "draining")
            self._ended(attempt)

    def close(self) -> None:
        """Cancel the timer."""
        if self._sweeper:
            self._sweeper.cancel()

    async def _run(self, call: Callable[..., Any], args: tuple[Any, ...], attempt: Attempt) -> None:
        if attempt.traceparent is not None or current_work.get() is not None:
            current_work.set(Work(traceparent=attempt.traceparent))
        try:
            result = await call(*args)
        except BaseException as error:  # noqa: BLE001 -- anything that a handler raises is the outcome of its task
            self._raised(attempt, error)
        else:
            self._finished(attempt, result)

    def _thread_ended(self, attempt: Attempt, future: asyncio.Future[tuple[Any, BaseException | None]]) -> None:
        if future.cancelled():  # it was still waiting for a thread when the agent closed
            return
        result, error = future.result()
        if error is not None:
            self._raised(attempt, error)
        else:
            self._finished(attempt, result)

    def _finished(self, attempt: Attempt, result: Any) -> None:
        if attempt.stop_reason is not None:  # it had to stop: its result is dropped
            self._raised(attempt, asyncio.CancelledError())
        else:
            self._returned(attempt, result)

    def _returned(self, attempt: Attempt, result: Any) -> None:
        if attempt.lease not in self._running:  # it was abandoned
            return
        try:
            self._reports.completed(attempt, result)
        except BaseException as error:  # noqa: BLE001 -- an object of the user may raise anything when it is encoded
            message = f"the result of type {type(result).__name__} is not JSON: {describe(error)}"
            self._reports.failed(attempt, "result_invalid", message, retryable=False)
        self._ended(attempt)

    def _raised(self, attempt: Attempt, error: BaseException) -> None:
        if attempt.lease not in self._running:
            return
        try:
            self._report_raised(attempt, error)
        except BaseException:  # noqa: BLE001 -- an exception of the user that cannot be described
            self._reports.failed(attempt, "handler_failed", type(error).__name__, retryable=True)
        self._ended(attempt)

    def _report_raised(self, attempt: Attempt, error: BaseException) -> None:
        reports = self._reports
        if attempt.stop_reason is not None:
            code = "draining" if attempt.stop_reason == SHUTTING_DOWN else "stopped"
            reports.released(attempt, attempt.stop_reason, code)
        elif isinstance(error, Release):
            reports.released(attempt, error.reason or "released by its handler", "handler")
        elif isinstance(error, NonRetryable):
            reports.failed(attempt, error.code, error.message, retryable=False, detail=error.detail)
        elif isinstance(error, Retryable):
            reports.failed(attempt, error.code, error.message, retryable=True, detail=error.detail)
        else:
            log.warning(
                "task.handler_failed",
                agent_id=self._agent_id, task_id=attempt.task_id, task_type=attempt.task_type, attempt=attempt.number,
                exc_info=error,
            )  # fmt: skip
            where = traceback_of(error)
            detail = {"traceback": where} if where else None
            reports.failed(attempt, "handler_failed", describe(error), retryable=True, detail=detail)

    def _check_stuck(self, attempt: Attempt) -> None:
        if attempt.lease in self._running:
            log.warning(
                "task.handler_goes_on", agent_id=self._agent_id, task_id=attempt.task_id, reason=attempt.stop_reason
            )
            self._stuck.add(attempt.lease)
            self._on_stuck(len(self._stuck))

    def _ended(self, attempt: Attempt) -> None:
        del self._running[attempt.lease]
        attempt.future = attempt.next_progress = None
        if attempt.lease in self._stuck:
            self._stuck.remove(attempt.lease)
            self._on_stuck(len(self._stuck))
        self._on_ended()
        if self._all_ended is not None and not self._running:
            self._all_ended.set()

    async def _ended_within(self, limit_s: float | None) -> bool:
        if self._running:
            self._all_ended = asyncio.Event()
            try:
                await asyncio.wait_for(self._all_ended.wait(), limit_s)
            except TimeoutError:
                return False
        return True

    def _sweep(self) -> None:
        """Report long-running handlers as started; one timer for all of them, and none while nothing runs."""
        self._sweeper = self._loop.call_later(STARTED_S, self._sweep) if self._running else None
        now = self._loop.time()
        for attempt in self._running.values():
            if not attempt.has_reported_start and now - attempt.started_at >= STARTED_S:
                attempt.has_reported_start = True
                self._reports.started(attempt)

    def _progress(self, attempt: Attempt, raw: bytes) -> None:
        if attempt.lease not in self._running:
            return
        if attempt.is_sending_progress:
            attempt.next_progress = raw
            return
        attempt.is_sending_progress = self._reports.progressed(attempt, raw, self._progress_sent)
        if not attempt.is_sending_progress:
            log.warning("task.progress_refused", task_id=attempt.task_id, bytes=len(raw), hint="too long, or not JSON")

    def _progress_sent(self, attempt: Attempt, _answer: Any) -> None:
        attempt.is_sending_progress = False
        raw, attempt.next_progress = attempt.next_progress, None
        if raw is not None:
            self._progress(attempt, raw)

    def _no_handler(self, task_type: str) -> str:
        known = ", ".join(sorted(self._handlers)) or "none"
        return (
            f"agent '{self._agent_id}' has no handler for task_type '{task_type}' (it has: {known}); add "
            f"@agent.task('{task_type}') to it, or submit with requirements that only fitting agents meet"
        )


def _recorded(recorder: spans.Recorder, agent_id: str, handler: Handler, attempt: Attempt) -> Callable[..., Any]:
    """Return a handler that runs within a span; what it submits and sends belongs to that span."""
    attributes: spans.Attributes = {
        "coord.task_id": attempt.task_id,
        "coord.task_type": attempt.task_type,
        "coord.agent_id": agent_id,
        "coord.attempt": attempt.number,
    }
    name = f"coord.handle {attempt.task_type}"

    async def run(*args: Any) -> Any:
        with recorder.span(name, attempt.traceparent, "consumer", attributes) as span:
            current_work.set(Work(traceparent=span.traceparent or attempt.traceparent))
            return await handler.call(*args)

    def call(*args: Any) -> Any:
        with recorder.span(name, attempt.traceparent, "consumer", attributes) as span:
            return _call_within(Work(traceparent=span.traceparent or attempt.traceparent), handler.call, *args)

    return run if handler.is_async else call


def _call_within(work: Work, call: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a thread, which works on this meanwhile."""
    before = current_work.set(work)
    try:
        return call(*args)
    finally:
        current_work.reset(before)
