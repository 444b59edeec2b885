"""Any program as an agent: started for each task, or kept and spoken to in JSON lines.

What is promised of a program's processes stands in ``process``, what its exit code means in ``outcome``.
"""

from coord.programs.agent import LONGEST_GRACE_S, Options, program_agent
from coord.programs.outcome import Output

__all__ = ["LONGEST_GRACE_S", "Options", "Output", "program_agent"]
