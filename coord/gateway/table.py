"""The table of routes: every method and path that the gateway serves, with its handler, its schemas and its role.

Each path is served without a prefix and under ``/v1``; any other path gets a 404. The handlers are in a module for each
noun; their tests, the access control and the OpenAPI document go through this table.
"""

from __future__ import annotations

from coord.gateway import agents, auth, discovery, events, health, inbox, metrics, reports, rules, tasks, websocket
from coord.gateway.auth import (
    GenerateKey,
    GenerateQuery,
    KeyGenerated,
    KeyQuery,
    KeyRevoked,
    LoggedIn,
    LogIn,
    Refresh,
    TicketMade,
    TokenValid,
    ValidateKey,
    ValidateToken,
)
from coord.gateway.discovery import (
    AgentsDiscovered,
    AgentsOfCapability,
    AgentsOfService,
    DiscoverAgents,
    PageQuery,
)
from coord.gateway.events import EventsQuery
from coord.gateway.health import Health
from coord.gateway.inbox import AckBody, Acknowledged, InboxFound, PollQuery
from coord.gateway.metrics import MetricsSummary
from coord.gateway.reports import CompleteBody, FailBody, ProgressBody, ReleaseBody, Reported, StartBody
from coord.gateway.routes import Route
from coord.gateway.rules import HistoryQuery, StrategyQuery, TypeQuery
from coord.gateway.schemas import (
    AgentFound,
    ChangesFound,
    HeartbeatBody,
    HeartbeatReceived,
    PoolsFound,
    RegisterAgent,
    Registered,
    RulesChanged,
    RulesFound,
    SetRules,
    SubmitTask,
    Submitted,
    TaskExplained,
    TaskFound,
)
from coord.gateway.tasks import PoolsQuery

STRATEGY = "/load-balancer/strategy"
_KEY = "coord_key_0123456789ab_" + "x" * 43
_JWT = "eyJhbGciOiJIUzI1NiJ9.e30.c2ln"
_AGENT = {"agent_id": "a1", "agent_type": "worker", "capabilities": ["ocr"], "tags": ["fast"]}
_TASK = {"task_data": {"task_type": "ocr", "required_capabilities": ["ocr"], "page": 7}, "priority": "high"}

