"""What the gate promises: order, one timer, shared pauses, and nothing held by whoever has gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from batchllm.errors import Overloaded, RateLimited, Stalled, Stopped
from batchllm.layers.gated import Gate, Gated, RateLimiter
from batchllm.model import Attempt, Outcome, Reply, Request, Trail, Usage
from batchllm.ports import Provider
from batchllm.stop import Stop
from tests import virtual
from tests.calls import Parked, Script, reply, request


class Counting(RateLimiter):
    """A RateLimiter that knows how many sleep in it."""

    def __init__(self, rpm: float) -> None:
        super().__init__({"requests": rpm}, Stop(), clock=anyio.current_time)
        self.sleepers = 0
        self.most = 0

    async def sleep(self, seconds: float) -> None:
        self.sleepers += 1
        self.most = max(self.most, self.sleepers)
        try:
            await super().sleep(seconds)
        finally:
            self.sleepers -= 1


class Seen:
    """An Observer that keeps the pauses."""

    def __init__(self) -> None:
        self.pauses: list[tuple[float, str]] = []

    def run_started(self, facts: dict[str, Any]) -> None: ...
    def attempt(self, request: Request, attempt: Attempt) -> None: ...
    def settled(self, outcome: Outcome) -> None: ...
    def run_stopped(self, facts: dict[str, Any]) -> None: ...

    def pause(self, seconds: float, reason: str) -> None:
        self.pauses.append((round(seconds, 3), reason))


def limiter(rpm: float | None = None, tpm: float | None = None, stop: Stop | None = None) -> RateLimiter:
    limits = {"requests": rpm, "tokens": tpm}
    return RateLimiter(limits, Stop() if stop is None else stop, clock=anyio.current_time)


class House:
    """A gate around a provider, on the loop's clock."""

    def __init__(
        self,
        inner: Provider,
        *,
        window: int = 100,
        rpm: float | None = None,
        tpm: float | None = None,
        max_stall: float = 900,
    ) -> None:
        self.stop = Stop()
        self.seen = Seen()
        self.gate = Gate(
            anyio.CapacityLimiter(window),
            limiter(rpm, tpm, self.stop),
            self.stop,
            max_stall=max_stall,
            observers=[self.seen],
            clock=anyio.current_time,
            draw=lambda: 0.5,
        )
        self.layer = Gated(inner, self.gate)
        self.dropped = 0

    async def ask(self, key: str = "key", trail: Trail | None = None, **body: Any) -> Reply | None:
        """What came, or None for a record that was dropped."""
        try:
            return await self.layer.complete(request(key, **body), trail or Trail())
        except Stopped:
            self.dropped += 1
            return None

    def clean(self) -> bool:
        """Nothing is held by anyone."""
        gate = self.gate
        return (gate.window.borrowed_tokens, gate.in_flight, gate.limiter.waiting) == (0, 0, 0)


async def all_of(*calls: Callable[[], Awaitable[object]]) -> float:
    """Do all at once; the seconds that it took."""
    started = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(call)
    return anyio.current_time() - started


def test_150_requests_at_600_a_minute_take_15_seconds_less_a_small_burst() -> None:
    async def main() -> float:
        house = House(Script(), rpm=600)
        return await all_of(*[house.ask] * 150)

    assert 13 <= virtual.run(main) <= 15.5


def test_no_second_sees_more_than_its_share_and_the_burst() -> None:
    async def main() -> list[float]:
        script = Script()
        await all_of(*[House(script, rpm=600).ask] * 150)
        return script.at

    at = virtual.run(main)
    assert all(sum(start <= moment < start + 1 for moment in at) <= 10 + 5 + 1 for start in at)


def test_requests_are_admitted_in_the_order_in_which_they_came() -> None:
    async def main() -> list[int]:
        limit, order = limiter(tpm=600), list[int]()

        async def admit(i: int) -> None:
            await limit.admit([1.0, 1.0 if i % 3 else 40.0, 0.0, 0.0])
            order.append(i)

        async def late() -> None:
            await anyio.sleep(1.0)
            await admit(30)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            for i in range(30):
                tasks.start_soon(admit, i)
        return order

    assert virtual.run(main) == list(range(31))


def test_there_is_one_timer_whatever_the_number_of_waiters() -> None:
    async def main() -> tuple[int, int]:
        limit = Counting(rpm=60)
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(limit.admit, [1.0, 0.0, 0.0, 0.0])
            await anyio.wait_all_tasks_blocked()
            waiting = limit.waiting
        return limit.most, waiting

    assert virtual.run(main) == (1, 99)


def test_a_stop_wakes_all_who_wait_at_once() -> None:
    async def main() -> tuple[float, int, bool]:
        house = House(Script(), window=10, rpm=1)

        async def stopper() -> None:
            await anyio.sleep(3)
            house.stop.set(signal.SIGTERM)

        return await all_of(stopper, *[house.ask] * 50), house.dropped, house.clean()

    seconds, dropped, clean = virtual.run(main)
    assert (round(seconds, 3), dropped, clean) == (3.0, 49, True)


