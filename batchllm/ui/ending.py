"""What is said when a run is over: a table of its figures, why it stopped, and what to do next.

All of it goes to stderr; one JSON line with `--progress json`, nothing but errors with `--quiet`. The cli
calls it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from batchllm.model import frozen
from batchllm.summary import Failed, Summary
from batchllm.ui.figures import per_cent, precise, speed
from batchllm.ui.lines import to_json
from batchllm.ui.messages import capable, clean, error, label, say

if TYPE_CHECKING:
    from batchllm.report import Comparison

_MESSAGE_LENGTH = 100
_CAUSES_SHOWN = 5


@frozen
class Facts:
    """How a session ended, beyond what the Summary counts.

    `output` and `dead_letter` are paths, `-` for stdout; `dead_letter` is None where nothing failed.
    `elapsed` is in seconds. `stopped` says why it ended early, None if it came to its end; `hint` what to do
    next. `given_up` counts the calls given up in flight, `dropped` the records that were read and not
    settled, `resumed` the records settled by earlier sessions. `already_done`: there was nothing left to do.
    `comparison` holds accuracy and variants, where there are any.
    """

    output: str
    elapsed: float
    dead_letter: str | None = None
    stopped: str | None = None
    hint: str | None = None
    given_up: int = 0
    dropped: int = 0
    resumed: int = 0
    already_done: bool = False
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
    latency = summary.latency
    rate = _rate(summary, facts)
    compared = facts.comparison.to_dict() if facts.comparison is not None else {}
    return to_json(
        {
            "operation": "summary",
            "processed": summary.settled,
            "succeeded": summary.succeeded,
            "failed": summary.failed,
            "success_rate": _rounded(summary.success_rate),
            "failures": [
                {"kind": kind, "cause": cause, "count": failed.count, "examples": failed.examples}
                for kind in summary.by_kind()
                for cause, failed in summary.causes(kind).items()
            ],
            **({"stages": summary.to_dict()["stages"]} if summary.stages else {}),
            "stood_in": summary.stood_in,
            "unknown": summary.unknown,
            "unknown_calls": summary.unknown_calls,
            "calls": summary.calls,
            "retried": summary.retried,
            "cached": summary.cached,
            "input_tokens": summary.input_tokens,
            "output_tokens": summary.output_tokens,
            "cached_tokens": summary.cached_tokens,
            "latency_s": {
                "mean": _rounded(latency.mean),
                "p50": _rounded(latency.quantile(0.5)),
                "p95": _rounded(latency.quantile(0.95)),
                "p99": _rounded(latency.quantile(0.99)),
                "max": _rounded(latency.maximum),
            },
            "rate": _rounded(rate),
            "elapsed_s": round(facts.elapsed, 3),
            "resumed": facts.resumed,
            "already_done": facts.already_done,
            "given_up": facts.given_up,
            "dropped": facts.dropped,
            "output": facts.output,
            "dead_letter": facts.dead_letter,
            "stopped": facts.stopped,
            "hint": facts.hint,
        }
        | {name: compared[name] for name in ("accuracy", "variants", "pairs") if name in compared}
    )


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
        yield "throughput", f"{speed(_rate(summary, facts))} over {precise(facts.elapsed)}"
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


def _rate(summary: Summary, facts: Facts) -> float | None:
    settled = summary.settled - facts.resumed
    return settled / facts.elapsed if settled > 0 and facts.elapsed > 0 else None


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


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
