"""Requests and tokens a minute, as the rehearsal server enforces them: state and time in, verdict out.

Token buckets that refill continuously and hold a second's worth, at least 1, so that a client which starts
by spending a whole minute's allowance is refused, as real services do over short windows. It keeps no clock
of its own; the app owns the one `Quota` and asks it for each request.
"""

from __future__ import annotations

from dataclasses import dataclass

# A client at exactly the permitted pace must not be refused because its first request took longer to
# arrive (a new connection) than the later ones: so much of a second may be overdrawn.
_SLACK_S = 0.5


class Bucket:
    """One limit of `per_minute` units; `level` is what it holds, in units, and may go into debt."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate)
        self.level = self.capacity
        self._at = now

    def wait(self, need: float, now: float) -> float:
        """Seconds until `need` units would be admitted; 0 admits now.

        More than the bucket can hold is admitted when it is full.
        """
        self._refill(now)
        missing = min(need, self.capacity) - self.level
        return 0.0 if missing <= self.rate * _SLACK_S else missing / self.rate

    def take(self, need: float) -> None:
        """Take units that `wait` has admitted."""
        self.level -= need

    def headers(self, dimension: str) -> dict[str, str]:
        """The x-ratelimit headers, in which (limit − remaining) / reset is the refill rate."""
        spent = max(0.0, self.capacity - self.level)
        return {
            f"x-ratelimit-limit-{dimension}": str(self.per_minute),
            f"x-ratelimit-remaining-{dimension}": str(max(0, int(self.per_minute - spent))),
            f"x-ratelimit-reset-{dimension}": duration(spent / self.rate),
        }

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self._at) * self.rate)
        self._at = now


@dataclass(frozen=True)
class Refusal:
    """The limit that refused, `requests` or `tokens` a minute, and the seconds after which to try again."""

    dimension: str
    per_minute: int
    wait: float


class Quota:
    """The limits of one account; either may be None for no limit. Times are monotonic seconds."""

    def __init__(self, rpm: int | None, tpm: int | None, now: float) -> None:
        self._buckets: dict[str, Bucket] = {}
        if rpm is not None:
            self._buckets["requests"] = Bucket(rpm, now)
        if tpm is not None:
            self._buckets["tokens"] = Bucket(tpm, now)

    def ask(self, tokens: int, now: float) -> Refusal | None:
        """Count one request of so many tokens, or refuse it; a refused one counts nowhere."""
        needs = {"requests": 1, "tokens": tokens}
        for name, bucket in self._buckets.items():
            wait = bucket.wait(needs[name], now)
            if wait > 0:
                return Refusal(name, bucket.per_minute, wait)
        for name, bucket in self._buckets.items():
            bucket.take(needs[name])
        return None

    def headers(self) -> dict[str, str]:
        """The headers of every limit, as they stand."""
        found: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            found.update(bucket.headers(name))
        return found


def duration(seconds: float) -> str:
    """Seconds in the form of OpenAI's reset headers: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
