"""The task that shows a run's progress until it is cancelled, as a bar, log lines or JSON lines on stderr.

It samples a View and draws it; what it samples it never changes. `run`'s caller starts it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from batchllm.ui.figures import Figures, Pace, View, measure
from batchllm.ui.lines import json_line, log_line
from batchllm.ui.messages import capable, say

_FRAME = 0.25


def kind_for(asked: str, *, data_on_terminal: bool = False) -> str:
    """Which progress to show for `--progress`: of `auto`, a bar on a terminal and log lines elsewhere.

    A bar that is not possible becomes log lines: stderr is no terminal or a dumb one, or
    `data_on_terminal`: the records themselves go to the same screen.
    """
    if asked not in ("auto", "bar"):
        return asked
    return "bar" if capable(sys.stderr) and not data_on_terminal else "log"


async def show(
    view: View,
    *,
    kind: str,
    interval: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
    silent: Callable[[], bool] = lambda: False,
) -> None:
    """Draw until cancelled: four times a second (`bar`) or every `interval` seconds (`log`, `json`).

    The final state is drawn on the way out, without awaiting, so cancel when the last record is settled.
    `none` returns at once. `clock` gives monotonic seconds. With `silent` true at the end, the final state
    is not drawn.
    """
    if kind == "none":
        return
    import anyio  # here and not above: `batchllm --help` must not pay for it

    pace = Pace(clock(), view.summary.settled)
    with _drawing(kind) as draw:
        try:
            while True:
                if kind == "bar":
                    draw(measure(view, pace, clock()))
                    await anyio.sleep(_FRAME)
                else:
                    await anyio.sleep(interval)
                    draw(measure(view, pace, clock()))
        finally:
            if not silent():
                draw(measure(view, pace, clock(), last=True))


@contextmanager
def _drawing(kind: str) -> Iterator[Callable[[Figures], None]]:
    if kind == "bar" and sys.stderr is not None:
        from batchllm.ui.bar import above_bar

        with above_bar(sys.stderr) as bar:
            yield bar.draw
    elif kind == "json":
        yield lambda figures: say(json_line(figures))
    else:
        yield lambda figures: say(log_line(figures, time.strftime("%H:%M:%S")))
