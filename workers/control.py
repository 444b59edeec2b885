"""What operators' facts say, as the scripts take it; and what a setting may be."""

from __future__ import annotations

from typing import Any, Literal

from coord import config
from coord.errors import ConfigError
from coord.models.control import (
    AgentDrained,
    AgentRemoved,
    AgentResumed,
    DeadPurged,
    EntriesPurged,
    EntryReplayed,
    MessageReplayed,
    SettingSet,
    StrategySet,
    TaskReplayed,
)
from coord.placement import STRATEGIES
from workers.service import ReceivedFact
from workers.transitions import (
    Call,
    Departure,
    DrainRequest,
    EntryReplay,
    Purge,
    Redelivery,
    Replay,
    Scripts,
    SettingChange,
    TaskBatch,
)


def check_setting(fact: StrategySet | SettingSet) -> None:
    """Whether a setting may be set to this.

    Raises:
        ConfigError: names what may be set, or what the value may be.
    """
    name, value = _setting(fact)
    if value is None:
        config.live_text(name, getattr(config.Settings(), name, None))
        return
    if name == "strategy" and value not in STRATEGIES:
        raise ConfigError(f"strategy {value!r} is not one of {', '.join(sorted(STRATEGIES))}")
    config.live_text(name, value)


def configure(scripts: Scripts, batch: list[ReceivedFact[StrategySet | SettingSet]]) -> Call[list[str]]:
    """``configure`` for a batch of settings that fit."""
    changes: list[SettingChange] = []
    for entry, fact, caller in batch:
        name, value = _setting(fact)
        text = None if value is None else config.live_text(name, value)
        changes.append(SettingChange(entry.id, caller, name, text))
    return scripts.configure(changes)


def replay(scripts: Scripts, batch: list[ReceivedFact[TaskReplayed]]) -> Call[TaskBatch]:
    """``replay`` for a batch of ``TaskReplayed``."""
    return scripts.replay([Replay(entry.id, fact.task_id, caller) for entry, fact, caller in batch])


def drain(scripts: Scripts, batch: list[ReceivedFact[AgentDrained | AgentResumed]]) -> Call[list[str]]:
    """``drain`` for a batch of ``AgentDrained`` and ``AgentResumed``, in their order."""
    return scripts.drain(
        [DrainRequest(entry.id, caller, fact.agent_id, isinstance(fact, AgentDrained)) for entry, fact, caller in batch]
    )


def remove(scripts: Scripts, batch: list[ReceivedFact[AgentRemoved]]) -> Call[list[str]]:
    """``deregister`` for a batch of ``AgentRemoved``."""
    departures = [Departure(entry.id, caller, fact.agent_id, "") for entry, fact, caller in batch]
    return scripts.deregister(departures, by_operator=True)


def redeliver(scripts: Scripts, batch: list[ReceivedFact[MessageReplayed]], ttl_s: float) -> Call[list[str]]:
    """``redeliver`` for a batch of ``MessageReplayed``; ``ttl_s`` is that of a fact that names none."""
    redeliveries: list[Redelivery] = []
    for entry, fact, caller in batch:
        ttl_ms = int((ttl_s if fact.ttl is None else fact.ttl) * 1000)
        redeliveries.append(Redelivery(entry.id, caller, fact.message_id, ttl_ms))
    return scripts.redeliver(redeliveries)


def requeue(scripts: Scripts, kind: str, batch: list[ReceivedFact[EntryReplayed]]) -> Call[list[str]]:
    """``requeue`` for a batch of ``EntryReplayed``."""
    return scripts.requeue(kind, [EntryReplay(entry.id, caller, fact.entry_id) for entry, fact, caller in batch])


def purge(
    scripts: Scripts, kind: str, of: Literal["tasks", "messages", "entries"], batch: list[ReceivedFact[Any]]
) -> Call[list[str]]:
    """``purge`` for a batch of ``DeadPurged`` or ``EntriesPurged``."""
    purges: list[Purge] = []
    for entry, fact, caller in batch:
        purges.append(Purge(entry.id, caller, _dead_id(fact) or "", _age_ms(fact)))
    return scripts.purge(kind, of, purges)


def _setting(fact: StrategySet | SettingSet) -> tuple[str, str | float | None]:
    return ("strategy", fact.strategy) if isinstance(fact, StrategySet) else (fact.name, fact.value)


def _dead_id(fact: DeadPurged | EntriesPurged) -> str | None:
    return fact.dead_id if isinstance(fact, DeadPurged) else fact.entry_id


def _age_ms(fact: DeadPurged | EntriesPurged) -> int | None:
    return None if fact.older_than is None else int(fact.older_than * 1000)
