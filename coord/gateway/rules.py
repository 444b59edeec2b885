"""Handlers of the rules of placement: the strategy and the modifiers, of the cell and of task types."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, UnsetType

from coord.gateway.errors import Problem, RequestError
from coord.gateway.placement_rules import ChangesFound, RulesChanged, RulesFound, SetRules
from coord.gateway.routes import Answer, Call, written
from coord.models.strategies import MODIFIERS
from coord.models.tasks import Text
from coord.plugins import strategy_names
from coord.suggestions import closest, not_one_of

#: Maximum number of changes in a response: the default, and the limit of the limit.
CHANGES, MOST_CHANGES = 20, 1_000


class StrategyQuery(Struct, frozen=True):
    """The query of /load-balancer/strategy."""

    strategy: str | None = None
    task_type: Text | None = None  #: of the tasks for which it holds; None: the cell


class TypeQuery(Struct, frozen=True):
    """The query of GET and DELETE /load-balancer/strategy."""

    task_type: Text | None = None


class HistoryQuery(Struct, frozen=True):
    """The query of /load-balancer/strategy/history."""

    limit: Annotated[int, Meta(ge=1, le=MOST_CHANGES)] = CHANGES


async def get(call: Call[None, TypeQuery]) -> RulesFound:
    """Return the strategy and the modifiers that hold, and what task types set."""
    return RulesFound.of(await call.backend.rules(), call.query.task_type)


async def change(call: Call[SetRules, StrategyQuery]) -> Struct | Answer:
    """Set the strategy, modifiers, or both; null resets one of them."""
    changes = _changes(call.body, call.query.strategy)
    return await _change(call, changes, call.query.task_type or call.body.task_type, call.body.reason)


async def reset(call: Call[None, TypeQuery]) -> Struct | Answer:
    """Reset the strategy and all modifiers: a type follows the cell, the cell its distributors' environment."""
    return await _change(call, dict.fromkeys(("strategy", *MODIFIERS)), call.query.task_type)


async def history(call: Call[None, HistoryQuery]) -> ChangesFound:
    """Return who changed strategy, modifiers and other live settings, and when; the latest first."""
    return ChangesFound.of(await call.backend.setting_changes(call.query.limit))


async def _change(
    call: Call[Any, Any], changes: dict[str, str | bool | None], task_type: str | None, reason: str | None = None
) -> Struct | Answer:
    at, answered = await call.backend.change_rules(
        changes, task_type, by=call.caller_name, reason=reason, wait_s=call.wait_s
    )
    found = RulesFound.of(await call.backend.rules(), task_type)
    changed = RulesChanged.of(found, at, changes=changes if not answered else {})
    return written(call, changed, answered=answered, path="/load-balancer/strategy")


def _changes(body: SetRules, named: str | None) -> dict[str, str | bool | None]:
    """Return the settings to change: name -> value, None to reset it.

    Args:
        body: of the request.
        named: the strategy in the query, which takes precedence.

    Raises:
        RequestError: there is no such strategy or modifier, or nothing is to be changed.
    """
    changes: dict[str, str | bool | None] = {}
    for name, value in body.modifiers.items():
        if name not in MODIFIERS:
            message = not_one_of("modifier", name, MODIFIERS)
            problem = Problem(["body", "modifiers", name], message, "value_error")
            raise RequestError("body_invalid", message, [problem])
        changes[name] = value
    if named is not None:
        changes["strategy"] = _strategy(named)
    elif not isinstance(body.strategy, UnsetType):
        changes["strategy"] = None if body.strategy is None else _strategy(body.strategy)
    if not changes:
        message = "name a strategy, as in ?strategy=predictive, or modifiers in the body"
        raise RequestError("body_invalid", message, [Problem(["query", "strategy"], message, "missing")])
    return changes


def _strategy(name: str) -> str:
    """Return the strategy of this name, in any case."""
    known = strategy_names()
    found = name.lower()
    if found in known:
        return found
    near = closest(found, known)
    step = f"Did you mean '{near}'? " if near else ""
    raise RequestError("invalid_strategy", f"Invalid strategy: {name[:60]}. {step}Valid strategies: {', '.join(known)}")
