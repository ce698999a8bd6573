"""A clock that jumps: `run(main)` is anyio.run on a loop whose time is virtual, from 0 on.

Where the loop would sleep until its next timer, the clock is set to that timer, so fifteen minutes pass in a
millisecond and in the same way on every machine. Pass `anyio.current_time` where a `clock` is wanted. What
comes from outside takes no time: while a thread works or a socket is watched, the loop waits in earnest. A
wait that nothing could ever end is an error, not a test that hangs.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from anyio._backends._asyncio import _threadpool_idle_workers, _threadpool_workers

T = TypeVar("T")
TURN = 1e-9
"""Seconds that a turn of the loop takes: time never stands quite still, as on a real clock."""
END = 365 * 86400.0
"""Seconds after which a run is taken for one that waits for ever."""


def run(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run `main(*args)` to its end in virtual time."""

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _Loop)
        loop.watched = True
        try:
            return await main(*args)
        finally:
            loop.watched = False

    return anyio.run(watched, backend_options={"loop_factory": _Loop})


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        self.executing = 0
        self.watched = False
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self.executing += 1
        future.add_done_callback(self._executed)
        return future

    def _executed(self, _: object) -> None:
        self.executing -= 1

    def threads(self) -> int:
        """Threads that work for the loop now."""
        try:
            busy = len(_threadpool_workers.get()) - len(_threadpool_idle_workers.get())
        except LookupError:
            busy = 0
        return busy + self.executing


class _Jumping(selectors.DefaultSelector):
    """Waits only for what comes from outside; the first file that it watches is the loop's own wake-up."""

    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self._loop
        loop.now += TURN
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if not loop.watched or len(self.get_map()) > 1 or loop.threads():
            ready = super().select(timeout)
        elif timeout is None or loop.now > END:
            raise RuntimeError("a deadlock: nothing that is awaited can ever come")
        if not ready and timeout is not None:
            loop.now += timeout
        return ready
