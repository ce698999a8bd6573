"""A run that is ready to go, as the command line and the ui see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchllm.job import Job
from batchllm.layers.gated import Gate
from batchllm.ledger import Ledger
from batchllm.model import frozen
from batchllm.run import Parts
from batchllm.sources import JsonlSource
from batchllm.summary import Summary
from batchllm.wire.opening import Opened
from batchllm.wire.places import Places


@dataclass(slots=True)
class Live:
    """A wired run; also what the ui samples while it goes (see `ui.View`).

    `skipped` records were settled by earlier sessions; `before` is the number of those outside this pass.
    """

    job: Job
    places: Places
    model: str
    parts: Parts
    source: JsonlSource
    ledger: Ledger
    gate: Gate
    skipped: int
    before: int
    run_id: str
    opened: Opened | None
    warnings: list[str] = field(default_factory=list)

    @property
    def summary(self) -> Summary:
        """The totals of what is committed, earlier sessions included."""
        return self.ledger.summary

    def total(self) -> tuple[int | None, bool]:
        """Records expected in all; exact once the input has been read to its end, else from bytes."""
        source, limit = self.source, self.job.limit
        if source.ended:
            return self.before + source.records, True
        if source.total_bytes is None or not source.read_bytes or not source.records:
            return (limit, False) if limit else (None, False)
        expected = self.before + round(source.records * source.total_bytes / source.read_bytes)
        return (min(expected, limit), False) if limit else (expected, False)

    def in_flight(self) -> int:
        """Calls in flight now."""
        return self.gate.in_flight

    def waiting(self) -> str | None:
        """Why it is slow now."""
        return self.gate.waits()

    @property
    def cut_short(self) -> bool:
        """Whether this pass was begun by an earlier session."""
        return self.opened is not None and self.opened.cut_short

    @property
    def read_and_settled(self) -> bool:
        """Whether everything that was to be read is settled."""
        return self.source.ended and self.ledger.settled.watermark >= self.source.records

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
