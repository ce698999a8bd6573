"""A Python function as a stage: a Provider that calls it with the record, earlier answers and the key.

Async functions run on the event loop, others in threads or in worker processes, never on the loop. It
answers with what the function returns, says what its exceptions mean, and gives up what takes too long. It
knows nothing of retries and limits; `wire` connects it and puts the layers around it.
"""

from __future__ import annotations

import inspect
import json
import math
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from batchllm.errors import ConfigError, FatalError, Internal, StillRunning, TimedOut
from batchllm.fields import frozen
from batchllm.job.importing import found, is_async
from batchllm.model import Reply, Request, Trail, Usage
from batchllm.providers.raised import as_json, meaning
from batchllm.providers.resource import opened
from batchllm.providers.step_processes import Workers

_BY_PLACE = ("record", "answers", "key")


@frozen
class StepSpec:
    """What a step is: `function` and `open` are `package.module:name` or `file.py:name`, seen from `folder`.

    `timeout` is in seconds from its start to its return. `threads` is how many calls of a function that isn't
    async may run at once, be it in threads or, with `process`, in processes. `on_timeout` "kill" gives a call
    up; "continue" gives only its place up. `left_behind` is how many calls may go on although they, or their
    places, were given up: each may hold a thread.
    """

    function: str
    folder: Path | None = None
    process: bool = False
    timeout: float = 120.0
    on_timeout: Literal["kill", "continue"] = "kill"
    open: str | None = None
    threads: int = 20
    left_behind: int = 512


@asynccontextmanager
async def connect_step(spec: StepSpec) -> AsyncIterator[Step]:
    """The step, with its resource open; raises ConfigError where function or resource can't be had."""
    function = await to_thread.run_sync(found, spec.function, spec.folder, abandon_on_cancel=True)
    takes = Takes.of(function, spec)
    if spec.process and (spec.open is not None or is_async(function)):
        what = (
            "a function that is async"
            if spec.open is None
            else "open, whose resource can't leave its process"
        )
        raise ConfigError(
            f"{spec.function}: process = true doesn't go with {what}", "leave out process = true"
        )
    async with AsyncExitStack() as stack:
        resource = None
        if spec.open is not None:
            opens = await to_thread.run_sync(found, spec.open, spec.folder, abandon_on_cancel=True)
            resource = await stack.enter_async_context(opened(spec.open, opens))
        workers = Workers(spec.function, spec.folder) if spec.process else None
        if workers is not None:
            stack.push_async_callback(workers.close)
        failed: Exception | None = None
        async with anyio.create_task_group() as tasks:
            try:
                yield Step(function, takes, spec, resource, workers, tasks)
            except Exception as error:
                failed = error  # raised below: the task group would wrap it
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed


