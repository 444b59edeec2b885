"""The real scripts under any order of events that hypothesis can think of, checked after every single step.

Clients, agents, distributors and registries act in small steps, late, twice, and on stale knowledge; the server fails
over and loses what was written since a snapshot. What is checked is in ``machine_checks``: moves, leases, capacity, the
ledger, outcomes, order. At the end everything can be brought to one.

Failing in the middle. Redis carries a script out whole or not at all, whatever is killed; what can still raise an error
in the middle of one is a key of a wrong type. So ``fail`` breaks one key for one call, and the promise is: whatever
that key is, the books balance after the call, and after what failed was tried again by itself. A script looks at what
it shares (counters, indexes) before it begins, at what belongs to one entry before it changes anything for it, and what
tells of it (logs, replies, orders to stop) cannot fail it. Not promised, and not tried here:

* that a command fails on a key that the same call has found to be of its type: between two writes of one task, its
  record says one thing and its queue or its agent's set another;
* a task whose own record cannot be read when dispatch pops it: it is dropped with the pop, for there is no such task;
* an alarm that run_alarms could not handle is due again in a minute, and until then is not the record's earliest one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from coord.config import Settings
from coord.embedded import EmbeddedServer
from tests.scripts.machine_rules import Machine
from tests.scripts.machine_server import MachineServer


@pytest.fixture
def machine_server(server: EmbeddedServer, settings: Settings) -> Iterator[MachineServer]:
    """The embedded Valkey with the scripts; a small backlog, so that tasks are refused; records are soon forgotten."""
    kept = {"refused_ttl_s": 60.0, "terminal_ttl_s": 120.0, "dead_ttl_s": 600.0}
    limits = msgspec.structs.replace(settings, max_backlog_tasks=6, max_releases=2, **kept)
    made = MachineServer(server.url, limits)
    yield made
    made.close()


CI = settings(
    max_examples=200,
    stateful_step_count=60,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def run(server: MachineServer, profile: settings) -> None:
    """Let hypothesis drive machines on this server."""
    made: Any = lambda: Machine(server)  # noqa: E731 (anything that makes a machine will do; its type says a class)
    run_state_machine_as_test(made, settings=profile)


@pytest.mark.guarantee(
    "one-valid-lease", "one-effect-per-entry", "outcome-once", "lists-of-facts", "named-tasks", "operator-requests-once"
)
@pytest.mark.timeout(600)  # 45 s on a quiet machine
def test_whatever_happens(machine_server: MachineServer) -> None:
    """⚠ Legal moves, one valid lease, no agent overfull, exact books, one outcome: after each of any steps."""
    run(machine_server, CI)


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_whatever_happens_for_long(machine_server: MachineServer) -> None:
    """The same with other examples in every run; what fails is printed, with a blob that repeats it."""
    run(machine_server, settings(CI, max_examples=5_000, derandomize=False))
