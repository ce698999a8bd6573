"""What the main path promises: all that goes in comes out once, and every end is an orderly one."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from batchllm.engine import Engine, FailureWatch
from batchllm.errors import AuthFailed, Disconnected, InputFailed, Overloaded, RateLimited, Refused
from batchllm.layers.gated import Gate, Gated, RateLimiter
from batchllm.layers.retrying import Retrying
from batchllm.layers.traced import Traced
from batchllm.ledger import Ledger, Settled
from batchllm.lines import Shape
from batchllm.mainpath import OUTBOX, Parts, run
from batchllm.model import Dead, Note, Outcome, Position, Record, Reply, Request, Trail
from batchllm.pipeline import Pipeline, Stage
from batchllm.sinks import JsonlFile
from batchllm.stop import Stop
from batchllm.summary import Summary
from tests import virtual
from tests.calls import reply
from tests.outcomes import dead, done, record

Chunk = list[Record | Dead]


class Events(list[str]):
    """What happened, in order."""


class Lists:
    """A Source of lists. `then` is awaited after the last; `waits` makes it wait for ever instead."""

    def __init__(
        self, chunks: list[Chunk], events: Events, then: Exception | None = None, waits: bool = False
    ):
        self._chunks = chunks
        self._events = events
        self._then = then
        self._waits = waits
        self.given = 0

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        try:
            for chunk in self._chunks:
                self.given += len(chunk)
                yield chunk
            if self._waits:
                await anyio.sleep_forever()
            if self._then is not None:
                raise self._then
        finally:
            self._events.append("source closed")

    def position(self, seq: int) -> Position:
        return Position(seq=seq)


class Book:
    """A ledger that keeps outcomes in memory; `pace` is what an item takes, `full` holds the reader back."""

    def __init__(self, events: Events, pace: float = 0.0, fails: Exception | None = None) -> None:
        self._events = events
        self._pace = pace
        self._fails = fails
        self.outcomes: list[Outcome | Note] = []
        self.full = False

    async def room(self, last: Record | Dead) -> None:
        if self.full:
            await anyio.sleep_forever()

    async def drain(self, stream: MemoryObjectReceiveStream[list[Outcome | Note]]) -> None:
        async with stream:
            async for batch in stream:
                self.outcomes += batch
                if self._fails is not None:
                    raise self._fails
                await anyio.sleep(self._pace)
        self._events.append("ledger ended")

    @property
    def seqs(self) -> list[int]:
        return sorted(item.record.seq for item in self.outcomes if not isinstance(item, Note))


class House:
    """A run of `body` over lists, with a Book at its end."""

    def __init__(
        self,
        chunks: list[Chunk],
        body: Callable[[Record], Awaitable[Outcome]] | None = None,
        *,
        workers: int = 10,
        pace: float = 0.0,
        source_fails: Exception | None = None,
        source_waits: bool = False,
        ledger_fails: Exception | None = None,
    ) -> None:
        self.events = Events()
        self.stop = Stop()
        self.source = Lists(chunks, self.events, source_fails, source_waits)
        self.book = Book(self.events, pace, ledger_fails)
        self._body = body or self._answer
        self.engine = Engine(self._process, workers, self.stop, FailureWatch(None), grace=4.0)

    async def _answer(self, record: Record) -> Outcome:
        await anyio.sleep(1.0)
        return done(record.seq)

    async def _process(self, record: Record, emit: Callable[[Note], None]) -> Outcome:
        outcome = await self._body(record)
        self.events.append(f"settled {record.seq}")
        return outcome

    async def run(self, stop_at: float | None = None) -> None:
        """Run to the end; with `stop_at` a signal comes then."""

        async def signals() -> None:
            if stop_at is not None:
                await anyio.sleep(stop_at)
                self.stop.set(signal.SIGTERM)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(signals)
            await run(Parts(self.source, self.engine, cast(Ledger, self.book), self.stop))
            tasks.cancel_scope.cancel()


def ran(*arguments: Any, stop_at: float | None = None, full: bool = False, **given: Any) -> House:
    """A House after its run."""

    async def main() -> House:
        house = House(*arguments, **given)
        house.book.full = full
        await house.run(stop_at)
        return house

    return virtual.run(main)


def chunks(n: int, size: int = 10) -> list[Chunk]:
    return [[record(i) for i in range(at, min(n, at + size))] for at in range(0, n, size)]


def test_all_that_goes_in_comes_out_and_the_streams_close_in_order() -> None:
    house = ran(chunks(35))
    assert house.book.seqs == list(range(35))
    closed = house.events.index("source closed")
    assert house.events[-1] == "ledger ended"
    assert closed < len(house.events) - 2  # records went on after the source had ended
    assert not house.stop


def test_an_empty_source_is_a_run_that_ends() -> None:
    house = ran([])
    assert house.events == ["source closed", "ledger ended"]


def test_bad_lines_come_out_beside_the_answers() -> None:
    house = ran([[record(0), dead(1, "bad_input")], [dead(2, "bad_input")]])
    assert house.book.seqs == [0, 1, 2]


def test_a_slow_ledger_holds_the_reader_back() -> None:
    async def main() -> None:
        house = House([[record(i)] for i in range(5000)], pace=1e6, workers=10)

        async def body(record: Record) -> Outcome:
            return done(record.seq)

        house._body = body
        with anyio.move_on_after(100):
            await house.run()
        assert house.source.given <= (OUTBOX + 2) * 20 + 1024 + 40

    virtual.run(main)


def test_a_ledger_without_room_holds_the_reader_and_a_stop_frees_it() -> None:
    house = ran(chunks(100), stop_at=5.0, full=True)
    assert house.source.given == 10
    assert house.events == ["source closed", "ledger ended"]


def test_a_stop_ends_a_source_that_waits_for_input_and_keeps_what_was_settled() -> None:
    house = ran(chunks(10), source_waits=True, stop_at=60.0)
    assert house.book.seqs == list(range(10))
    assert house.stop.reason == signal.SIGTERM


def test_a_stop_closes_the_front_first_and_what_is_in_flight_is_committed() -> None:
    house = ran(chunks(1000), stop_at=3.5)
    assert house.book.seqs == list(range(40))
    assert house.source.given < 100
    assert house.events.index("source closed") < house.events.index("settled 39")
    assert house.engine.cancelled == 0


def test_an_input_that_breaks_off_stops_the_run_after_what_came_before() -> None:
    failure = InputFailed("in.jsonl.gz is cut off after line 40")
    house = ran(chunks(40), source_fails=failure, workers=1000)
    assert house.stop.reason is failure
    assert set(house.book.seqs) <= set(range(40))
    assert len(house.book.seqs) + house.engine.dropped == 40


def test_a_fatal_error_ends_the_run_without_raising() -> None:
    async def body(record: Record) -> Outcome:
        await anyio.sleep(1.0)
        if record.seq == 25:
            raise AuthFailed("the key is wrong")
        return done(record.seq)

    house = ran(chunks(1000), body, workers=10)
    assert isinstance(house.stop.reason, AuthFailed)
    assert len(house.book.seqs) in range(20, 36)
    assert 25 not in house.book.seqs


@pytest.mark.parametrize("part", ["source", "process", "ledger"])
def test_a_bug_in_any_part_comes_out_and_nothing_is_left_running(part: str) -> None:
    bug = ZeroDivisionError("a bug")

    async def body(record: Record) -> Outcome:
        await anyio.sleep(1.0)
        if part == "process" and record.seq == 25:
            raise bug
        return done(record.seq)

    async def main() -> None:
        house = House(
            chunks(1000),
            body,
            source_fails=bug if part == "source" else None,
            ledger_fails=bug if part == "ledger" else None,
        )
        events.append(house.events)
        await house.run()

    events: list[Events] = []
    with pytest.raises(ExceptionGroup) as caught:
        virtual.run(main)
    matched, rest = caught.value.split(ZeroDivisionError)
    assert matched is not None
    assert rest is None
    assert "source closed" in events[0]


class Unreliable:
    """A provider that fails in every way that a draw can tell, and answers in the end."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.inside = 0
        self.most = 0

    async def complete(self, request: Request, trail: Trail) -> Reply:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await anyio.sleep(self._random.expovariate(10))
            draw = self._random.random()
            if draw < 0.05:
                raise RateLimited("busy", status=429, retry_after=self._random.choice([None, 0.5, 3.0]))
            if draw < 0.15:
                raise Overloaded("down", status=503)
            if draw < 0.2:
                raise Disconnected("broke", stale=draw < 0.18)
            if draw < 0.25:
                raise Refused("no", cause="content_filter")
            if draw < 0.26:
                raise ValueError("a bug in the provider")
            return reply(request.body["messages"][0]["content"])
        finally:
            self.inside -= 1


