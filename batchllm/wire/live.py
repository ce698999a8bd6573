"""A run that is ready to go, as the command line and the ui see it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchllm.errors import ConfigError, Drained
from batchllm.fields import frozen, mutable
from batchllm.job import Job
from batchllm.layers.gated import Gate
from batchllm.ledger import Ledger
from batchllm.mainpath import Parts
from batchllm.sources import JsonlSource
from batchllm.summary import Summary
from batchllm.wire.gates import Gates
from batchllm.wire.opening import Opened
from batchllm.wire.places import Places

if TYPE_CHECKING:
    from batchllm.pilot import Pilot
    from batchllm.report import Comparison


@mutable
class Live:
    """A wired run; also what the ui samples while it goes (see `ui.View`).

    `skipped` records were settled by earlier sessions; `before` is the number of those outside this pass.
    `variants` are the units that a record makes in this pass. `began` is in Unix seconds. `concurrency` and
    `limits` are what was set while it ran (see `control.Controlled`, which this is too).
    """

    job: Job
    places: Places
    model: str
    parts: Parts
    source: JsonlSource
    ledger: Ledger
    gate: Gate | Gates
    skipped: int
    before: int
    run_id: str
    opened: Opened | None
    pilot: Pilot | None = None
    warnings: list[str] = field(default_factory=list)
    variants: int = 1
    began: float = field(default_factory=time.time)
    concurrency: int | None = None
    limits: dict[str, float | None] = field(default_factory=dict)

    @property
    def summary(self) -> Summary:
        """The totals of what is committed, earlier sessions included."""
        return self.ledger.summary

    def total(self) -> tuple[int | None, bool]:
        """Records expected in all; exact once the input has been read to its end, else from bytes."""
        source, limit = self.source, self.job.limit
        if source.ended:
            return self.before + source.records * self.variants, True
        if source.total_bytes is None or not source.read_bytes or not source.records:
            return (limit * self.variants, False) if limit else (None, False)
        expected = round(source.records * source.total_bytes / source.read_bytes) * self.variants
        expected += self.before
        return (min(expected, limit * self.variants), False) if limit else (expected, False)

    def in_flight(self) -> int:
        """Calls in flight now."""
        return self.gate.in_flight

    def waiting(self) -> str | None:
        """Why it is slow now."""
        gate = self.gate
        reason = gate.waits()
        if reason is None and (delayed := gate.delayed) >= max(2.0, gate.width / 10):
            reason = f"{delayed:,} waiting to be tried again"
        return reason

    @property
    def paused(self) -> bool:
        """Whether no new call goes out, since `pause`."""
        return self.gate.held

    @property
    def stopping(self) -> str | None:
        """Why the run is stopping, in words, or None."""
        reason = self.parts.stop.reason
        if isinstance(reason, signal.Signals):
            return f"by {reason.name}"
        return None if reason is None else str(reason)

    def status(self) -> dict[str, Any]:
        """How it goes: `rate` in records a second, `eta_s` in seconds, `limits` a minute by dimension."""
        summary, now = self.summary, time.time()
        total, exact = self.total()
        rate = summary.rate(now, min(30.0, max(now - self.began, 1.0)))
        left = None if total is None else max(total - summary.settled, 0)
        unknown = left is None or (left and (not rate or self.paused or self.stopping))
        return {
            "run_id": self.run_id,
            "pid": os.getpid(),
            "model": self.model,
            "output": self.places.output,
            "processed": summary.settled,
            "total": total,
            "total_exact": exact,
            "succeeded": summary.succeeded,
            "failed": summary.failed,
            "retried": summary.retried,
            "rate": None if rate is None else round(rate, 3),
            "eta_s": None if unknown else round((left or 0) / (rate or 1.0), 1),
            "in_flight": self.in_flight(),
            "concurrency": int(self.gate.target),
            "limits": {name: round(limit, 6) for name, limit in self.gate.limits().items()},
            "paused": self.paused,
            "stopping": self.stopping,
            "waiting": self.waiting(),
        }

    def retune(self, concurrency: int | None, limits: Mapping[str, float | None]) -> None:
        """Set the window unless it is None, and these limits a minute; ValueError above what it can have."""
        if concurrency is not None:
            self.gate.retune(concurrency)
            self.concurrency = concurrency
        if limits:
            self.gate.limit(limits)
            self.limits.update(limits)

    def pause(self) -> None:
        """Let no new call go out; those in flight finish."""
        self.gate.hold()

    def resume(self) -> None:
        """Go on after a pause."""
        self.gate.go_on()

    def drain(self) -> None:
        """Take up no new record, and stop once the calls in flight have finished."""
        self.parts.stop.set(Drained("drained by ctl", "run the same command again to go on"))

    def comparison(self) -> Comparison | None:
        """What the files say of accuracy, once the run is through; None where nothing was expected."""
        return None if self.parts.stop else comparison_of(self.places, self.job)

    def follow(self, earlier: Live) -> None:
        """Go on as the pass before was steered."""
        if earlier.concurrency is not None:
            self.retune(int(min(earlier.concurrency, self.gate.ceiling)), {})
        self.retune(None, earlier.limits)
        if earlier.paused:
            self.pause()

    @property
    def cut_short(self) -> bool:
        """Whether this pass was begun by an earlier session."""
        return self.opened is not None and self.opened.cut_short

    @property
    def read_and_settled(self) -> bool:
        """Whether everything that was to be read is settled."""
        return self.source.ended and self.ledger.settled.watermark >= self.source.records * self.variants

    @property
    def complete(self) -> bool:
        """Whether every record of the input is settled."""
        limited = self.job.limit is not None and self.source.records >= self.job.limit
        return self.read_and_settled and (not limited or self.ledger.later is not None)

    def abort(self) -> None:
        """Give up what is in flight, and a stdout that nobody reads."""
        self.parts.engine.abort()
        self.ledger.abandon()

    async def close(self) -> None:
        """Finish the ledger's files: the last snapshot, and input order where it is due."""
        unfinished = self.source.unfinished
        ordered = self.job.ordered is not False and self.read_and_settled
        await self.ledger.finish(
            complete=self.complete,
            ordered=ordered,
            unfinished_line=f"{unfinished[0]} line {unfinished[1]}" if unfinished else None,
        )
        if self.opened is not None:
            self.opened.journal.close()


@frozen
class Finished:
    """An earlier session settled everything: there is nothing to run."""

    places: Places
    summary: Summary
    unfinished_line: str | None
    job: Job

    def comparison(self) -> Comparison | None:
        """As that of a Live."""
        return comparison_of(self.places, self.job)


def comparison_of(places: Places, job: Job) -> Comparison | None:
    """Read the files of a run that compares or judges; None for any other, and where they can't be read.

    The run itself is done by then, so this is no place to fail.
    """
    if not (job.expect or job.variant) or places.on_stdout or not Path(places.output).is_file():
        return None
    from batchllm.report import compare  # few runs need it

    try:
        return compare(places.output, places.dead_letter, expect=job.expect)
    except ConfigError:
        return None
