"""Records settled over time, in a bounded number of buckets, mergeable in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from batchllm.fields import mutable

_BUCKETS = 512


@mutable
class Throughput:
    """Records settled over time, in at most 512 buckets of `width` seconds.

    The width starts at one second and doubles whenever there are more buckets than that; it depends only
    on what was added, never on the order, so parts merged equal the whole.
    """

    width: int = 1
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, at: float) -> None:
        """Count one record settled at `at`, Unix seconds."""
        self.add_all((at,))

    def add_all(self, ats: Sequence[float]) -> None:
        """Count records settled at these times."""
        if not ats:
            return
        width, counts = self.width, self.counts
        first, last = int(min(ats) // width), int(max(ats) // width)
        found = {first: len(ats)} if first == last else Counter([int(at // width) for at in ats])
        for bucket, count in found.items():
            counts[bucket] = counts.get(bucket, 0) + count
        while len(self.counts) > _BUCKETS:
            self._widen(self.width * 2)

    def buckets(self) -> list[tuple[float, int]]:
        """Each bucket that holds anything: its start in Unix seconds and its count, in order of time."""
        return [(float(bucket * self.width), self.counts[bucket]) for bucket in sorted(self.counts)]

    def settled_since(self, start: float, now: float) -> float:
        """How many records were settled from `start` to `now`; a bucket cut in two counts in proportion."""
        total = 0.0
        for begin, count in self.buckets():
            end = min(begin + self.width, max(now, begin))
            if begin >= start:
                total += count
            elif end > start:
                total += count * (end - start) / (end - begin)
        return total

    def merge(self, other: Throughput) -> None:
        """Add all that `other` has counted."""
        self._widen(max(self.width, other.width))
        ratio = self.width // other.width
        for bucket, count in other.counts.items():
            self.counts[bucket // ratio] = self.counts.get(bucket // ratio, 0) + count
        while len(self.counts) > _BUCKETS:
            self._widen(self.width * 2)

    def _widen(self, width: int) -> None:
        if width == self.width:
            return
        ratio = width // self.width
        counts: dict[int, int] = {}
        for bucket, count in self.counts.items():
            counts[bucket // ratio] = counts.get(bucket // ratio, 0) + count
        self.width, self.counts = width, counts

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can carry."""
        return {
            "width": self.width,
            "counts": [[bucket, self.counts[bucket]] for bucket in sorted(self.counts)],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Throughput:
        """The throughput that `to_dict` described."""
        return cls(int(data["width"]), {int(bucket): int(count) for bucket, count in data["counts"]})
