"""Your own Python function as the model: `python/package.module:function` or `python/./file.py:function`.

It is called with the messages of a record, and with the whole request body if it takes a second argument;
what it returns is the answer. It runs in this process: an async function on the event loop, any other in a
thread that is given up where it blocks. `wire` connects it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio import to_thread

from batchllm.errors import BatchError, Internal, TimedOut
from batchllm.job.importing import found, is_async
from batchllm.lines import dumps
from batchllm.model import Reply, Request, Trail, Usage
from batchllm.ports import ProviderSpec
from batchllm.schema.checking import takes_two


@asynccontextmanager
async def connect(spec: ProviderSpec) -> AsyncIterator[Function]:
    """The function that `spec.model` names; raises ConfigError where it can't be had.

    Its module is imported in a thread, so that a stop need not wait for a long import. Modules of the
    working folder are found.
    """
    function = await to_thread.run_sync(found, spec.model, abandon_on_cancel=True)
    yield Function(function, spec)


class Function:
    """A Provider that calls a function; `timeout` and the threads at one time are those of `spec`."""

    def __init__(self, function: Callable[..., Any], spec: ProviderSpec) -> None:
        self._function = function
        self._spec = spec
        self._takes_body = takes_two(function)
        self._awaits = is_async(function)
        self._limiter = anyio.CapacityLimiter(spec.concurrency)

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """What the function says; an exception of it is Internal, but batchllm's own mean what they say."""
        with anyio.move_on_after(self._spec.timeout) as scope:
            try:
                answer = await self._call(request)
            except BatchError:
                raise
            except (Exception, SystemExit) as error:
                cause = type(error).__name__
                raise Internal(f"{cause}: {error}" if str(error) else cause, cause=cause) from error
        if scope.cancelled_caught:
            raise TimedOut(f"the function gave no answer within {self._spec.timeout:g} s")
        if isinstance(answer, dict | list):
            answer = dumps(answer).decode()
        if not isinstance(answer, str):
            what = type(answer).__name__
            raise Internal(f"the function returned {what}, not text, a dict or a list", cause="TypeError")
        return Reply(answer, answer, Usage(), "stop", request.model)

    async def _call(self, request: Request) -> Any:
        messages = [dict(message) for message in request.body.get("messages", ())]
        given = (messages, request.body | {"messages": messages}) if self._takes_body else (messages,)
        if self._awaits:
            return await self._function(*given)
        answer = await to_thread.run_sync(
            lambda: self._function(*given), abandon_on_cancel=True, limiter=self._limiter
        )
        return await answer if inspect.isawaitable(answer) else answer
