"""What the retry layer promises: how often, how long between, and what it never does."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.errors import (
    AuthFailed,
    BadReply,
    CallError,
    Disconnected,
    Exhausted,
    Overloaded,
    RateLimited,
    Refused,
    Stalled,
    Stopped,
    TimedOut,
)
from batchllm.layers.gated import Gate, Gated, RateLimiter
from batchllm.layers.retrying import LONGEST, Retrying
from batchllm.model import Reply, Trail
from batchllm.ports import Provider
from batchllm.stop import Stop
from tests import virtual
from tests.calls import Script, reply, request

TRANSIENT = [
    Overloaded("down", status=503),
    TimedOut("too slow"),
    Disconnected("broke", ambiguous=True),
    BadReply("html", status=200),
]


class Ledger:
    """Keeps what a Witness is told."""

    def __init__(self) -> None:
        self.at_work = 0
        self.failures: list[str] = []

    def began(self) -> None:
        self.at_work += 1

    def failed(self, error: CallError) -> None:
        self.failures.append(error.message)

    def ended(self) -> None:
        self.at_work -= 1


def retrying(inner: Provider, **given: Any) -> Retrying:
    arguments: dict[str, Any] = {
        "most": 3,
        "backoff": 1.0,
        "stop": Stop(),
        "witness": Ledger(),
        "draw": lambda: 1.0,
        "clock": anyio.current_time,
    }
    return Retrying(inner, **arguments | given)


def ask(layer_around: Callable[[Provider], Retrying], script: Script, trail: Trail | None = None) -> Reply:
    """One request through the layer, in virtual time."""

    async def main() -> Reply:
        return await layer_around(script).complete(request(), trail or Trail())

    return virtual.run(main)


def gaps(script: Script) -> list[float]:
    return [round(b - a, 3) for a, b in zip(script.at, script.at[1:], strict=False)]


def test_an_answer_passes_at_once_and_untouched() -> None:
    answer = reply("yes")
    script = Script(answer)
    assert ask(retrying, script) is answer
    assert script.asked == ["key"]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: error.cause)
def test_a_transient_failure_is_tried_again_with_the_same_request(error: CallError) -> None:
    script = Script(error, error)
    assert ask(retrying, script).text == "fine"
    assert script.asked == ["key"] * 3


@pytest.mark.parametrize("most", [0, 1, 3])
def test_it_gives_up_after_so_many_further_tries_and_says_why(most: int) -> None:
    script = Script(after=lambda: Overloaded("the server is down", status=503, raw="<html>"))
    with pytest.raises(Exhausted) as caught:
        ask(lambda inner: retrying(inner, most=most), script)
    assert len(script.asked) == most + 1
    tries = "1 try" if most == 0 else f"{most + 1} tries"
    assert caught.value.message == f"after {tries}: the server is down"
    assert (caught.value.cause, caught.value.status, caught.value.raw) == ("server_error", 503, "<html>")
    assert caught.value.retryable


def test_waits_double_and_end_at_a_minute() -> None:
    script = Script(*[Overloaded("down")] * 9)
    ask(lambda inner: retrying(inner, most=9), script)
    assert gaps(script) == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@given(st.integers(0, 2**32), st.floats(0.01, 20))
@settings(max_examples=30, deadline=None)
def test_every_wait_lies_between_nothing_and_the_doubled_backoff(seed: int, backoff: float) -> None:
    script = Script(*[Overloaded("down")] * 8)
    draw = random.Random(seed).random
    ask(lambda inner: retrying(inner, most=8, backoff=backoff, draw=draw), script)
    for i, gap in enumerate(gaps(script)):
        assert 0 <= gap <= min(LONGEST, backoff * 2**i) + 0.001


def test_the_jitter_is_full() -> None:
    script = Script(*[Overloaded("down")] * 3)
    draws = iter([0.0, 0.5, 0.25])
    ask(lambda inner: retrying(inner, draw=lambda: next(draws)), script)
    assert gaps(script) == [0, 1, 1]


def test_a_server_that_says_how_long_is_heeded() -> None:
    script = Script(Overloaded("busy", status=503, retry_after=45), Overloaded("busy", retry_after=0.5))
    ask(retrying, script)
    assert gaps(script) == [45, 2]


def test_a_thousand_retries_are_possible() -> None:
    script = Script(*[Overloaded("down")] * 1200)
    ask(lambda inner: retrying(inner, most=1200, draw=lambda: 0.0), script)
    assert len(script.asked) == 1201


def test_a_stale_connection_is_asked_again_once_at_once_at_no_cost() -> None:
    stale = Disconnected("the connection was stale", stale=True)
    script = Script(stale)
    ask(lambda inner: retrying(inner, most=0), script)
    assert gaps(script) == [0]
    with pytest.raises(Exhausted, match="after 1 try"):
        ask(lambda inner: retrying(inner, most=0), script := Script(stale, stale))
    assert len(script.asked) == 2


def test_a_second_stale_connection_backs_off() -> None:
    stale = Disconnected("the connection was stale", stale=True)
    script = Script(stale, stale, stale)
    ask(retrying, script)
    assert gaps(script) == [0, 1, 2]


@pytest.mark.parametrize("error", [Refused("no"), AuthFailed("a wrong key"), Stopped(), ValueError("a bug")])
def test_what_is_not_transient_passes_at_once(error: Exception) -> None:
    script, witness = Script(error), Ledger()
    with pytest.raises(type(error)):
        ask(lambda inner: retrying(inner, witness=witness), script)
    assert len(script.asked) == 1
    assert (witness.failures, witness.at_work) == ([], 0)


def test_the_witness_hears_of_every_failure_and_of_the_end() -> None:
    script, witness = Script(Overloaded("one"), TimedOut("two")), Ledger()
    ask(lambda inner: retrying(inner, witness=witness), script)
    assert (witness.failures, witness.at_work) == (["one", "two"], 0)


def test_no_wait_goes_beyond_the_record_timeout() -> None:
    script = Script(after=lambda: Overloaded("down"), lasts=1.0)
    with pytest.raises(Exhausted, match="no time left in --record-timeout: down") as caught:
        ask(lambda inner: retrying(inner, most=100), script, Trail(deadline=10.0))
    assert caught.value.cause == "server_error"
    assert script.at == pytest.approx([0, 2, 5], abs=0.001)


def test_a_stop_ends_a_backoff_at_once_and_nothing_is_asked_again() -> None:
    async def main() -> None:
        stop, script, witness = Stop(), Script(after=lambda: Overloaded("down")), Ledger()
        layer = retrying(script, stop=stop, backoff=1000.0, witness=witness)

        async def stopper() -> None:
            await anyio.sleep(5)
            stop.set(signal.SIGINT)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stopper)
            with pytest.raises(Stopped):
                await layer.complete(request(), Trail())
        assert anyio.current_time() == pytest.approx(5)
        assert (len(script.asked), witness.at_work) == (1, 0)

    virtual.run(main)


class House:
    """The retry layer over a real gate."""

    def __init__(self, script: Script, *, window: int = 10, most: int = 3, max_stall: float = 900) -> None:
        self.stop = Stop()
        limiter = RateLimiter({}, self.stop, clock=anyio.current_time)
        self.gate = Gate(
            anyio.CapacityLimiter(window),
            limiter,
            self.stop,
            max_stall=max_stall,
            clock=anyio.current_time,
            draw=lambda: 1.0,
        )
        gated = Gated(script, self.gate)
        self.layer = retrying(gated, most=most, stop=self.stop, witness=self.gate)

    async def ask(self, key: str = "key") -> None:
        """Ask, whatever comes of it."""
        try:
            await self.layer.complete(request(key), Trail())
        except (Exhausted, Stopped):
            pass


def test_a_rate_limit_never_reaches_it_and_costs_no_retry() -> None:
    async def main() -> None:
        refusals = [RateLimited("busy", status=429)] * 10
        house = House(script := Script(*refusals), most=0)
        reply = await house.layer.complete(request(), Trail())
        assert reply.text == "fine"
        assert len(script.asked) == 11

    virtual.run(main)


def test_a_backoff_holds_no_slot_of_the_window() -> None:
    async def main() -> None:
        script = Script(Overloaded("down", retry_after=100), lasts=1.0)
        house = House(script, window=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.ask, "first")
            await anyio.wait_all_tasks_blocked()
            await anyio.sleep(2)
            assert (house.gate.window.borrowed_tokens, house.gate.delayed) == (0, 1)
            for name in ("second", "third"):
                await house.ask(name)
        assert script.asked == ["first", "second", "third", "first"]

    virtual.run(main)


def test_an_outage_stops_the_run_at_max_stall_though_every_call_fails_at_once() -> None:
    async def main() -> tuple[float, Stop]:
        script = Script(after=lambda: Disconnected("connection refused"))
        house = House(script, window=1, most=1000, max_stall=900)
        await house.ask()
        return anyio.current_time(), house.stop

    seconds, stop = virtual.run(main)
    assert 900 < seconds <= 900 + 60
    assert isinstance(stop.reason, Stalled)
    assert stop.reason.message.endswith("last: connection refused")


def test_failures_far_apart_are_no_stall() -> None:
    async def main() -> Stop:
        house = House(Script(after=lambda: Disconnected("connection refused")), most=1)
        for _ in range(5):
            await house.ask()
            await anyio.sleep(5000)
        return house.stop

    assert not virtual.run(main)


@pytest.mark.parametrize("when", [0.5, 3.0])
def test_whoever_is_cancelled_in_a_call_or_a_backoff_leaves_nothing_behind(when: float) -> None:
    async def main() -> None:
        house = House(Script(after=lambda: Overloaded("down", retry_after=10), lasts=1.0))
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(house.ask)
            await anyio.sleep(when)
            tasks.cancel_scope.cancel()
        gate = house.gate
        assert (gate.window.borrowed_tokens, gate.in_flight, gate.limiter.waiting) == (0, 0, 0)
        await anyio.sleep(10_000)
        await house.ask()
        assert not house.stop  # those who went count no longer as at work

    virtual.run(main)