def test_a_stop_drops_who_waits_for_the_window_and_not_who_is_in_flight() -> None:
    async def main() -> None:
        parked = Parked()
        house = House(parked, window=2)
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(house.ask)
            await anyio.wait_all_tasks_blocked()
            house.stop.set(signal.SIGINT)
            await anyio.wait_all_tasks_blocked()
            assert (house.dropped, parked.inside, house.gate.in_flight) == (8, 2, 2)
            parked.release.set()
        assert house.dropped == 8
        assert house.clean()

    virtual.run(main)


def test_nobody_is_admitted_once_the_run_stops() -> None:
    async def main() -> None:
        script = Script()
        house = House(script)
        house.stop.set(signal.SIGINT)
        assert await house.ask() is None
        assert script.asked == []

    virtual.run(main)


def test_no_more_calls_are_out_than_the_window_holds() -> None:
    async def main() -> int:
        script = Script(lasts=1.0)
        house = House(script, window=7)
        assert await all_of(*[house.ask] * 70) == pytest.approx(10, abs=0.01)
        return script.most

    assert virtual.run(main) == 7


def test_a_refused_call_waits_and_asks_again_however_often() -> None:
    async def main() -> tuple[int, float, bool]:
        script = Script(*[RateLimited("busy", retry_after=2)] * 30)
        house = House(script)
        answer = await house.ask()
        assert answer is not None
        return len(script.asked), anyio.current_time(), house.clean()

    calls, seconds, clean = virtual.run(main)
    assert (calls, clean) == (31, True)
    assert 60 <= seconds < 63


def test_a_pause_holds_everyone_and_the_longest_wins() -> None:
    async def main() -> tuple[list[float], list[tuple[float, str]]]:
        script = Script(RateLimited("a", retry_after=30), RateLimited("b", retry_after=5), lasts=1.0)
        house = House(script)

        async def later() -> None:
            await anyio.sleep(10)
            await house.ask()

        await all_of(house.ask, house.ask, later)
        return script.at, house.seen.pauses

    at, pauses = virtual.run(main)
    assert [round(moment, 3) for moment in at[:3]] == [0.0, 0.0, 31.0]
    assert 31 < at[3] < at[4] < 34  # one by one, not all at once
    assert pauses == [(30.0, "a"), (30.0, "b")]


def test_a_pause_that_grows_meanwhile_is_kept_to_its_end() -> None:
    async def main() -> float:
        limit = limiter()
        limit.pauses.add(0.0, 5.0, 0.0)

        async def more() -> None:
            await anyio.sleep(3)
            limit.pauses.add(3.0, 30.0, 0.0)

        async def admit() -> None:
            await limit.admit([1.0, 0.0, 0.0, 0.0])

        return await all_of(more, admit)

    assert virtual.run(main) == pytest.approx(33)


def test_unnamed_pauses_double_from_one_episode_to_the_next() -> None:
    async def main() -> list[float]:
        script = Script(*[RateLimited("slow down")] * 4)
        await House(script).ask()
        return [round(b - a, 3) for a, b in zip(script.at, script.at[1:], strict=False)]

    assert virtual.run(main) == [0.75, 1.5, 3.0, 6.0]


def test_a_refused_call_gives_its_slot_back_while_it_waits() -> None:
    async def main() -> list[str]:
        script = Script(RateLimited("busy", retry_after=10), lasts=1.0)
        house = House(script, window=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.ask, "first")
            tasks.start_soon(house.ask, "second")
        assert house.clean()
        return script.asked

    assert virtual.run(main) == ["first", "second", "first"]


