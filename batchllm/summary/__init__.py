"""What a run came to: outcomes folded into totals, a latency histogram, throughput buckets and examples.

It has no clock and does no I/O, and stays small however long the run is. The ledger adds what it has
committed and keeps the Summary in its snapshot; the ui and the report read it; nobody else writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from batchllm.errors import UNKNOWN
from batchllm.fields import mutable
from batchllm.model import Attempt, Dead, Done, Failure, Usage
from batchllm.summary.histogram import Histogram
from batchllm.summary.throughput import Throughput

__all__ = ["Failed", "Histogram", "Stage", "Summary", "Throughput"]

_EXAMPLES = 3
_EXAMPLE_LENGTH = 300
_CAUSES = 100
_COUNTS = (
    *("succeeded", "failed", "calls", "retried", "cached", "stood_in"),
    *("input_tokens", "output_tokens", "cached_tokens", "unknown_calls"),
)
_OF_STAGE = ("came", "ok", "skipped", "failed")


@mutable
class Failed:
    """The dead letters of one kind and cause: how many, and up to three different messages."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def example(self, message: str) -> None:
        """Keep this message, shortened, unless it is known or there are three."""
        if len(self.examples) < _EXAMPLES and message[:_EXAMPLE_LENGTH] not in self.examples:
            self.examples.append(message[:_EXAMPLE_LENGTH])


@mutable
class Stage:
    """How many records came into a stage, were answered, were left out by its `when`, and failed there."""

    came: int = 0
    ok: int = 0
    skipped: int = 0
    failed: int = 0


@mutable
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
    stood_in: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    unknown_calls: int = 0
    first_at: float | None = None
    last_at: float | None = None
    latency: Histogram = field(default_factory=Histogram)
    throughput: Throughput = field(default_factory=Throughput)
    failures: dict[tuple[str, str], Failed] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)

    def add(self, outcome: Done | Dead) -> None:
        """Count one settled record."""
        self.add_all((outcome,))

    def add_all(self, outcomes: Sequence[Done | Dead]) -> None:
        """Count settled records; a group at once costs less than one by one."""
        if not outcomes:
            return
        usages: list[Usage] = []
        seconds: list[float] = []
        succeeded = 0
        for outcome in outcomes:
            trail = outcome.trail
            attempts = trail.attempts
            if len(attempts) == 1 and (usage := attempts[0].usage) is not None:  # as nearly all are
                usages.append(usage)
            else:
                self._count_calls(attempts)
            if isinstance(outcome, Done):
                succeeded += 1
                if attempts:
                    seconds.append(attempts[-1].seconds)
                reply = outcome.reply
                if reply.cached or reply.fallback:
                    self.cached += reply.cached
                    self.stood_in += reply.fallback
            else:
                self._count_failure(outcome.error)
            if trail.answers is not None:
                at_stage = None if isinstance(outcome, Done) else outcome.error.stage
                self._count_stages(trail.answers or (), trail.skipped or (), at_stage, 1)
        self.succeeded += succeeded
        self.calls += len(usages)
        self._count_usage(usages)
        self.latency.add_all(seconds)
        ats = [outcome.at for outcome in outcomes]
        self.throughput.add_all(ats)
        first, last = min(ats), max(ats)
        self.first_at = first if self.first_at is None else min(self.first_at, first)
        self.last_at = last if self.last_at is None else max(self.last_at, last)

    def _count_calls(self, attempts: Sequence[Attempt]) -> None:
        self._count_usage([attempt.usage for attempt in attempts if attempt.usage is not None])
        self.unknown_calls += sum(
            [attempt.usage is None and attempt.cause == UNKNOWN for attempt in attempts]
        )
        self.calls += len(attempts)
        if len(attempts) > len({attempt.stage for attempt in attempts}):
            self.retried += 1

    def _count_usage(self, usages: Sequence[Usage]) -> None:
        self.input_tokens += sum([usage.input_tokens for usage in usages])
        self.output_tokens += sum([usage.output_tokens for usage in usages])
        self.cached_tokens += sum([usage.cached_tokens for usage in usages])

    def _count_failure(self, error: Failure) -> None:
        self.failed += 1
        failed = self._failed(error.kind, error.cause)
        failed.count += 1
        failed.example(error.message)

    def expect_stages(self, names: Iterable[str]) -> None:
        """Let the stages stand in this order, whichever is counted first."""
        self.stages = {name: self.stages.get(name, Stage()) for name in (*names, *self.stages)}

    def _count_stages(
        self, answered: Iterable[str], skipped: Iterable[str], failed: str | None, one: int
    ) -> None:
        for name in answered:
            stage = self.stages.setdefault(name, Stage())
            stage.came += one
            stage.ok += one
        for name in skipped:
            self.stages.setdefault(name, Stage()).skipped += one
        if failed is not None:
            stage = self.stages.setdefault(failed, Stage())
            stage.came += one
            stage.failed += one

    def reopen(self, told: Mapping[str, Any] | None = None) -> None:
        """Uncount a record that will be asked again: a success, or what a dead letter's line has `told`.

        Of a success its line need not be told, unless it went through stages. Its calls and tokens stay
        counted: they were spent.
        """
        error = told.get("error") if told is not None else None
        if error is None:
            self.succeeded -= 1
        else:
            self.failed -= 1
            key = (error["kind"], error["cause"])
            key = key if key in self.failures else (error["kind"], "other")
            self.failures[key].count -= 1
            if not self.failures[key].count:
                del self.failures[key]
        if told is not None and "stages" in told:
            failed = error.get("stage") if error is not None else None
            self._count_stages(told["stages"], told.get("skipped") or (), failed, -1)

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
        for name, stage in other.stages.items():
            mine = self.stages.setdefault(name, Stage())
            for count in _OF_STAGE:
                setattr(mine, count, getattr(mine, count) + getattr(stage, count))

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
            "stages": {
                name: {count: getattr(stage, count) for count in _OF_STAGE}
                for name, stage in self.stages.items()
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Summary:
        """The Summary that `to_dict` described; KeyError, TypeError or ValueError for anything else."""
        rest = {name: data[name] for name in (*_COUNTS, "first_at", "last_at") if name in data}
        return cls(
            **rest,
            latency=Histogram.from_dict(data["latency"]),
            throughput=Throughput.from_dict(data["throughput"]),
            failures={
                (str(one["kind"]), str(one["cause"])): Failed(int(one["count"]), list(one["examples"]))
                for one in data["failures"]
            },
            stages={name: Stage(**counts) for name, counts in data.get("stages", {}).items()},
        )

    def _failed(self, kind: str, cause: str) -> Failed:
        failed = self.failures.get((kind, cause))
        if failed is None:
            # Causes may be a provider's own words; the snapshot that carries them has to stay small.
            key = (kind, cause if cause == UNKNOWN or len(self.failures) < _CAUSES else "other")
            failed = self.failures.setdefault(key, Failed())
        return failed
