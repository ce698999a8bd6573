"""What progress consists of: a sample of the run as plain numbers, and the words for each of them.

Pure: time comes in as an argument. Every form of progress (bar, log line, JSON line) draws the same Figures.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from batchllm.fields import frozen
from batchllm.summary import Summary

_WINDOW = 30.0


class View(Protocol):
    """What the ui samples while a run goes on."""

    @property
    def summary(self) -> Summary:
        """The totals of what is committed, earlier runs of the same output included."""
        ...

    @property
    def skipped(self) -> int:
        """How many of these were settled by earlier runs."""
        ...

    def total(self) -> tuple[int | None, bool]:
        """Records expected in all, None if unknown; and whether that is exact or an estimate from bytes."""
        ...

    def in_flight(self) -> int:
        """Calls in flight now."""
        ...

    def waiting(self) -> str | None:
        """Why it is slow now, in a few words, or None."""
        ...


class Pace:
    """How fast this session settles records: over the last 30 seconds, and since it started.

    `start` is a monotonic time in seconds, `settled` what was settled by then. Owned by one `show`.
    """

    def __init__(self, start: float, settled: int) -> None:
        self._start, self._baseline = start, settled
        self._samples: deque[tuple[float, int]] = deque([(start, settled)])

    def note(self, now: float, settled: int) -> None:
        """Remember that so many were settled at `now`."""
        self._samples.append((now, settled))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()

    def elapsed(self) -> float:
        """Seconds from the start to the latest sample."""
        return self._samples[-1][0] - self._start

    def overall(self) -> float | None:
        """Records a second since the start, None while nothing is settled."""
        return _slope((self._start, self._baseline), self._samples[-1])

    def recent(self) -> float | None:
        """Records a second over the last 30 seconds, 0 in a lull, None while nothing is settled."""
        if self._samples[-1][1] <= self._baseline:
            return None
        return _slope(self._samples[0], self._samples[-1]) or 0.0

    def forecast(self) -> float | None:
        """The rate to expect: mostly the recent one; in a lull the overall one, for lulls end."""
        recent, overall = self.recent(), self.overall()
        if not recent or overall is None:
            return overall
        return (2 * recent + overall) / 3


def _slope(old: tuple[float, int], new: tuple[float, int]) -> float | None:
    seconds, records = new[0] - old[0], new[1] - old[1]
    return records / seconds if seconds > 0 and records > 0 else None


@frozen
class Figures:
    """One sample of a run. `rate` is in records a second, `eta` and `elapsed` in seconds.

    `last` marks the final one: its rate is that of the whole session, and nothing is in flight.
    """

    processed: int
    total: int | None
    exact: bool
    succeeded: int
    failed: int
    retried: int
    rate: float | None
    eta: float | None
    elapsed: float
    in_flight: int
    input_tokens: int
    output_tokens: int
    waiting: str | None
    last: bool

    @property
    def progress(self) -> float | None:
        """Percent done, rounded down to a tenth; 100 only when an exact total is reached."""
        if self.total is None:
            return None
        share = min(self.processed / self.total, 1.0) if self.total else 1.0
        percent = math.floor(share * 1000) / 10
        return percent if self.exact else min(percent, 99.0)

    @property
    def success_rate(self) -> float | None:
        """The share of processed records that succeeded, rounded down to four places."""
        return math.floor(self.succeeded / self.processed * 10_000) / 10_000 if self.processed else None


def measure(view: View, pace: Pace, now: float, *, last: bool = False) -> Figures:
    """Sample the view at `now`, a monotonic time in seconds."""
    summary = view.summary
    succeeded, failed = summary.succeeded, summary.failed
    processed = succeeded + failed
    pace.note(now, processed)
    total, exact = view.total()
    if total is not None:
        total = max(total, processed)
    forecast = pace.forecast()
    eta = None
    if total is not None and (forecast or total == processed):
        eta = (total - processed) / forecast if forecast else 0.0
    return Figures(
        processed=processed,
        total=total,
        exact=exact,
        succeeded=succeeded,
        failed=failed,
        retried=summary.retried,
        rate=pace.overall() if last else pace.recent(),
        eta=eta,
        elapsed=pace.elapsed(),
        in_flight=0 if last else view.in_flight(),
        input_tokens=summary.input_tokens,
        output_tokens=summary.output_tokens,
        waiting=None if last else view.waiting(),
        last=last,
    )


def done_of(figures: Figures) -> str:
    """`3,120/13,083`, `3,120/~13,100` for an estimate, `3,120 done` where the total is unknown."""
    if figures.total is None:
        return f"{figures.processed:,} done"
    total = f"{figures.total:,}"
    return f"{figures.processed:>{len(total)},}/{'' if figures.exact else '~'}{total}"


def percent_done(figures: Figures) -> str:
    """`24%`, or nothing where the total is unknown."""
    return "" if figures.progress is None else f"{math.floor(figures.progress)}%"


def per_cent(share: float) -> str:
    """`99.2%` of a share of 0 to 1, rounded down; `100%` only for all."""
    return "100%" if share >= 1 else f"{math.floor(share * 1000) / 10:.1f}%"


def speed(rate: float | None) -> str:
    """`415/s`, `4.2/s`; a minute's records where a second has less than one; `--/s` if unknown."""
    if rate is None:
        return "--/s"
    if 0 < rate < 1:
        return f"{rate * 60:.1f}/min"
    return f"{rate:.1f}/s" if rate < 10 else f"{rate:,.0f}/s"


def duration(seconds: float | None) -> str:
    """`24s`, `3m05s`, `2h14m`, `3d04h`; `--` if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "--"
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400:,}d{whole % 86400 // 3600:02}h"


def precise(seconds: float | None) -> str:
    """`87 ms`, `1.23 s`, `12.3 s`, `3m05s`; `--` if unknown."""
    if seconds is None:
        return "--"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s" if seconds < 100 else duration(seconds)


def short(number: int) -> str:
    """`987`, `12.3k`, `1.2M`, `3.4B`: at most five characters up to a trillion."""
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            tenths = number * 10 // size
            return f"{tenths / 10:.1f}{letter}" if tenths < 1000 else f"{tenths // 10:,}{letter}"
    return str(number)


def tokens(figures: Figures, *, brief: bool) -> str:
    """`tokens 1.2M in 345k out`, brief `tokens 1.2M/345k`, or nothing where no usage was told."""
    if not figures.input_tokens and not figures.output_tokens:
        return ""
    used, made = short(figures.input_tokens), short(figures.output_tokens)
    return f"tokens {used}/{made}" if brief else f"tokens {used} in {made} out"
