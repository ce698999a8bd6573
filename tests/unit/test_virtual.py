"""What the virtual clock of the tests promises."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import pytest
from anyio import to_thread

from tests import virtual


def test_hours_pass_at_once_and_timers_fire_in_order_at_their_time() -> None:
    fired: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        fired.append((name, round(anyio.current_time(), 3)))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleeper, "late", 7200)
            tasks.start_soon(sleeper, "early", 0.5)
            tasks.start_soon(sleeper, "middle", 60)

    started = time.monotonic()
    virtual.run(main)
    assert time.monotonic() - started < 5
    assert fired == [("early", 0.5), ("middle", 60.0), ("late", 7200.0)]


def test_a_timeout_ends_a_wait_that_nothing_else_ends() -> None:
    async def main() -> float:
        with anyio.move_on_after(900):
            await anyio.sleep_forever()
        return anyio.current_time()

    assert virtual.run(main) == pytest.approx(900)


def test_waits_shorter_than_the_clock_resolves_end() -> None:
    async def main() -> None:
        await anyio.sleep(1e6)
        until = anyio.current_time() + 1e-6
        while anyio.current_time() < until:
            await anyio.sleep(1e-15)

    virtual.run(main)


@pytest.mark.parametrize("limited", [False, True])
def test_a_thread_is_waited_for_and_no_timer_overtakes_it(limited: bool) -> None:
    go = threading.Event()

    async def main() -> tuple[bool, float]:
        limiter = anyio.CapacityLimiter(1) if limited else None
        threading.Timer(0.05, go.set).start()
        with anyio.move_on_after(60) as scope:
            await to_thread.run_sync(go.wait, 30, limiter=limiter)
        return scope.cancelled_caught, anyio.current_time()

    overtaken, now = virtual.run(main)
    assert not overtaken
    assert now < 1


def test_a_socket_is_waited_for_and_no_timer_overtakes_it() -> None:
    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            async with await anyio.abc.UNIXSocketStream.from_socket(ours) as stream:
                threading.Timer(0.05, theirs.sendall, [b"sent"]).start()
                with anyio.fail_after(60):
                    return await stream.receive()

    assert virtual.run(main) == b"sent"


@pytest.mark.parametrize("wait", [anyio.sleep_forever, lambda: anyio.Event().wait()])
def test_a_deadlock_is_an_error(wait: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(RuntimeError, match="deadlock"):
        virtual.run(wait)
