"""How a session ended, beside what a Summary counts, and both as the figures that programs are given.

Pure. The command line shows them as its last line of JSON, and `[finish]` is told them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchllm.fields import frozen
from batchllm.summary import Summary


@frozen
class Ending:
    """How a session ended, beyond what the Summary counts.

    `output` and `dead_letter` are paths, `-` for stdout; `dead_letter` is None where nothing failed.
    `elapsed` is in seconds. `stopped` says why it ended early, None if it came to its end; `hint` what to do
    next. `given_up` counts the calls given up in flight, `dropped` the records that were read and not
    settled, `resumed` the records settled by earlier sessions. `already_done`: there was nothing left to do.
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


def rate_of(summary: Summary, ending: Ending) -> float | None:
    """Records that this session settled a second; None where there is nothing to tell it from."""
    settled = summary.settled - ending.resumed
    return settled / ending.elapsed if settled > 0 and ending.elapsed > 0 else None


def counted(summary: Summary) -> dict[str, Any]:
    """What every account of a run tells of a Summary, in full precision: times in seconds, rates 0 to 1."""
    latency = summary.latency
    return {
        "success_rate": summary.success_rate,
        "failures": [
            {"kind": kind, "cause": cause, "count": failed.count, "examples": failed.examples}
            for kind in summary.by_kind()
            for cause, failed in summary.causes(kind).items()
        ],
        "calls": summary.calls,
        "retried": summary.retried,
        "input_tokens": summary.input_tokens,
        "output_tokens": summary.output_tokens,
        "cached_tokens": summary.cached_tokens,
        "latency_s": {
            "mean": latency.mean,
            "p50": latency.quantile(0.5),
            "p95": latency.quantile(0.95),
            "p99": latency.quantile(0.99),
            "max": latency.maximum,
        },
    }


def figures(summary: Summary, ending: Ending, compared: Mapping[str, Any]) -> dict[str, Any]:
    """The final figures, times in seconds; `compared` are those of accuracy and variants, where there are."""
    told = counted(summary)
    return {
        "processed": summary.settled,
        "succeeded": summary.succeeded,
        "failed": summary.failed,
        **told,
        "success_rate": _rounded(summary.success_rate),
        "latency_s": {name: _rounded(seconds) for name, seconds in told["latency_s"].items()},
        **({"stages": summary.to_dict()["stages"]} if summary.stages else {}),
        "stood_in": summary.stood_in,
        "unknown": summary.unknown,
        "unknown_calls": summary.unknown_calls,
        "cached": summary.cached,
        "rate": _rounded(rate_of(summary, ending)),
        "elapsed_s": round(ending.elapsed, 3),
        "resumed": ending.resumed,
        "already_done": ending.already_done,
        "given_up": ending.given_up,
        "dropped": ending.dropped,
        "output": ending.output,
        "dead_letter": ending.dead_letter,
        "stopped": ending.stopped,
        "hint": ending.hint,
    } | {name: compared[name] for name in ("accuracy", "variants", "pairs") if name in compared}


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)
