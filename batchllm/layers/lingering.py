"""Waits without a slot for a call that outlasted its time and goes on; its outcome still counts.

Sits outside the gate, which has given the slot to others by then, and inside Retrying, which hears of the
outcome as of any other. It never cuts a call short itself: the engine does once nothing else is left.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from time import monotonic

import anyio

from batchllm.errors import BatchError, Exhausted, StillRunning
from batchllm.model import Attempt, Reply, Request, Trail
from batchllm.ports import Provider
from batchllm.stop import Stop


class Lingering:
    """A Provider around one that may raise StillRunning.

    `linger` gives the scope of such a wait, which is cancelled when the run has nothing else to wait for; see
    `Engine.lingering`. `whose` names the function in errors, as in `Traced`.
    """

    def __init__(self, inner: Provider, stop: Stop, whose: str | None = None) -> None:
        self._inner = inner
        self._stop = stop
        self._whose = whose
        self.linger: Callable[[], AbstractContextManager[anyio.CancelScope]] = anyio.CancelScope

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Answer, however late; raises Exhausted where the run ended before, Stopped where it was stopped."""
        try:
            return await self._inner.complete(request, trail)
        except StillRunning as error:
            running = error
        began, call = monotonic(), trail.attempts[-1] if trail.attempts else None
        with self.linger() as scope:
            try:
                reply: Reply = await running.outcome()
            except BatchError as error:
                error.whose = self._whose
                _settle(trail, call, began, error)
                raise
            _settle(trail, call, began, None)
            return reply
        assert scope.cancelled_caught
        self._stop.check()
        raise Exhausted(f"{running.message}, and the rest of the run was over first", cause="outlasted")


def _settle(trail: Trail, call: Attempt | None, began: float, error: BatchError | None) -> None:
    """Let the call's attempt say how it ended and how long it took."""
    if call is not None:
        seconds = call.seconds + monotonic() - began
        status = None if error is not None else 200
        trail.attempts[-1] = replace(
            call,
            seconds=seconds,
            status=status,
            error=error.message if error is not None else None,
            cause=getattr(error, "cause", None),
        )