ROUTES: tuple[Route, ...] = (
    # Health: it reveals nothing, and a probe needs a response even when the gateway is full.
    Route("GET", "/health", health.all_checks, answer=Health, role=None, limited=False, counted=False),
    Route("GET", "/health/ready", health.ready, answer=Health, role=None, limited=False, counted=False),
    Route("GET", "/health/live", health.live, answer=Health, role=None, limited=False, counted=False),
    # Metrics: requests within a second share one read.
    Route("GET", "/metrics", metrics.scrape, answer=None, role="readonly", counted=False),
    Route("GET", "/metrics/summary", metrics.summary, answer=MetricsSummary, role="readonly"),
    # Credentials
    Route(
        "POST", "/auth/login", auth.log_in,
        body=LogIn, answer=LoggedIn, role=None,
        errors=("security_off", "jwt_not_configured", "credential_invalid"),
        example={"api_key": _KEY},
    ),
    Route(
        "POST", "/auth/refresh", auth.refresh,
        body=Refresh, answer=LoggedIn, role=None,
        errors=("security_off", "jwt_not_configured", "credential_invalid"),
        example={"refresh_token": _JWT},
    ),
    Route(
        "POST", "/auth/validate", auth.validate,
        body=ValidateToken, answer=TokenValid, role=None,
        errors=("security_off", "credential_invalid"),
        example={"token": _JWT},
    ),
    Route(
        "POST", "/auth/api-key/validate", auth.validate_key,
        body=ValidateKey, query=KeyQuery, answer=TokenValid, role=None,
        errors=("security_off", "credential_invalid"),
        example={"api_key": _KEY},
    ),
    Route(
        "POST", "/auth/api-key/generate", auth.generate_key,
        body=GenerateKey, query=GenerateQuery, answer=KeyGenerated, role="admin",
        errors=("security_off", "api_keys_full", "fact_invalid", "id_invalid", "result_timeout"),
        example={"role": "agent", "agent_id": "a1", "name": "the scanner in room 7", "lifetime": 7_776_000},
    ),
    Route(
        "DELETE", "/auth/api-key/{api_key}", auth.revoke_key,
        answer=KeyRevoked, role="admin",
        errors=("security_off", "api_key_not_found", "result_timeout"),
    ),
    Route("POST", "/auth/ticket", auth.make_ticket, answer=TicketMade, role="readonly", errors=("security_off",)),
    # Agents
    Route(
        "POST", "/agents/register", agents.register,
        body=RegisterAgent, answer=Registered, role="agent", own="body.agent_id",
        errors=("token_missing", "token_invalid"),
        example=_AGENT,
    ),
    Route(
        "POST", "/agents/discover", discovery.discover,
        body=DiscoverAgents, answer=AgentsDiscovered, role="readonly",
        errors=("cursor_invalid",),
        example={"capabilities": ["ocr"], "min_health_score": 0.5, "limit": 20},
    ),
    Route(
        "GET", "/agents/service/{service:path}", discovery.with_service,
        query=PageQuery, answer=AgentsOfService, role="readonly",
        errors=("cursor_invalid",),
        example={"limit": 20},
    ),
    Route(
        "GET", "/agents/capability/{capability:path}", discovery.with_capability,
        query=PageQuery, answer=AgentsOfCapability, role="readonly",
        errors=("cursor_invalid",),
        example={"limit": 20},
    ),
    Route("GET", "/agents/{agent_id:id}", agents.get, answer=AgentFound, role="readonly", errors=("agent_not_found",)),
    Route(
        "POST", "/agents/{agent_id:id}/heartbeat", agents.heartbeat,
        body=HeartbeatBody, answer=HeartbeatReceived, role="agent", own="agent_id", limited=False,
        errors=("agent_not_found", "token_missing", "token_invalid"),
        example={"status": "busy", "load_metrics": {"cpu": 0.4}},
    ),
    # Agents that speak only HTTP
    Route(
        "GET", "/agents/{agent_id:id}/inbox", inbox.poll,
        query=PollQuery, answer=InboxFound, role="agent", own="agent_id", limited=False, counted=False,
        errors=("agent_not_found", "inbox_elsewhere", "token_missing", "token_invalid"),
        example={"wait": 30, "limit": 10},
    ),
    Route(
        "POST", "/agents/{agent_id:id}/inbox/ack", inbox.acknowledge,
        body=AckBody, answer=Acknowledged, role="agent", own="agent_id",
        errors=("agent_not_found", "inbox_elsewhere", "token_missing", "token_invalid"),
        example={"entries": ["normal/1767225600000-0/t-1/00d1ce5f8a6b7c2e"]},
    ),
    *(
        Route(
            "POST", f"/tasks/{{task_id:id}}/{name}", handle,
            body=body, answer=Reported, role="agent",
            errors=("task_not_found", "stale_lease"),
            example={"lease": "00d1ce5f8a6b7c2e", **more},
        )
        for name, handle, body, more in (
            ("start", reports.start, StartBody, {}),
            ("progress", reports.progress, ProgressBody, {"progress": {"percent": 40}}),
            ("complete", reports.complete, CompleteBody, {"result": {"pages": 7}}),
            ("fail", reports.fail, FailBody, {"code": "not_readable", "message": "page 7 is empty"}),
            ("release", reports.release, ReleaseBody, {"reason": "the machine is needed for something else"}),
        )
    ),
    # Tasks
    Route(
        "POST", "/tasks/submit", tasks.submit,
        body=SubmitTask, answer=Submitted, role="client",
        errors=("invalid_priority", "id_conflict", "payload_invalid", "backlog_full"),
        example=_TASK,
    ),
    Route("GET", "/tasks/{task_id:id}", tasks.get, answer=TaskFound, role="readonly", errors=("task_not_found",)),
    Route(
        "GET", "/tasks/{task_id:id}/status", tasks.get,
        answer=TaskFound, role="readonly",
        errors=("task_not_found",),
    ),
    Route(
        "GET", "/tasks/{task_id:id}/explain", tasks.explain,
        answer=TaskExplained, role="readonly",
        errors=("task_not_found",),
    ),
    Route("GET", "/pools", tasks.pools, query=PoolsQuery, answer=PoolsFound, role="readonly", example={"limit": 20}),
    # Strategy
    Route(
        "GET", STRATEGY, rules.get,
        query=TypeQuery, answer=RulesFound, role="readonly",
        example={"task_type": "summarize"},
    ),
    *(
        Route(
            method, STRATEGY, rules.change,
            body=SetRules, query=StrategyQuery, answer=RulesChanged, role="operator",
            errors=("invalid_strategy", "setting_refused"),
            example={"strategy": "predictive", "modifiers": {"ejection": False}},
        )
        for method in ("PUT", "POST")
    ),
    Route(
        "DELETE", STRATEGY, rules.reset,
        query=TypeQuery, answer=RulesChanged, role="operator",
        errors=("setting_refused",),
        example={"task_type": "summarize"},
    ),
    Route(
        "GET", f"{STRATEGY}/history", rules.history,
        query=HistoryQuery, answer=ChangesFound, role="readonly",
        example={"limit": 5},
    ),
    # Events
    Route(
        "GET", "/events", events.listen,
        query=EventsQuery, answer=None, role="readonly", limited=False, counted=False,
        errors=("overloaded",),
        example={"type": "task.completed,task.failed"},
    ),
    Route(
        "WEBSOCKET", "/ws", websocket.serve,
        query=EventsQuery, answer=None, role="readonly", limited=False, counted=False,
        errors=("overloaded",),
    ),
)  # fmt: skip
