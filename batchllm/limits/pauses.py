"""When everyone on a quota stands still, and for how long: pure, times in seconds come in as arguments."""

from __future__ import annotations

BELIEVED = 3
"""Refusals in a row, nothing answered between them, whose own waits are believed."""


class Pauses:
    """When everyone on a quota may go on, and how long they have stood still in all; times in seconds.

    The longest wait wins. A refusal that names no wait starts at a second and doubles from one episode to
    the next until something succeeds, 60 s at most. A wait under a second that was named and proved too
    short so often grows in the same way.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self.troubled = False
        self._planned = 0.0
        self._unnamed = 0
        self._episodes = 0

    def add(self, now: float, wait: float | None, jitter: float) -> float:
        """A refusal came: pause for `wait`, or a doubling one. Returns the seconds from now.

        A `wait` of 0 is unnamed too. `jitter` in [0, 1) spreads those between half and all of their length.
        """
        self.troubled = True
        if now >= self.until:
            self._episodes += 1
        if wait is None or wait <= 0:
            if now < self.until:
                return self.until - now
            wait = self._doubled(self._unnamed, jitter)
            self._unnamed += 1
        elif wait < 1.0 and self._episodes > BELIEVED:
            wait = max(wait, self._doubled(self._episodes - BELIEVED - 1, jitter))
        until = now + wait
        if until > self.until:
            self._planned += until - max(self.until, now)
            self.until = until
        return self.until - now

    def succeeded(self) -> None:
        """An answer came: the next unnamed wait starts small again."""
        self.troubled = False
        self._unnamed = 0
        self._episodes = 0

    @staticmethod
    def _doubled(times: int, jitter: float) -> float:
        return min(60.0, 2.0 ** min(times, 6)) * (0.5 + 0.5 * jitter)

    def stood(self, seconds: float) -> None:
        """Everyone stood still for so long for another reason."""
        self._planned += seconds

    def total(self, now: float) -> float:
        """Seconds that were spent paused until now."""
        return self._planned - max(0.0, self.until - now)
