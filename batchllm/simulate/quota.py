"""Requests and tokens a minute, as the rehearsal server enforces them: state and time in, verdict out.

A limit is a token bucket that holds a second's worth, so that a client which starts by spending a whole
minute's allowance is refused, as real services do; or, with a window, a count over the last so many seconds.
It keeps no clock of its own; the app owns the one `Quota`, asks it for each request, and `headers` tells it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from batchllm.fields import frozen

# A client at exactly the permitted pace must not be refused because its first request took longer to
# arrive (a new connection) than the later ones: so many seconds' worth may be overdrawn.
SLACK_S = 0.5


@frozen
class Standing:
    """How a limit stands: what may still go of `per_minute`, and the seconds until all of it may again."""

    dimension: str
    per_minute: int
    remaining: int
    reset: float


class Bucket:
    """One limit of `per_minute` units that refills continuously; `level` is what it holds, in units.

    It holds `seconds` worth of its rate, at least 1, and may go into debt; `slack` seconds' worth of it to
    let the next one in.
    """

    def __init__(self, per_minute: int, now: float, slack: float = SLACK_S, seconds: float = 1.0) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate * seconds)
        self.level = self.capacity
        self._slack = self.rate * slack
        self._at = now

    def wait(self, need: float, now: float) -> float:
        """Seconds until `need` units would be admitted; 0 admits now.

        More than the bucket can hold is admitted when it is full.
        """
        self._refill(now)
        missing = min(need, self.capacity) - self.level
        return 0.0 if missing <= self._slack + 1e-9 else missing / self.rate

    def take(self, need: float, now: float) -> None:
        """Take units that `wait` has admitted."""
        self._refill(now)
        self.level -= need

    def give_back(self, need: float, used: float, now: float, taken: float) -> None:
        """Of `need` units that were taken only `used` were."""
        self._refill(now)
        self.level = min(self.capacity, self.level + need - used)

    def spent(self, now: float) -> tuple[float, float]:
        """The units it is short of being full, and the seconds until it is full."""
        self._refill(now)
        missing = max(0.0, self.capacity - self.level)
        return missing, missing / self.rate

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self._at) * self.rate)
        self._at = now


class Window:
    """One limit of `per_minute` units, counted over the last `seconds`: none holds more than its part.

    The strictest of what services do: who passes it passes windows that start on the clock, too. A window
    too short for one unit is as long as one takes; a need larger than a window goes alone and stays for as
    long as the limit needs to make up for it.
    """

    def __init__(self, per_minute: int, now: float, slack: float, seconds: float) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / 60
        self._seconds = max(seconds, 1 / self._rate)
        self._most = self._rate * self._seconds
        self._slack = self._rate * slack
        self._used = 0.0
        self._leaving: list[tuple[float, float]] = []
        # The slack of a window alone would let the average pass the limit; the bucket holds it to it.
        self._average = Bucket(per_minute, now, slack, self._seconds)

    def wait(self, need: float, now: float) -> float:
        """Seconds until `need` units would be admitted; 0 admits now."""
        self._forget(now)
        average = self._average.wait(need, now)
        excess = self._used + min(need, self._most) - self._most
        if excess <= self._slack + 1e-9:
            return average
        gone = 0.0
        first_suffices = self._leaving[0][1] >= excess - 1e-9
        for at, units in self._leaving[:1] if first_suffices else sorted(self._leaving):
            gone += units
            if gone >= excess - 1e-9:
                return max(average, at - now)
        return max(average, self._seconds)

    def take(self, need: float, now: float) -> None:
        """Take units that `wait` has admitted."""
        self._add(need, self._leaves(need, now))
        self._average.take(need, now)

    def give_back(self, need: float, used: float, now: float, taken: float) -> None:
        """Of `need` units that were taken at `taken` only `used` were."""
        leaves = self._leaves(need, taken)
        if leaves > now:
            self._add(used - need, leaves)
        self._average.give_back(need, used, now, taken)

    def spent(self, now: float) -> tuple[float, float]:
        """The units in the window, and the seconds until it is empty."""
        self._forget(now)
        return self._used, max((at for at, _ in self._leaving), default=now) - now

    def _leaves(self, need: float, taken: float) -> float:
        return taken + max(self._seconds, need / self._rate)

    def _add(self, units: float, leaves: float) -> None:
        self._used += units
        heapq.heappush(self._leaving, (leaves, units))

    def _forget(self, now: float) -> None:
        while self._leaving and self._leaving[0][0] <= now:
            self._used -= heapq.heappop(self._leaving)[1]
        if not self._leaving:
            self._used = 0.0  # what rounding left


@frozen
class Refusal:
    """The limit that refused, such as `requests` or `tokens`, and the seconds after which to try again."""

    dimension: str
    per_minute: int
    wait: float


class Quota:
    """The limits of one account by dimension, None for no limit. Times are monotonic seconds.

    `window` in seconds, None for buckets; `slack` in seconds' worth.
    """

    def __init__(
        self,
        limits: Mapping[str, int | None],
        now: float,
        window: float | None = None,
        slack: float = SLACK_S,
    ) -> None:
        self._limits: dict[str, Bucket | Window] = {
            name: Bucket(limit, now, slack) if window is None else Window(limit, now, slack, window)
            for name, limit in limits.items()
            if limit is not None
        }

    def ask(self, needs: Mapping[str, int], now: float) -> Refusal | None:
        """Count one request with its needs, or refuse it; a refused one counts nowhere."""
        refusal = None
        for name, limit in self._limits.items():
            wait = limit.wait(needs[name], now)
            if wait > (refusal.wait if refusal else 0):
                refusal = Refusal(name, limit.per_minute, wait)
        if refusal is None:
            for name, limit in self._limits.items():
                limit.take(needs[name], now)
        return refusal

    def settle(self, needs: Mapping[str, int], used: Mapping[str, int], now: float, taken: float) -> None:
        """Give back what a request admitted at `taken` asked for beyond what it `used`."""
        for name, amount in used.items():
            if name in self._limits:
                self._limits[name].give_back(needs[name], amount, now, taken)

    def standings(self, now: float) -> Sequence[Standing]:
        """Every limit as it stands."""
        found = []
        for name, limit in self._limits.items():
            spent, reset = limit.spent(now)
            remaining = max(0, int(limit.per_minute - spent))
            found.append(Standing(name, limit.per_minute, remaining, reset))
        return found
