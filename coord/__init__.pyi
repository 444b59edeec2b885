from coord.models.messages import AgentMessage as Message
from coord.sdk.agent import Agent as Agent
from coord.sdk.client import Client as Client
from coord.sdk.handle import TaskHandle as TaskHandle
from coord.sdk.process import run as run
from coord.sdk.submission import TaskSpec as TaskSpec
from coord.sdk.task import NonRetryable as NonRetryable
from coord.sdk.task import Release as Release
from coord.sdk.task import Retryable as Retryable
from coord.sdk.task import Task as Task

__version__: str
__all__ = [
    "Agent",
    "Client",
    "Message",
    "NonRetryable",
    "Release",
    "Retryable",
    "Task",
    "TaskHandle",
    "TaskSpec",
    "run",
]
