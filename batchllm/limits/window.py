"""How many calls may be in flight, found from how they go: pure, times in seconds.

The window grows while answers come as quickly as with fewer in flight. Where they don't, they queue at the
server: by Little's law the window that just keeps it busy is smaller by as much as the latency has grown.
"""

from __future__ import annotations

import math
from collections import deque

START = 16
_QUEUED, _SURE = 1.1, 3.0
"""Times the lowest latency, and standard errors beyond that, from which on answers are said to queue."""
_FREE = 1.02
"""Times the lowest latency up to which none does: the largest window of those is gone back to."""
_BELOW = 0.98
"""Share of the window without a queue to go back to: so that its latency is seen again."""
_REST = 8
"""Judgements for which the window stays as it is once it has been too large."""
_CUT = 0.7
"""What one episode of pressure leaves of the window."""
_USED = 0.9
"""Share of the window that must have been out for what was seen to tell anything of it."""
_STEP, _PATIENT = 20, 6
"""After that it grows by one in so many, and by two after so many times."""
_LEAST = 20
"""Answers that a judgement takes at the least."""
_REMEMBERED = 20
"""Judgements whose lowest latency counts."""


class Adaptive:
    """The window from `floor` to `ceiling` calls; `size` is what it is now."""

    def __init__(self, ceiling: int, now: float, floor: int = 1) -> None:
        self.size = min(START, ceiling)
        self._floor, self._ceiling = floor, ceiling
        self._doubling = True
        self._suspect = False
        self._rest = 0
        self._grown = 0
        self._free = 0
        self._lowest: deque[float] = deque(maxlen=_REMEMBERED)
        self._before: tuple[int, float] | None = None
        self._cut_at = now
        self._begin(now)

    def _begin(self, now: float, *, settled: bool = False) -> None:
        """Watch anew: what was sent from now on tells of the window as it is now."""
        self._began = now
        self._settled = settled
        self._answers = 0
        self._latency = self._squares = 0.0
        self._most = 0

    def answered(self, now: float, sent: float, in_flight: int) -> bool:
        """An answer came to what was sent at `sent`; whether the window is another now.

        `in_flight` counts the calls that were out, this one included.
        """
        if sent < self._began:
            return False
        if not self._settled and (self._suspect or not self._doubling):
            self._begin(now, settled=True)  # first the queue comes to the length that goes with this window
            return False
        self._answers += 1
        latency = now - sent
        self._latency += latency
        self._squares += latency * latency
        self._most = max(self._most, in_flight)
        if self._answers < max(self.size, _LEAST):
            return False
        old = self.size
        mean = self._latency / self._answers
        variance = max(0.0, self._squares / self._answers - mean * mean)
        self._judge(mean, math.sqrt(variance / self._answers))
        self._begin(now)
        return self.size != old

    def _judge(self, latency: float, error: float) -> None:
        """Choose the next window by the mean latency under this one and its standard error."""
        before, self._before = self._before, None
        if before is not None and latency > before[1] * (1 + self.size / before[0]) / 2:
            self.size = before[0]  # it hardly fell: it had grown for another reason, such as longer answers
            self._lowest.clear()
        self._lowest.append(latency)
        lowest = min(self._lowest)
        if latency <= _FREE * lowest + error / 4:
            self._free = self.size
        queued = latency > _QUEUED * lowest + _SURE * error
        if queued and self._doubling and not self._suspect:
            self._suspect = True  # so many at once may just have come in a burst: look again
            return
        self._suspect = False
        if queued:
            self._before = (self.size, latency)
            fitting = round(_BELOW * self.size * lowest / latency)
            self._slow(max(fitting, self._free) if self._free < self.size else fitting)
        elif self._rest:
            self._rest -= 1
        elif self._most >= _USED * self.size:
            step = self.size
            if not self._doubling:
                step = max(1, self.size * min(2, 1 + self._grown // _PATIENT) // _STEP)
            self.size = min(self._ceiling, self.size + step)
            self._grown += 1

    def _slow(self, size: int) -> None:
        """The window was too large: go on with this one, and stay there for a while."""
        self.size = max(self._floor, size)
        self._doubling = False
        self._free = 0
        self._rest, self._grown = _REST, 0

    def pressed(self, now: float, sent: float) -> bool:
        """The server refused or failed what was sent at `sent`; whether the window was cut for it.

        What was sent before the last cut is the same episode.
        """
        if sent < self._cut_at:
            return False
        self._cut_at = now
        self._before = None
        self._slow(int(self.size * _CUT))
        self._begin(now)
        return True
