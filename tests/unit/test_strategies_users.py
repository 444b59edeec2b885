"""Strategies of users: the entry point, the checks, the example, and what happens if such a strategy is wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from coord.client.submission import TaskSpec, task_append
from coord.errors import FactInvalid
from coord.logs import get_logger
from coord.models.agents import FleetAgent
from coord.models.strategies import STRATEGY_NAMES
from coord.models.tasks import Pool
from coord.placement import ANY_TASK, STRATEGIES, GuardedStrategy, OrderedStrategy, Strategy, TaskContext
from coord.plugins import load_strategies, strategy_names
from coord.testing import check_strategy
from tests.repo.documents import ROOT
from workers.view import View


def agent(agent_id: str, **fields: Any) -> FleetAgent:
    """An agent with room."""
    return FleetAgent(agent_id=agent_id, agent_type="worker", capacity=9, **fields)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, installed as a package with its entry point, beside some entry points that are wrong."""
    source = (ROOT / "examples" / "strategies" / "cheapest.py").read_text()
    (tmp_path / "cheapest_of_tests.py").write_text(source)
    (tmp_path / "broken_of_tests.py").write_text("raise RuntimeError('this package does not work')")
    info = tmp_path / "cheapest_of_tests-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cheapest-of-tests\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[coord.strategies]\n"
        "cheapest = cheapest_of_tests:Cheapest\n"
        "random = cheapest_of_tests:Cheapest\n"
        "renamed = cheapest_of_tests:Cheapest\n"
        "broken = broken_of_tests:Broken\n"
        "no_class = cheapest_of_tests:inf\n"
        "Not-A-Name = cheapest_of_tests:Cheapest\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cheapest_of_tests", raising=False)
    return tmp_path


def cheapest() -> type[Strategy]:
    """The class of the example."""
    spec = importlib.util.spec_from_file_location("cheapest", ROOT / "examples" / "strategies" / "cheapest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[Strategy] = module.Cheapest
    return found


def test_the_example_is_safe_and_takes_the_cheapest() -> None:
    """As its docstring says: by price, in turns, and those without a price last."""
    check_strategy(cheapest())
    strategy = cheapest()(Random(1))
    prices = {"b": "0.2", "none": None, "a": "0.2", "dear": "3", "odd": "nan"}
    for agent_id, price in prices.items():
        strategy.offer(agent(agent_id, labels={} if price is None else {"price": price}))
    order = []
    while (chosen := strategy.choose(ANY_TASK)) is not None:
        order.append(chosen)
        strategy.withdraw(chosen)
    assert order == ["b", "a", "dear", "none", "odd"]


def test_an_installed_strategy_is_found_by_its_name(example: Path) -> None:
    """Distributors load it, and clients accept its name; coord's own strategies cannot be replaced."""
    assert "cheapest" in strategy_names()
    strategies = load_strategies(get_logger())
    assert set(strategies) == {*STRATEGIES, "cheapest"}
    assert strategies["random"] is STRATEGIES["random"]
    view = View(0.5, "cheapest", Random(1), strategies)
    fleet = [agent("a", labels={"price": "2"}), agent("b", labels={"price": "1"})]
    view.replace({one.agent_id: one for one in fleet})
    chosen = view.take(view.group_of(Pool("t")))
    assert chosen is not None
    assert (chosen.agent_id, view.group_of(Pool("t")).strategy.name) == ("b", "cheapest")
    append = task_append(TaskSpec(task_type="t", strategy="cheapest"), "c", 10_000)  # type: ignore[arg-type]
    assert b'"strategy":"cheapest"' in (append.data or b"")
    with pytest.raises(FactInvalid, match="did you mean 'cheapest'"):
        task_append(TaskSpec(task_type="t", strategy="cheepest"), "c", 10_000)  # type: ignore[arg-type]


def test_a_strategy_that_cannot_be_loaded_is_left_out(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A package that fails to import, no class, another name: each is logged, and the others work."""
    assert "cheapest" in load_strategies(get_logger())
    text = capsys.readouterr().err
    assert all(f"strategy={name}\n" in text for name in ("broken", "renamed", "no_class"))
    assert "this package does not work" in text


def test_without_packages_there_are_the_built_in_ones() -> None:
    """Nothing else is known, and names are sorted."""
    assert strategy_names() == STRATEGY_NAMES
    assert load_strategies(get_logger()) == STRATEGIES


# A strategy that is wrong


class Base(OrderedStrategy):
    """Chooses by id."""

    name = "own"

    def key(self, agent: FleetAgent) -> float:
        """Return the number in the id."""
        return float(agent.agent_id[1:])


class Raises(Base):
    """Raises at the third choice."""

    calls = 0

    def choose(self, task: TaskContext) -> str | None:
        """Choose, or raise."""
        self.calls += 1
        return super().choose(task) if self.calls < 3 else str(1 // 0)


class ChoosesOthers(Base):
    """Chooses an agent that does not exist."""

    def choose(self, task: TaskContext) -> str | None:
        """Return another."""
        return "somebody"


class ChoosesNone(Base):
    """Leaves tasks waiting although agents have room."""

    def choose(self, task: TaskContext) -> str | None:
        """Return none."""
        return None


class RaisesOnOffer(Base):
    """Cannot take an agent."""

    def offer(self, agent: FleetAgent) -> None:
        """Raise."""
        raise KeyError(agent.agent_id)


class RaisesOnWithdraw(Base):
    """Cannot give an agent back."""

    def withdraw(self, agent_id: str) -> None:
        """Raise."""
        raise KeyError(agent_id)


class RaisesAtOnce(Base):
    """Cannot be made."""

    def __init__(self, *arguments: Any) -> None:
        raise TypeError("no")


@pytest.mark.parametrize("cls", [Raises, ChoosesOthers, ChoosesNone, RaisesOnOffer, RaisesOnWithdraw, RaisesAtOnce])
def test_a_defect_of_a_users_strategy_breaks_nothing(cls: type[Strategy]) -> None:
    """From the defect on, least_connections chooses among the same agents; the defect is reported, and safety holds."""
    reported: list[tuple[str, str]] = []
    guarded = GuardedStrategy.around(cls, lambda name, error: reported.append((name, error)))
    strategy = guarded(Random(1))
    fleet = [agent("a1", load=5), agent("a2", load=1), agent("a3")]
    for one in fleet:
        strategy.offer(one)
    strategy.withdraw("a3")
    chosen = [strategy.choose(ANY_TASK) for _ in range(4)]
    strategy.withdraw("a2")
    assert chosen[-1] == "a2"
    assert strategy.choose(ANY_TASK) == "a1"
    assert strategy.has_room
    assert [name for name, _ in reported] == ["own"]
    assert strategy.fallback == "the strategy failed"
    check_strategy(guarded, cases=10)


def test_a_strategy_without_defects_is_used() -> None:
    """The guard changes no choice."""
    guarded = GuardedStrategy.around(Base, lambda *_: pytest.fail("nothing is wrong"))
    strategy = guarded(Random(1))
    for load in (1, 0, 3):
        strategy.offer(agent(f"a{load}", load=9 - load))
    assert strategy.choose(ANY_TASK) == "a0"
    assert strategy.name == "own"
    check_strategy(guarded, cases=10)
