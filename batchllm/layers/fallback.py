"""Where a model can't answer a record, another one is asked in its place, and at last a constant stands in.

Outermost but for a cache; each other model has a stack of its own, and one whose account or name is refused
is out for the run, which goes on. Nobody stands in for a request that is wrong, for a record that is none, or
for a run that has to stop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from batchllm.errors import Exhausted, FatalError, Invalid, RecordError, Refused, SameFailure, Stopped
from batchllm.fields import frozen
from batchllm.model import Reply, Request, Trail
from batchllm.ports import Provider
from batchllm.stop import Stop
from batchllm.watch import FIRST, LATER

_WITHHELD = frozenset({"content_filter", "moderation"})
"""Causes of a refusal by the provider that are about what was asked or answered."""
_MAX_KEY = 64


@frozen
class Standby:
    """Another model and its stack. `stop` is set where it is out: its own, or the run's if others need it."""

    model: str
    stack: Provider
    stop: Stop


class Fallback:
    """`others` are models in the order in which they are asked; `stop` is the run's.

    `constant` is the reply that stands in where all have failed, None for a dead letter with the first
    model's failure. A model that can't be reached at all stops the run before its constant fills a file.
    """

    def __init__(
        self, inner: Provider, others: Sequence[Standby], constant: Reply | None, stop: Stop
    ) -> None:
        self._inner = inner
        self._others = others
        self._constant = constant
        self._stop = stop
        self._told = False
        self._threshold = FIRST
        self._unreached = 0

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """The model's reply, or one with `fallback` set; raises what the first model raised."""
        try:
            reply = await self._inner.complete(request, trail)
        except (Refused, Invalid, Exhausted) as error:
            if isinstance(error, Refused) and error.status is not None and error.cause not in _WITHHELD:
                raise
            return await self._stand_in(request, trail, error)
        self._reached()
        return reply

    async def _stand_in(self, request: Request, trail: Trail, error: RecordError) -> Reply:
        # A model that the record names is the first model's, or one of its service's.
        body = {name: value for name, value in request.body.items() if name != "model"}
        for number, other in enumerate(self._others, 1):
            suffix = f"-f{number}"
            key = request.key[: _MAX_KEY - len(suffix)] + suffix
            reply = await self._ask(other, replace(request, model=other.model, body=body, key=key), trail)
            if reply is not None:
                self._tell(request.model, other.model, error)
                return replace(reply, fallback=True)
        if self._constant is None:
            try:
                raise error
            finally:
                del error  # it holds this frame, which would hold it: a cycle
        self._heed(request.model, error)
        self._tell(request.model, "the constant answer", error)
        return self._constant

    async def _ask(self, other: Standby, request: Request, trail: Trail) -> Reply | None:
        """Its reply; None where it has none for this record, or is out for the rest of the run."""
        self._stop.check()
        if other.stop.reason is not None:
            return None
        try:
            return await other.stack.complete(request, trail)
        except RecordError:
            return None
        except FatalError as error:
            if other.stop is self._stop:
                raise
            other.stop.set(error)
        except Stopped:
            pass  # by its own stop, unless it is the run's
        self._stop.check()
        return None

    def _reached(self) -> None:
        self._threshold, self._unreached = LATER, 0

    def _heed(self, model: str, error: RecordError) -> None:
        """Stop the run where one constant after another stands for a model that could not be asked."""
        if not isinstance(error, Exhausted):
            self._reached()
            return
        self._unreached += 1
        if self._unreached >= self._threshold:
            raise SameFailure(
                f"{model} could not be asked {self._unreached} times in a row: {error.message}",
                "check that the service runs, then run the same command again; answers that stood in stay",
            )

    def _tell(self, model: str, instead: str, error: RecordError) -> None:
        if not self._told:
            self._told = True
            logging.getLogger("batchllm").warning(
                "%s failed on a record (%s): %s stands in, there and wherever that happens again",
                model,
                error.message,
                instead,
            )
