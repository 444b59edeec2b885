"""Runs a program that ends with the process that started it.

    python -m examples.main_job.leash PROGRAM [ARGUMENT …]

Standard input is a pipe to the starter, which nobody writes to. When it closes, the starter is gone, even if it was
killed with SIGKILL, and this process is asked to end as by SIGTERM. So an agent that is started here is never left
behind, and its program need not know of this.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path

#: What the program has to finish what it holds; after that it ends as it is.
DRAIN_S = 15.0


def main() -> None:
    """Run the program that the arguments name, in this process."""
    threading.Thread(target=_watch, name="leash", daemon=True).start()
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as the interpreter itself does
    runpy.run_path(sys.argv[0], run_name="__main__")


def _watch() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(DRAIN_S)
    os._exit(1)


if __name__ == "__main__":
    main()
