"""Decisions about quotas, pure: state and time in, a wait or an admission out.

A token bucket of N dimensions (requests, tokens) that are taken all together or not at all, the estimate of
what a request will use, and the record of pauses. No clock, no I/O, no waiting: `layers.gated` does those.
"""

from __future__ import annotations

from collections.abc import Sequence

MARGIN = 0.5
"""Seconds' worth of the rate that may go out at once. Half of what servers allow that enforce a second's
worth, so that jitter on the way can't turn a paced burst into a refusal."""


class TokenBucket:
    """Buckets that refill continuously; a request takes from each or waits for all.

    `rates` in units a second. A bucket holds `MARGIN` seconds of its rate, at least 1. A need larger than a
    bucket is admitted when that bucket is full, and leaves it in debt.
    """

    def __init__(self, rates: Sequence[float], now: float) -> None:
        self._rates = tuple(rates)
        self._sizes = tuple(max(1.0, rate * MARGIN) for rate in rates)
        self._levels = list(self._sizes)
        self._at = now

    def take(self, need: Sequence[float], now: float) -> float:
        """0.0 and taken, or nothing taken and the seconds to wait before asking again."""
        levels, wait = self._levels, 0.0
        passed = now - self._at if now > self._at else 0.0
        self._at += passed
        for i, amount in enumerate(need):
            rate, size = self._rates[i], self._sizes[i]
            level = levels[i] + rate * passed
            levels[i] = level = level if level < size else size
            short = (amount if amount < size else size) - level
            if short > 1e-9:
                wait = max(wait, short / rate)
        if not wait:
            for i, amount in enumerate(need):
                levels[i] -= amount
        return wait

    def settle(self, reserved: Sequence[float], used: Sequence[float]) -> None:
        """Correct an admission: what was reserved comes back, what was used goes."""
        for i, size in enumerate(self._sizes):
            self._levels[i] = min(size, self._levels[i] + reserved[i] - used[i])


class Estimate:
    """What a request will use in tokens, learnt from the usage of those before it.

    Starts at 4 bytes a token (the rule of thumb of OpenAI's documents) and 256 tokens an answer.
    """

    def __init__(self) -> None:
        self._tokens_per_byte = 0.25
        self._output = 256.0

    def tokens(self, size: int, most: int | None) -> float:
        """Tokens for a request of `size` bytes of messages; `most` is its max_tokens where it sets one."""
        return size * self._tokens_per_byte + (most if most is not None else self._output)

    def learn(self, size: int, input_tokens: int, output_tokens: int) -> None:
        """Take in the usage of a request that was answered."""
        if size and input_tokens:
            self._tokens_per_byte += 0.05 * (input_tokens / size - self._tokens_per_byte)
        if output_tokens:
            self._output += 0.05 * (output_tokens - self._output)


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
        self._planned = 0.0
        self._unnamed = 0
        self._episodes = 0

    def add(self, now: float, wait: float | None, jitter: float) -> float:
        """A refusal came: pause for `wait`, or a doubling one. Returns the seconds from now.

        A `wait` of 0 is unnamed too. `jitter` in [0, 1) spreads those between half and all of their length.
        """
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
        self._unnamed = 0
        self._episodes = 0

    @staticmethod
    def _doubled(times: int, jitter: float) -> float:
        return min(60.0, 2.0 ** min(times, 6)) * (0.5 + 0.5 * jitter)

    def total(self, now: float) -> float:
        """Seconds that were spent paused until now."""
        return self._planned - max(0.0, self.until - now)
