"""``coord agent`` without ``--id``: an id that no later process has."""

from __future__ import annotations

from typing import Any

import pytest

from coord import programs
from coord.cli.agent import agent


@pytest.mark.parametrize(("agent_id", "forget_after"), [(None, 3_600.0), ("ocr-1", None)])
def test_an_agent_with_a_generated_id_is_forgotten_soon(
    monkeypatch: pytest.MonkeyPatch, agent_id: str | None, forget_after: float | None
) -> None:
    """An hour after it has left; one with an id of its own keeps its record, because it comes back."""
    made: list[dict[str, Any]] = []
    ids: list[str] = []

    class Started:
        def run(self) -> None: ...

    def make(made_id: str, _command: object, _settings: object, _options: object, **declared: Any) -> Started:
        ids.append(made_id)
        made.append(declared)
        return Started()

    monkeypatch.setattr(programs, "program_agent", make)
    agent(["cat"], capability=["copy"], id=agent_id)
    assert [declared["forget_after"] for declared in made] == [forget_after]
    assert ids[0].startswith(agent_id or "copy-")
