"""Any program as an agent: one process per task, or kept processes that receive tasks as JSON lines.

``process`` describes the guarantees about a program's processes, ``outcome`` the meaning of its exit code.
"""

from coord.programs.agent import MAX_GRACE_S, Options, program_agent
from coord.programs.outcome import Output
from coord.programs.stdio import Input

__all__ = ["MAX_GRACE_S", "Input", "Options", "Output", "program_agent"]
