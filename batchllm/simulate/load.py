"""How the rehearsal server bears load: so many answers at once, a line before them, and bad episodes.

Pure: a clock's readings in, waits and verdicts out. The app sleeps for what is decided here.
"""

from __future__ import annotations

import heapq
from collections import deque


class Line:
    """A server of `places` that work in parallel; who finds none free waits, first come, first served.

    Up to `places` in flight the latency is the work's own, beyond that knee it grows and the throughput
    doesn't. `longest` is how many may wait, None for any number. A client that goes away leaves its work to
    be done, as on a server that doesn't notice.
    """

    def __init__(self, places: int, longest: int | None = None) -> None:
        self._free = [0.0] * places
        self._longest = longest
        self._starts: deque[float] = deque()
        self.highest = 0

    def enter(self, work: float, now: float) -> float | None:
        """Seconds until the answer to a request of so many seconds' work; None when the line is full."""
        while self._starts and self._starts[0] <= now:
            self._starts.popleft()
        start = max(now, self._free[0])
        if start > now:
            if self._longest is not None and len(self._starts) >= self._longest:
                return None
            self._starts.append(start)
            self.highest = max(self.highest, len(self._starts))
        heapq.heapreplace(self._free, start + work)
        return start + work - now


def overloaded(every: float, lasts: float, elapsed: float) -> bool:
    """Whether an episode is on: each `every` seconds, the first after one `every`, for `lasts` seconds."""
    return elapsed >= every and elapsed % every < lasts
