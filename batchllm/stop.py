"""The one `Stop` of a run: a reason that is set once, the first wins, and all who wait hear of it.

Owned by `mainpath`; reader, gate, worker and ledger may set it, synchronously, at the verdict. It decides
nothing else: what stopping means is the business of each who hears it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import anyio

from batchllm.errors import BatchError, Stopped


class Stop:
    """`reason` is the error or signal that stops the run, or None while it goes on."""

    def __init__(self) -> None:
        self.reason: BatchError | signal.Signals | None = None
        self._event: anyio.Event | None = None
        self._then: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return self.reason is not None

    def set(self, reason: BatchError | signal.Signals) -> None:
        """Stop the run for this reason, unless it is stopping already."""
        if self.reason is None:
            self.reason = reason
            if self._event is not None:
                self._event.set()
            for call in self._then:
                call()

    def then(self, call: Callable[[], None]) -> None:
        """Call this as soon as the run is stopping; it must be quick and not raise."""
        if self.reason is None:
            self._then.append(call)
        else:
            call()

    def check(self) -> None:
        """Raise Stopped if the run is stopping."""
        if self.reason is not None:
            raise Stopped

    def aside(self) -> Stop:
        """A Stop for a part of the run: it stops with this one, and may stop by itself before."""
        part = Stop()
        self.then(lambda: part.set(self.reason) if self.reason is not None else None)
        return part

    async def wait(self) -> None:
        """Return once the run is stopping."""
        if self.reason is None:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleep so long, and raise Stopped as soon as the run is stopping."""
        with anyio.move_on_after(seconds):
            await self.wait()
        self.check()
