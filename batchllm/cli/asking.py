"""Asking at the terminal whether a run goes on after its pilot.

The question goes to the controlling terminal and the answer comes from there, whatever stdin and stdout are.
Progress is off the screen meanwhile; the event loop goes on, so that a signal ends the question.
"""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import anyio

from batchllm import ui
from batchllm.summary import Summary
from batchllm.wire import Live

_QUESTION = "go on? [Y/n] "
_ANSWERS = {"": True, "y": True, "yes": True, "n": False, "no": False}


class Display:
    """Progress that can be taken off the screen for a while; `show` draws it until it is cancelled."""

    def __init__(self, show: Callable[[], Awaitable[None]]) -> None:
        self._show = show
        self._scope = anyio.CancelScope()
        self._off = anyio.Event()
        self._again = anyio.Event()

    async def run(self) -> None:
        """Show, until cancelled."""
        while True:
            with self._scope:
                await self._show()
            self._off.set()
            await self._again.wait()

    async def pause(self) -> None:
        """Return when nothing is drawn any more."""
        self._scope.cancel()
        await self._off.wait()

    def resume(self) -> None:
        """Go on drawing, below what is on the screen now."""
        self._scope = anyio.CancelScope()
        self._off = anyio.Event()
        self._again.set()
        self._again = anyio.Event()


async def goes_on(live: Live, display: Display, summary: Summary) -> bool:
    """Tell what a pilot came to, and whether the run goes on: as answered, where somebody can be asked."""
    from batchllm.pilot import Rest, report  # many runs have none

    records, exact = live.total()
    left = max(0, records - live.summary.settled) if records is not None else None
    rest = Rest(left, exact, live.gate.target, live.gate.limits())
    lines = [ui.clean(line) for line in report(summary, rest)]
    terminal = None if live.job.yes else _terminal()
    if terminal is None:
        for line in () if live.job.quiet else lines:
            ui.say(line)
        return True
    try:
        await display.pause()
        yes = await _ask(terminal, lines)
    finally:
        os.close(terminal)
    if yes:
        display.resume()
    return yes


def _terminal() -> int | None:
    """A descriptor of the terminal, where stderr is one and we may read from it: not in the background."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    with suppress(OSError):
        if os.tcgetpgrp(terminal) == os.getpgrp():
            return terminal
    os.close(terminal)
    return None


async def _ask(terminal: int, lines: Sequence[str]) -> bool:
    """The answer; no where the terminal is closed."""
    with suppress(termios.error):
        termios.tcflush(terminal, termios.TCIFLUSH)  # what was typed before is no answer
    text = "".join(f"{line}\n" for line in lines)
    answered = False
    try:
        while True:
            await _write(terminal, text + _QUESTION)
            answer = await _read(terminal)
            if answer is None:
                return False
            if (yes := _ANSWERS.get(answer.strip().lower())) is not None:
                answered = True
                return yes
            text = "please answer y or n: "
    except OSError:
        return False
    finally:
        if not answered:
            with suppress(OSError):
                os.write(terminal, b"\n")


async def _write(terminal: int, text: str) -> None:
    left = text.encode()
    while left:
        await anyio.wait_writable(terminal)
        with suppress(BlockingIOError):
            left = left[os.write(terminal, left) :]


async def _read(terminal: int) -> str | None:
    """A line, or None at the end."""
    while True:
        await anyio.wait_readable(terminal)
        with suppress(BlockingIOError):
            return os.read(terminal, 4096).decode(errors="replace") or None
