"""What the rehearsal server has counted since it started, for `/stats`.

Owned by the app, which tells it of each request as it goes; it decides nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

# So many different ids are counted one by one (about 200 bytes each); later ones only add to `requests`.
_MOST_IDS = 1_000_000


class Counts:
    """Requests for chat completions, by what became of them.

    `ok` are answers without any fault, `limited` refusals by --rpm, --tpm and their like, `abandoned`
    requests whose client went away first. `ids` counts how often each id was asked.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.ok = 0
        self.limited = 0
        self.abandoned = 0
        self.in_flight = 0
        self.highest_in_flight = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.ids: dict[str, int] = {}

    def begin(self) -> int:
        """A request has come; its number from 1."""
        self.requests += 1
        self.in_flight += 1
        if self.in_flight > self.highest_in_flight:
            self.highest_in_flight = self.in_flight
        return self.requests

    def asked(self, key: str) -> None:
        """The request of this id was asked once more."""
        if key in self.ids:
            self.ids[key] += 1
        elif len(self.ids) < _MOST_IDS:
            self.ids[key] = 1

    def as_json(self, *, ids: bool) -> dict[str, Any]:
        """The body of `/stats`."""
        found: dict[str, Any] = {
            "requests": self.requests,
            "ok": self.ok,
            "limited": self.limited,
            "abandoned": self.abandoned,
            "in_flight": self.in_flight,
            "highest_in_flight": self.highest_in_flight,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": dict(sorted(self.faults.items())),
            "different_ids": len(self.ids),
            "asked_again": sum(count > 1 for count in self.ids.values()),
        }
        if ids:
            found["ids"] = self.ids
        return found
