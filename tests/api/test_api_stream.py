"""`batchllm.stream`: each record once in, each outcome once out, and nothing left behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

import batchllm
from batchllm.errors import AuthFailed, ConfigError, Invalid, PilotFailed
from tests.running import names, rows, tickets, write
from tests.serving import Simulated, simulated

ECHO = "fake/echo"
ONE_ANSWERS = (
    {"match": "00000", "text": "at once"},
    {"match": "ticket", "text": "never", "latency_ms": 600_000},
)
Outcomes = list[batchllm.Outcome[dict[str, Any], Any]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[Simulated]:
    with simulated("--latency-ms", "20", "--jitter", "0.9", "--faults", "500:0.1,drop:0.02") as running:
        yield running


def live(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run `main`; behind it there is neither a task nor a thread that was not there before."""

    async def checked() -> Any:
        result = await main()
        for _ in range(1000):  # a generator that was dropped is closed by a task of its own
            if len(asyncio.all_tasks()) == 1:
                break
            await asyncio.sleep(0.001)
        assert len(asyncio.all_tasks()) == 1
        return result

    result = asyncio.run(checked())
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(5)
    assert threading.active_count() == 1
    return result


def collect(records: Any, **settings: Any) -> Outcomes:
    """Everything that a stream yields."""

    async def main() -> Outcomes:
        return [outcome async for outcome in batchllm.stream(records, environ={}, **settings)]

    outcomes: Outcomes = live(main)
    return outcomes


def script(folder: Path, *lines: dict[str, Any]) -> str:
    write(folder / "replies.jsonl", lines)
    return "fake/script?file=replies.jsonl&by=match"


