"""The table of routes: every method and path that the gateway serves, with its handler, its schemas and its role.

Each path is served without a prefix and under ``/v1``; any other path gets a 404. The handlers are in a module for each
noun; their tests, the access control and the OpenAPI document go through this table.
"""

from __future__ import annotations

from coord.gateway import (
    agents,
    audit,
    auth,
    dashboard,
    dead_messages,
    discovery,
    events,
    health,
    inbox,
    links,
    messages,
    metrics,
    query_fields,
    queues,
    reference,
    reports,
    results,
    rules,
    stats,
    system,
    task_bulk,
    tasks,
    websocket,
)
from coord.gateway.audit import AuditFound, AuditQuery
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
from coord.gateway.dead_messages import (
    DeadMessagesListed,
    DeadQuery,
    MessageReplayed,
    MessagesPurged,
    PurgeMessages,
    ReplayMessage,
)
from coord.gateway.discovery import (
    AgentQuery,
    AgentsDiscovered,
    AgentsListed,
    AgentsOfCapability,
    AgentsOfService,
    DiscoverAgents,
    PageQuery,
    RegistryCounted,
)
from coord.gateway.events import EventsQuery
from coord.gateway.health import Health
from coord.gateway.inbox import AckBody, Acknowledged, InboxFound, PollQuery
from coord.gateway.links import (
    ConnectionsFound,
    ConnectionsQuery,
    PeerAdded,
    PeerRemoved,
    PeersFound,
    PeersQuery,
    SubordinateChanged,
    SubordinatesFound,
)
from coord.gateway.messages import (
    BroadcastMessage,
    BroadcastSent,
    ConversationFound,
    MessageFound,
    MessageRead,
    MessageSent,
    MessagesListed,
    MessagesQuery,
    ReadBody,
    RecipientsQuery,
    SendMessage,
)
from coord.gateway.metrics import MetricsSummary
from coord.gateway.placement_rules import ChangesFound, RulesChanged, RulesFound, SetRules
from coord.gateway.query_fields import FieldsFound, FieldsQuery
from coord.gateway.queues import LoadBalancerCounted, QueueCleared, QueuesCounted, QueueSizes, TasksCounted
from coord.gateway.reference import Root
from coord.gateway.reports import CompleteBody, FailBody, ProgressBody, ReleaseBody, Reported, StartBody
from coord.gateway.results import ResultsQuery
from coord.gateway.routes import Route
from coord.gateway.rules import HistoryQuery, StrategyQuery, TypeQuery
from coord.gateway.schemas import (
    AgentFound,
    AgentOperated,
    Deregistered,
    HeartbeatBody,
    HeartbeatReceived,
    PoolsFound,
    RegisterAgent,
    Registered,
    StatusBody,
    StatusChanged,
    SubmitTask,
    Submitted,
    TaskExplained,
    TaskFound,
)
from coord.gateway.stats import StatsFound, StatsQuery
from coord.gateway.system import SystemFound, SystemQuery
from coord.gateway.task_bulk import ChangeTasks, TasksChanged
from coord.gateway.tasks import (
    BatchSubmitted,
    CancelBody,
    PoolsQuery,
    SubmitBatch,
    TaskCancelled,
    TaskRetried,
    TasksListed,
    TasksQuery,
)

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
    Route("GET", "/system", system.system, query=SystemQuery, answer=SystemFound, role="readonly"),
    Route("GET", "/stats", stats.stats, query=StatsQuery, answer=StatsFound, role="readonly"),
    Route(
        "GET", "/audit", audit.audit,
        query=AuditQuery, answer=AuditFound, role="operator",
        errors=("cursor_invalid",),
        example={"limit": 20},
    ),
    # The service
    Route("GET", "/", reference.root, answer=Root, role=None),
    Route("GET", "/schema/openapi.json", reference.openapi, answer=None, role=None),
    Route("GET", "/docs", reference.page, answer=None, role=None),
    Route("GET", "/docs/page.js", reference.script, answer=None, role=None),
    Route("GET", "/docs/page.css", reference.style, answer=None, role=None),
    # The dashboard: the same files for everyone, from memory. Its calls need a credential as all others do.
    Route("GET", "/ui", dashboard.page, answer=None, role=None, limited=False, counted=False),
    Route("GET", "/ui/{path:path}", dashboard.file, answer=None, role=None, limited=False, counted=False),
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
    Route(
        "GET", "/agents", discovery.list_agents,
        query=AgentQuery, answer=AgentsListed, role="readonly",
        errors=("cursor_invalid",),
        example={"tags": "fast", "limit": 20},
    ),
    Route(
        "PUT", "/agents/{agent_id:id}/status", agents.change_status,
        body=StatusBody, answer=StatusChanged, role="agent", own="agent_id",
        errors=("agent_not_found", "token_missing", "token_invalid"),
        example={"status": "busy", "load_metrics": {"cpu": 0.9}},
    ),
    Route(
        "DELETE", "/agents/{agent_id:id}", agents.deregister,
        answer=Deregistered, role="agent", own="agent_id",
        errors=("agent_not_found", "token_missing", "token_invalid"),
    ),
    *(
        Route(
            "POST", f"/agents/{{agent_id:id}}/{name}", handle,
            answer=AgentOperated, role="operator",
            errors=("agent_not_found",),
        )
        for name, handle in (
            ("drain", agents.drain),
            ("maintenance", agents.maintain),
            ("resume", agents.resume),
        )
    ),
    Route("GET", "/registry/stats", discovery.registry_stats, answer=RegistryCounted, role="readonly"),
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
    Route(
        "POST", "/tasks/batch", tasks.submit_batch,
        body=SubmitBatch, answer=BatchSubmitted, role="client",
        example={"tasks": [_TASK]},
    ),
    Route(
        "GET", "/tasks", tasks.list_tasks,
        query=TasksQuery, answer=TasksListed, role="readonly",
        errors=("cursor_invalid",),
        example={"q": "type:ocr state:failed age:>1h", "limit": 20},
    ),
    Route(
        "GET", "/query/fields", query_fields.fields,
        query=FieldsQuery, answer=FieldsFound, role="readonly",
    ),
    Route(
        "GET", "/tasks/results", results.results,
        query=ResultsQuery, answer=None, role="readonly",
        errors=("query_invalid",),
        example={"q": "type:ocr since:1h"},
    ),
    Route(
        "POST", "/tasks/bulk", task_bulk.change,
        body=ChangeTasks, answer=TasksChanged, role="operator",
        errors=("query_invalid", "cursor_invalid", "fact_invalid"),
        example={"action": "cancel", "q": "type:ocr age:>1h", "dry_run": True},
    ),
    Route("GET", "/tasks/status", queues.task_stats, answer=TasksCounted, role="readonly"),
    Route("GET", "/tasks/queues/stats", queues.queue_stats, answer=QueuesCounted, role="readonly"),
    Route("GET", "/load-balancer/stats", queues.load_balancer_stats, answer=LoadBalancerCounted, role="readonly"),
    Route("GET", "/tasks/queues", queues.sizes, answer=QueueSizes, role="readonly"),
    Route(
        "POST", "/tasks/queues/{priority}/clear", queues.clear,
        answer=QueueCleared, role="operator",
        errors=("invalid_priority",),
    ),
    Route(
        "POST", "/tasks/{task_id:id}/cancel", tasks.cancel,
        body=CancelBody, answer=TaskCancelled, role="client",
        errors=("task_not_found", "task_finished"),
        example={"reason": "no longer wanted"},
    ),
    Route(
        "POST", "/tasks/{task_id:id}/retry", tasks.retry,
        answer=TaskRetried, role="operator",
        errors=("task_not_found", "task_not_dead", "task_expired"),
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
    # Messages
    Route(
        "POST", "/messages/send", messages.send,
        body=SendMessage, answer=MessageSent, role="agent", own="body.sender_id",
        errors=(
            "invalid_protocol", "invalid_priority", "invalid_message_type", "agent_not_found", "not_linked",
            "not_in_hierarchy", "no_subordinates", "id_conflict", "token_missing", "token_invalid",
        ),
        example={"receiver_id": "a1", "message_type": "direct", "payload": {"text": "hello"}},
    ),
    Route(
        "POST", "/messages/broadcast", messages.broadcast,
        body=BroadcastMessage, answer=BroadcastSent, role="agent", own="body.sender_id",
        errors=(
            "invalid_priority", "invalid_message_type", "invalid_agent_type", "id_conflict", "token_missing",
            "token_invalid",
        ),
        example={"message_type": "coordination", "payload": {"text": "hello"}, "capabilities": ["ocr"]},
    ),
    Route(
        "GET", "/messages/history", messages.history,
        query=MessagesQuery, answer=MessagesListed, role="readonly",
        errors=("cursor_invalid",),
        example={"receiver_id": "a1", "limit": 20},
    ),
    Route(
        "GET", "/messages/conversations/{conversation_id:id}", messages.conversation,
        answer=ConversationFound, role="readonly",
        errors=("message_not_found",),
    ),
    Route(
        "GET", dead_messages.PATH, dead_messages.list_dead,
        query=DeadQuery, answer=DeadMessagesListed, role="readonly",
        errors=("cursor_invalid",),
        example={"limit": 20},
    ),
    Route(
        "POST", f"{dead_messages.PATH}/purge", dead_messages.purge,
        body=PurgeMessages, answer=MessagesPurged, role="operator",
        errors=("message_not_found", "message_not_dead"),
        example={"older_than": 86_400},
    ),
    Route(
        "POST", "/messages/{message_id:id}/replay", dead_messages.replay,
        body=ReplayMessage, answer=MessageReplayed, role="operator",
        errors=("message_not_found", "message_not_dead", "agent_not_found", "message_undeliverable"),
        example={"ttl": 600},
    ),
    Route(
        "GET", "/messages/{message_id:id}", messages.get,
        query=RecipientsQuery, answer=MessageFound, role="readonly",
        errors=("message_not_found", "cursor_invalid"),
    ),
    Route(
        "POST", "/messages/{message_id:id}/read", messages.read,
        body=ReadBody, answer=MessageRead, role="agent", own="body.agent_id",
        errors=("message_not_found",),
        example={"agent_id": "a1"},
    ),
    # Links
    Route(
        "POST", "/peers/add", links.add_peer,
        query=PeersQuery, answer=PeerAdded, role="operator",
        errors=("agent_not_found", "links_full"),
        example={"agent_id": "a1", "peer_id": "a2"},
    ),
    Route(
        "POST", "/peers/remove", links.remove_peer,
        query=PeersQuery, answer=PeerRemoved, role="operator",
        example={"agent_id": "a1", "peer_id": "a2"},
    ),
    Route("GET", "/peers", links.connections, query=ConnectionsQuery, answer=ConnectionsFound, role="readonly"),
    Route(
        "GET", "/peers/{agent_id:id}", links.peers,
        answer=PeersFound, role="readonly",
        errors=("agent_not_found",),
    ),
    Route(
        "GET", "/agents/{agent_id:id}/subordinates", links.subordinates,
        answer=SubordinatesFound, role="readonly",
        errors=("agent_not_found",),
    ),
    Route(
        "POST", "/agents/{agent_id:id}/subordinates/{subordinate_id:id}", links.add_subordinate,
        answer=SubordinateChanged, role="operator",
        errors=("agent_not_found", "hierarchy_cycle", "links_full"),
    ),
    Route(
        "DELETE", "/agents/{agent_id:id}/subordinates/{subordinate_id:id}", links.remove_subordinate,
        answer=SubordinateChanged, role="operator",
        errors=("agent_not_found",),
    ),
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
