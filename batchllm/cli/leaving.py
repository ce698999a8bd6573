"""The process's last step: to end although a thread doesn't.

A function of the user's that blocks, or a stdout that nobody reads, may hold a worker thread for ever, and
the interpreter waits for its threads. `main` calls this when everything is written and said.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress

_WORKER = "AnyIO worker thread"
_PATIENCE = 0.5
"""Seconds that threads have to end once the event loop has."""


def leave(code: object) -> None:
    """End the process now if worker threads were abandoned and don't end; else return."""
    until = time.monotonic() + _PATIENCE
    for thread in threading.enumerate():
        if thread.name == _WORKER:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                for stream in (sys.stdout, sys.stderr):
                    with suppress(OSError, ValueError, AttributeError):
                        stream.flush()
                os._exit(code if isinstance(code, int) else 1)
