"""The one timer of a transport: ends exchanges whose time is over and connections that idled too long.

It knows only when the soonest of them is due, so an exchange costs it a set entry and no timer of its own;
it never decides what a deadline is. Connections enter and leave it, the pool tells it of idle ones.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic
from typing import Protocol

SPACING = 0.01  # seconds between two sweeps at least, so that deadlines that follow closely share one


class Timed(Protocol):
    """Something with a deadline, in seconds of the monotonic clock."""

    deadline: float

    def expire(self, now: float) -> None:
        """The deadline has passed: end, or move the deadline and stay watched."""
        ...


class Sweeper:
    """Watches deadlines; `idlers` are asked at each sweep to close what idled, and say when they are due.

    Each of `watched` is told to expire once its deadline has passed, within about 10 ms; who enters there
    sees to it that a sweep is due by then. `due` is when the next one comes, in seconds of the monotonic
    clock; infinite where there is none.
    """

    __slots__ = ("_timer", "due", "idlers", "watched")

    def __init__(self) -> None:
        self.idlers: list[Callable[[float], float]] = []
        self.watched: set[Timed] = set()
        self.due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def wake_by(self, due: float) -> None:
        """Sweep at this monotonic time at the latest."""
        if due >= self.due:
            return
        self.stop()
        self.due = due
        delay = max(due - monotonic(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay, self._sweep)

    def stop(self) -> None:
        """Take the timer off the loop; the next watch sets it again."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self.due = math.inf

    def _sweep(self) -> None:
        self._timer = None
        self.due = math.inf
        now = monotonic()
        for timed in [timed for timed in self.watched if timed.deadline <= now]:
            timed.expire(now)
        due = min((timed.deadline for timed in self.watched), default=math.inf)
        for close_idle in self.idlers:
            due = min(due, close_idle(now))
        if due < math.inf:
            self.wake_by(max(due, now + SPACING))
