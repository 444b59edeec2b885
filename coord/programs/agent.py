"""Puts it together: an agent whose handler is a program."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Sequence
from typing import Any

import msgspec

from coord.agent.agent import Agent
from coord.agent.task import NonRetryable, Release, Retryable, Task
from coord.config import ALIASES, PREFIX, Settings, to_environ
from coord.errors import ConfigError
from coord.logs import get_logger
from coord.programs.command import LOAD_TIMEOUT_S, Command, Limits
from coord.programs.outcome import Output
from coord.programs.per_task import ProcessPerTask
from coord.programs.pool import ProcessPool

log = get_logger()

#: What a program has to end after SIGTERM; less than a cancelled handler has, which is five seconds.
GRACE_S = 3.0
LONGEST_GRACE_S = 4.5
#: Of a failure's message, in the log.
SHORT = 600


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a program is run."""

    task_types: tuple[str, ...] = ()  #: the only ones that are taken; none: all
    keep_alive: bool = False
    timeout_s: float | None = None  #: for one attempt, besides what the task itself says
    load_timeout_s: float | None = None  #: for the load of a kept program; None: 600
    wait_ready: bool = False  #: a kept program prints that it is ready; nothing is accepted before
    grace_s: float = GRACE_S  #: between SIGTERM and SIGKILL
    output: Output = Output.AUTO


def program_agent(
    agent_id: str, words: Sequence[str], settings: Settings, options: Options, **declared: Any
) -> Agent:  # fmt: skip
    """An agent that runs a program for its tasks.

    Args:
        agent_id: as ``Agent``.
        words: the program and its arguments, see ``coord.programs.arguments``.
        settings: the program finds them in its environment, so that a ``coord`` of its own finds the same cell.
        options: how it is run.
        declared: what else ``Agent`` takes.

    Raises:
        ConfigError: the program cannot be run, an argument does not fit, or the agent could do nothing.
    """
    if not declared.get("capabilities") and not options.task_types:
        raise ConfigError("say what the program can do: --capability NAME (as often as needed), or --task-type NAME")
    if options.timeout_s is not None and not 0 < options.timeout_s < math.inf:
        raise ConfigError(f"timeout must be a finite number of seconds above 0, not {options.timeout_s}")
    _check_loading(options)
    command = Command(words, _environ(settings))
    limits = Limits(
        timeout_s=options.timeout_s,
        grace_s=options.grace_s,
        output_bytes=settings.max_entry_bytes,
        load_timeout_s=LOAD_TIMEOUT_S if options.load_timeout_s is None else options.load_timeout_s,
    )
    agent = Agent(agent_id, settings=settings, **declared)
    capacity = agent.capacity
    _check_files(capacity)
    programs: ProcessPerTask | ProcessPool
    if options.keep_alive:
        if command.arguments.fields:
            raise ConfigError(
                f"a program that is kept is started before there is a task: {{{command.arguments.fields[0]}}} "
                "has no value then; it reads the payload from its lines"
            )
        programs = ProcessPool(
            command, agent_id, limits, capacity, wait_ready=options.wait_ready, hold_slots=agent.hold_slots
        )
    else:
        programs = ProcessPerTask(command, agent_id, limits, options.output)
    agent.on_start(programs.start)
    agent.on_stop(programs.stop)

    async def handle(task: Task) -> Any:
        try:
            return await programs.handle(task)
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


def _check_loading(options: Options) -> None:
    """Check the options for the load of a kept program.

    Raises:
        ConfigError: they do not fit.
    """
    if options.load_timeout_s is not None and not 0 < options.load_timeout_s < math.inf:
        raise ConfigError(f"load timeout must be a finite number of seconds above 0, not {options.load_timeout_s}")
    for option, is_used in (("wait-ready", options.wait_ready), ("load-timeout", options.load_timeout_s is not None)):
        if is_used and not options.keep_alive:
            raise ConfigError(f"--{option} is for a program that is kept: add --keep-alive, or leave --{option} out")


def _environ(settings: Settings) -> dict[str, str]:
    """This process's environment with exactly these settings in it."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX) and name not in ALIASES}
    return others | to_environ(settings)


def _short(told: str) -> str:
    """For a line of the log; the task's record has all of it."""
    return told if len(told) <= SHORT else f"{told[: SHORT // 3]} … {told[-SHORT // 3 * 2 :]}"


def _check_files(capacity: int) -> None:
    """Four pipes for each program, four more while one is being started, and what the agent has open itself."""
    needed, (limit, _) = 4 * capacity + 64, resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise ConfigError(
            f"a capacity of {capacity} needs {needed} open files, and the limit is {limit}; "
            f"raise it with `ulimit -n {needed}`"
        )
