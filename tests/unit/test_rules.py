"""The rules of placement: whose strategy and modifiers hold, what they do, and how waiting pools follow them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from coord import codec, config
from coord.client.admin import Admin
from coord.client.submission import TaskSpec, task_append
from coord.errors import ConfigError, FactInvalid
from coord.models.agents import FleetAgent
from coord.models.strategies import MODIFIERS
from coord.models.tasks import Modifiers, NamedTask, Pool, Requirements, TaskSubmitted, named_queue
from coord.placement import (
    ANY_TASK,
    NO_RULES,
    STRATEGIES,
    Learned,
    OwnRules,
    Rules,
    create_strategy,
    rules_with,
)
from workers.live_rules import cell_rules, type_rules
from workers.planner import Planner
from workers.view import View

CELL = Rules("least_connections")


def agent(agent_id: str, **fields: Any) -> FleetAgent:
    """An agent with room."""
    return FleetAgent(agent_id=agent_id, agent_type="worker", **({"capacity": 9} | fields))


def planner_of(*fleet: FleetAgent) -> Planner:
    """A planner on these agents."""
    view = View(0.5, "least_connections", Random(1))
    view.replace({one.agent_id: one for one in fleet})
    return Planner(view)


def wait(planner: Planner, pool: str, definition: Pool, tasks: int, head: float = 1.0) -> None:
    """Let tasks wait in a pool."""
    planner.define(pool, definition)
    planner.expect(pool, tasks, head)


def test_the_tasks_own_rules_win_over_its_types_and_these_over_the_cells() -> None:
    """Each rule by itself: what one level does not set, the next one does."""
    of_type = OwnRules("predictive", ejection=False)
    of_task = OwnRules("random").over(of_type)
    assert rules_with(NO_RULES, CELL) is CELL
    assert rules_with(of_type, CELL) == Rules("predictive", ejection=False)
    assert rules_with(of_task, Rules("prequal", rare_skills_first=True)) == Rules(
        "random", ejection=False, rare_skills_first=True
    )


def test_a_strategy_that_is_not_installed_leaves_the_one_that_holds_otherwise() -> None:
    """Also where the type has such a strategy and the task has one that is installed."""
    missing = OwnRules("gone").known_to(STRATEGIES)
    assert rules_with(missing, CELL) == CELL
    assert missing.missing == "gone"
    assert rules_with(missing.over(OwnRules("random")), CELL).strategy == "random"
    assert OwnRules("random").over(missing) == OwnRules("random")


def test_the_modifiers_are_live_settings_for_cell_and_type() -> None:
    """One list in the models, the settings and the rules."""
    assert {"strategy", *MODIFIERS} == set(config.PER_TYPE) == set(Rules.__struct_fields__)
    assert set(config.PER_TYPE) < set(config.LIVE)
    defaults = config.Settings()
    assert all(getattr(CELL, name) == getattr(defaults, name) for name in MODIFIERS)


@pytest.mark.parametrize("word", ["on", "ON", "true", True])
def test_a_switch_is_on_or_off(word: object) -> None:
    """Stored as on and off, and read from the environment as well."""
    assert config.live_text("ejection", word) == "on"
    assert config.live_text("ejection", False) == "off"
    assert config.load({"COORD_EJECTION": "off"}).ejection is False
    with pytest.raises(ConfigError, match="ejection='perhaps': expected on or off"):
        config.live_text("ejection", "perhaps")


def test_a_setting_of_the_cell_alone_is_refused_for_a_type() -> None:
    """With the ones that a type may have; and a mistyped one with the nearest."""
    with pytest.raises(ConfigError, match="'health_threshold' cannot be set for a task type, only avoid_failed_agent"):
        config.check_live("health_threshold", "t")
    with pytest.raises(ConfigError, match="did you mean 'rare_skills_first'"):
        config.check_live("rare_skill_first", "t")


async def test_a_mistyped_modifier_is_refused_before_anything_is_sent() -> None:
    """The connection is not even open."""
    with pytest.raises(ConfigError, match=r"modifier 'ejecton' is not one of .*did you mean 'ejection'"):
        await Admin(None).set_modifier("ejecton", True)  # type: ignore[arg-type]


def test_stored_values_become_rules_and_invalid_ones_count_as_not_set() -> None:
    """By hand, or by a newer version: nothing stops, and the others hold."""
    live = {
        "strategy": "gone",
        "ejection": "perhaps",
        "rare_skills_first": "on",
        "health_threshold": "0.4",
        "strategy:a:b": "gone",
        "avoid_failed_agent:a:b": "off",
        "ejection:t": "perhaps",
        "other:t": "x",
    }
    settings = config.Settings(strategy="random", avoid_failed_agent=False)
    assert cell_rules(live, settings, STRATEGIES) == Rules("random", avoid_failed_agent=False, rare_skills_first=True)
    assert type_rules(live) == {"a:b": OwnRules("gone", avoid_failed_agent=False), "t": NO_RULES}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "capability_based"])
def test_rare_skills_stay_free_under_every_strategy(name: str) -> None:
    """Agents that can do less get the plain tasks, as long as they have room."""
    learned = Learned()
    learned.demand.add(["gpu"], 5)
    learned.demand.update({"gpu": 1, "ocr": 2}, 0.0)
    strategy = create_strategy(Rules(name, rare_skills_first=True), STRATEGIES, Random(1), learned)
    strategy.offer(agent("rare", capabilities=frozenset({"ocr", "gpu"})))
    plain = agent("plain", capabilities=frozenset({"ocr"}))
    strategy.offer(plain)
    for load in range(8):
        assert strategy.choose(ANY_TASK) == "plain"
        plain.load = load + 1
        strategy.offer(plain)
    strategy.withdraw("plain")
    assert strategy.choose(ANY_TASK) == "rare"


def test_the_agent_of_the_failed_attempt_is_avoided_unless_that_is_off() -> None:
    """For the cell, and for a type."""
    planner = planner_of(agent("a"), agent("b", load=5))
    queue = named_queue("p")
    planner.define(queue, Pool("t"))
    planner.expect_named(queue, [NamedTask(1.0, "task", avoid=("a",))])

    def chosen() -> str:
        (placement,) = planner.plan(1)
        planner.unanswered([placement])
        return placement.agent_id

    assert chosen() == "b"
    planner.view.configure(0.5, Rules("least_connections", avoid_failed_agent=False))
    assert chosen() == "a"
    planner.view.configure(0.5, CELL, {"t": OwnRules(avoid_failed_agent=False)})
    assert chosen() == "a"
    planner.view.configure(0.5, CELL)
    assert chosen() == "b"


def test_a_task_sets_its_own_modifiers() -> None:
    """In the fact, in its pool, and in the rules that hold for it; a mistyped one is refused with the nearest."""
    spec = TaskSpec(task_type="t", modifiers={"rare_skills_first": True, "ejection": False})
    fact = task_append(spec, "", config.MIB).fact
    assert isinstance(fact, TaskSubmitted)
    assert fact.modifiers == Modifiers(ejection=False, rare_skills_first=True)
    planner = planner_of(agent("a"))
    planner.view.configure(0.5, CELL, {"t": OwnRules("random", ejection=True)})
    group = planner.view.group_of(Pool("t", modifiers=fact.modifiers))
    assert group.rules == Rules("random", ejection=False, rare_skills_first=True)
    with pytest.raises(FactInvalid, match="did you mean 'ejection'"):
        task_append(TaskSpec(task_type="t", modifiers={"ejecton": True}), "", config.MIB)  # type: ignore[dict-item]
    with pytest.raises(FactInvalid, match="modifiers"):
        task_append(TaskSpec(task_type="t", modifiers={"ejection": "x"}), "", config.MIB)  # type: ignore[dict-item]


def test_waiting_pools_follow_the_rules_of_their_type() -> None:
    """They move to a group of their own and back; nothing is planned twice or forgotten, and the turns stay."""
    planner = planner_of(agent("a", capacity=20), agent("b", capacity=20))
    wait(planner, "p1", Pool("one"), 5, 3.0)
    wait(planner, "p2", Pool("two"), 5, 2.0)
    wait(planner, "p3", Pool("two", Requirements(tags=("none",))), 5, 1.0)
    assert planner.waiting["p1"].group is planner.waiting["p2"].group
    assert planner.view.configure(0.5, CELL, {"two": OwnRules("random")})
    planner.regroup()
    assert planner.waiting["p2"].group.strategy.name == "random"
    assert planner.waiting["p1"].group.strategy.name == "least_connections"
    assert [one.pool for one in planner.plan(3)] == ["p2"] * 3
    assert planner.view.configure(0.5, CELL, {})
    planner.regroup()
    assert planner.waiting["p1"].group is planner.waiting["p2"].group
    placed = planner.plan(20)
    assert [one.pool for one in placed] == ["p2"] * 2 + ["p1"] * 5
    assert not planner.view.configure(0.5, CELL, {})


def test_the_record_of_a_task_says_by_which_rules_it_was_placed() -> None:
    """The strategy, the modifier that changes the order, and what is set and not installed."""
    planner = planner_of(agent("a"))
    wait(planner, "p1", Pool("t", strategy="gone"), 1)
    planner.view.configure(0.5, Rules("predictive", rare_skills_first=True))
    (placement,) = planner.plan(1)
    assert codec.decode_json(placement.explanation) == {
        "strategy": "predictive",
        "eligible": 1,
        "rare_skills_first": True,
        "fallback": "gone is not installed",
    }
    assert planner.view.missing == {"gone"}
