"""The progress bar: two or three lines at the bottom of a terminal, drawn with Rich.

It owns the screen's last lines while it is active: whatever else is written to `sys.stderr` meanwhile is
collected and printed above them at the next frame. Each frame is one write; the cursor rests on the empty
line below, so a run that is killed leaves a tidy screen.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.text import Text

from batchllm.ui.figures import Figures, done_of, duration, per_cent, percent_done, speed, tokens
from batchllm.ui.messages import clean, colourful, write

_BAR_LEAST = 8
_BAR_MOST = 60
_GAP = "  "


class Above(io.StringIO):
    """Stands in for stderr while the bar is active: keeps what is written until the bar takes it.

    Threads may write; a deque's ends are atomic.
    """

    encoding = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._parts: deque[str] = deque()
        self._rest = ""

    def write(self, text: str, /) -> int:
        self._parts.append(text)
        return len(text)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def take(self, *, everything: bool) -> str:
        """The whole lines written since, or, at the end, everything, ended by a newline."""
        text = self._rest
        while self._parts:
            text += self._parts.popleft()
        whole, newline, self._rest = text.rpartition("\n")
        if everything and self._rest:
            whole, newline, self._rest = text, "\n", ""
        return whole + newline


class Bar:
    """Draws Figures on a terminal, over the frame before."""

    def __init__(self, stream: TextIO, above: Above) -> None:
        self._stream, self._above = stream, above
        self._console = Console(
            file=stream, force_terminal=True, no_color=not colourful(stream), highlight=False, markup=False
        )
        self._shown: list[int] = []
        self._columns = 0

    def draw(self, figures: Figures) -> None:
        """Replace the frame on the screen; what was written to stderr since goes above it."""
        columns, rows = _size(self._stream)
        lines = frame(self._console, figures, columns - 1)[: max(rows - 1, 1)]
        above = self._above.take(everything=figures.last)
        out = self._home(columns)
        if above or columns != self._columns:
            out += "\x1b[J" + above
        for line in lines:
            with self._console.capture() as captured:
                self._console.print(line, end="", soft_wrap=True)
            out += captured.get() + "\x1b[K\n"
        write(self._stream, out + "\x1b[J")
        self._shown, self._columns = [line.cell_len for line in lines], columns

    def _home(self, columns: int) -> str:
        # A terminal that became narrower has broken the old lines: count the rows they take now.
        up = sum(max(1, -(-length // columns)) for length in self._shown)
        return f"\x1b[{up}A\r" if up else ""


@contextmanager
def above_bar(stream: TextIO) -> Iterator[Bar]:
    """A Bar on `stream`, with `sys.stderr` caught meanwhile so that it comes out above the bar."""
    above = Above(stream)
    with redirect_stderr(above):
        try:
            yield Bar(stream, above)
        finally:
            write(stream, above.take(everything=True))


def frame(console: Console, figures: Figures, width: int) -> list[Text]:
    """The lines of one frame, none wider than `width` columns: the bar, the figures, why it is slow."""
    counts = _flow(_counts(figures, brief=False), width)
    if len(counts) > 1:
        counts = _flow(_counts(figures, brief=True), width)
    lines = [*_progress(console, figures, width), *counts]
    if figures.waiting:
        lines.append(Text(clean(figures.waiting), "yellow"))
    for line in lines:
        line.truncate(max(width, 1), overflow="crop")
    return lines


def _progress(console: Console, figures: Figures, width: int) -> list[Text]:
    elapsed = figures.last or figures.total is None
    time = f"in {duration(round(figures.elapsed))}" if elapsed else f"eta {duration(figures.eta)}"
    parts = [
        Text(done_of(figures), "bold"),
        Text(f"{percent_done(figures):>4}"),
        Text(f"{speed(figures.rate):>7}", "cyan"),
        Text(f"{time:<9}"),
    ]
    if figures.total is None:
        del parts[1]
    text = Text(_GAP).join(parts)
    room = min(width - text.cell_len - len(_GAP), _BAR_MOST)
    if room < _BAR_LEAST:
        return _flow(parts, width)
    return [Text(_GAP).join([_bar(console, figures, room), text])]


def _bar(console: Console, figures: Figures, width: int) -> Text:
    bar = ProgressBar(
        total=None if figures.total is None else max(figures.total, 1),
        completed=figures.processed if figures.total != 0 else 1,
        width=width,
        pulse=figures.total is None and not figures.last,
        complete_style="cyan",
        finished_style="green",
        animation_time=figures.elapsed,
    )
    segments = console.render(bar, console.options.update(width=width))
    return Text.assemble(*((segment.text, segment.style or "") for segment in segments))


def _counts(figures: Figures, *, brief: bool) -> list[Text]:
    rate = figures.success_rate
    parts = [
        Text(f"ok {figures.succeeded:,}" + ("" if rate is None else f" ({per_cent(rate)})"), "green"),
        Text(f"failed {figures.failed:,}", "red" if figures.failed else ""),
        Text(f"retried {figures.retried:,}"),
    ]
    if not figures.last:
        parts.append(Text(f"in flight {figures.in_flight:,}"))
    if used := tokens(figures, brief=brief):
        parts.append(Text(used, "dim"))
    return parts


def _flow(parts: list[Text], width: int) -> list[Text]:
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(_GAP) + part.cell_len <= width:
            lines[-1] = Text(_GAP).join([lines[-1], part])
        else:
            lines.append(part)
    return lines


def _size(stream: TextIO) -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    # A terminal that nobody has sized says 0.
    return columns or 80, rows or 24
