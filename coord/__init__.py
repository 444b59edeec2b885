"""coord: an agent coordinator that chooses the best agent for each task.

Callers append facts to Redis Streams; workers turn facts into state; every change of state is one atomic script.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coord.agent.agent import Agent
    from coord.agent.links import LinkRequest
    from coord.agent.run import run
    from coord.agent.task import NonRetryable, Release, Retryable, Task
    from coord.client.client import Client
    from coord.client.handle import TaskHandle
    from coord.client.submission import TaskSpec
    from coord.client.sync import SyncClient, SyncTaskHandle
    from coord.errors import (
        AgentIsEnrolled,
        AgentLeft,
        AgentNotDraining,
        AgentNotEnrolled,
        AgentNotFound,
        AgentSuperseded,
        ApiKeyNotFound,
        ApiKeysFull,
        ConfigError,
        Conflict,
        ConversationFull,
        CoordError,
        CursorInvalid,
        DataFolderInUse,
        EntryBuried,
        EntryNotFound,
        EntryTruncated,
        FactInvalid,
        FactTooLarge,
        Forbidden,
        HierarchyCycle,
        HopLimitReached,
        IdConflict,
        IdInvalid,
        Invalid,
        LinkDeclined,
        LinkNotRequested,
        LinksFull,
        MessageExpired,
        MessageNotDead,
        MessageNotFound,
        MessageUndeliverable,
        NoSubordinates,
        NotFound,
        NotInHierarchy,
        NotLinked,
        PayloadInvalid,
        QueryInvalid,
        RequestEnded,
        RequestFailed,
        RequestTimedOut,
        ResultDropped,
        ResultInvalid,
        ResultTimeout,
        ServerFull,
        ServerUnavailable,
        ServerUnfit,
        StaleLease,
        TaskAlreadyFinished,
        TaskCancelled,
        TaskEnded,
        TaskExpired,
        TaskFailed,
        TaskNotDead,
        TaskNotFound,
        TaskRefused,
        Timeout,
        TokenInvalid,
        TokenMissing,
        Unavailable,
        Undelivered,
        UnknownAgent,
    )
    from coord.models.messages import AgentMessage as Message

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentIsEnrolled",
    "AgentLeft",
    "AgentNotDraining",
    "AgentNotEnrolled",
    "AgentNotFound",
    "AgentSuperseded",
    "ApiKeyNotFound",
    "ApiKeysFull",
    "Client",
    "ConfigError",
    "Conflict",
    "ConversationFull",
    "CoordError",
    "CursorInvalid",
    "DataFolderInUse",
    "EntryBuried",
    "EntryNotFound",
    "EntryTruncated",
    "FactInvalid",
    "FactTooLarge",
    "Forbidden",
    "HierarchyCycle",
    "HopLimitReached",
    "IdConflict",
    "IdInvalid",
    "Invalid",
    "LinkDeclined",
    "LinkNotRequested",
    "LinkRequest",
    "LinksFull",
    "Message",
    "MessageExpired",
    "MessageNotDead",
    "MessageNotFound",
    "MessageUndeliverable",
    "NoSubordinates",
    "NonRetryable",
    "NotFound",
    "NotInHierarchy",
    "NotLinked",
    "PayloadInvalid",
    "QueryInvalid",
    "Release",
    "RequestEnded",
    "RequestFailed",
    "RequestTimedOut",
    "ResultDropped",
    "ResultInvalid",
    "ResultTimeout",
    "Retryable",
    "ServerFull",
    "ServerUnavailable",
    "ServerUnfit",
    "StaleLease",
    "SyncClient",
    "SyncTaskHandle",
    "Task",
    "TaskAlreadyFinished",
    "TaskCancelled",
    "TaskEnded",
    "TaskExpired",
    "TaskFailed",
    "TaskHandle",
    "TaskNotDead",
    "TaskNotFound",
    "TaskRefused",
    "TaskSpec",
    "Timeout",
    "TokenInvalid",
    "TokenMissing",
    "Unavailable",
    "Undelivered",
    "UnknownAgent",
    "run",
]

#: Public name -> module and attribute, imported at the first use: a worker imports ``coord.keys`` and nothing of the
#: SDK. Every other name in ``__all__`` is an error of ``coord.errors``. Type checkers read the imports above.
_HOME = {
    "Agent": ("coord.agent.agent", "Agent"),
    "Client": ("coord.client.client", "Client"),
    "LinkRequest": ("coord.agent.links", "LinkRequest"),
    "Message": ("coord.models.messages", "AgentMessage"),
    "NonRetryable": ("coord.agent.task", "NonRetryable"),
    "Release": ("coord.agent.task", "Release"),
    "Retryable": ("coord.agent.task", "Retryable"),
    "SyncClient": ("coord.client.sync", "SyncClient"),
    "SyncTaskHandle": ("coord.client.sync", "SyncTaskHandle"),
    "Task": ("coord.agent.task", "Task"),
    "TaskHandle": ("coord.client.handle", "TaskHandle"),
    "TaskSpec": ("coord.client.submission", "TaskSpec"),
    "run": ("coord.agent.run", "run"),
}

if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        """Import a public name."""
        if name not in __all__:
            raise AttributeError(f"module 'coord' has no attribute {name!r}")
        module, attribute = _HOME.get(name, ("coord.errors", name))
        from coord.interrupts import quiet_import

        with quiet_import():
            return getattr(import_module(module), attribute)
