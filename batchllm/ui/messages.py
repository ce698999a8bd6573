"""One-line messages to people: errors, warnings and hints, on stderr, in red or yellow on a terminal.

Nothing here raises when stderr is closed or gone: a run must not die of having nobody to talk to.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TextIO

# Escape sequences whole, so that no "[31m" is left of them: CSI, then OSC up to its end.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_BREAKS = dict.fromkeys([0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029], " ")
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_UNSAFE: dict[int, str | None] = {**_CONTROLS, **_BREAKS}


def clean(text: str) -> str:
    """The text on one line, without escape sequences, control characters and direction overrides."""
    return _ESCAPES.sub("", text).translate(_UNSAFE).strip()


def say(line: str) -> None:
    """Write one line to stderr as it stands."""
    stream = sys.stderr
    if stream is not None:
        write(stream, line + "\n")


def write(stream: TextIO, text: str) -> bool:
    """Write and flush, and tell whether that worked."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


class Notes(logging.Handler):
    """Shows what the program logs as one line each: `note: …`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message."""
        say(f"note: {clean(record.getMessage())}")


def error(message: str, hint: str | None = None) -> None:
    """Print `error: …`, and `hint: …` below it."""
    _message("error", "31", message, hint)


def warn(message: str, hint: str | None = None) -> None:
    """Print `warning: …`, and `hint: …` below it."""
    _message("warning", "33", message, hint)


def colourful(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal that wants colours (https://no-color.org)."""
    return capable(stream) and not os.environ.get("NO_COLOR")


def capable(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal that can do more than print."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:
        return False


def label(word: str, colour: str) -> str:
    """`word:`, bold and in an ANSI colour where stderr takes colours."""
    return f"\x1b[1;{colour}m{word}:\x1b[0m" if colourful(sys.stderr) else f"{word}:"


def _message(word: str, colour: str, message: str, hint: str | None) -> None:
    say(f"{label(word, colour)} {clean(message)}")
    if hint:
        say(f"{label('hint', '36')} {clean(hint)}")
