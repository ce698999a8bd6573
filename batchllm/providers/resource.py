"""What a step opens once per run and closes when the run ends: `open = "module:name"`.

`name` returns a context manager, async or not; the other kind is entered and left in threads. Closing is
shielded from a cancelled run, and bounded. Only `step` uses it.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import Any

import anyio
from anyio import to_thread

from batchllm.errors import BatchError, ConfigError, FatalError

CLOSING_S = 5.0
"""Seconds that closing may take."""

log = logging.getLogger("batchllm")


@asynccontextmanager
async def opened(name: str, function: Callable[[], Any]) -> AsyncIterator[Any]:
    """What `function`, known to people as `name`, opens; raises ConfigError where it doesn't.

    Where closing fails, FatalError: what was done with the resource may not be kept.
    """
    with anyio.CancelScope() as scope:
        async with _Named(name, function) as resource:
            try:
                yield resource
            finally:
                scope.shield, scope.deadline = True, anyio.current_time() + CLOSING_S
    if scope.cancelled_caught:
        log.warning("closing %s took longer than %g s and was given up", name, CLOSING_S)


class _Named(AbstractAsyncContextManager[Any]):
    """The user's context manager, whose failures say what they are about."""

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self._name = name
        self._function = function
        self._manager: AbstractAsyncContextManager[Any] | None = None

    async def __aenter__(self) -> Any:
        try:
            made = await to_thread.run_sync(self._function, abandon_on_cancel=True)
            if inspect.isawaitable(made):
                made = await made
            if hasattr(made, "__aenter__"):
                self._manager = made
            elif hasattr(made, "__enter__"):
                self._manager = _InThreads(made)
            else:
                raise ConfigError(
                    f"{self._name} returned {type(made).__name__}, which is no context manager",
                    "decorate it with contextlib.contextmanager or asynccontextmanager, and let it yield",
                )
            return await self._manager.__aenter__()
        except BatchError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"opening {self._name} failed: {_words(error)}", "mend it and run again"
            ) from error

    async def __aexit__(self, *raised: Any) -> None:
        assert self._manager is not None
        try:
            await self._manager.__aexit__(*raised)
        except (Exception, SystemExit) as error:
            if error is not raised[1]:
                raise FatalError(
                    f"closing {self._name} failed: {_words(error)}", "look whether what it wrote is all there"
                ) from error


class _InThreads(AbstractAsyncContextManager[Any]):
    """A context manager that may block."""

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager
        self._lock = threading.Lock()
        self._entered = self._unwanted = False

    async def __aenter__(self) -> Any:
        """Enter; where that is cancelled, what was entered is left again, by whoever comes last."""
        wanted = False
        try:
            value = await to_thread.run_sync(self._enter, abandon_on_cancel=True)
            wanted = True
            return value
        finally:
            if not wanted:
                with self._lock:
                    self._unwanted = True
                if self._entered:
                    with anyio.move_on_after(CLOSING_S, shield=True):
                        await self.__aexit__(None, None, None)

    def _enter(self) -> Any:
        value = self._manager.__enter__()
        with self._lock:
            self._entered = not self._unwanted
        if not self._entered:
            self._manager.__exit__(None, None, None)
        return value

    async def __aexit__(self, *raised: Any) -> None:
        await to_thread.run_sync(self._manager.__exit__, *raised, abandon_on_cancel=True)


def _words(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name
