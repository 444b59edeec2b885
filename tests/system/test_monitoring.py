"""Metrics of a real cell: accepted by Prometheus, named by alerts and dashboard, and kept over restarts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from coord.keys import CONSUMES
from tests.http import HttpCaller
from tests.processes import CellProcesses, cell_processes
from tests.system.gateway_processes import PATIENT, gateway
from tests.waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples" / "monitoring"
RULES = EXAMPLES / "coord-rules.yml"
DASHBOARD = EXAMPLES / "coord-dashboard.json"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#: Names in PromQL that are neither metrics nor labels.
_WORDS = re.compile(r"\b[a-z_][a-z0-9_]*\b")
_STRINGS = re.compile(r'"[^"]*"')
_PROMQL = frozenset(
    {"absent", "and", "by", "histogram_quantile", "increase", "m", "max", "on", "or", "rate", "sum", "without"}
)
#: Labels that Prometheus adds to every series of a scrape.
_OF_PROMETHEUS = frozenset({"instance", "job"})


def promtool(*arguments: str, text: str = "") -> None:
    """Run promtool, which must be content."""
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("no promtool on PATH; .ci/run installs it")
        pytest.skip("no promtool on PATH; apt-get install prometheus")
    done = subprocess.run(
        ["promtool", *arguments],  # noqa: S607 -- the one on PATH
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=EXAMPLES,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of the alerts and of the dashboard, with where it is."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if "definition" in variable:
            yield variable["name"], variable["definition"].removeprefix("label_values(").replace(", instance)", "")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server of this test's own."""
    async with cell_processes(tmp_path) as built:
        yield built


def samples(text: str, parse: Any = parse_text) -> dict[str, list[Any]]:
    """The samples of a scrape by name."""
    found: dict[str, list[Any]] = {}
    for family in parse(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def test_the_rules_are_valid() -> None:
    """Syntax, and what the alerts do with played series."""
    promtool("check", "rules", str(RULES))
    promtool("test", "rules", str(EXAMPLES / "coord-rules-test.yml"))
    promtool("check", "config", str(EXAMPLES / "prometheus.yml"))


@pytest.mark.guarantee("exact-metrics")
async def test_a_scrape_has_what_prometheus_alerts_and_dashboard_need(at: CellProcesses, unused_port: int) -> None:
    """Every metric and label of an expression is in a real scrape; the totals go on after all processes restart."""
    http = HttpCaller(unused_port)
    first, *workers = await asyncio.gather(gateway(at, http, **PATIENT), *(at.worker(kind) for kind in CONSUMES))
    await at.agent("a1")
    bodies = [{"task_data": {"task_type": "echo", "s": 0, "required_capabilities": ["echo"]}} for _ in range(5)]
    bodies.append({"task_data": {"task_type": "scan", "required_capabilities": ["scan"]}})
    for body in bodies:
        assert (await http.post("/tasks/submit", body, traceparent=TRACEPARENT)).status == 200

    async def scrape(caller: HttpCaller = http) -> dict[str, list[Any]] | None:
        answer = await caller.text("/metrics")
        assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        found = samples(answer.body)
        completed = sum(one.value for one in found["coord_tasks_ended_total"] if one.labels["outcome"] == "completed")
        counted = sum(one.value for one in found.get("coord_waiting_tasks", ()))
        return found if (completed, counted) == (5, 1) else None

    found = await wait_until(scrape, "the tasks have ended and are counted", 30)
    assert found is not None
    (waiting,) = [one for one in found["coord_waiting_tasks"] if one.value]
    assert waiting.labels == {"reason": "no_capability"}
    assert {one.labels["task_type"]: one.value for one in found["coord_tasks_submitted_by_type_total"]} == {
        "echo": 5,
        "scan": 1,
    }
    assert sum(one.value for one in found["coord_task_distribution_seconds_count"]) == 5
    assert {one.labels["kind"] for one in found["coord_workers"] if one.value == 1} == {*CONSUMES, "gateway"}
    lag = {one.labels["stream"] for one in found["coord_stream_lag_seconds"]}
    assert lag == {stream for streams in CONSUMES.values() for stream in streams}

    text = (await http.text("/v1/metrics")).body
    promtool("check", "metrics", text=text)
    answer = await http.text("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert samples(answer.body, parse_openmetrics).keys() >= {"coord_assignments_total", "coord_tasks"}
    for where, expression in expressions():
        named = set(_WORDS.findall(_STRINGS.sub("", expression.replace("$__rate_interval", "5m")))) - _PROMQL
        metrics = {name for name in named if name.startswith("coord_")}
        assert metrics, where
        assert metrics <= found.keys(), f"{where}: {metrics - found.keys()} is not in the scrape"
        labels = {label for metric in metrics for one in found[metric] for label in one.labels} | _OF_PROMETHEUS
        unknown = {name for name in named - metrics - labels if not re.fullmatch(r"\d+[smhd]", name)}
        assert not unknown, f"{where}: {unknown} is no label of {metrics}"

    summary = (await http.get("/metrics/summary")).body
    assert (summary["status"], summary["performance"]["tasks_completed"]) == ("success", 5)
    system = summary["system"]
    assert (system["total_agents"], system["active_agents"], system["total_tasks"]) == (1, 1, 6)
    assert system["load_balancer_strategy"] == "least_connections"

    exported = at.start(
        "spans", "-m", "coord.cli", "trace", "spans", "--since", "0", "--no-follow", OTEL_TRACES_EXPORTER="console"
    )
    assert await exported.ended() == 0, exported.told()
    assert exported.log.read_text().count('"name": "coord.settle"') == 5
    assert TRACEPARENT.split("-")[1] in exported.log.read_text()

    for process in (first, *workers):
        process.kill()
    other = HttpCaller(unused_port)
    await gateway(at, other, **PATIENT)
    await at.worker("distributor")
    again = await wait_until(lambda: scrape(other), "the same numbers after the restart", 30)
    assert again is not None
    for name in ("coord_tasks_submitted_total", "coord_task_wait_seconds_bucket", "coord_task_run_seconds_sum"):
        assert [one.value for one in again[name]] == [one.value for one in found[name]]
