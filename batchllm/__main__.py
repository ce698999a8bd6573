"""The process's entry: `batchllm` and `python -m batchllm`."""

import gc
import signal
import sys

_COLLECT_AFTER = 100_000
"""Containers made and not yet given up, before the cyclic collector looks at the youngest.

What is loaded stays, and records make many objects and no cycle, not even where calls fail: looking for some
took a tenth of a start and of a run.
"""


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback while it is still being loaded, too."""
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # raised in the midst of an import, KeyboardInterrupt would come out as another error
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        from batchllm.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
