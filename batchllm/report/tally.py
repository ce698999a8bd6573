"""The figures of one variant, or of a whole run: a Summary, what it cost, and how many answers were right.

`comparing` fills it from the lines of the files; a Tally reads nothing itself.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from batchllm.fields import frozen, mutable
from batchllm.stats import Confusion, Interval, Table, wilson
from batchllm.summary import Summary
from batchllm.summary.ending import counted


@frozen
class Accuracy:
    """`right` of the `n` answers that have an expected value; `interval` is Wilson's of 95 %.

    Dead records have no answer and are none of the `n`. `table` says what was answered for what; None where
    the answers can't be told from the lines.
    """

    n: int
    right: int
    interval: Interval
    table: Table | None

    @property
    def share(self) -> float:
        """Of 0 to 1."""
        return self.right / self.n

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can carry, in full precision."""
        table = self.table
        return {
            "n": self.n,
            "correct": self.right,
            "accuracy": self.share,
            "low": self.interval.low,
            "high": self.interval.high,
            "confusion": None
            if table is None
            else {"labels": table.labels, "other": table.other, "counts": table.counts},
        }


@mutable
class Tally:
    """One variant's figures; `name` is None where a run has no variants.

    `cost` in US dollars is None as soon as one call's price is not known. `labelled` says that every answer's
    label could be told.
    """

    name: str | None
    summary: Summary = field(default_factory=Summary)
    cost: float | None = 0.0
    n: int = 0
    right: int = 0
    labelled: bool = True
    confusion: Confusion = field(default_factory=Confusion)

    @property
    def schema_rate(self) -> float | None:
        """The share of settled records that did not die of an invalid answer; None before any."""
        settled = self.summary.settled
        return 1 - self.summary.by_kind().get("invalid", 0) / settled if settled else None

    @property
    def accuracy(self) -> Accuracy | None:
        """None where no answer has an expected value."""
        if not self.n:
            return None
        table = self.confusion.table() if self.labelled else None
        return Accuracy(self.n, self.right, wilson(self.right, self.n), table)

    @property
    def seconds(self) -> float:
        """From the first settled record to the last."""
        first, last = self.summary.first_at, self.summary.last_at
        return last - first if first is not None and last is not None else 0.0

    @property
    def rate(self) -> float | None:
        """Records a second over that time; None where it is none."""
        return self.summary.settled / self.seconds if self.seconds > 0 else None

    def pay(self, cost: float | None, calls: int) -> None:
        """Count what a record cost; what made no call cost nothing."""
        if cost is None:
            self.cost = None if calls else self.cost
        elif self.cost is not None:
            self.cost += cost

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can carry, in full precision: times in seconds, rates as shares of 0 to 1."""
        summary, accuracy = self.summary, self.accuracy
        return {
            "records": summary.settled,
            "ok": summary.succeeded,
            "failed": summary.failed,
            "success_rate": summary.success_rate,
            "schema_rate": self.schema_rate,
            **counted(summary),
            "cost_usd": self.cost,
            "first_at": summary.first_at,
            "last_at": summary.last_at,
            "seconds": self.seconds,
            "rate": self.rate,
            "accuracy": accuracy.to_dict() if accuracy is not None else None,
        }
