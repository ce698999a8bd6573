"""A call that outlasts its time gives its slot up, and counts if it ends before the run does."""

from __future__ import annotations

import signal
from collections.abc import Callable

import anyio

from batchllm.engine import Engine, Item
from batchllm.errors import Overloaded, StillRunning
from batchllm.layers.gated import Gate, Gated, RateLimiter
from batchllm.layers.lingering import Lingering
from batchllm.layers.retrying import Retrying
from batchllm.layers.traced import Traced
from batchllm.model import Dead, Done, Note, Outcome, Reply, Request, Trail, Usage
from batchllm.pipeline import Pipeline, Stage
from batchllm.stop import Stop
from batchllm.watch import FailureWatch
from tests import virtual
from tests.outcomes import record


class Late:
    """A Provider whose calls for some records outlast their time; they end 7 s after `release` is set.

    A call for `slow` takes so many seconds.
    """

    def __init__(self, late: set[str], slow: str = "", seconds: float = 0.0, fails: bool = False) -> None:
        self.late = late
        self.slow = slow
        self.seconds = seconds
        self.release = anyio.Event()
        self.fails = fails
        self.asked: list[str] = []
        self.given_up: list[str] = []

    async def complete(self, request: Request, trail: Trail) -> Reply:
        name = request.body["id"]
        self.asked.append(name)
        reply = Reply(name, name, Usage(), "stop", "m")
        if name == self.slow:
            await anyio.sleep(self.seconds)
        if name not in self.late:
            return reply

        async def outcome() -> Reply:
            try:
                await self.release.wait()
            except anyio.get_cancelled_exc_class():
                self.given_up.append(name)
                raise
            await anyio.sleep(7)
            if self.fails:
                self.late.discard(name)
                raise Overloaded("later, please")
            return reply

        await anyio.sleep(5)
        raise StillRunning("no result within 5 s", outcome)


class House:
    """An engine of one worker and one slot; `done` is called for each outcome."""

    def __init__(
        self, late: Late, done: Callable[[House, Outcome], None] = lambda house, outcome: None
    ) -> None:
        self.stop = Stop()
        limiter = RateLimiter({}, self.stop, burst=0.5, clock=anyio.current_time)
        gate = Gate(anyio.CapacityLimiter(1), limiter, self.stop, max_stall=900, clock=anyio.current_time)
        layer = Lingering(Gated(Traced(late), gate), self.stop)
        stack = Retrying(layer, most=3, backoff=1, stop=self.stop, witness=gate, clock=anyio.current_time)
        stage = Stage(stack, lambda data, answers: dict(data), "m")
        pipeline = Pipeline({None: [stage]}, run_id="r", generation=0, record_timeout=None)
        self.engine = Engine(pipeline, 1, self.stop, FailureWatch(None), 4.0, gate.room)
        gate.freed = self.engine.rouse
        layer.linger = self.engine.lingering
        self.outcomes: dict[str, Outcome] = {}
        self._done = done

    async def run(self, count: int) -> None:
        to_engine, inbox = anyio.create_memory_object_stream[list[Item]](9)
        to_ledger, outbox = anyio.create_memory_object_stream[list[Outcome | Note]](9)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.engine.run, inbox, to_ledger)
            async with to_engine:
                await to_engine.send([record(n) for n in range(count)])
            async with outbox:
                async for items in outbox:
                    for item in items:
                        if not isinstance(item, Note):
                            self.outcomes[item.record.id] = item
                            self._done(self, item)


def test_others_go_on_and_the_outcome_still_counts() -> None:
    async def main() -> None:
        late = Late({"r0", "r1", "r2"}, slow="r5", seconds=20)
        house = House(late, lambda *_: late.release.set())
        await house.run(6)

        assert all(isinstance(outcome, Done) for outcome in house.outcomes.values())
        assert list(house.outcomes)[:2] == ["r3", "r4"]
        assert list(house.outcomes)[-1] == "r5"
        assert sorted(late.asked) == [f"r{n}" for n in range(6)]
        (attempt,) = house.outcomes["r0"].trail.attempts
        assert attempt.error is None
        assert attempt.status == 200

    virtual.run(main)


def test_the_run_ends_though_calls_hang_and_they_are_dead_letters() -> None:
    async def main() -> None:
        late = Late({"r0", "r5"})
        house = House(late)
        await house.run(6)

        ended = {name: outcome for name, outcome in house.outcomes.items() if isinstance(outcome, Dead)}
        assert set(ended) == {"r0", "r5"}
        assert len(house.outcomes) == 6
        assert {(dead.error.kind, dead.error.cause) for dead in ended.values()} == {
            ("exhausted", "outlasted")
        }
        assert sorted(late.given_up) == ["r0", "r5"]

    virtual.run(main)


def test_a_late_failure_is_tried_again_as_any_other() -> None:
    async def main() -> None:
        late = Late({"r0"}, slow="r1", seconds=60, fails=True)
        late.release.set()
        house = House(late)
        await house.run(2)

        assert isinstance(house.outcomes["r0"], Done)
        assert late.asked == ["r0", "r1", "r0"]
        assert [a.error for a in house.outcomes["r0"].trail.attempts] == ["later, please", None]

    virtual.run(main)


def test_a_stop_drops_what_lingers_without_an_outcome() -> None:
    async def main() -> None:
        late = Late({"r0"}, slow="r2", seconds=3)
        house = House(late, lambda house, _: house.stop.set(signal.SIGTERM))
        await house.run(3)

        assert "r0" not in house.outcomes
        assert late.given_up == ["r0"]
        assert (house.engine.cancelled, len(house.outcomes)) == (1, 2)

    virtual.run(main)
