"""Random requests, made from the OpenAPI document, to a running gateway: no 500, and no undocumented response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as effort
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from coord.embedded import EmbeddedServer
from coord.gateway.openapi import document
from coord.gateway.table import ROUTES
from tests.system.gateway_cell import Gateway, gateway_cell

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SEED = 20_260_131
#: Requests to each operation: as usual, and with ``--long``.
FEW, MANY = 6, 400
#: To make a failing request smaller takes long, and its seed is fixed.
PHASES = (Phase.explicit, Phase.generate)
#: Records that are there, so that requests also get past a 404.
IDS = {
    "agent_id": "fuzz-1", "subordinate_id": "fuzz-2", "task_id": "fuzz-task", "message_id": "fuzz-message",
    "priority": "low",
}  # fmt: skip
AGENT = {"agent_type": "worker", "capabilities": ["fuzz"], "metadata": {"delivery": "poll"}}

SCHEMA = schemathesis.openapi.from_dict(document(ROUTES))
OPERATIONS: dict[str, Any] = {
    found.ok().label: found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)
}


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """A cell with the records that some of the requests name."""
    with gateway_cell(server.url, "fuzz") as running:
        for agent_id in ("fuzz-1", "fuzz-2"):
            running.success("POST", "/agents/register", AGENT | {"agent_id": agent_id})
            running.success("GET", f"/agents/{agent_id}/inbox")
        task = {"task_id": "fuzz-task", "task_type": "fuzz", "required_capabilities": ["nobody-has-it"]}
        running.success("POST", "/tasks/submit", {"task_data": task})
        sent = {"receiver_id": "fuzz-1", "message_type": "direct", "payload": {}, "message_id": "fuzz-message"}
        running.success("POST", "/messages/send", sent)
        yield running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Keeps the connection to the gateway."""
    with requests.Session() as found:
        yield found


def cases(operation: Any) -> st.SearchStrategy[Any]:
    """Requests to an operation that fit its schema, with any ids and with ids that are there; and some that do not."""
    more: dict[str, Any] = {"query": {"wait": "0"}} if operation.label.endswith("/inbox") else {}
    found = [operation.as_strategy(**more)]
    names = [parameter.name for parameter in operation.path_parameters]
    if all(name in IDS for name in names):
        more["path_parameters"] = {name: IDS[name] for name in names}
        found.append(operation.as_strategy(**more))
    if operation.body:
        found.append(operation.as_strategy(schemathesis.GenerationMode.NEGATIVE, **more))
    return st.one_of(found)


# The cell's thread uses ``random`` while this one draws a request.
@pytest.mark.guarantee("no-server-errors")
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@pytest.mark.parametrize("label", OPERATIONS)
def test_an_operation_gives_only_documented_responses(
    gateway: Gateway, session: requests.Session, request: pytest.FixtureRequest, label: str
) -> None:
    """Whatever is sent, the status is documented, and the body fits its schema."""
    tried = MANY if request.config.getoption("--long") else FEW
    statuses: dict[int, int] = {}

    @seed(SEED)
    @effort(max_examples=tried, deadline=None, database=None, phases=PHASES, suppress_health_check=list(HealthCheck))
    @given(case=cases(OPERATIONS[label]))
    def send(case: Any) -> None:
        if label == "GET /events":  # the response does not end
            opened = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{gateway.port}")
            with session.request(**opened, stream=True, timeout=30) as stream:
                statuses[stream.status_code] = 1
                assert str(stream.status_code) in OPERATIONS[label].definition.raw["responses"]
            return
        response = case.call(base_url=f"http://127.0.0.1:{gateway.port}", session=session)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        case.validate_response(response, checks=CHECKS)

    send()
    assert statuses


def test_every_operation_of_the_table_is_tried() -> None:
    """The document has every row, once."""
    rows = {f"{route.method} {route.path}" for route in ROUTES if route.method != "WEBSOCKET"}
    assert len(OPERATIONS) == len(rows)
