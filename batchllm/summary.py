"""What a run came to: outcomes folded into totals, a latency histogram, throughput buckets and examples.

It has no clock and does no I/O, and stays small however long the run is. The ledger adds what it has
committed and keeps the Summary in its snapshot; the ui and the report read it; nobody else writes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from batchllm.errors import UNKNOWN
from batchllm.model import Dead, Done, Usage

_PRECISION = 0.02
_GAMMA = (1 + _PRECISION) / (1 - _PRECISION)
_PER_LOG = 1 / math.log(_GAMMA)
_SHORTEST = 1e-6
_BUCKETS = 512
_EXAMPLES = 3
_EXAMPLE_LENGTH = 300
_CAUSES = 100
_COUNTS = (
    *("succeeded", "failed", "calls", "retried", "cached"),
    *("input_tokens", "output_tokens", "cached_tokens", "unknown_calls"),
)


@dataclass(slots=True)
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
        if seconds < _SHORTEST:
            seconds = _SHORTEST
        bucket = math.ceil(math.log(seconds) * _PER_LOG)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.microseconds += round(seconds * 1e6)
        if seconds < self.shortest:
            self.shortest = seconds
        if seconds > self.longest:
            self.longest = seconds

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


@dataclass(slots=True)
class Throughput:
    """Records settled over time, in at most 512 buckets of `width` seconds.

    The width starts at one second and doubles whenever there are more buckets than that; it depends only
    on what was added, never on the order, so parts merged equal the whole.
    """

    width: int = 1
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, at: float) -> None:
        """Count one record settled at `at`, Unix seconds."""
        bucket = int(at // self.width)
        count = self.counts.get(bucket)
        if count is not None:
            self.counts[bucket] = count + 1
            return
        self.counts[bucket] = 1
        if len(self.counts) > _BUCKETS:
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
        return {"width": self.width, "counts": [[at, self.counts[at]] for at in sorted(self.counts)]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Throughput:
        """The throughput that `to_dict` described."""
        return cls(int(data["width"]), {int(bucket): int(count) for bucket, count in data["counts"]})


@dataclass(slots=True)
class Failed:
    """The dead letters of one kind and cause: how many, and up to three different messages."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def example(self, message: str) -> None:
        """Keep this message, shortened, unless it is known or there are three."""
        if len(self.examples) < _EXAMPLES and message[:_EXAMPLE_LENGTH] not in self.examples:
            self.examples.append(message[:_EXAMPLE_LENGTH])


