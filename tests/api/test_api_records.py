"""What a program may hand to `stream` and `map` as records, and what becomes of what its iterable raises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import batchllm
from batchllm.errors import ConfigError
from tests.api.test_api_map import collect as collect_map
from tests.api.test_api_stream import ECHO, Outcomes, collect, live, script
from tests.running import rows, tickets


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Odd(BaseException):
    """What no program expects."""


def breaking(error: BaseException, count: int = 3) -> Iterator[dict[str, Any]]:
    """Some records, and then `error`."""
    yield from tickets(count)
    raise error


async def breaking_async(error: BaseException, count: int = 3) -> AsyncIterator[dict[str, Any]]:
    for ticket in tickets(count):
        yield ticket
    raise error


async def waiting_for_what_was_cancelled(_: BaseException) -> AsyncIterator[dict[str, Any]]:
    for ticket in tickets(3):
        yield ticket
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


def until_raised(records: Any, kind: type[BaseException], **settings: Any) -> tuple[Outcomes, BaseException]:
    """What a stream yields before it raises, and what that is."""
    seen: Outcomes = []

    async def take() -> None:
        async for outcome in batchllm.stream(records, environ={}, **settings):
            seen.append(outcome)

    async def main() -> BaseException:
        with pytest.raises(kind) as caught:
            await take()
        return caught.value

    error: BaseException = live(main)
    return seen, error


@pytest.mark.parametrize("given", [breaking, breaking_async])
@pytest.mark.parametrize("ordered", [True, False])
def test_what_came_before_an_exception_of_the_iterable_is_answered_first(
    folder: Path, given: Callable[[BaseException], Any], ordered: bool
) -> None:
    gone = LookupError("the cursor is gone")
    model = script(
        folder,
        {"match": "00000", "text": "slow", "latency_ms": 200},
        {"match": "ticket", "text": "fine"},
    )
    seen, error = until_raised(given(gone), LookupError, model=model, concurrency=1, ordered=ordered)

    assert error is gone
    assert sorted(outcome.seq for outcome in seen) == [0, 1, 2]
    assert all(outcome.ok for outcome in seen)


@pytest.mark.parametrize("by", ["position", "id"])
def test_with_an_output_a_later_iteration_goes_on_behind_the_exception(folder: Path, by: Any) -> None:
    settings: dict[str, Any] = {"model": ECHO, "output": "o.jsonl", "resume_by": by}
    until_raised(breaking(LookupError("gone"), 30), LookupError, **settings)
    assert len(rows(folder / "o.jsonl")) == 30

    seen, _ = until_raised(breaking(LookupError("gone"), 40), LookupError, ordered=True, **settings)
    settled = 40 if by == "position" else 30  # by id, all is read before the first call
    assert [outcome.seq for outcome in seen] == list(range(30, settled))
    later = collect(tickets(50), ordered=True, **settings)
    assert [outcome.seq for outcome in later] == list(range(settled, 50))
    assert [row["seq"] for row in rows(folder / "o.jsonl")] == list(range(50))


def test_an_exception_among_the_records_that_are_settled_already_is_raised_as_it_is() -> None:
    collect(tickets(30), model=ECHO, output="o.jsonl")

    settings: dict[str, Any] = {"model": ECHO, "output": "o.jsonl"}
    seen, error = until_raised(breaking(LookupError("gone"), 10), LookupError, **settings)
    assert (seen, str(error)) == ([], "gone")


@pytest.mark.parametrize("given", [breaking, breaking_async, waiting_for_what_was_cancelled])
def test_a_cancellation_that_is_the_iterable_s_own_is_raised_behind_what_came_before(given: Any) -> None:
    seen, _ = until_raised(given(asyncio.CancelledError()), asyncio.CancelledError, model=ECHO)

    assert [outcome.seq for outcome in seen] == [0, 1, 2]


@pytest.mark.parametrize("given", [breaking, breaking_async])
@pytest.mark.parametrize("odd", [Odd, GeneratorExit])
def test_no_exception_of_the_iterable_s_is_taken_for_its_end(given: Any, odd: type[BaseException]) -> None:
    until_raised(given(odd()), odd, model=ECHO, output="o.jsonl")

    later = collect(tickets(5), model=ECHO, output="o.jsonl")
    assert 2 <= len(later) <= 5


def test_a_map_yields_what_came_before_an_exception_too() -> None:
    seen = []

    async def main() -> None:
        async for outcome in batchllm.map(lambda ticket: ticket["id"], breaking(LookupError("gone"))):
            seen.append(outcome.output)

    with pytest.raises(LookupError, match="gone"):
        live(main)
    assert seen == [ticket["id"] for ticket in tickets(3)]


def test_an_async_generator_is_closed_when_the_loop_is_left_and_may_wait_for_that() -> None:
    closed: list[str] = []

    async def records() -> AsyncIterator[dict[str, Any]]:
        try:
            for ticket in tickets(1000):
                yield ticket
        finally:
            await asyncio.sleep(0.001)
            closed.append("records")

    async def main() -> None:
        async with aclosing(batchllm.stream(records(), model=ECHO, environ={})) as stream:
            await anext(stream)
        closed.append("stream")

    live(main)
    assert closed == ["records", "stream"]


def test_an_async_iterable_that_is_no_generator_needs_no_close() -> None:
    class Three:
        def __init__(self) -> None:
            self.left = tickets(3)

        def __aiter__(self) -> Three:
            return self

        async def __anext__(self) -> dict[str, Any]:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    assert len(collect(Three(), model=ECHO)) == 3


def test_a_record_is_any_mapping_within_another_too() -> None:
    inner = MappingProxyType({"text": "b", "more": (MappingProxyType({"n": 1}),)})
    records = [MappingProxyType({"text": "a"}), {"text": "c", "inner": inner}]

    first, second = collect(records, model=ECHO, ordered=True)
    assert (first.output, first.record) == ("echo: a", {"text": "a"})
    assert second.record == {"text": "c", "inner": {"text": "b", "more": [{"n": 1}]}}


def test_what_json_can_not_carry_is_named_by_its_type_and_field() -> None:
    itself: dict[str, Any] = {}
    itself["again"] = itself
    records = [{"text": object()}, {"a": {"b": [0, {1, 2}]}}, object(), {"a": {(1,): 2}}, itself]
    outcomes = collect(records, model=ECHO, ordered=True)

    assert [outcome.error.message for outcome in outcomes if outcome.error] == [
        "line 1 of the iterable has a value of type object in text, which JSON can't carry",
        "line 2 of the iterable has a value of type set in a.b[1], which JSON can't carry",
        "line 3 of the iterable is of type object, which JSON can't carry",
        "line 4 of the iterable has a key of type tuple in a, which JSON can't carry",
        "line 5 of the iterable holds itself, or is nested too deep for JSON",
    ]
    (written,) = collect_map(lambda item: item, [object()], output="o.jsonl")
    assert written.error is not None
    assert "type object in item" in written.error.message


def test_fewer_records_than_were_settled_are_refused_before_any_call() -> None:
    collect(tickets(20), model=ECHO, output="o.jsonl")

    for records in (tickets(7), tickets(5, start=40)):
        with pytest.raises(ConfigError, match="ends before record 21"):
            collect(records, model=ECHO, output="o.jsonl")
