"""What a bench has found: figures are printed as they come, limits judged, and the failed ones remembered."""

from __future__ import annotations


class Findings:
    """Prints; `failed` are the limits that didn't hold."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def title(self, text: str) -> None:
        """A phase begins."""
        print(f"\n== {text}", flush=True)

    def say(self, text: str) -> None:
        """A line of figures."""
        print(f"   {text}", flush=True)

    def at_most(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """Judge a figure that must not be above its limit."""
        self._judge(what, value, "≤", limit, unit, value <= limit)

    def at_least(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """Judge a figure that must not be below its limit."""
        self._judge(what, value, "≥", limit, unit, value >= limit)

    def _judge(self, what: str, value: float, sign: str, limit: float, unit: str, holds: bool) -> None:
        line = f"{what}: {value:,.4g}{unit}, limit {sign} {limit:,g}{unit}"
        print(f"   {'holds ' if holds else 'FAILED'} {line}", flush=True)
        if not holds:
            self.failed.append(line)
