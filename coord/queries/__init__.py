"""Reading state: records, lists and counters for callers, and the data on which distributors plan. No function writes.

Each module covers one noun. ``get_…`` returns items by name, ``list_…`` finds items, ``count_…`` and ``measure_…`` add
up, ``explain_…`` says why. Each function takes an asyncio client that answers in bytes, and the ``Keys`` of the cell.
"""

from __future__ import annotations

from coord.queries.agents import (
    get_agent,
    get_agents,
    get_fleet,
    get_loads,
    get_suspended_agents,
    list_agent_ids,
    list_agents,
    scan_fleet,
)
from coord.queries.api_keys import get_api_key, list_api_keys
from coord.queries.audit import AuditPage, get_audit_since, list_audit
from coord.queries.cell import WorkersSnapshot, count_workers, get_write_refusal, is_empty_cell, list_workers
from coord.queries.dead_letters import (
    count_dead_letters,
    get_dead_entry,
    list_dead_entries,
    list_dead_messages,
    list_dead_tasks,
)
from coord.queries.discovery import AgentPage, RegistryStats, discover_agents, find_agent_ids, get_registry_stats
from coord.queries.explanations import explain_task
from coord.queries.links import get_links, list_links, parse_link
from coord.queries.memory import get_memory, measure_memory
from coord.queries.messages import (
    MessageCopy,
    MessagePage,
    RecipientPage,
    get_conversation,
    get_message,
    get_message_copy,
    list_messages,
    list_recipients,
)
from coord.queries.outcomes import list_outcomes, matching_outcomes
from coord.queries.plans import export_plans
from coord.queries.queues import (
    Backlog,
    PoolBacklog,
    PoolChanges,
    PriorityBacklog,
    WaitingPool,
    get_backlog,
    get_named_tasks,
    get_pool_changes,
    get_pool_definitions,
    get_pool_lengths,
    get_pool_rows,
    get_waiting_counts,
    get_waiting_reasons,
    list_waiting_pools,
    pool_in_record,
    scan_pools,
)
from coord.queries.reads import LogWindow, get_log_window, get_time, parse_log_window
from coord.queries.settings import (
    LiveSetting,
    SettingChange,
    environment_fields,
    get_health_threshold,
    get_live_values,
    get_modifier_rule,
    get_strategy_packages,
    get_type_values,
    list_setting_changes,
    list_settings,
    package_fields,
    type_values,
)
from coord.queries.statistics import get_statistics, get_weights
from coord.queries.task_pages import TaskIds, TaskPage, find_task_ids, find_tasks
from coord.queries.tasks import (
    count_by_state,
    count_submitted,
    count_tasks,
    get_counters,
    get_task,
    get_task_headers,
    get_tasks,
)
from coord.queries.tokens import TokenState, find_agent_of_token, list_tokens
from coord.queries.traces import export_trace

__all__ = [
    "AgentPage",
    "AuditPage",
    "Backlog",
    "LiveSetting",
    "LogWindow",
    "MessageCopy",
    "MessagePage",
    "PoolBacklog",
    "PoolChanges",
    "PriorityBacklog",
    "RecipientPage",
    "RegistryStats",
    "SettingChange",
    "TaskIds",
    "TaskPage",
    "TokenState",
    "WaitingPool",
    "WorkersSnapshot",
    "count_by_state",
    "count_dead_letters",
    "count_submitted",
    "count_tasks",
    "count_workers",
    "discover_agents",
    "environment_fields",
    "explain_task",
    "export_plans",
    "export_trace",
    "find_agent_ids",
    "find_agent_of_token",
    "find_task_ids",
    "find_tasks",
    "get_agent",
    "get_agents",
    "get_api_key",
    "get_audit_since",
    "get_backlog",
    "get_conversation",
    "get_counters",
    "get_dead_entry",
    "get_fleet",
    "get_health_threshold",
    "get_links",
    "get_live_values",
    "get_loads",
    "get_log_window",
    "get_memory",
    "get_message",
    "get_message_copy",
    "get_modifier_rule",
    "get_named_tasks",
    "get_pool_changes",
    "get_pool_definitions",
    "get_pool_lengths",
    "get_pool_rows",
    "get_registry_stats",
    "get_statistics",
    "get_strategy_packages",
    "get_suspended_agents",
    "get_task",
    "get_task_headers",
    "get_tasks",
    "get_time",
    "get_type_values",
    "get_waiting_counts",
    "get_waiting_reasons",
    "get_weights",
    "get_write_refusal",
    "is_empty_cell",
    "list_agent_ids",
    "list_agents",
    "list_api_keys",
    "list_audit",
    "list_dead_entries",
    "list_dead_messages",
    "list_dead_tasks",
    "list_links",
    "list_messages",
    "list_outcomes",
    "list_recipients",
    "list_setting_changes",
    "list_settings",
    "list_tokens",
    "list_waiting_pools",
    "list_workers",
    "matching_outcomes",
    "measure_memory",
    "package_fields",
    "parse_link",
    "parse_log_window",
    "pool_in_record",
    "scan_fleet",
    "scan_pools",
    "type_values",
]
