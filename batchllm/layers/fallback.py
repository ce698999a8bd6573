"""Where a model can't answer a record, another one is asked in its place, and at last a constant stands in.

Outermost but for a cache; each other model has a stack of its own. It never stands in for a request that is
wrong, for a record that is none, or for a run that has to stop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from batchllm.errors import Exhausted, Invalid, RecordError, Refused, SameFailure
from batchllm.model import Reply, Request, Trail
from batchllm.ports import Provider
from batchllm.watch import FIRST, LATER

_WITHHELD = frozenset({"content_filter", "moderation"})
"""Causes of a refusal by the provider that are about what was asked or answered."""
_MAX_KEY = 64


class Fallback:
    """`others` are models by name with their stacks, in the order in which they are asked.

    `constant` is the reply that stands in where all have failed, None for a dead letter with the first
    model's failure. A model that can't be reached at all stops the run before its constant fills a file.
    """

    def __init__(
        self, inner: Provider, others: Sequence[tuple[str, Provider]], constant: Reply | None
    ) -> None:
        self._inner = inner
        self._others = others
        self._constant = constant
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
        for number, (model, stack) in enumerate(self._others, 1):
            suffix = f"-f{number}"
            ask = replace(request, model=model, key=request.key[: _MAX_KEY - len(suffix)] + suffix)
            try:
                reply = await stack.complete(ask, trail)
            except (Refused, Invalid, Exhausted):
                continue
            self._tell(request.model, model, error)
            return replace(reply, fallback=True)
        if self._constant is None:
            raise error
        self._heed(request.model, error)
        self._tell(request.model, "the constant answer", error)
        return self._constant

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
