"""A token bucket of N dimensions that are taken all together or not at all: pure, time comes in."""

from __future__ import annotations

import math
from collections.abc import Sequence

MARGIN = 0.5
"""Seconds' worth of the rate that may go out at once. Half of what servers allow that enforce a second's
worth, so that jitter on the way can't turn a paced burst into a refusal."""


class TokenBucket:
    """Buckets that refill continuously; a request takes from each or waits for all.

    `rates` in units a second, infinite for no limit. A bucket holds `margin` seconds of its rate, at least
    1. A need larger than a bucket is admitted when that bucket is full, and leaves it in debt. `limited` are
    the dimensions that have a limit.
    """

    def __init__(self, rates: Sequence[float], now: float, margin: float = MARGIN) -> None:
        self._margin = margin
        self._rates = [math.inf] * len(rates)
        self._sizes = [math.inf] * len(rates)
        self._levels = [math.inf] * len(rates)
        self.limited: list[int] = []
        self._at = now
        for i, rate in enumerate(rates):
            self.limit(i, rate, now)

    def rate(self, i: int) -> float:
        """Units a second of dimension `i`, infinite where it has no limit."""
        return self._rates[i]

    def limit(self, i: int, rate: float, now: float) -> None:
        """Change the rate of dimension `i`; what it holds stays, as far as it still fits.

        A dimension that had no limit starts full.
        """
        self._refill(now)
        self._rates[i] = rate
        self._sizes[i] = size = max(1.0, rate * self._margin)
        self._levels[i] = min(self._levels[i], size)
        self.limited = [i for i, rate in enumerate(self._rates) if rate < math.inf]

    def empty(self, i: int, now: float, left: float = 0.0) -> None:
        """Dimension `i` turned out to be used up: no more than `left` is in it."""
        self._refill(now)
        if self._rates[i] < math.inf:
            self._levels[i] = min(self._levels[i], left)

    def draw(self, i: int, amount: float) -> None:
        """So much of dimension `i` had gone out before its limit was known."""
        self._levels[i] -= amount

    def take(self, need: Sequence[float], now: float) -> float:
        """0.0 and taken, or nothing taken and the seconds to wait before asking again."""
        passed = now - self._at
        if passed > 0.0:
            self._at = now
        else:
            passed = 0.0
        if len(self.limited) == 1:
            i = self.limited[0]
            size, level = self._sizes[i], self._levels[i]
            if level < size and (level := level + self._rates[i] * passed) > size:
                level = size
            if need[i] <= level:  # what mostly holds; a third of the cost of the way below
                self._levels[i] = level - need[i]
                return 0.0
        wait = 0.0
        for i in self.limited:
            wait = max(wait, self._short(i, need[i], passed))
        if not wait:
            for i in self.limited:
                self._levels[i] -= need[i]
        return wait

    def wait(self, i: int, now: float) -> float:
        """Seconds until bucket `i` is full: the longer, the more it is what requests wait for."""
        self._refill(now)
        return max(0.0, self._sizes[i] - self._levels[i]) / self._rates[i]

    def _short(self, i: int, amount: float, passed: float) -> float:
        """Seconds until bucket `i`, refilled for those `passed`, has so much, or is full."""
        size, level = self._sizes[i], self._levels[i]
        if level < size:  # beyond it there is only what came back
            level += self._rates[i] * passed
            self._levels[i] = level = level if level < size else size
        short = (amount if amount < size else size) - level
        return short / self._rates[i] if short > 1e-9 else 0.0

    def settle(self, reserved: Sequence[float], used: Sequence[float]) -> None:
        """Correct an admission: what was reserved comes back, what was used goes.

        What comes back may fill a bucket to twice its size: the service never counted it.
        """
        for i in self.limited:
            level = self._levels[i] + reserved[i] - used[i]
            self._levels[i] = min(2 * self._sizes[i], level)

    def _refill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at += passed
        for i in self.limited:
            if self._levels[i] < self._sizes[i]:
                self._levels[i] = min(self._sizes[i], self._levels[i] + self._rates[i] * passed)
