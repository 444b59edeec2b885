"""An agent with a program as its handler."""

from __future__ import annotations

import asyncio
import math
import os
import resource
from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec

from coord.agent.agent import Agent
from coord.agent.run import ONE_STOP_S
from coord.agent.task import NonRetryable, Release, Retryable, Task
from coord.config import Settings, to_environ, without_settings
from coord.errors import ConfigError
from coord.logs import get_logger
from coord.programs.command import LOAD_TIMEOUT_S, Command, Limits
from coord.programs.outcome import Output, ProgramStopped
from coord.programs.per_task import ProcessPerTask
from coord.programs.pool import ProcessPool
from coord.programs.stdio import Input

log = get_logger()

#: Seconds that a program gets to end after SIGTERM.
GRACE_S = 3.0
#: Maximum of the same: less than the five seconds that a cancelled handler gets.
MAX_GRACE_S = 4.5
#: Characters of a failure's message in the log.
LOGGED_CHARACTERS = 600
#: Checks, within ``ONE_STOP_S``, whether the agent was stopped together with its program.
STOP_CHECKS = 20


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a program."""

    task_types: tuple[str, ...] = ()  #: types of the tasks to accept; empty: all
    keep_alive: bool = False  #: keep one process per concurrent task, instead of starting one for each task
    timeout_s: float | None = None  #: seconds for one attempt, in addition to the timeout of the task
    load_timeout_s: float | None = None  #: seconds for the load of a kept program; None: 600
    wait_ready: bool = False  #: a kept program prints that it is ready; accept no task before
    grace_s: float = GRACE_S  #: seconds between SIGTERM and SIGKILL, at most ``MAX_GRACE_S``
    output: Output = Output.AUTO  #: how to read standard output; only without ``keep_alive``
    input: Input = Input.JSON  #: how to write the payload to standard input; only without ``keep_alive``


def program_agent(
    agent_id: str, words: Sequence[str], settings: Settings, options: Options, **declared: Any
) -> Agent:  # fmt: skip
    """Return an agent that runs a program for its tasks.

    Args:
        agent_id: as for ``Agent``.
        words: the program and its arguments, see ``coord.programs.command``.
        settings: they are also in the program's environment, so that a ``coord`` command in it uses the same cell.
        options: how to run the program.
        declared: further arguments of ``Agent``.

    Raises:
        ConfigError: the program cannot be run, an argument is invalid, or the agent has no capability and no task type.
    """
    if not declared.get("capabilities") and not options.task_types:
        raise ConfigError("the agent has no capability; give --capability NAME (repeatable), or --task-type NAME")
    if options.timeout_s is not None and not 0 < options.timeout_s < math.inf:
        raise ConfigError(f"timeout must be a finite number of seconds above 0, got {options.timeout_s}")
    _check_load_options(options)
    command = Command(words, _environ(settings))
    limits = Limits(
        timeout_s=options.timeout_s,
        load_timeout_s=LOAD_TIMEOUT_S if options.load_timeout_s is None else options.load_timeout_s,
        grace_s=options.grace_s,
        output_bytes=settings.max_entry_bytes,
    )
    agent = Agent(agent_id, settings=settings, **declared)
    capacity = agent.capacity
    _check_files(capacity)
    programs: ProcessPerTask | ProcessPool
    if options.keep_alive:
        _check_formats(options)
        if command.arguments.fields:
            raise ConfigError(
                f"with --keep-alive the program starts before there is a task, so {{{command.arguments.fields[0]}}} "
                "has no value; the program must read the payload from its standard input"
            )
        programs = ProcessPool(
            command, agent_id, limits, capacity, wait_ready=options.wait_ready, hold_slots=agent.hold_slots
        )
    else:
        programs = ProcessPerTask(command, agent_id, limits, options.output, options.input)
    agent.on_start(programs.start)
    agent.on_stop(programs.stop)

    async def handle(task: Task) -> Any:
        try:
            return await _give_back_if_stopping(agent, programs.handle(task))
        except (NonRetryable, Retryable, Release) as error:
            log.warning(
                "program.failed",
                task_id=task.task_id, task_type=task.task_type, attempt=task.attempt,
                outcome=type(error).__name__, error=_short(str(error)),
            )  # fmt: skip
            raise

    for task_type in options.task_types:
        agent.task(task_type)(handle)
    if not options.task_types:
        agent.any_task(handle)
    return agent


async def _give_back_if_stopping(agent: Agent, work: Awaitable[Any]) -> Any:
    """Return the result of a program; its task is given back if one signal has stopped both the program and its agent.

    A service manager may signal every process of a service, and the program may end before the agent has noticed.
    """
    try:
        return await work
    except ProgramStopped as error:
        for _ in range(STOP_CHECKS):
            if agent.is_draining:
                raise Release(f"the program was stopped together with its agent: {error.message}") from None
            await asyncio.sleep(ONE_STOP_S / STOP_CHECKS)
        raise


def _check_formats(options: Options) -> None:
    """Refuse formats of standard input and output for a kept program, which they would not change."""
    given = [
        f"--{name} {value.value}"
        for name, value, default in (
            ("input", options.input, Input.JSON),
            ("output", options.output, Output.AUTO),
        )
        if value is not default
    ]
    if given:
        raise ConfigError(
            f"{given[0]} is for one process per task; with --keep-alive the program reads and writes JSON lines, "
            "so leave it out"
        )


def _check_load_options(options: Options) -> None:
    """Check the options for the load of a kept program.

    Raises:
        ConfigError: a value is invalid, or the program is not kept.
    """
    if options.load_timeout_s is not None and not 0 < options.load_timeout_s < math.inf:
        raise ConfigError(f"load timeout must be a finite number of seconds above 0, got {options.load_timeout_s}")
    for option, is_used in (("wait-ready", options.wait_ready), ("load-timeout", options.load_timeout_s is not None)):
        if is_used and not options.keep_alive:
            raise ConfigError(f"--{option} is valid with --keep-alive only; add --keep-alive, or remove --{option}")


def _environ(settings: Settings) -> dict[str, str]:
    """Return this process's environment with exactly these settings in it."""
    return without_settings(os.environ) | to_environ(settings)


def _short(message: str) -> str:
    """Shorten a message for the log, mostly in its beginning; the task's record has all of it."""
    if len(message) <= LOGGED_CHARACTERS:
        return message
    return f"{message[: LOGGED_CHARACTERS // 3]} … {message[-LOGGED_CHARACTERS // 3 * 2 :]}"


def _check_files(capacity: int) -> None:
    """Check the limit of open files: four pipes per program, four while one starts, and the files of the agent."""
    needed, (limit, _) = 4 * capacity + 64, resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise ConfigError(
            f"a capacity of {capacity} needs {needed} open files, but the limit is {limit}; "
            f"raise it with `ulimit -n {needed}`"
        )