@frozen
class Takes:
    """What a function is called with: the things given by place, and those by name only."""

    places: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, function: Callable[..., Any], spec: StepSpec) -> Takes:
        """Read the signature; raises ConfigError for one that can't be called as a step."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # of some builtins
            return cls(("record",), ())
        left = [name for name in _BY_PLACE if name not in {p.name for p in parameters}]
        places, names, skipped = list[str](), list[str](), False
        for parameter in parameters:
            name, kind = parameter.name, parameter.kind
            if kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if name in _BY_PLACE or (name == "resource" and spec.open is not None):
                (names if skipped or kind is parameter.KEYWORD_ONLY else places).append(name)
            elif parameter.default is not parameter.empty:
                skipped = True
            elif name == "resource" or kind is parameter.KEYWORD_ONLY or not left:
                raise ConfigError(
                    f"{spec.function} takes {name!r}, which this stage doesn't have",
                    "a function takes record, answers and key, and resource where the stage has open",
                )
            else:
                places.append(left.pop(0))
        if not places and not names:
            if not parameters or parameters[0].kind is not parameters[0].VAR_POSITIONAL:
                raise ConfigError(f"{spec.function} takes no record", "def check(record): …")
            places.append("record")
        return cls(tuple(places), tuple(names))


class Step:
    """A Provider that calls a function; `tasks` holds the calls that may outlast their timeout."""

    def __init__(
        self,
        function: Callable[..., Any],
        takes: Takes,
        spec: StepSpec,
        resource: Any,
        workers: Workers | None,
        tasks: TaskGroup,
    ) -> None:
        self._function = function
        self._takes = takes
        self._spec = spec
        self._resource = resource
        self._workers = workers
        self._tasks = tasks
        self._async = is_async(function)
        self._places = anyio.CapacityLimiter(math.inf if self._async else spec.threads)
        self._threads = anyio.CapacityLimiter(math.inf)
        self._threaded = set[object]()
        self._outlasting = set[_Call]()

    @property
    def in_threads(self) -> int:
        """Calls that threads work on now, those that were given up included."""
        return len(self._threaded)

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """What the function returns as the reply's value.

        Raises TimedOut or, where the call goes on, StillRunning.
        """
        async with self._places:
            call = partial(self._reply, await self._ready(request), request)
            seconds = self._spec.timeout
            if trail.deadline is not None:
                seconds = max(0.0, min(seconds, trail.deadline - monotonic()))
            if self._spec.on_timeout == "continue":
                return await self._outlast(call, seconds)
            with anyio.move_on_after(seconds):
                return await call()
            raise _late(seconds)

    async def _ready(self, request: Request) -> Callable[[], Awaitable[str]]:
        """The call with its arguments, copied, so that nobody else sees what the function does to them."""
        record, answers = request.body.get("record"), request.body.get("answers", {})
        given = {"key": request.key, "resource": self._resource}
        if self._workers is None:
            record, answers = pickle.loads(pickle.dumps((record, answers)))
        given |= {"record": record, "answers": answers}
        places = [given[name] for name in self._takes.places]
        names = {name: given[name] for name in self._takes.names}
        if self._workers is not None:
            return partial(self._workers.ask, await self._workers.take(), places, names)
        return partial(
            self._awaited if self._async else self._in_thread, partial(self._function, *places, **names)
        )

    async def _reply(self, ask: Callable[[], Awaitable[str]], request: Request) -> Reply:
        """The reply, or what the exception means."""
        try:
            text = await ask()
        except (Exception, SystemExit) as error:
            told = meaning(error)
            if told is error:
                raise
            raise told from error
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -math.inf:
                raise
            raise Internal("the function was cancelled by itself", cause="CancelledError") from None
        value = json.loads(text)
        return Reply(value if isinstance(value, str) else text, value, Usage(), "stop", request.model)

    async def _awaited(self, call: Callable[[], Any]) -> str:
        return as_json(await call())

    async def _in_thread(self, call: Callable[[], Any]) -> str:
        if self.in_threads >= self._spec.threads + self._spec.left_behind:
            raise FatalError(
                f"{self._spec.left_behind} calls of {self._spec.function} were given up and go on in threads",
                "give what it waits for a timeout, or use process = true; then run the same command again",
            )
        answer = await to_thread.run_sync(self._blocking, call, abandon_on_cancel=True, limiter=self._threads)
        return answer if isinstance(answer, str) else as_json(await answer)

    def _blocking(self, call: Callable[[], Any]) -> Any:
        """On a thread: the JSON of what is returned, or what has still to be awaited."""
        self._threaded.add(call)
        try:
            value = call()
            return value if inspect.isawaitable(value) else as_json(value)
        finally:
            self._threaded.discard(call)

    async def _outlast(self, ask: Callable[[], Awaitable[Reply]], seconds: float) -> Reply:
        """Wait so long for a call that then goes on without a place."""
        call = _Call(ask)
        self._tasks.start_soon(call.run, self._outlasting.discard)
        goes_on = False
        try:
            with anyio.move_on_after(seconds):
                await call.ended.wait()
            goes_on = not call.ended.is_set() and len(self._outlasting) < self._spec.left_behind
        finally:
            if not goes_on:
                call.scope.cancel()
        if call.ended.is_set():
            return await call.outcome()
        if not goes_on:
            raise _late(seconds)
        self._outlasting.add(call)
        raise StillRunning(f"no result within {seconds:g} s; it may still come", call.outcome)


class _Call:
    """A call in a task of its own."""

    def __init__(self, ask: Callable[[], Awaitable[Reply]]) -> None:
        self._ask = ask
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self._reply: Reply | None = None
        self._error: Exception | None = None

    async def run(self, then: Callable[[_Call], None]) -> None:
        with self.scope:
            try:
                self._reply = await self._ask()
            except Exception as error:
                self._error = error  # raised to whoever waits for the outcome
        self.ended.set()
        then(self)

    async def outcome(self) -> Reply:
        """Wait for the reply or the error; the call is given up where the caller is cancelled."""
        try:
            await self.ended.wait()
        finally:
            self.scope.cancel()
        if self._error is not None:
            raise self._error
        assert self._reply is not None
        return self._reply


def _late(seconds: float) -> TimedOut:
    return TimedOut(f"the function gave no result within {seconds:g} s", ambiguous=True)
