"""The `-vv` observer: one JSON line on stderr for each attempt, settled record, pause, start and stop.

Passive, as every Observer is: it never raises and keeps nothing. While a bar is active its lines appear
above it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from batchllm.model import Attempt, Done, Outcome, Request
from batchllm.ui.lines import to_json
from batchllm.ui.messages import say


class JsonEvents:
    """An Observer that writes each event as one line of JSON; times are RFC 3339 UTC.

    `write` takes a line without its newline; `clock` gives Unix seconds for events that carry no time.
    """

    def __init__(self, write: Callable[[str], None] = say, clock: Callable[[], float] = time.time) -> None:
        self._write, self._clock = write, clock

    def run_started(self, facts: dict[str, Any]) -> None:
        """The run begins: its facts as they come."""
        self._event("run_started", self._clock(), facts)

    def attempt(self, request: Request, attempt: Attempt) -> None:
        """One call is over, with a reply or with an error."""
        usage = attempt.usage
        self._event(
            "attempt",
            attempt.at,
            {
                "key": request.key,
                "model": request.model,
                "seconds": round(attempt.seconds, 6),
                "status": attempt.status,
                "error": attempt.error,
                "request_id": attempt.request_id,
                "input_tokens": usage.input_tokens if usage else None,
                "output_tokens": usage.output_tokens if usage else None,
            },
        )

    def settled(self, outcome: Outcome) -> None:
        """One record has its outcome."""
        record = outcome.record
        body: dict[str, Any] = {"seq": record.seq, "id": record.id, "calls": len(outcome.trail.attempts)}
        if isinstance(outcome, Done):
            body |= {"ok": True}
        else:
            error = outcome.error
            body |= {"ok": False, "kind": error.kind, "cause": error.cause, "message": error.message}
        self._event("settled", outcome.at, body)

    def pause(self, seconds: float, reason: str) -> None:
        """Everyone on the account waits so long."""
        self._event("pause", self._clock(), {"seconds": round(seconds, 3), "reason": reason})

    def run_stopped(self, facts: dict[str, Any]) -> None:
        """The run is over: its facts as they come."""
        self._event("run_stopped", self._clock(), facts)

    def _event(self, event: str, at: float, body: dict[str, Any]) -> None:
        moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._write(to_json({"event": event, "at": moment, **body}))
