"""Who acts in the state machine, and what each of them believes: processes of agents, and distributors."""

from __future__ import annotations

from typing import NamedTuple

from coord.models.tasks import Lane, is_named
from tests.scripts.machine_server import MachineServer, Picture


class Held(NamedTuple):
    """A task under a lease."""

    task_id: str
    lease: str


class Process:
    """One process of an agent. Two may bear the same id; one without incarnation tells no one from another."""

    def __init__(self, agent_id: str, incarnation: str, capacity: int) -> None:
        self.agent_id = agent_id
        self.incarnation = incarnation
        self.capacity = capacity
        self.interval_ms = 1_000 if incarnation else None
        self.is_paused = False
        self.read: dict[Held, tuple[str, str]] = {}  #: assignments that it knows of: lane and entry
        self.claimed: list[Held] = []
        self.finished: dict[Held, str] = {}  #: what it reported as an outcome
        self.asks: list[str] = []  #: questions for its leases that it has not answered yet
        self.answered: set[str] = set()
        self.orders: list[tuple[str, str]] = []  #: lane and entry of those that it only has to delete

    def look(self, seen: Picture) -> list[tuple[Held, str]]:
        """Read every lane from the start; answers what it is assigned and has finished already, to be told again."""
        again: list[tuple[Held, str]] = []
        self.read.clear()
        for lane in Lane:
            for entry, fields in seen.books.inboxes.get(f"{self.agent_id}:{lane}", {}).items():
                if fields.get("order") == "list_leases":
                    self.ask(fields["ask"])
                    continue
                if fields.get("order") == "read_inbox":
                    self.orders.append((lane, entry))
                    continue
                held = Held(fields["task_id"], fields["lease"])
                if fields.get("order") == "stop_task":
                    self.stop(held)
                elif fields["incarnation"] != self.incarnation or held in self.claimed:
                    continue
                elif held in self.finished:
                    again.append((held, self.finished[held]))
                else:
                    self.read[held] = (lane, entry)
        return again

    def ask(self, ask: str) -> None:
        """It was asked which leases it holds; without incarnation it cannot tell."""
        if self.incarnation and ask not in self.answered:
            self.answered.add(ask)
            self.asks.append(ask)

    def claim(self, server: MachineServer, most: int) -> list[Held]:
        """Delete entries of one lane at once; a batch of which one was gone is in doubt, and wholly given back."""
        lane = next((lane for lane, _ in self.read.values()), "")
        batch = [held for held, (on, _) in self.read.items() if on == lane][:most]
        entries = [self.read.pop(held)[1] for held in batch]
        if entries and server.delete(self.agent_id, lane, entries) < len(entries):
            return batch
        self.claimed += batch
        return []

    def finish(self, held: Held, kind: str) -> None:
        """It is done with this task, one way or another."""
        self.claimed.remove(held)
        self.finished[held] = kind

    def stop(self, held: Held) -> None:
        """It was told to stop."""
        if held in self.claimed:
            self.claimed.remove(held)


class Distributor:
    """What one distributor believes: agents' rev and room, and tasks waiting in each pool."""

    def __init__(self) -> None:
        self.fleet: dict[str, tuple[int, int]] = {}
        self.pools: dict[str, int] = {}
        self.named: dict[str, list[str]] = {}  #: named queue -> its tasks

    def refresh(self, seen: Picture) -> None:
        """Take everything over as it is now."""
        self.pools = {pool: len(tasks) for pool, tasks in seen.books.queues.items()}
        self.named = {pool: sorted(tasks) for pool, tasks in seen.books.queues.items() if is_named(pool) and tasks}
        self.fleet = {
            agent: (int(row["rev"]), int(row["capacity"]) - len(seen.books.inflight.get(agent, ())))
            for agent, row in seen.agents.items()
            if agent in seen.active
        }
