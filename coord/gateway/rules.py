"""Resources of the rules of placement: the strategy and the modifiers, of the cell and of task types."""

from __future__ import annotations

from falcon.asgi import Request, Response
from msgspec import UnsetType

from coord import codec
from coord.gateway.backend import Backend
from coord.gateway.body import RequestReader, decode, respond, respond_to_write
from coord.gateway.errors import Problem, RequestError
from coord.gateway.schemas import ChangesFound, RulesChanged, RulesFound, SetRules, TaskTypeQuery
from coord.models.strategies import MODIFIERS
from coord.plugins import strategy_names
from coord.suggestions import closest, not_one_of

#: Maximum number of changes in a response: the default, and the limit of the limit.
CHANGES, MOST_CHANGES = 20, 1_000


class StrategyResource:
    """``/load-balancer/strategy``: of the cell, or with ``?task_type=`` of a task type."""

    def __init__(self, backend: Backend, reader: RequestReader) -> None:
        self._backend = backend
        self._reader = reader

    # GET, or GET ?task_type=summarize
    # 200 {"status": "success", "strategy": "predictive", "updated_at": …, "modifiers": {"ejection": true, …}, …}
    async def on_get(self, req: Request, resp: Response) -> None:
        """Return the strategy and the modifiers that hold, and what task types set."""
        task_type = _task_type(req)
        rules = await self._backend.rules()
        respond(resp, RulesFound.of(rules, task_type))

    # PUT ?strategy=predictive, or a body {"strategy": "predictive", "modifiers": {"ejection": false}, "task_type": …}
    # 200 {"status": "success", "message": …, "strategy": "predictive", "updated_at": …, …}
    async def on_put(self, req: Request, resp: Response) -> None:
        """Set the strategy, modifiers, or both; null resets one of them."""
        body = await self._reader.read(req, SetRules)
        changes = _changes(body, req.get_param("strategy"))
        await self._change(req, resp, changes, _task_type(req) or body.task_type)

    async def on_post(self, req: Request, resp: Response) -> None:
        """Do the same."""
        await self.on_put(req, resp)

    # DELETE, or DELETE ?task_type=summarize
    async def on_delete(self, req: Request, resp: Response) -> None:
        """Reset the strategy and all modifiers: a type follows the cell, the cell its distributors' environment."""
        await self._change(req, resp, dict.fromkeys(("strategy", *MODIFIERS)), _task_type(req))

    async def _change(
        self, req: Request, resp: Response, changes: dict[str, str | bool | None], task_type: str | None
    ) -> None:
        by = f"http {req.remote_addr}"
        at, answered = await self._backend.change_rules(changes, task_type, by, self._reader.wait_s(req))
        found = RulesFound.of(await self._backend.rules(), task_type)
        changed = RulesChanged.of(found, at, changes=changes if not answered else {})
        respond_to_write(req, resp, changed, answered=answered, path="/load-balancer/strategy")


class StrategyHistoryResource:
    """``/load-balancer/strategy/history``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # GET ?limit=5
    # 200 {"status": "success", "changes": [{"at": …, "name": "strategy", "value": "predictive", "by": …}], …}
    async def on_get(self, req: Request, resp: Response) -> None:
        """Return who changed strategy, modifiers and other live settings, and when; the latest first."""
        limit = req.get_param_as_int("limit", min_value=1, max_value=MOST_CHANGES, default=CHANGES)
        respond(resp, ChangesFound.of(await self._backend.setting_changes(limit)))


def _task_type(req: Request) -> str | None:
    """Return the task type that the query names.

    Raises:
        RequestError: it is empty or too long.
    """
    name = req.get_param("task_type")
    if name is None:
        return None
    return decode(codec.encode({"task_type": name}), TaskTypeQuery, at=("query",)).task_type


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
    step = f"did you mean '{near}'? " if near else ""
    raise RequestError("invalid_strategy", f"Invalid strategy: {name[:60]}; {step}Valid strategies: {', '.join(known)}")
