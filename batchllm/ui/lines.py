"""Progress as lines, for logs and for machines: one text or JSON line each interval, and one at the end."""

from __future__ import annotations

import json
from typing import Any

from batchllm.ui.figures import Figures, done_of, duration, percent_done, speed
from batchllm.ui.messages import clean


def log_line(figures: Figures, clock: str) -> str:
    """Progress as one line of text that begins with `clock`, the time of day."""
    parts = [
        clock,
        done_of(figures).strip(),
        percent_done(figures),
        f"ok {figures.succeeded:,}",
        f"failed {figures.failed:,}",
        speed(figures.rate),
        f"in {duration(round(figures.elapsed))}" if figures.last else f"eta {duration(figures.eta)}",
        "" if figures.last else f"in flight {figures.in_flight:,}",
        f"retried {figures.retried:,}",
        f"({clean(figures.waiting)})" if figures.waiting else "",
    ]
    return " ".join(part for part in parts if part)


def json_line(figures: Figures) -> str:
    """Progress as one line of JSON; what is unknown is null, `success_rate` is a share of 0 to 1."""
    return to_json(
        {
            "operation": "run",
            "processed": figures.processed,
            "total": figures.total,
            "progress_pct": figures.progress,
            "succeeded": figures.succeeded,
            "failed": figures.failed,
            "success_rate": figures.success_rate,
            "rate": None if figures.rate is None else round(figures.rate, 3),
            "eta_s": None if figures.eta is None else round(figures.eta, 1),
            "retried": figures.retried,
            "in_flight": figures.in_flight,
            "input_tokens": figures.input_tokens,
            "output_tokens": figures.output_tokens,
            "waiting": figures.waiting,
            "total_exact": figures.total is not None and figures.exact,
        }
    )


def to_json(data: dict[str, Any]) -> str:
    """One line of ASCII JSON: no byte of a provider's message can steer a terminal."""
    return json.dumps(data, default=str)
