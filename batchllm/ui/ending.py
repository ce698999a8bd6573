"""What is said when a run is over: a table of its figures, why it stopped, and what to do next.

All of it goes to stderr; one JSON line with `--progress json`, nothing but errors with `--quiet`. The cli
calls it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from batchllm.fields import frozen
from batchllm.summary import Failed, Summary
from batchllm.summary.ending import Ending, figures, rate_of
from batchllm.ui.figures import per_cent, precise, speed
from batchllm.ui.lines import to_json
from batchllm.ui.messages import capable, clean, error, label, say

if TYPE_CHECKING:
    from batchllm.report import Comparison

_MESSAGE_LENGTH = 100
_CAUSES_SHOWN = 5


@frozen
class Facts(Ending):
    """How a session ended; `comparison` holds accuracy and variants, where there are any."""

    comparison: Comparison | None = None


def final(summary: Summary, facts: Facts, *, kind: str, quiet: bool = False) -> None:
    """Say how the run went, in the form that goes with the `kind` of progress."""
    if quiet:
        if facts.stopped:
            error(f"stopped: {facts.stopped}", facts.hint)
        return
    if kind == "json":
        say(summary_line(summary, facts))
        return
    _print(summary, facts)
    if facts.stopped:
        say(f"{label('stopped', '33')} {clean(facts.stopped)}")
    if facts.hint:
        say(f"{label('hint', '36')} {clean(facts.hint)}")


def summary_line(summary: Summary, facts: Facts) -> str:
    """The final figures as one line of JSON, `operation` being `summary`; times in seconds."""
    compared = facts.comparison.to_dict() if facts.comparison is not None else {}
    return to_json({"operation": "summary"} | figures(summary, facts, compared))


def rows(summary: Summary, facts: Facts) -> Iterator[tuple[str, str]]:
    """The final table: what, and its value; an empty first column goes on with the row above."""
    if facts.already_done:
        yield "finished", "by an earlier run; nothing was left to do"
    rate = summary.success_rate
    resumed = f", {facts.resumed:,} of them by earlier runs" if facts.resumed else ""
    yield "records", f"{summary.settled:,}{resumed}"
    yield "ok", f"{summary.succeeded:,}" + ("" if rate is None else f" ({per_cent(rate)})")
    yield "failed", f"{summary.failed:,}"
    for kind, count in summary.by_kind().items():
        yield from _dead(kind, count, summary.causes(kind))
    for name, stage in summary.stages.items():
        counts = f"{stage.came:,} in, {stage.ok:,} ok"
        counts += f", {stage.skipped:,} skipped" if stage.skipped else ""
        yield "stage", f"{clean(name)}: {counts}" + (f", {stage.failed:,} failed" if stage.failed else "")
    if summary.stood_in:
        yield "fallback", f"answers that stood in: {summary.stood_in:,}"
    if summary.unknown or summary.unknown_calls:
        answers = max(summary.unknown, summary.unknown_calls)
        yield "unknown", f"answers that no rule knows: {answers:,}; dead letters of them: {summary.unknown:,}"
    retried = f" (records retried: {summary.retried:,})" if summary.retried else ""
    yield "calls", f"{summary.calls:,}{retried}"
    if summary.cached:
        yield "from cache", f"{summary.cached:,}"
    if summary.input_tokens or summary.output_tokens:
        cached = f" ({summary.cached_tokens:,} cached)" if summary.cached_tokens else ""
        yield "tokens", f"{summary.input_tokens:,} in{cached}, {summary.output_tokens:,} out"
    if summary.latency.count:
        latency = summary.latency
        figures = [("mean", latency.mean), *((f"p{q}", latency.quantile(q / 100)) for q in (50, 95, 99))]
        yield "latency", "  ".join(f"{name} {precise(seconds)}" for name, seconds in figures)
    if not facts.already_done:
        yield "throughput", f"{speed(rate_of(summary, facts))} over {precise(facts.elapsed)}"
    if facts.comparison is not None and not facts.comparison.named:
        from batchllm.ui.comparing import accuracy_rows

        yield from accuracy_rows(facts.comparison)
    if facts.given_up:
        yield "given up", f"calls in flight: {facts.given_up:,}; their records run again next time"
    if facts.dropped:
        yield "not settled", f"records read: {facts.dropped:,}; they run next time"
    yield "output", "stdout" if facts.output == "-" else clean(facts.output)
    if facts.dead_letter is not None:
        yield "dead letters", "stdout" if facts.dead_letter == "-" else clean(facts.dead_letter)


def _dead(kind: str, count: int, causes: dict[str, Failed]) -> Iterator[tuple[str, str]]:
    if len(causes) == 1:
        yield f"  {kind}", f"{count:,}  {_cause(kind, *next(iter(causes.items())))}"
        return
    yield f"  {kind}", f"{count:,}"
    for cause, failed in list(causes.items())[:_CAUSES_SHOWN]:
        yield "", f"{failed.count:,}  {_cause(kind, cause, failed)}"
    if len(causes) > _CAUSES_SHOWN:
        yield "", f"and {len(causes) - _CAUSES_SHOWN:,} more"


def _cause(kind: str, cause: str, failed: Failed) -> str:
    message = clean(failed.examples[0]) if failed.examples else ""
    if len(message) > _MESSAGE_LENGTH:
        message = message[: _MESSAGE_LENGTH - 3] + "..."
    said = cause == kind or message.startswith(f"{clean(cause)}: ")
    return message if said else ": ".join(part for part in (clean(cause), message) if part)


def _print(summary: Summary, facts: Facts) -> None:
    lines = list(rows(summary, facts))
    if capable(sys.stderr):
        from batchllm.ui.table import draw

        draw(lines, sys.stderr)
    else:
        for name, value in lines:
            say(f"{name:<14} {value}")
    if facts.comparison is not None and facts.comparison.named:
        from batchllm.ui.comparing import comparison_blocks, show_blocks

        show_blocks(comparison_blocks(facts.comparison), sys.stderr)
