from coord.agent.agent import Agent as Agent
from coord.agent.run import run as run
from coord.agent.task import NonRetryable as NonRetryable
from coord.agent.task import Release as Release
from coord.agent.task import Retryable as Retryable
from coord.agent.task import Task as Task
from coord.client.client import Client as Client
from coord.client.handle import TaskHandle as TaskHandle
from coord.client.submission import TaskSpec as TaskSpec
from coord.client.sync import SyncClient as SyncClient
from coord.client.sync import SyncTaskHandle as SyncTaskHandle
from coord.models.messages import AgentMessage as Message

__version__: str
__all__ = [
    "Agent",
    "Client",
    "Message",
    "NonRetryable",
    "Release",
    "Retryable",
    "SyncClient",
    "SyncTaskHandle",
    "Task",
    "TaskHandle",
    "TaskSpec",
    "run",
]
