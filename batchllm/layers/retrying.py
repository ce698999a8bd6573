"""Tries transient failures again, with exponential backoff and full jitter, and gives up after so many.

Sits above the gate, so a backoff holds no slot and a rate limit never reaches it. A reused connection that
died before a byte of the answer is asked again once, at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from batchllm.errors import CallError, Disconnected, Exhausted
from batchllm.model import Reply, Request, Trail
from batchllm.ports import Provider
from batchllm.stop import Stop

LONGEST = 60.0
"""Seconds that a backoff grows to at most."""


class Witness(Protocol):
    """Is told when a request is taken up, of each failure, and when it is answered or given up; the gate."""

    def began(self) -> None: ...
    def failed(self, error: CallError) -> None: ...
    def ended(self) -> None: ...


class Retrying:
    """`most` further tries a request; the first wait is up to `backoff` seconds, doubled each time."""

    def __init__(
        self,
        inner: Provider,
        *,
        most: int,
        backoff: float,
        stop: Stop,
        witness: Witness,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._inner = inner
        self._most = most
        self._backoff = backoff
        self._stop = stop
        self._witness = witness
        self._draw = draw
        self._clock = clock

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Answer, or raise Exhausted with the last failure as its cause."""
        self._witness.began()
        try:
            try:
                return await self._inner.complete(request, trail)
            except CallError as error:
                first = error.with_traceback(None)  # which holds this frame, and that the error: a cycle
            return await self._persist(request, trail, first)
        finally:
            self._witness.ended()

    async def _persist(self, request: Request, trail: Trail, error: CallError) -> Reply:
        """Try again after a first `error`."""
        failures, resent = 0, False
        while True:
            self._witness.failed(error)
            if isinstance(error, Disconnected) and error.stale and not resent:
                resent = True
            else:
                failures += 1
                await self._wait(error, failures, trail.deadline)
            try:
                return await self._inner.complete(request, trail)
            except CallError as next_error:
                error = next_error.with_traceback(None)

    async def _wait(self, last: CallError, failures: int, deadline: float | None) -> None:
        """The backoff after so many failures; raises Exhausted where there is no further try."""
        if failures > self._most:
            tries = f"{failures} tries" if failures > 1 else "1 try"
            raise self._exhausted(last, f"after {tries}: {last.message}")
        wait = min(LONGEST, self._backoff * 2.0 ** min(failures - 1, 60)) * self._draw()
        wait = max(wait, last.retry_after or 0.0)
        if deadline is not None and self._clock() + wait >= deadline:
            raise self._exhausted(last, f"no time left in --record-timeout: {last.message}")
        await self._stop.sleep(wait)

    def _exhausted(self, last: CallError, message: str) -> Exhausted:
        return Exhausted(message, cause=last.cause, status=last.status, raw=last.raw)
