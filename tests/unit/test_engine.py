"""What the engine promises: one outcome a record, bounds on what it holds, and orderly ends."""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Awaitable, Callable, Iterable

import anyio
import pytest
from anyio.abc import TaskGroup
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.engine import Engine, Item, workers_for
from batchllm.errors import AuthFailed, BatchError, SameFailure, TooManyFailures
from batchllm.model import Note, Outcome, Record
from batchllm.stop import Stop
from batchllm.watch import FailureWatch
from tests import virtual
from tests.outcomes import dead, done, record

Body = Callable[[Record], Awaitable[Outcome]]


class Work:
    """A Process that does `body`; knows how many it works on, who does it and what was taken up."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.taken: list[int] = []
        self.running = 0
        self.most = 0
        self.workers: set[int] = set()
        self.note = False

    async def __call__(self, record: Record, emit: Callable[[Note], None]) -> Outcome:
        self.taken.append(record.seq)
        self.workers.add(anyio.get_current_task().id)
        self.running += 1
        self.most = max(self.most, self.running)
        if self.note:
            emit(Note("spent", {"seq": record.seq}))
        try:
            return await self._body(record)
        finally:
            self.running -= 1


def after(seconds: float) -> Body:
    async def body(record: Record) -> Outcome:
        if seconds:
            await anyio.sleep(seconds)
        return done(record.seq)

    return body


class House:
    """An engine between its streams. `pace` is how long the outbox's reader takes for each item.

    `slots` are how many records there is room for at once.
    """

    def __init__(
        self,
        work: Work,
        *,
        workers: int = 10,
        inbox: int = 2,
        outbox: int = 8,
        watch: FailureWatch | None = None,
        grace: float = 4.0,
        pace: float = 0.0,
        slots: float = math.inf,
    ) -> None:
        self.work = work
        self.stop = Stop()
        self.engine = Engine(
            work, workers, self.stop, watch or FailureWatch(None), grace, lambda: slots - work.running
        )
        self.to_engine, self.inbox = anyio.create_memory_object_stream[list[Item]](inbox)
        self.to_ledger, self.outbox = anyio.create_memory_object_stream[list[Outcome | Note]](outbox)
        self.settled: list[Outcome | Note] = []
        self.batches = 0
        self.fed = 0
        self._pace = pace

    def start(self, tasks: TaskGroup, chunks: Iterable[list[Item]]) -> None:
        tasks.start_soon(self.engine.run, self.inbox, self.to_ledger)
        tasks.start_soon(self._feed, chunks)
        tasks.start_soon(self._drain)

    async def run(self, chunks: Iterable[list[Item]], stop_at: float | None = None) -> None:
        """Run it to its end; with `stop_at` a signal comes then."""
        async with anyio.create_task_group() as tasks:
            self.start(tasks, chunks)
            if stop_at is not None:
                await anyio.sleep(stop_at)
                self.stop.set(signal.SIGINT)

    async def _feed(self, chunks: Iterable[list[Item]]) -> None:
        async with self.to_engine:
            for chunk in chunks:
                if self.stop:
                    return
                try:
                    await self.to_engine.send(chunk)
                except anyio.BrokenResourceError:
                    return
                self.fed += len(chunk)

    async def _drain(self) -> None:
        async with self.outbox:
            async for batch in self.outbox:
                self.batches += 1
                self.settled += batch
                if self._pace:
                    await anyio.sleep(self._pace)

    @property
    def seqs(self) -> list[int]:
        """The numbers of what was settled, in the order in which it came."""
        return [item.record.seq for item in self.settled if not isinstance(item, Note)]


def records(n: int, chunk: int = 100) -> list[list[Item]]:
    return [[record(i) for i in range(at, min(n, at + chunk))] for at in range(0, n, chunk)]


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_every_record_has_exactly_one_outcome(seconds: float) -> None:
    house_work = Work(after(seconds))

    async def main() -> House:
        house = House(house_work)
        await house.run(records(2500))
        return house

    house = virtual.run(main)
    assert sorted(house.seqs) == list(range(2500))
    assert (house.engine.dropped, house.engine.cancelled) == (0, 0)


def test_no_more_run_at_once_than_there_are_workers_and_workers_are_used_again() -> None:
    async def main() -> Work:
        work = Work(after(1.0))
        await House(work, workers=7).run(records(100))
        assert anyio.current_time() == pytest.approx(math.ceil(100 / 7), abs=0.01)
        return work

    work = virtual.run(main)
    assert (work.most, len(work.workers)) == (7, 7)


def test_no_more_workers_are_started_than_there_are_records() -> None:
    async def main() -> int:
        work = Work(after(0.1))
        await House(work, workers=1000).run(records(3))
        return len(work.workers)

    assert virtual.run(main) <= 3


def test_a_record_that_comes_alone_is_settled_at_once() -> None:
    async def main() -> None:
        house = House(Work(after(0.1)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.engine.run, house.inbox, house.to_ledger)
            tasks.start_soon(house._drain)
            for seq in range(5):
                await house.to_engine.send([record(seq)])
                await anyio.sleep(0.2)
                assert house.seqs == list(range(seq + 1))
                await anyio.sleep(3600)
            house.to_engine.close()

    virtual.run(main)


def test_bad_lines_pass_through_to_the_outbox() -> None:
    async def main() -> House:
        house = House(Work(after(1.0)))
        await house.run([[record(0), dead(1, "bad_input"), record(2)], [dead(3, "bad_input")]])
        return house

    house = virtual.run(main)
    assert house.seqs[:2] == [1, 3]
    assert sorted(house.seqs) == [0, 1, 2, 3]
    assert house.work.taken == [0, 2]


def test_an_empty_inbox_ends_at_once() -> None:
    async def main() -> None:
        house = House(Work(after(0)))
        await house.run([])
        with pytest.raises(anyio.ClosedResourceError):
            house.to_ledger.send_nowait([])

    virtual.run(main)


def test_the_feeder_takes_no_more_than_its_workers_need_soon() -> None:
    async def main() -> None:
        release = anyio.Event()

        async def body(record: Record) -> Outcome:
            await release.wait()
            return done(record.seq)

        house = House(Work(body), workers=10)
        async with anyio.create_task_group() as tasks:
            house.start(tasks, records(5000, chunk=50))
            await anyio.wait_all_tasks_blocked()
            assert house.fed <= 10 + 10 + 50 + 2 * 50 + 50
            release.set()
        assert len(house.seqs) == 5000

    virtual.run(main)


def test_what_is_settled_in_one_turn_goes_out_in_one_item() -> None:
    async def main() -> tuple[int, int]:
        house = House(Work(after(1.0)), workers=500)
        await house.run(records(500))
        return house.batches, len(house.settled)

    batches, settled = virtual.run(main)
    assert settled == 500
    assert batches <= 10


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_a_slow_outbox_holds_the_workers_back_and_loses_none_of_them(seconds: float) -> None:
    async def main() -> tuple[House, int]:
        work = Work(after(seconds))
        house = House(work, workers=50, outbox=1, pace=10.0)
        furthest = 0

        async def look() -> None:
            nonlocal furthest
            while len(house.settled) < 8000:
                await anyio.sleep(1.0)
                furthest = max(furthest, len(work.taken) - len(house.settled))

        async with anyio.create_task_group() as tasks:
            house.start(tasks, records(8000))
            tasks.start_soon(look)
        return house, furthest

    house, furthest = virtual.run(main)
    assert sorted(house.seqs) == list(range(8000))
    assert furthest <= 4 * (1024 + 100)


@pytest.mark.parametrize(("workers", "waiting"), [(10, 512), (800, 800), (4000, 1024)])
def test_as_many_outcomes_wait_for_a_slow_outbox_as_keep_the_workers_busy(workers: int, waiting: int) -> None:
    async def main() -> tuple[int, int]:
        work = Work(after(0.01))
        house = House(work, workers=workers, outbox=1, pace=1e6)
        async with anyio.create_task_group() as tasks:
            house.start(tasks, records(20_000))
            await anyio.sleep(100.0)
            taken = len(work.taken)
            tasks.cancel_scope.cancel()
        return taken, work.running

    taken, running = virtual.run(main)
    assert waiting <= taken <= waiting + 4 * workers
    assert running == 0


def test_no_further_workers_start_while_those_that_there_are_wait_for_a_slow_outbox() -> None:
    async def main() -> tuple[House, int]:
        work = Work(after(0.01))
        house = House(work, workers=workers_for(600), outbox=1, pace=1.0, slots=600)
        async with anyio.create_task_group() as tasks:
            house.start(tasks, records(20_000))
            await anyio.sleep(0.5)
            tried = len(work.taken)
        return house, tried

    house, tried = virtual.run(main)
    assert tried < 10_000  # they waited indeed
    assert sorted(house.seqs) == list(range(20_000))
    assert len(house.work.workers) == house.work.most == 600


def test_who_waits_without_a_slot_is_stood_in_for_while_others_linger() -> None:
    async def main() -> float:
        async def body(record: Record) -> Outcome:
            await anyio.sleep(0.1)
            work.running -= 1  # its slot
            if record.seq < 30:
                with house.engine.lingering():
                    await anyio.sleep(50.0)
            else:
                house.engine.instead()
                await anyio.sleep(5.0)
            work.running += 1
            return done(record.seq)

        work = Work(body)
        house = House(work, workers=workers_for(2), slots=2)
        await house.run([[record(seq) for seq in range(60)]])
        assert sorted(house.seqs) == list(range(60))
        return anyio.current_time()

    # 20 workers beside those that linger, which are given up when nothing else is left
    assert virtual.run(main) == pytest.approx(30 * 0.1 / 2 + 2 * 5.0, abs=1.0)


def test_notes_go_out_with_the_outcomes() -> None:
    async def main() -> House:
        house = House(Work(after(0.1)))
        house.work.note = True
        await house.run(records(20))
        return house

    house = virtual.run(main)
    notes = [item.body["seq"] for item in house.settled if isinstance(item, Note)]
    assert sorted(notes) == sorted(house.seqs) == list(range(20))


def test_a_signal_drops_what_waits_and_lets_what_is_in_flight_finish() -> None:
    async def main() -> House:
        house = House(Work(after(3.0)), workers=10)
        await house.run(records(1000, chunk=20), stop_at=1.0)
        assert anyio.current_time() == pytest.approx(3.0)
        return house

    house = virtual.run(main)
    assert len(house.work.taken) == 10
    assert sorted(house.seqs) == list(range(10))
    assert house.engine.cancelled == 0
    assert house.engine.dropped + 10 == house.fed


def test_what_is_still_in_flight_after_the_grace_is_given_up_and_counted() -> None:
    async def main() -> House:
        async def body(record: Record) -> Outcome:
            await anyio.sleep(2.0 if record.seq < 4 else 1000.0)
            return done(record.seq)

        house = House(Work(body), workers=10, grace=4.0)
        await house.run(records(1000), stop_at=1.0)
        assert anyio.current_time() == pytest.approx(5.0)
        return house

    house = virtual.run(main)
    assert sorted(house.seqs) == [0, 1, 2, 3]
    assert house.engine.cancelled == 6
    assert house.work.running == 0
    assert house.engine.dropped + 4 + 6 == house.fed


def test_a_second_signal_gives_up_at_once_and_keeps_what_was_settled() -> None:
    async def main() -> House:
        async def body(record: Record) -> Outcome:
            await anyio.sleep(1.0 if record.seq < 3 else 1000.0)
            return done(record.seq)

        house = House(Work(body), workers=10, grace=60.0, pace=5.0)
        async with anyio.create_task_group() as tasks:
            house.start(tasks, records(500))
            await anyio.sleep(2.0)
            house.stop.set(signal.SIGINT)
            await anyio.sleep(0.5)
            house.engine.abort()
            house.engine.abort()
        return house

    house = virtual.run(main)
    assert sorted(house.seqs) == [0, 1, 2]
    assert house.engine.cancelled == 10
    assert house.work.running == 0


def test_an_abort_before_anything_ran_ends_it() -> None:
    async def main() -> House:
        house = House(Work(after(1.0)))
        house.engine.abort()
        await house.run(records(10))
        return house

    assert virtual.run(main).seqs == []


def test_a_fatal_error_stops_the_run_and_writes_no_letter() -> None:
    async def main() -> House:
        async def body(record: Record) -> Outcome:
            await anyio.sleep(0.1)
            if record.seq == 5:
                raise AuthFailed("the key is wrong", "check it")
            await anyio.sleep(2.0)
            return done(record.seq)

        house = House(Work(body), workers=10)
        await house.run(records(1000))
        assert anyio.current_time() == pytest.approx(2.1)
        return house

    house = virtual.run(main)
    assert isinstance(house.stop.reason, AuthFailed)
    assert len(house.work.taken) == 10
    assert sorted(house.seqs) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert house.engine.dropped + 9 == house.fed


def test_no_record_is_taken_up_after_a_fatal_error_in_the_same_turn() -> None:
    async def main() -> House:
        async def body(record: Record) -> Outcome:
            raise AuthFailed("the key is wrong")

        house = House(Work(body), workers=1)
        await house.run(records(100))
        return house

    house = virtual.run(main)
    assert house.work.taken == [0]
    assert house.settled == []
    assert house.engine.dropped == house.fed


def test_a_record_that_hears_of_the_stop_is_dropped_without_an_outcome() -> None:
    async def main() -> House:
        house = House(Work(after(0)), workers=10)

        async def body(record: Record) -> Outcome:
            await house.stop.sleep(100)
            return done(record.seq)

        house.work._body = body
        await house.run(records(1000), stop_at=1.0)
        assert anyio.current_time() == pytest.approx(1.0)
        return house

    house = virtual.run(main)
    assert house.settled == []
    assert house.engine.cancelled == 0
    assert house.engine.dropped == house.fed


def test_a_stop_while_the_feeder_is_held_by_a_full_outbox_starts_nothing_new() -> None:
    async def main() -> House:
        house = House(Work(after(0)), workers=5, outbox=1, pace=10.0)
        bad: list[list[Item]] = [
            [dead(i, "bad_input") for i in range(at, at + 1000)] for at in range(0, 5000, 1000)
        ]
        await house.run([*bad, [*bad[0], record(9000)]], stop_at=5.0)
        return house

    house = virtual.run(main)
    assert house.work.taken == []


def test_an_exception_of_the_process_is_no_outcome_and_comes_out() -> None:
    async def main() -> None:
        async def body(record: Record) -> Outcome:
            raise ZeroDivisionError("a bug")

        await House(Work(body)).run(records(10))

    with pytest.raises(ExceptionGroup) as caught:
        virtual.run(main)
    assert caught.group_contains(ZeroDivisionError)


def test_an_outbox_that_nobody_reads_any_more_ends_the_engine() -> None:
    async def main() -> Work:
        work = Work(after(1.0))
        house = House(work, workers=10)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.engine.run, house.inbox, house.to_ledger)
            tasks.start_soon(house._feed, records(10_000))
            await anyio.sleep(1.5)
            house.outbox.close()
        return work

    work = virtual.run(main)
    assert len(work.taken) <= 40
    assert work.running == 0


def test_same_failure_stops_the_engine_and_no_letter_goes_beyond_it() -> None:
    async def main() -> House:
        async def body(record: Record) -> Outcome:
            await anyio.sleep(0.1)
            return dead(record.seq, "refused", f"max_tokens: bad value in request {record.seq}")

        house = House(Work(body), workers=56)
        await house.run(records(10_000))
        return house

    house = virtual.run(main)
    assert isinstance(house.stop.reason, SameFailure)
    spent = [item.body["seq"] for item in house.settled if isinstance(item, Note)]
    assert len(house.settled) == 20 + len(spent)
    assert len(house.work.taken) == 20 + len(spent) <= 56 + 19
    assert house.engine.dropped + 20 == house.fed


def judged(watch: FailureWatch, outcomes: Iterable[Outcome]) -> tuple[int, BatchError | None, int]:
    """Outcomes kept, the first verdict, and how many had come when it fell."""
    kept, verdict, at = 0, None, 0
    for i, outcome in enumerate(outcomes, 1):
        keep, found = watch.judge(outcome)
        kept += keep
        if verdict is None and found is not None:
            verdict, at = found, i
    return kept, verdict, at


def test_twenty_alike_from_the_start_trip_and_none_is_kept_beyond_them() -> None:
    kept, verdict, at = judged(FailureWatch(None), [dead(i) for i in range(100)])
    assert isinstance(verdict, SameFailure)
    assert (kept, at) == (20, 20)
    assert verdict.message == "20 records in a row failed alike: no"
    assert verdict.hint


def test_two_hundred_alike_trip_later() -> None:
    outcomes: list[Outcome] = [done(0), *(dead(i) for i in range(1, 500))]
    kept, verdict, at = judged(FailureWatch(None), outcomes)
    assert isinstance(verdict, SameFailure)
    assert (kept, at) == (201, 201)


def test_bad_lines_call_nobody_and_hide_no_same_failure() -> None:
    outcomes = [dead(i, "bad_input", f"line {i}") if i % 3 == 0 else dead(i) for i in range(100)]
    kept, verdict, at = judged(FailureWatch(None), outcomes)
    assert isinstance(verdict, SameFailure)
    assert at == 30
    assert kept == 30 + sum(i % 3 == 0 for i in range(30, 100))


def test_what_differs_is_kept_after_the_trip() -> None:
    watch = FailureWatch(None)
    judged(watch, [dead(i) for i in range(20)])
    assert watch.judge(done(20)) == (True, None)
    assert watch.judge(dead(21, "refused", "another thing")) == (True, None)
    assert watch.judge(dead(22)) == (False, None)


@pytest.mark.parametrize(
    "outcomes",
    [
        [dead(i, "refused", ("no", "never")[i % 2]) for i in range(1000)],
        [done(i) if i % 19 == 0 else dead(i) for i in range(1000)],
        [dead(i, "invalid", "breaks the schema") for i in range(1000)],
        [dead(i, "internal", "a bug") for i in range(1000)],
        [dead(i, "bad_input", "not JSON") for i in range(1000)],
        [done(i) for i in range(1000)],
    ],
    ids=["mixed", "some answers", "invalid", "internal", "bad input", "answers"],
)
def test_no_other_run_of_outcomes_trips(outcomes: list[Outcome]) -> None:
    assert judged(FailureWatch(None), outcomes) == (len(outcomes), None, 0)


def test_numbers_and_ids_make_no_difference() -> None:
    messages = [f"request req_{i:08x} asks for {i} tokens, 4096 is the most" for i in range(20)]
    outcomes = [dead(i, "too_large", message) for i, message in enumerate(messages)]
    assert isinstance(judged(FailureWatch(None), outcomes)[1], SameFailure)


def test_the_hint_is_the_provider_s_own_where_it_has_one() -> None:
    watch = FailureWatch(None, hint=lambda dead: f"about {dead.error.cause}")
    verdict = judged(watch, [dead(i) for i in range(20)])[1]
    assert verdict is not None
    assert verdict.hint == "about cause"


@pytest.mark.parametrize("most", [0, 1, 7])
def test_max_failures_is_how_many_may_fail(most: int) -> None:
    outcomes = [dead(i, "invalid") if i % 2 else done(i) for i in range(100)]
    _, verdict, at = judged(FailureWatch(most), outcomes)
    assert isinstance(verdict, TooManyFailures)
    assert at == 2 * (most + 1)
    assert verdict.message.endswith(f"more than --max-failures {most}")


def test_a_share_of_failures_counts_from_fifty_settled_on() -> None:
    outcomes: list[Outcome] = [dead(i, "invalid") for i in range(10)]
    outcomes += [done(i) if i < 49 else dead(i, "invalid") for i in range(10, 100)]
    _, verdict, at = judged(FailureWatch(0.05), outcomes)
    assert isinstance(verdict, TooManyFailures)
    assert at == 50
    assert verdict.message == "11 of 50 records failed, more than --max-failures 5%"


def test_a_share_that_is_kept_never_stops() -> None:
    outcomes = [dead(i, "invalid") if i % 20 == 19 else done(i) for i in range(2000)]
    assert judged(FailureWatch(0.05), outcomes)[1] is None


def test_failures_of_earlier_sessions_count() -> None:
    assert isinstance(
        judged(FailureWatch(5, settled=100, failed=5), [dead(0, "invalid")])[1], TooManyFailures
    )
    assert judged(FailureWatch(5, settled=100, failed=4), [dead(0, "invalid")])[1] is None
    assert isinstance(
        judged(FailureWatch(0.05, settled=99, failed=5), [dead(0, "invalid")])[1], TooManyFailures
    )


def test_an_earlier_session_is_no_start_of_this_one() -> None:
    assert judged(FailureWatch(None, settled=1000), [dead(i) for i in range(30)])[2] == 20


@pytest.mark.parametrize(("window", "workers"), [(1, 18), (20, 56), (200, 416), (2.5, 22)])
def test_there_are_workers_enough_to_fill_the_window_while_others_wait(window: float, workers: int) -> None:
    assert workers_for(window) == workers


@given(st.integers(0, 2**32), st.floats(0, 12), st.sampled_from([0.0, 0.5, 3.0, 100.0]))
@settings(max_examples=30, deadline=None)
def test_wherever_a_stop_falls_each_record_is_settled_dropped_or_given_up(
    seed: int, stop_at: float, grace: float
) -> None:
    draw = random.Random(seed)

    async def body(record: Record) -> Outcome:
        await anyio.sleep(draw.choice([0.0, 0.1, 1.0, 20.0]))
        if draw.random() < 0.002:
            raise AuthFailed("the key is wrong")
        return done(record.seq) if draw.random() < 0.9 else dead(record.seq, "invalid")

    async def main() -> House:
        sizes = [draw.choice([1, 7, 60]) for _ in range(40)]
        starts = [sum(sizes[:i]) for i in range(40)]
        chunks: list[list[Item]] = [
            [record(seq) if draw.random() < 0.9 else dead(seq, "bad_input") for seq in range(at, at + size)]
            for at, size in zip(starts, sizes, strict=True)
        ]
        house = House(Work(body), workers=draw.choice([1, 5, 50]), grace=grace, pace=draw.choice([0.0, 0.2]))
        await house.run(chunks, stop_at)
        return house

    house = virtual.run(main)
    engine, seqs = house.engine, house.seqs
    assert len(set(seqs)) == len(seqs)
    assert len(seqs) + engine.dropped + engine.cancelled == house.fed
    assert house.work.running == 0