class Whole:
    """The real parts around a provider, on real files."""

    def __init__(self, folder: Path, provider: Unreliable, source: Lists, *, window: int = 20) -> None:
        self.out, self.letters = folder / "out.jsonl", folder / "dead.jsonl"
        self.stop = stop = Stop()
        limiter = RateLimiter({"requests": 6000}, stop, clock=anyio.current_time)
        self.gate = Gate(
            anyio.CapacityLimiter(window), limiter, stop, max_stall=900, clock=anyio.current_time
        )
        stack = Retrying(
            Gated(Traced(provider), self.gate),
            most=2,
            backoff=1.0,
            stop=stop,
            witness=self.gate,
            clock=anyio.current_time,
        )
        stage = Stage(
            stack, lambda data, answers: {"messages": [{"role": "user", "content": data["text"]}]}, "m"
        )
        pipeline = Pipeline({None: [stage]}, run_id="run", generation=0, record_timeout=None)
        self.engine = Engine(pipeline, 2 * window + 16, stop, FailureWatch(None), grace=0.05)
        self.summary = Summary()
        self._sinks = [JsonlFile(str(self.out)), JsonlFile(str(self.letters))]
        ledger = Ledger(
            *self._sinks,
            Shape(),
            self.summary,
            Settled(),
            stop,
            journal=None,
            durability="none",
            position=source.position,
        )
        self.parts = Parts(source, self.engine, ledger, stop)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def rows(self) -> list[dict[str, Any]]:
        """Every line of both files."""
        return [
            json.loads(line) for path in (self.out, self.letters) for line in path.read_bytes().splitlines()
        ]


