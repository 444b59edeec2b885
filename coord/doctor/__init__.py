"""What is wrong with a cell, and what to do about it: ``coord doctor`` and ``GET /system``.

``read_snapshot`` reads the cell at a bounded cost, ``read_machine`` looks at the processes of this machine, and
``diagnose`` finds problems in what they read, without I/O. Nothing here writes, and the cell may be live.
"""

from __future__ import annotations

from coord.doctor.checks import CHECKS, diagnose
from coord.doctor.machine import Machine, read_machine
from coord.doctor.snapshot import Snapshot, read_snapshot

__all__ = ["CHECKS", "Machine", "Snapshot", "diagnose", "read_machine", "read_snapshot"]
