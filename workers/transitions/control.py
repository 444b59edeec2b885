"""The scripts that operators' facts call for, typed like the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from coord.config import Settings
from coord.keys import CONSUMES
from coord.models.tasks import HEAD_START_MS
from workers.transitions.batches import (
    Arg,
    Call,
    DrainRequest,
    EntryReplay,
    Purge,
    Redelivery,
    Replay,
    SettingChange,
    TaskBatch,
    read_task_batch,
    read_words,
)

#: Dead letters forgotten by one request: some milliseconds of the server's time.
PURGED_AT_ONCE = 1_000


class ControlScripts:
    """The part of ``Scripts`` that serves operators."""

    settings: Settings

    def replay(self, replays: Sequence[Replay]) -> Call[TaskBatch]:
        """Set failed tasks going again; words REPLAYED, DUPLICATE, NOT_FOUND, NOT_DEAD, EXPIRED."""
        args: list[Arg] = [*HEAD_START_MS.values(), len(replays)]
        for r in replays:
            args += (r.entry, r.task_id, r.caller)
        return Call("replay", args, read_task_batch)

    def configure(self, changes: Sequence[SettingChange]) -> Call[list[str]]:
        """Set what distributors obey while they run; word OK."""
        args: list[Arg] = [len(changes)]
        for c in changes:
            args += (c.entry, c.caller, c.name, "0" if c.value is None else "1", c.value or "")
        return Call("configure", args, read_words)

    def drain(self, drainings: Sequence[DrainRequest]) -> Call[list[str]]:
        """Drain agents, or end that; words OK, UNKNOWN, STALE."""
        args = [*self._liveness(), len(drainings)]
        for d in drainings:
            args += (d.entry, d.caller, d.agent_id, "1" if d.begins else "0")
        return Call("drain", args, read_words)

    def redeliver(self, redeliveries: Sequence[Redelivery]) -> Call[list[str]]:
        """Deliver dead messages anew; words DELIVERED, NOT_FOUND, NOT_DEAD, EXPIRED, UNKNOWN, FULL."""
        args = [*self._inbox_limits(), len(redeliveries)]
        for r in redeliveries:
            args += (r.entry, r.caller, r.message_id, r.ttl_ms)
        return Call("redeliver", args, read_words)

    def requeue(self, kind: str, exhumations: Sequence[EntryReplay]) -> Call[list[str]]:
        """Append buried entries of a kind of worker anew; words OK, NOT_FOUND, FOREIGN, TRUNCATED."""
        streams = CONSUMES[kind]
        args: list[Arg] = [kind, len(streams), *streams, len(exhumations)]
        for e in exhumations:
            args += (e.entry, e.caller, e.dead_id)
        return Call("requeue", args, read_words)

    def purge(
        self,
        kind: str,
        of: Literal["tasks", "messages", "entries"],
        purges: Sequence[Purge],
        most: int = PURGED_AT_ONCE,
    ) -> Call[list[str]]:
        """Forget dead letters, ``most`` for each request; ``kind`` was told. Words OK, NOT_FOUND, NOT_DEAD."""
        args: list[Arg] = [of, kind, most, len(purges)]
        for p in purges:
            args += (p.entry, p.caller, p.dead_id, "" if p.age_ms is None else p.age_ms)
        return Call("purge", args, read_words)

    def _liveness(self) -> list[Arg]:
        s = self.settings
        return [s.missed_beats, int(s.agent_timeout_s * 1000), 5000]

    def _inbox_limits(self) -> list[Arg]:
        s = self.settings
        dead_ms = int(s.dead_ttl_s * 1000)
        return [s.inbox_entries, s.inbox_critical_extra, 3_600_000, dead_ms, s.dead_in_entries]