@pytest.mark.parametrize("seed", range(3))
def test_every_record_is_one_line_of_output_or_dead_letters_under_mixed_faults(
    tmp_path: Path, seed: int
) -> None:
    n = 600

    async def main() -> Whole:
        texts = [[record(i, f"text {i}") for i in range(at, at + 50)] for at in range(0, n, 50)]
        provider = Unreliable(seed)
        whole = Whole(tmp_path, provider, Lists([*texts], Events()))
        await run(whole.parts)
        whole.close()
        assert provider.most <= 20
        return whole

    whole = virtual.run(main)
    rows = whole.rows()
    assert sorted(row["seq"] for row in rows) == list(range(n))
    assert whole.summary.settled == n
    assert all(row["output"] == f"text {row['seq']}" for row in rows if "output" in row)
    assert {row["error"]["kind"] for row in rows if "error" in row} <= {"refused", "exhausted", "internal"}
    assert whole.engine.dropped == whole.engine.cancelled == 0
    assert (whole.gate.window.borrowed_tokens, whole.gate.in_flight, whole.gate.limiter.waiting) == (0, 0, 0)


@pytest.mark.parametrize("at", [0.05, 0.5, 1.7, 4.0])
def test_a_stop_at_any_time_leaves_nothing_held_and_no_record_twice(tmp_path: Path, at: float) -> None:
    async def main() -> tuple[Whole, Lists]:
        source = Lists(chunks(2000, 50), Events())
        whole = Whole(tmp_path, Unreliable(1), source)

        async def signals() -> None:
            await anyio.sleep(at)
            whole.stop.set(signal.SIGINT)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(signals)
            await run(whole.parts)
        whole.close()
        return whole, source

    whole, source = virtual.run(main)
    seqs = [row["seq"] for row in whole.rows()]
    assert len(set(seqs)) == len(seqs) == whole.summary.settled
    given_up = whole.engine.dropped + whole.engine.cancelled
    assert source.given - 50 <= len(seqs) + given_up <= source.given  # a chunk may not have been taken
    assert (whole.gate.window.borrowed_tokens, whole.gate.in_flight, whole.gate.limiter.waiting) == (0, 0, 0)
