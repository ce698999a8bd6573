"""The process's entry: `batchllm` and `python -m batchllm`."""

import signal
import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback while it is still being loaded, too."""
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
