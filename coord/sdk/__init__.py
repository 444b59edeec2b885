"""For callers and agents: they append facts and read what became of them; nothing here changes state itself."""

from coord.sdk.agent import Agent
from coord.sdk.client import Client, Receipt
from coord.sdk.handle import TaskHandle
from coord.sdk.process import run
from coord.sdk.submission import TaskSpec
from coord.sdk.task import NonRetryable, Release, Retryable, Task

__all__ = [
    "Agent",
    "Client",
    "NonRetryable",
    "Receipt",
    "Release",
    "Retryable",
    "Task",
    "TaskHandle",
    "TaskSpec",
    "run",
]