def test_the_record_timeout_stands_still_during_pauses_whoever_waits_where() -> None:
    async def main() -> list[float]:
        script = Script(RateLimited("busy", retry_after=60), lasts=1.0)
        house = House(script, window=1)
        trails = [Trail(deadline=10.0) for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for trail in trails:
                tasks.start_soon(house.ask, "key", trail)
        return [trail.deadline or 0.0 for trail in trails]

    assert virtual.run(main) == [pytest.approx(70, abs=0.01)] * 3


def test_waits_for_our_own_limits_do_not_count_against_the_record_timeout() -> None:
    async def main() -> list[float | None]:
        house = House(Script(), rpm=60)
        trails = [Trail(deadline=10.0) for _ in range(5)]
        async with anyio.create_task_group() as tasks:
            for trail in trails:
                tasks.start_soon(house.ask, "key", trail)
        return [trail.deadline for trail in trails]

    assert virtual.run(main) == [pytest.approx(10.0 + waited, abs=0.01) for waited in range(5)]


def test_tokens_that_were_not_used_come_back() -> None:
    async def main() -> float:
        script = Script(after=lambda: reply(usage=Usage(5, 5)))
        house = House(script, tpm=6000)  # 100 a second, 50 at once
        for _ in range(20):
            await house.ask(max_tokens=48)
        return anyio.current_time()

    assert virtual.run(main) == pytest.approx(1.8, abs=0.3)


def test_a_request_larger_than_the_bucket_goes_alone_and_leaves_its_debt() -> None:
    async def main() -> list[float]:
        script = Script(after=lambda: reply(usage=Usage(0, 0)))
        house = House(script, tpm=600)  # 10 a second, 5 at once
        for _ in range(3):
            await house.ask(max_tokens=100)
        return [round(moment) for moment in script.at]

    assert virtual.run(main) == [0, 10, 20]


@pytest.mark.parametrize(
    "messages", [["hi"], "hi", None, [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]]
)
def test_a_body_of_any_shape_passes_for_the_provider_to_judge(messages: Any) -> None:
    async def main() -> None:
        assert await House(Script(), tpm=6000).ask(messages=messages, max_tokens="many") is not None

    virtual.run(main)


def test_nothing_but_refusals_for_max_stall_stops_the_run_even_one_call_at_a_time() -> None:
    async def main() -> tuple[float, Stop]:
        script = Script(after=lambda: RateLimited("too many requests", retry_after=70))
        house = House(script, window=1, max_stall=900)

        async def at_work() -> None:
            house.gate.began()
            await house.ask()
            house.gate.ended()

        await all_of(*[at_work] * 3)
        assert house.dropped == 3
        assert house.clean()
        return anyio.current_time(), house.stop

    seconds, stop = virtual.run(main)
    assert 900 < seconds < 930
    assert isinstance(stop.reason, Stalled)
    assert stop.reason.message == "nothing has succeeded for 910 s; last: too many requests"


def test_an_answer_now_and_then_keeps_the_run_going() -> None:
    async def main() -> Stop:
        turns = [RateLimited("busy", retry_after=500), reply()] * 6
        house = House(Script(*turns))
        house.gate.began()
        for _ in range(6):
            await house.ask()
        return house.stop

    assert not virtual.run(main)


def test_idleness_is_no_stall() -> None:
    async def main() -> Stop:
        house = House(Script(RateLimited("busy", retry_after=1), after=reply))
        await anyio.sleep(100_000)
        house.gate.began()
        await house.ask()
        house.gate.ended()
        return house.stop

    assert not virtual.run(main)


@pytest.mark.parametrize("kind", [RateLimited, Overloaded])
def test_a_wait_beyond_max_stall_stops_at_once(kind: type[RateLimited] | type[Overloaded]) -> None:
    async def main() -> tuple[Stop, float]:
        house = House(Script(kind("come back tomorrow", retry_after=86_400)))
        try:
            await house.ask()
        except Overloaded as error:
            house.gate.failed(error)
        assert house.clean()
        return house.stop, anyio.current_time()

    stop, seconds = virtual.run(main)
    assert seconds < 1
    assert isinstance(stop.reason, Stalled)
    assert "asks to wait 86400 s" in stop.reason.message
    tomorrow = time.strftime("%Y-%m-%d", time.localtime(time.time() + 86_400))
    assert f"at {tomorrow} " in (stop.reason.hint or "")


@pytest.mark.parametrize("where", ["window", "line", "pause", "call"])
def test_whoever_is_cancelled_leaves_nothing_behind(where: str) -> None:
    async def main() -> None:
        parked = Parked()
        house = House(parked, window=1 if where == "window" else 100, rpm=1 if where == "line" else None)
        if where == "pause":
            house.gate.limiter.pauses.add(0.0, 100.0, 0.0)
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(house.ask)
            await anyio.wait_all_tasks_blocked()
            assert not house.clean()
            tasks.cancel_scope.cancel()
        assert house.clean()
        parked.release.set()
        with anyio.fail_after(200):
            await house.ask()
        assert house.clean()

    virtual.run(main)


def test_the_one_at_the_head_may_go_and_the_others_keep_their_turn() -> None:
    async def main() -> list[int]:
        limit, order = limiter(rpm=60), list[int]()
        scopes = [anyio.CancelScope() for _ in range(5)]

        async def admit(i: int) -> None:
            with scopes[i]:
                await limit.admit([1.0, 0.0, 0.0, 0.0])
                order.append(i)

        async with anyio.create_task_group() as tasks:
            for i in range(5):
                tasks.start_soon(admit, i)
            await anyio.sleep(0.5)
            scopes[1].cancel()
            scopes[3].cancel()
        assert limit.waiting == 0
        return order

    assert virtual.run(main) == [0, 2, 4]


def test_a_failed_call_gives_its_slot_back() -> None:
    async def main() -> None:
        house = House(Script(Overloaded("down"), ValueError("a bug")))
        for kind in (Overloaded, ValueError):
            with pytest.raises(kind):
                await house.ask()
            assert house.clean()

    virtual.run(main)


def test_the_gate_says_why_it_is_slow() -> None:
    async def main() -> None:
        house = House(Script(), rpm=60)
        gate = house.gate
        assert gate.waits() is None
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(house.ask)
            await anyio.wait_all_tasks_blocked()
            assert gate.waits() == "held to your limit of 60 requests a minute"
            gate.limiter.pauses.add(anyio.current_time(), 30.0, 0.0)
            assert gate.waits() == "paused 30 s by the service's rate limit"
        assert gate.waits() is None

    virtual.run(main)
