"""What is said of a bug of ours: where its traceback is, never the traceback itself."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

from batchllm import __version__

EXIT = 70


def report(error: Exception) -> int:
    """Write the traceback to a file, name it on stderr, and return the exit code."""
    from batchllm.ui import error as say_error

    handle, path = tempfile.mkstemp(prefix="batchllm-bug-", suffix=".txt")
    with os.fdopen(handle, "w") as file:
        file.write(f"batchllm {__version__}, Python {sys.version}\n")
        traceback.print_exception(error, file=file)
    if "-vv" in sys.argv:
        traceback.print_exception(error)
    last = f"{type(error).__name__}: {error}".splitlines()[0]
    say_error(
        f"a bug of batchllm's: {last[:200]}",
        f"what is settled is kept, the same command goes on; the traceback is in {path}",
    )
    return EXIT