class Counted:
    """An endless iterator of records that counts how far it was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            self.read += 1
            yield {"id": number, "text": f"ticket {number}"}


def test_outcomes_tell_record_answer_tokens_and_calls(folder: Path) -> None:
    outcomes = collect(tickets(3), model=ECHO, ordered=True)
    first = outcomes[0]

    assert [outcome.seq for outcome in outcomes] == [0, 1, 2]
    assert (first.ok, first.id, first.record) == (True, "t-00000", tickets(1)[0])
    assert first.output == first.result() == "echo: ticket 00000 ok"
    assert first.error is first.exception is None
    assert first.usage.input_tokens > 0
    assert [attempt.status for attempt in first.attempts] == [200]
    assert first.reply is not None
    assert first.reply.finish == "stop"
    assert names(folder) == set()


def test_over_sockets_with_faults_every_record_comes_once_and_in_order(server: Simulated) -> None:
    async def main() -> list[tuple[int, bool]]:
        stream = batchllm.stream(
            tickets(200),
            model="openai/m",
            base_url=server.url,
            environ={"OPENAI_API_KEY": "k"},
            ordered=True,
            backoff=0.01,
        )
        return [(outcome.seq, outcome.ok) async for outcome in stream]

    assert live(main) == [(seq, True) for seq in range(200)]


def test_without_order_a_slow_record_holds_nobody_up(folder: Path) -> None:
    never = {"match": "00000", "text": "never", "latency_ms": 600_000}
    model = script(folder, never, {"match": "ticket", "text": "x"})

    async def main() -> list[int]:
        async with aclosing(batchllm.stream(tickets(30), model=model)) as stream:
            return [(await anext(stream)).seq for _ in range(29)]

    assert sorted(live(main)) == list(range(1, 30))


def test_schema_and_repair_hold_and_failures_are_outcomes(folder: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    model = script(
        folder,
        {"match": "00001", "text": "no idea"},
        {"match": "00001", "text": '{"n": 1}'},
        {"match": "00002", "text": "never any"},
        {"match": "ticket", "text": '{"n": 0}'},
    )
    good, mended, failed = collect(tickets(3), model=model, schema=schema, ordered=True)

    assert good.output == {"n": 0}
    assert (mended.output, len(mended.attempts)) == ({"n": 1}, 2)
    assert not failed.ok
    assert failed.output is None
    assert failed.error is not None
    assert (failed.error.kind, failed.error.raw) == ("invalid", "never any")
    with pytest.raises(Invalid):
        failed.result()


def test_a_record_that_is_none_is_an_outcome_too() -> None:
    records: list[Any] = [{"text": "a"}, 5, {"text": object()}, {"text": "b"}]
    outcomes = collect(records, model=ECHO, ordered=True)

    assert [outcome.ok for outcome in outcomes] == [True, False, False, True]
    assert [outcome.error.kind for outcome in outcomes if outcome.error] == ["bad_input"] * 2
    assert [outcome.seq for outcome in outcomes] == [0, 1, 2, 3]


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_iterable_is_read_no_further_than_the_consumer_needs(ordered: bool) -> None:
    records = Counted()

    async def main() -> int:
        taken = 0
        async with aclosing(
            batchllm.stream(records, model=ECHO, concurrency=4, ordered=ordered, environ={})
        ) as stream:
            async for _ in stream:
                taken += 1
                if taken == 100:
                    break
            for _ in range(50):  # the consumer takes nothing, though the loop turns
                await asyncio.sleep(0.01)
            return records.read - taken

    ahead = live(main)
    assert 4 <= ahead <= (2 if ordered else 1) * (2 * 4 + 16) + 32


def test_an_async_iterable_is_answered_as_it_comes_and_no_further() -> None:
    given: list[int] = []
    answered = asyncio.Event()

    async def records() -> AsyncIterator[dict[str, str]]:
        for number in range(5):
            given.append(number)
            yield {"text": str(number)}
            await answered.wait()  # the next comes only behind this one's answer
            answered.clear()

    async def main() -> list[int]:
        seen = []
        async for outcome in batchllm.stream(records(), model=ECHO, environ={}):
            seen.append(outcome.seq)
            assert len(given) == len(seen)
            answered.set()
        return seen

    assert live(main) == [0, 1, 2, 3, 4]


def test_breaking_out_cancels_what_is_in_flight(folder: Path) -> None:
    model = script(folder, *ONE_ANSWERS)

    async def main() -> list[int]:
        seen = []
        async for outcome in batchllm.stream(tickets(50), model=model, timeout=9999, environ={}):
            seen.append(outcome.seq)
            break
        return seen

    assert live(main) == [0]


def test_a_consumer_that_is_cancelled_or_raises_leaves_nothing_behind(folder: Path) -> None:
    model = script(folder, *ONE_ANSWERS)

    async def take_all() -> None:
        async for _ in batchllm.stream(tickets(50), model=model, environ={}):
            pass

    async def fail() -> None:
        async for _ in batchllm.stream(tickets(50), model=model, environ={}):
            raise ZeroDivisionError

    async def main() -> None:
        with anyio.move_on_after(0.2) as scope:
            await take_all()
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(take_all(), 0.2)
        with pytest.raises(ZeroDivisionError):
            await fail()

    live(main)


def test_a_loop_that_ends_in_the_midst_of_an_iteration_ends_it(folder: Path) -> None:
    model = script(folder, *ONE_ANSWERS)

    async def main() -> Any:
        stream = batchllm.stream(tickets(50), model=model, output="o.jsonl", environ={})
        await anext(stream)
        return stream

    stream = asyncio.run(main())
    assert stream.ag_frame is None
    model = script(folder, {"match": "ticket", "text": "y"})
    assert len(collect(tickets(50), model=model, output="o.jsonl")) == 49


def test_with_an_output_an_aborted_iteration_goes_on_and_yields_what_is_new(folder: Path) -> None:
    settings: dict[str, Any] = {"model": ECHO, "output": "out.jsonl", "environ": {}}

    async def first() -> list[int]:
        seen = []
        async with aclosing(batchllm.stream(iter(tickets(300)), concurrency=2, **settings)) as stream:
            async for outcome in stream:
                seen.append(outcome.seq)
                assert outcome.seq in {row["seq"] for row in rows(folder / "out.jsonl")}
                if len(seen) == 40:
                    break
        return seen

    seen = live(first)
    on_disk = {row["seq"] for row in rows(folder / "out.jsonl")}
    assert on_disk >= set(seen)
    assert len(on_disk) < 300
    later = collect(tickets(300), model=ECHO, output="out.jsonl", ordered=True)
    assert [outcome.seq for outcome in later] == sorted(set(range(300)) - on_disk)
    assert [row["id"] for row in rows(folder / "out.jsonl")] == [ticket["id"] for ticket in tickets(300)]
    assert collect(tickets(300), model=ECHO, output="out.jsonl") == []
    assert [o.seq for o in collect(tickets(302), model=ECHO, output="out.jsonl", ordered=True)] == [300, 301]


def test_other_records_under_the_same_output_are_refused_but_by_id_only_new_ones_are_asked() -> None:
    collect(tickets(20), model=ECHO, output="out.jsonl")

    with pytest.raises(ConfigError, match="begins otherwise"):
        collect(tickets(20, start=5), model=ECHO, output="out.jsonl")
    new = collect(tickets(20, start=5), model=ECHO, output="out.jsonl", resume_by="id")
    assert sorted(outcome.id for outcome in new) == [f"t-{n:05}" for n in range(20, 25)]


def test_a_changed_prompt_is_refused_and_redone_where_wanted(folder: Path) -> None:
    collect(tickets(5), model=ECHO, output="out.jsonl")

    with pytest.raises(ConfigError, match="prompt was None"):
        collect(tickets(5), model=ECHO, output="out.jsonl", prompt="Say {{ text }}")
    redone = collect(tickets(5), model=ECHO, output="out.jsonl", prompt="Say {{ text }}", on_change="redo")
    assert len(redone) == 5
    assert {row["output"][:9] for row in rows(folder / "out.jsonl")} == {"echo: Say"}


def test_what_stops_a_run_is_raised_behind_the_outcomes_until_then(folder: Path) -> None:
    model = script(
        folder,
        {"match": "00004", "error": {"status": 401, "message": "no"}},
        {"match": "ticket", "text": "fine"},
    )

    seen = []

    async def main() -> None:
        async for outcome in batchllm.stream(tickets(20), model=model, concurrency=1, environ={}):
            seen.append(outcome.seq)

    with pytest.raises(AuthFailed):
        live(main)
    assert seen == [0, 1, 2, 3]


def test_what_the_records_raise_is_raised_as_it_is() -> None:
    def records() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise LookupError("the cursor is gone")

    async def broken() -> AsyncIterator[dict[str, str]]:
        for record in records():
            yield record

    for given in (records, broken):
        with pytest.raises(LookupError, match="the cursor is gone"):
            collect(given(), model=ECHO)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no model was named"),
        ({"model": ECHO, "input": "a.jsonl"}, "input names others"),
        ({"model": ECHO, "output": "-"}, "output names stdout"),
        ({"model": ECHO, "dead_letter": "d.jsonl"}, "goes with an output"),
        ({"model": ECHO, "prompt": "{{ colour }}"}, "'colour'"),
        ({"model": ECHO, "pilot": 5}, "nobody is there to be asked"),
        ({"model": ECHO, "rounds": 1}, "rounds needs an output"),
    ],
)
def test_what_is_wrong_is_raised_and_nothing_is_written(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        collect(tickets(3), **settings)
    assert names(folder) == set()


@pytest.mark.parametrize("records", [{"text": "a"}, "text", 5])
def test_what_is_no_iterable_of_records_is_a_type_error(records: Any) -> None:
    with pytest.raises(TypeError, match="expected an iterable"):
        batchllm.stream(records, model=ECHO, environ={})


def test_limits_hold_and_a_pilot_can_end_it(folder: Path) -> None:
    limited = collect(itertools.islice(iter(Counted()), 50), model=ECHO, limit=7)
    assert len(limited) == 7

    model = script(folder, {"match": "ticket", "error": {"status": 400, "message": "no"}})
    with pytest.raises(PilotFailed):
        collect(tickets(50), model=model, pilot=4, yes=True)


def test_lines_that_were_answered_before_an_abort_are_whole(folder: Path) -> None:
    async def main() -> None:
        async for outcome in batchllm.stream(tickets(500), model=ECHO, output="o.jsonl", environ={}):
            if outcome.seq > 100:
                break

    live(main)
    for line in (folder / "o.jsonl").read_bytes().splitlines(keepends=True):
        assert line.endswith(b"\n")
        json.loads(line)


def test_with_rounds_a_record_that_failed_comes_again(folder: Path) -> None:
    down = {"match": "00001", "error": {"status": 500, "message": "down"}}
    model = script(folder, down, {"match": "ticket", "text": "fine"})
    outcomes = collect(tickets(3), model=model, rounds=1, max_retries=0, output="o.jsonl", ordered=True)

    assert [outcome.seq for outcome in outcomes] == [0, 1, 2, 1]
    assert [letter["seq"] for letter in rows(folder / "o.dead.jsonl")] == [1]


def test_it_works_on_uvloop_as_well() -> None:
    async def main() -> int:
        taken = 0
        async for _ in batchllm.stream(Counted(), model=ECHO, environ={}):
            taken += 1
            if taken == 100:
                break
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.001)
        return taken

    assert anyio.run(main, backend_options={"use_uvloop": True}) == 100
