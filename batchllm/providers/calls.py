"""A function of the program's as what is asked: items in, results out, as they are.

`Calls` awaits an async function on the event loop and calls any other in a thread; what it raises is sorted
into calls that are worth another try and records that failed. `wire.calling` puts it behind the gate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import anyio
from anyio import to_thread

from batchllm.errors import BatchError, CallError, Disconnected, Internal, Overloaded, TimedOut
from batchllm.job.importing import is_async
from batchllm.lines import dumps
from batchllm.model import Reply, Request, Trail, Usage


class Calls:
    """A Provider whose answer to an item is `function(item)`; both are left on the trail, as they are.

    `item_of` finds the item in a record's data; `retried` are the exceptions that are worth another try.
    `timeout` is in seconds, `threads` the most that are used at one time. With `as_json` a result has to be
    something that JSON can carry.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        item_of: Callable[[dict[str, Any]], Any],
        *,
        retried: tuple[type[Exception], ...],
        timeout: float,
        threads: int,
        as_json: bool,
    ) -> None:
        self._function = function
        self._item_of = item_of
        self._retried = retried
        self._timeout = timeout
        self._as_json = as_json
        self._awaits = is_async(function)
        self._limiter = anyio.CapacityLimiter(threads)

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """What the function returns. Raises CallError, Internal, and what it raised of batchllm's errors."""
        with anyio.move_on_after(self._timeout) as scope:
            try:
                trail.kept = result = await self._call(self._item_of(request.body))
            except Exception as error:
                trail.kept = error
                raise self._meant(error) from error
        if scope.cancelled_caught:
            trail.kept = TimedOut(f"the function gave no result within {self._timeout:g} s")
            raise trail.kept
        if self._as_json:
            _check_json(result)
        return Reply("", result if self._as_json else None, Usage(), None, request.model)

    def _meant(self, error: Exception) -> BatchError:
        """What an exception of the function's means for its call."""
        if isinstance(error, BatchError):
            return error
        name = type(error).__name__
        text = f"{name}: {error}" if str(error) else name
        if not isinstance(error, self._retried):
            return Internal(text, cause=name)
        call: CallError
        if isinstance(error, TimeoutError):
            call = TimedOut(text)
        else:
            call = Disconnected(text) if isinstance(error, ConnectionError) else Overloaded(text)
        return call

    async def _call(self, item: Any) -> Any:
        if self._awaits:
            return await self._function(item)
        result = await to_thread.run_sync(self._function, item, abandon_on_cancel=True, limiter=self._limiter)
        return await result if inspect.isawaitable(result) else result


def _check_json(result: Any) -> None:
    try:
        dumps(result)
    except (TypeError, ValueError, RecursionError) as error:
        raise Internal(f"the result is nothing that JSON can carry: {error}", cause="not_json") from error
