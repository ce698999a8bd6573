"""Durations counted in log-spaced buckets, mergeable in any order: quantiles without keeping the values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from batchllm.fields import mutable

_PRECISION = 0.02
_GAMMA = (1 + _PRECISION) / (1 - _PRECISION)
_PER_LOG = 1 / math.log(_GAMMA)
_SHORTEST = 1e-6


@mutable
class Histogram:
    """Durations in seconds in log-spaced buckets; a quantile is within 2 % of a value that was added.

    The bucket scheme is DDSketch's (Masson, Rim and Lee, VLDB 2019): bucket i holds (g^(i-1), g^i] with
    g = 1.02 / 0.98. The sum is kept in whole microseconds, so that merging is exact in any order.
    """

    buckets: dict[int, int] = field(default_factory=dict)
    count: int = 0
    microseconds: int = 0
    shortest: float = math.inf
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration; what is under a microsecond counts as one."""
        self.add_all((seconds,))

    def add_all(self, durations: Sequence[float]) -> None:
        """Count durations."""
        if not durations:
            return
        if (shortest := min(durations)) < _SHORTEST:
            durations = [max(seconds, _SHORTEST) for seconds in durations]
            shortest = _SHORTEST
        ceil, log, buckets = math.ceil, math.log, self.buckets
        for bucket, count in Counter([ceil(log(seconds) * _PER_LOG) for seconds in durations]).items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        self.count += len(durations)
        self.microseconds += sum([int(seconds * 1e6 + 0.5) for seconds in durations])
        self.shortest = min(self.shortest, shortest)
        self.longest = max(self.longest, max(durations))

    @property
    def mean(self) -> float | None:
        """The mean in seconds, or None while nothing was added."""
        return self.microseconds / self.count / 1e6 if self.count else None

    @property
    def maximum(self) -> float | None:
        """The longest duration in seconds, or None while nothing was added."""
        return self.longest if self.count else None

    def quantile(self, q: float) -> float | None:
        """The duration in seconds below which the share `q` (0 to 1) lies, or None while it is empty."""
        if not self.count:
            return None
        rank = max(1, math.ceil(q * self.count))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                middle = 2 * _GAMMA**bucket / (_GAMMA + 1)
                return min(max(middle, self.shortest), self.longest)
        return self.longest

    def merge(self, other: Histogram) -> None:
        """Add all that `other` has counted."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.microseconds += other.microseconds
        self.shortest = min(self.shortest, other.shortest)
        self.longest = max(self.longest, other.longest)

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can carry; `count` follows from the buckets."""
        return {
            "buckets": [[bucket, self.buckets[bucket]] for bucket in sorted(self.buckets)],
            "microseconds": self.microseconds,
            "shortest": self.shortest if self.count else None,
            "longest": self.longest,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Histogram:
        """The histogram that `to_dict` described."""
        buckets = {int(bucket): int(count) for bucket, count in data["buckets"]}
        shortest = math.inf if data["shortest"] is None else float(data["shortest"])
        count = sum(buckets.values())
        return cls(buckets, count, int(data["microseconds"]), shortest, float(data["longest"]))
