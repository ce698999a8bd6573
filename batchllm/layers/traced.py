"""The innermost layer: every call becomes an Attempt on the record's trail, and observers are told.

It changes no answer and swallows no error; it knows nothing of retries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from batchllm.errors import BatchError, FatalError
from batchllm.model import Attempt, Reply, Request, Trail
from batchllm.ports import Observer, Provider


class Traced:
    """A Provider whose calls are written down.

    `stage` names the stage that they are for, `whose` the model in errors that stop a run which asks several.
    """

    def __init__(
        self,
        inner: Provider,
        observers: Sequence[Observer] = (),
        stage: str | None = None,
        whose: str | None = None,
    ) -> None:
        self._inner = inner
        self._observers = observers
        self._stage = stage
        self._whose = whose

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Ask, and note when, how long, what it used and how it ended."""
        at, start = time.time(), time.monotonic()
        try:
            reply = await self._inner.complete(request, trail)
        except Exception as error:
            if self._whose is not None and isinstance(error, FatalError):
                own = request.body.get("model")  # which a record may name
                error.whose = self._whose if own is None else f"{self._whose.partition('/')[0]}/{own}"
            self._note(
                request,
                trail,
                Attempt(
                    at=at,
                    seconds=time.monotonic() - start,
                    status=getattr(error, "status", None),
                    request_id=getattr(error, "request_id", None),
                    error=error.message
                    if isinstance(error, BatchError)
                    else f"{type(error).__name__}: {error}",
                    stage=self._stage,
                    cause=getattr(error, "cause", None),
                ),
            )
            raise
        attempt = Attempt(at, time.monotonic() - start, reply.usage, 200, reply.request_id, None, self._stage)
        if self._observers:
            self._note(request, trail, attempt)
        else:
            trail.attempts.append(attempt)
        return reply

    def _note(self, request: Request, trail: Trail, attempt: Attempt) -> None:
        trail.attempts.append(attempt)
        for observer in self._observers:
            observer.attempt(request, attempt)
