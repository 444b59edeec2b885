"""The embedded server of a `coord up` that is to end at once while the server still starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: A process of its own: every child of it is killed.
CODE = """
import subprocess, sys
from pathlib import Path
from coord.up.server import ManagedServer
server = ManagedServer(Path(sys.argv[1]))
loading = subprocess.Popen(["sleep", "600"], start_new_session=True)
server.abandon()
print(loading.wait(10))
"""


def test_a_server_that_still_loads_is_not_left_behind(tmp_path: Path) -> None:
    """The second Ctrl-C kills it: it has written nothing yet, and nothing else would end it."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "data")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "-9\n", "")
