"""The pilot: the first records of a run, settled and judged before any other is read on.

`Pilot` is the source that stops there, `verdict` and `report` decide and find the words. It asks nobody and
shows nothing: `confirm` does, which the command line sets. `wire` wraps a run's source in it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

import anyio

from batchllm.errors import PilotFailed
from batchllm.fields import frozen
from batchllm.ledger import Ledger
from batchllm.model import Dead, Position, Record
from batchllm.ports import Source
from batchllm.sources import JsonlSource
from batchllm.summary import Summary

ALLOWED = 0.1
"""The share of failures that a pilot has to stay under where --max-failures doesn't tell another."""
_LAST_LINE = 0.1
"""Seconds after which a pipe has not merely gone with the pilot's last line."""


class Pilot:
    """A Source that yields the first `records` of a pass, and the others once `confirm` has said yes.

    What earlier sessions settled of the pass counts among the first. The decision is about those records
    alone, failed lines of the input included; where nothing comes after them, there is none. `most` is
    --max-failures, `hint` what to do where too many failed. `confirm` gets what the pilot came to. `fed` is
    what makes `each` units of a record of `source`, where there is such.
    """

    def __init__(
        self,
        source: JsonlSource,
        ledger: Ledger,
        records: int,
        most: int | float | None,
        hint: str,
        *,
        fed: Source | None = None,
        each: int = 1,
    ) -> None:
        self._source = source
        self._fed = fed or source
        self._each = each
        self._ledger = ledger
        self._records = records
        self._most = most
        self._hint = hint
        self.confirm: Callable[[Summary], Awaitable[bool]] = _yes

    async def chunks(self) -> AsyncGenerator[list[Record | Dead], None]:
        """Yield the records of the pilot, then wait; raises PilotFailed where the run is not to go on."""
        left = self._records - self._ledger.settled.count
        held: list[Record | Dead] = []
        async with aclosing(self._fed.chunks()) as chunks:
            while left > 0:
                chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk[:left]
                held, left = chunk[left:], left - len(chunk)
            summary = await self._settled()
            if held or not self._ended():
                await self._decide(summary)
            if held:
                yield held
            async for chunk in chunks:
                yield chunk

    def position(self, seq: int) -> Position:
        """That of the source."""
        return self._fed.position(seq)

    async def _settled(self) -> Summary:
        """Wait for the last of the pilot; find out meanwhile whether there is more, if that can be told."""
        known = anyio.Event()

        async def look() -> None:
            await self._source.peek(lambda found: True, records=1)
            known.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            summary = await self._ledger.reached(self._records)
            with anyio.move_on_after(_LAST_LINE if self._source.total_bytes is None else math.inf):
                await known.wait()
            tasks.cancel_scope.cancel()
        return summary

    def _ended(self) -> bool:
        return self._source.ended and self._ledger.settled.watermark >= self._source.records * self._each

    async def _decide(self, summary: Summary) -> None:
        failed = verdict(summary, self._most)
        if failed is not None:
            raise PilotFailed(failed, self._hint)
        if not await self.confirm(summary):
            raise PilotFailed("at the pilot, as answered", "run the same command again to go on")


async def _yes(summary: Summary) -> bool:
    return True


def verdict(summary: Summary, most: int | float | None) -> str | None:
    """Why a pilot that came to `summary` failed, or None where the run may go on.

    It has to stay under `most`, a count or a share of 0 to 1, or under a tenth; without a failure it does.
    """
    failed, settled = summary.failed, summary.settled
    if most is None:
        most = ALLOWED
    if not failed or (failed / settled if isinstance(most, float) else failed) < most:
        return None
    under = _share(most) if isinstance(most, float) else f"{most:,}"
    count = f"{failed:,} of {settled:,} records failed ({_share(failed / settled)})"
    return f"the pilot failed: {count}, allowed are under {under}"


def hint(letters: str, *, kept: bool, redo: bool) -> str:
    """What to do about a pilot whose dead letters are in `letters`.

    `kept` says that its records are settled for the next session too, `redo` that --on-change redo can choose
    among them.
    """
    how = (" with --fresh or --on-change redo" if redo else " with --fresh") if kept else ""
    return f"look into {letters}, mend what fails and run again{how}, or allow more with --max-failures"


@frozen
class Rest:
    """What is still to come: `records`, None if unknown, an estimate unless `exact`.

    `window` is the number of calls in flight to expect, `limits` those a minute by `model.DIMENSIONS`.
    """

    records: int | None
    exact: bool
    window: float
    limits: Mapping[str, float | None]


def report(summary: Summary, rest: Rest) -> list[str]:
    """What a pilot came to and what the rest would take, in lines."""
    used = summary.usage
    parts = [
        f"{summary.settled:,} record{'s' if summary.settled != 1 else ''}",
        f"{_rounded_down(summary.success_rate or 0.0)} ok",
        f"{used.input_tokens:,} tokens in, {used.output_tokens:,} out"
        if used.input_tokens or used.output_tokens
        else "",
        f"p50 {_seconds(middle)}" if (middle := summary.latency.quantile(0.5)) is not None else "",
    ]
    lines = [", ".join(filter(None, parts))]
    for kind, count in summary.by_kind().items():
        _, failed = next(iter(summary.causes(kind).items()))
        example = f", such as: {failed.examples[0]}" if failed.examples else ""
        lines.append(f"{count:,} failed as {kind}{example}")
    lines.append(_of_rest(summary, rest))
    return [f"pilot: {line}" for line in lines]


def _of_rest(summary: Summary, rest: Rest) -> str:
    if rest.records is None:
        return "how much more comes is not known"
    used = summary.usage
    tokens = (used.input_tokens + used.output_tokens) / summary.settled * rest.records
    cost = f" and {_round(tokens):,} tokens" if tokens else ""
    others = f"the other {rest.records:,}" if rest.exact else f"the others, about {_round(rest.records):,},"
    return f"{others} would take about {_duration(time_for(summary, rest))}{cost}"


def time_for(summary: Summary, rest: Rest) -> float:
    """Seconds for the rest, if its records are like those of the pilot and the window stays full.

    A call takes the mean latency, and `window` go at a time (Little's law), unless a limit is slower.
    """
    each = (rest.records or 0) / summary.settled
    used = summary.usage
    calls = summary.calls * each
    need = {
        "requests": calls,
        "tokens": (used.input_tokens + used.output_tokens) * each,
        "input-tokens": used.input_tokens * each,
        "output-tokens": used.output_tokens * each,
    }
    slowest = calls * (summary.latency.mean or 0.0) / rest.window
    for dimension, limit in rest.limits.items():
        if limit:
            slowest = max(slowest, need[dimension] / limit * 60)
    return slowest


def _share(share: float) -> str:
    return f"{100 * share:.3g}%"


def _rounded_down(share: float) -> str:
    return f"{math.floor(share * 1000) / 10:g}%"


def _round(number: float) -> int:
    """Three digits of it: it is an estimate."""
    return int(float(f"{number:.3g}"))


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _duration(seconds: float) -> str:
    """`12 s`, `14 min`, `2 h 10 min`, `3 d 4 h`; at least a second."""
    whole = max(1, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 36 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
