"""Whether a service is down, and the requests that wait until it is back.

A service that has answered and then fails on everything is probed by one request at a time that has not
failed yet, ever more rarely; those that have failed wait here, which costs them no try. Where no other
request is left to probe with, they may be what fails, so they get their failures back. The gate owns it.
"""

from __future__ import annotations

from dataclasses import field

import anyio

from batchllm.errors import CallError, Disconnected
from batchllm.fields import mutable

_FAILURES, _REQUESTS = 10, 3
"""Failures in a row, of so many requests at least, that say the service is down."""
_LONGEST = 15.0
"""Seconds between two probes at most."""


@mutable
class _Waiting:
    event: anyio.Event = field(default_factory=anyio.Event)
    back: bool = True


class Outage:
    """`probes` counts those of the present outage; 0 where the service is not down."""

    def __init__(self) -> None:
        self.probes = 0
        self.failures = 0
        self.fresh = True
        self._failing: set[str] = set()
        self._waiting: list[_Waiting] = []

    def failed(self, error: CallError, key: str) -> bool:
        """A call of the request `key` failed: whether the service is down.

        `fresh` tells then whether the request had not failed before: only that is news of the service.
        """
        if isinstance(error, Disconnected) and error.stale:
            return False  # asked again at once
        self.failures += 1
        self.fresh = key not in self._failing or not self.probes
        self._failing.add(key)
        return self.failures >= _FAILURES and len(self._failing) >= _REQUESTS

    def next_probe(self, draw: float) -> float:
        """Seconds until the service is to be probed again; `draw` is in [0, 1)."""
        wait: float = min(_LONGEST, 2.0 ** min(self.probes, 6)) * (0.5 + 0.5 * draw)
        self.probes += 1
        return wait

    async def over(self) -> bool:
        """Wait until the outage is over; whether the service is back, or the failure is the request's own."""
        waiting = _Waiting()
        self._waiting.append(waiting)
        await waiting.event.wait()
        return waiting.back

    def end(self, *, back: bool) -> None:
        """The service is back, or nobody is left to find out with."""
        self.probes = self.failures = 0
        self._failing.clear()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.back = back
            each.event.set()
