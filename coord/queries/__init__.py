"""Reading state: records for callers, and what a distributor plans on. Nothing here writes.

One file per noun; callers take the functions from here.
"""

from __future__ import annotations

from coord.queries.agent_records import agent, agent_ids, agents
from coord.queries.dead_letters import count_dead, dead_entries, dead_entry, dead_messages, dead_tasks
from coord.queries.fleet_view import fleet, loads, suspended_agents
from coord.queries.live_settings import LiveSetting, environment_of, live_settings
from coord.queries.log_windows import LogWindow, log_window
from coord.queries.memory_kinds import memory_use
from coord.queries.message_records import MessagePage, message, message_page
from coord.queries.pool_table import (
    PoolChanges,
    WaitingPool,
    pool_changes,
    pool_definitions,
    pool_lengths,
    pool_rows,
    scan_pools,
    waiting_pools,
)
from coord.queries.server_state import memory, settings
from coord.queries.task_pages import TaskPage, task_page
from coord.queries.task_records import task, task_headers, tasks
from coord.queries.totals import by_state, counters, submitted
from coord.queries.waiting import Backlog, PoolBacklog, PriorityBacklog, backlog
from coord.queries.worker_counts import workers_present
from coord.queries.worker_presence import Presence, presence
from coord.queries.write_refusal import write_refusal

__all__ = [
    "Backlog",
    "LiveSetting",
    "LogWindow",
    "MessagePage",
    "PoolBacklog",
    "PoolChanges",
    "Presence",
    "PriorityBacklog",
    "TaskPage",
    "WaitingPool",
    "agent",
    "agent_ids",
    "agents",
    "backlog",
    "by_state",
    "count_dead",
    "counters",
    "dead_entries",
    "dead_entry",
    "dead_messages",
    "dead_tasks",
    "environment_of",
    "fleet",
    "live_settings",
    "loads",
    "log_window",
    "memory",
    "memory_use",
    "message",
    "message_page",
    "pool_changes",
    "pool_definitions",
    "pool_lengths",
    "pool_rows",
    "presence",
    "scan_pools",
    "settings",
    "submitted",
    "suspended_agents",
    "task",
    "task_headers",
    "task_page",
    "tasks",
    "waiting_pools",
    "workers_present",
    "write_refusal",
]
