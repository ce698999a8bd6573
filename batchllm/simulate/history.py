"""When the rehearsal server admitted and refused requests: the last minutes by second, and the densest spans.

State and time in, figures out; `counts` shows them. Spans are exact to the arrival, not to the second.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

SPANS_S = (1, 10, 60)
KEPT_S = 600


class Peak:
    """The most requests and the most tokens that were admitted within any span of so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: deque[float] = deque()
        self._tokens: deque[int] = deque()
        self._sum = 0
        self.requests = 0
        self.tokens = 0

    def admit(self, tokens: int, now: float) -> None:
        """One more was admitted now."""
        self._times.append(now)
        self._tokens.append(tokens)
        self._sum += tokens
        oldest = now - self._seconds
        while self._times[0] <= oldest:
            self._times.popleft()
            self._sum -= self._tokens.popleft()
        if len(self._times) > self.requests:
            self.requests = len(self._times)
        if self._sum > self.tokens:
            self.tokens = self._sum


class History:
    """Admissions and refusals since `start`, in monotonic seconds."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._peaks = {span: Peak(span) for span in SPANS_S}
        self._seconds: dict[int, list[int]] = {}
        self.admitted = 0
        self.tokens = 0
        self.refusals: Counter[str] = Counter()

    def admit(self, tokens: int, now: float) -> None:
        """A request of so many tokens, as limits count them, was admitted."""
        self.admitted += 1
        self.tokens += tokens
        for peak in self._peaks.values():
            peak.admit(tokens, now)
        second = self._second(now)
        second[0] += 1
        second[2] += tokens

    def refuse(self, reason: str, now: float) -> None:
        """A request was refused: for a limit by its name, or for quota, overload or queue."""
        self.refusals[reason] += 1
        self._second(now)[1] += 1

    def as_json(self) -> dict[str, Any]:
        """Totals, and for each span the most that it held."""
        peaks = {str(s): {"requests": p.requests, "tokens": p.tokens} for s, p in self._peaks.items()}
        return {
            "admitted": self.admitted,
            "refused": self.refusals.total(),
            "tokens_admitted": self.tokens,
            "refusals": dict(sorted(self.refusals.items())),
            "highest_admitted": peaks,
        }

    def seconds(self, now: float) -> list[dict[str, int]]:
        """The seconds of the last 10 minutes in which anything came, `second` counted from the start."""
        self._forget(now)
        names = ("admitted", "refused", "tokens")
        found = sorted(self._seconds.items())
        return [{"second": second, **dict(zip(names, counts, strict=True))} for second, counts in found]

    def _second(self, now: float) -> list[int]:
        number = int(now - self._start)
        if number not in self._seconds:
            self._forget(now)
            self._seconds[number] = [0, 0, 0]
        return self._seconds[number]

    def _forget(self, now: float) -> None:
        oldest = int(now - self._start) - KEPT_S
        for second in [second for second in self._seconds if second <= oldest]:
            del self._seconds[second]