@dataclass(slots=True)
class Summary:
    """The totals of a run over all its sessions; equal when everything counted is equal.

    `calls` counts every call of a settled record, `retried` the records that needed more than one, `cached`
    the successes that needed none. `unknown_calls`: calls answered in a way that no rule knows; those of
    records settled shortly before a crash are missing there. `latency` holds the seconds of the call that
    brought the answer. `first_at` and `last_at`: when the first and last record were settled, Unix seconds.
    """

    succeeded: int = 0
    failed: int = 0
    calls: int = 0
    retried: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    unknown_calls: int = 0
    first_at: float | None = None
    last_at: float | None = None
    latency: Histogram = field(default_factory=Histogram)
    throughput: Throughput = field(default_factory=Throughput)
    failures: dict[tuple[str, str], Failed] = field(default_factory=dict)

    def add(self, outcome: Done | Dead) -> None:
        """Count one settled record."""
        attempts = outcome.trail.attempts
        for attempt in attempts:
            usage = attempt.usage
            if usage is not None:
                self.input_tokens += usage.input_tokens
                self.output_tokens += usage.output_tokens
                if usage.cached_tokens:
                    self.cached_tokens += usage.cached_tokens
            elif attempt.cause == UNKNOWN:
                self.unknown_calls += 1
        calls = len(attempts)
        self.calls += calls
        if calls > 1:
            self.retried += 1
        at = outcome.at
        self.throughput.add(at)
        if self.last_at is None or at > self.last_at:
            self.last_at = at
        if self.first_at is None or at < self.first_at:
            self.first_at = at
        if isinstance(outcome, Done):
            self.succeeded += 1
            if calls:
                self.latency.add(attempts[-1].seconds)
            elif outcome.reply.cached:
                self.cached += 1
        else:
            self.failed += 1
            error = outcome.error
            failed = self._failed(error.kind, error.cause)
            failed.count += 1
            failed.example(error.message)

    def reopen(self, kind: str | None = None, cause: str = "") -> None:
        """Uncount a record that will be asked again: a dead letter of this kind and cause, else a success.

        Its calls and tokens stay counted: they were spent.
        """
        if kind is None:
            self.succeeded -= 1
            return
        self.failed -= 1
        key = (kind, cause) if (kind, cause) in self.failures else (kind, "other")
        self.failures[key].count -= 1
        if not self.failures[key].count:
            del self.failures[key]

    @property
    def settled(self) -> int:
        """Records that have their outcome."""
        return self.succeeded + self.failed

    @property
    def success_rate(self) -> float | None:
        """The share of settled records that succeeded, 0 to 1, or None while there is none."""
        return self.succeeded / self.settled if self.settled else None

    @property
    def usage(self) -> Usage:
        """Tokens of all calls, failed ones included where they were told."""
        return Usage(self.input_tokens, self.output_tokens, self.cached_tokens)

    @property
    def unknown(self) -> int:
        """Dead letters whose last answer was one that no rule knows."""
        return sum(failed.count for (_, cause), failed in self.failures.items() if cause == UNKNOWN)

    def by_kind(self) -> dict[str, int]:
        """Dead letters by kind, the most frequent first."""
        kinds: dict[str, int] = {}
        for (kind, _), failed in self.failures.items():
            kinds[kind] = kinds.get(kind, 0) + failed.count
        return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))

    def causes(self, kind: str) -> dict[str, Failed]:
        """The dead letters of one kind by cause, the most frequent first."""
        causes = {cause: failed for (of, cause), failed in self.failures.items() if of == kind}
        return dict(sorted(causes.items(), key=lambda item: (-item[1].count, item[0])))

    def rate(self, now: float, window: float = 30.0) -> float | None:
        """Records a second settled in the last `window` seconds before `now` (Unix seconds).

        Late in a long run the buckets are wider than the window, which then grows to two buckets. Before
        the first second has passed the rate is taken over a whole one; None while nothing is settled.
        """
        if self.first_at is None:
            return None
        window = max(window, 2.0 * self.throughput.width)
        span = min(window, max(now - self.first_at, 1.0))
        return self.throughput.settled_since(now - span, now) / span

    def merge(self, other: Summary) -> None:
        """Add all that `other` has counted, as if its outcomes had been added here."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_at = min((at for at in (self.first_at, other.first_at) if at is not None), default=None)
        self.last_at = max((at for at in (self.last_at, other.last_at) if at is not None), default=None)
        self.latency.merge(other.latency)
        self.throughput.merge(other.throughput)
        for (kind, cause), theirs in other.failures.items():
            failed = self._failed(kind, cause)
            failed.count += theirs.count
            for message in theirs.examples:
                failed.example(message)

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can carry; `from_dict` makes an equal Summary of it."""
        return {name: getattr(self, name) for name in _COUNTS} | {
            "first_at": self.first_at,
            "last_at": self.last_at,
            "latency": self.latency.to_dict(),
            "throughput": self.throughput.to_dict(),
            "failures": [
                {"kind": kind, "cause": cause, "count": failed.count, "examples": list(failed.examples)}
                for (kind, cause), failed in self.failures.items()
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Summary:
        """The Summary that `to_dict` described; KeyError, TypeError or ValueError for anything else."""
        rest = {key: value for key, value in data.items() if key not in ("latency", "throughput", "failures")}
        return cls(
            **rest,
            latency=Histogram.from_dict(data["latency"]),
            throughput=Throughput.from_dict(data["throughput"]),
            failures={
                (str(one["kind"]), str(one["cause"])): Failed(int(one["count"]), list(one["examples"]))
                for one in data["failures"]
            },
        )

    def _failed(self, kind: str, cause: str) -> Failed:
        failed = self.failures.get((kind, cause))
        if failed is None:
            # Causes may be a provider's own words; the snapshot that carries them has to stay small.
            key = (kind, cause if cause == UNKNOWN or len(self.failures) < _CAUSES else "other")
            failed = self.failures.setdefault(key, Failed())
        return failed
