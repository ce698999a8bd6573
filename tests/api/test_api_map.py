"""`batchllm.map`: any function, with the limits, retries, order and resume of a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import batchllm
from batchllm.errors import (
    AuthFailed,
    ConfigError,
    Internal,
    Overloaded,
    RateLimited,
    Refused,
    SameFailure,
    TimedOut,
)
from tests.api.test_api_stream import Counted, live
from tests.running import names, rows


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def collect(function: Callable[[Any], Any], items: Any, **settings: Any) -> list[batchllm.Outcome[Any, Any]]:
    """Everything that a map yields."""

    async def main() -> list[batchllm.Outcome[Any, Any]]:
        return [outcome async for outcome in batchllm.map(function, items, **settings)]

    outcomes: list[batchllm.Outcome[Any, Any]] = live(main)
    return outcomes


async def double(number: int) -> int:
    await asyncio.sleep(0.001 * (number % 3))
    return 2 * number


def test_results_come_in_order_whether_the_function_is_async_or_not(folder: Path) -> None:
    assert [outcome.result() for outcome in collect(double, range(50))] == list(range(0, 100, 2))
    assert [outcome.output for outcome in collect(lambda n: n + 1, range(50))] == list(range(1, 51))
    assert names(folder) == set()


def test_a_sync_function_runs_in_threads_and_an_async_one_on_the_loop() -> None:
    sync = collect(lambda _: threading.current_thread() is threading.main_thread(), [1])

    async def which(_: int) -> bool:
        return threading.current_thread() is threading.main_thread()

    assert [sync[0].output, collect(which, [1])[0].output] == [False, True]


def test_items_and_results_pass_through_as_they_are_and_need_not_be_json() -> None:
    items = [object(), {1, 2}, None, lambda: 5]

    outcomes = collect(lambda item: (item,), items)
    for item, outcome in zip(items, outcomes, strict=True):
        assert outcome.record is item
        assert outcome.output == (item,)
    assert [outcome.id for outcome in outcomes] == [0, 1, 2, 3]


def test_as_they_come_a_slow_one_is_last() -> None:
    last = asyncio.Event()
    seen: list[int] = []

    async def wait(number: int) -> int:
        seen.append(number)
        if len(seen) == 10:
            last.set()
        if number == 0:
            await last.wait()
        return number

    assert collect(wait, range(10), ordered=False)[-1].output == 0


def test_exceptions_are_outcomes_and_keep_their_class() -> None:
    async def fail(number: int) -> int:
        if number == 1:
            raise LookupError("one")
        if number == 2:
            raise Refused("not this one", cause="policy")
        return number

    good, one, two = collect(fail, range(3))
    assert good.ok
    assert isinstance(one.exception, LookupError)
    assert one.error is not None
    assert (one.error.kind, one.error.cause, one.error.message) == (
        "internal",
        "LookupError",
        "LookupError: one",
    )
    assert two.error is not None
    assert (two.error.kind, two.error.cause) == ("refused", "policy")
    with pytest.raises(Refused):
        two.result()


def test_with_raise_errors_the_function_s_own_exception_ends_the_iteration() -> None:
    async def fail(number: int) -> int:
        if number == 3:
            raise LookupError("three")
        return number

    seen = []

    async def main() -> None:
        async for outcome in batchllm.map(fail, range(100), raise_errors=True):
            seen.append(outcome.output)

    with pytest.raises(LookupError, match="three"):
        live(main)
    assert seen == [0, 1, 2]


class Flaky:
    """A function that raises these for an item, one a call, before it returns it."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = errors
        self.calls: dict[int, int] = {}

    async def __call__(self, item: int) -> int:
        done = self.calls[item] = self.calls.get(item, 0) + 1
        if item == 0 and done <= len(self._errors):
            raise self._errors[done - 1]
        return item


def test_connections_timeouts_and_what_is_named_are_tried_again_and_a_limit_costs_no_retry() -> None:
    class Odd(Exception):
        pass

    transient = Flaky(ConnectionResetError("gone"), TimeoutError(), Overloaded("busy"), Odd("odd"))
    outcomes = collect(transient, range(3), max_retries=4, backoff=0.001, retry_on=(OSError, Odd))
    assert [outcome.ok for outcome in outcomes] == [True] * 3
    assert transient.calls == {0: 5, 1: 1, 2: 1}
    assert len(outcomes[0].attempts) == 5

    limited = Flaky(*[RateLimited("slow down", retry_after=0.01)] * 3)
    assert collect(limited, range(3), max_retries=0)[0].ok
    assert limited.calls[0] == 4

    spent = Flaky(*[ConnectionRefusedError("nobody there")] * 3)
    failed = collect(spent, range(3), max_retries=1, backoff=0.001)[0]
    assert failed.error is not None
    assert failed.error.kind == "exhausted"
    assert isinstance(failed.exception, ConnectionRefusedError)


def test_a_call_that_takes_too_long_is_a_timeout_async_or_in_a_thread() -> None:
    over = threading.Event()

    async def sleeps(_: int) -> None:
        await asyncio.sleep(999)

    async def main() -> list[batchllm.Outcome[Any, Any]]:
        settings: Any = {"timeout": 0.1, "max_retries": 0}
        in_loop = [outcome async for outcome in batchllm.map(sleeps, [1], **settings)]
        in_thread = [outcome async for outcome in batchllm.map(lambda _: over.wait(20), [1], **settings)]
        over.set()  # the thread goes on, and ends now
        return in_loop + in_thread

    for outcome in live(main):
        assert isinstance(outcome.exception, TimedOut)
        assert outcome.error.cause == "timeout"


def test_a_fatal_error_of_the_function_s_ends_the_iteration() -> None:
    async def locked(number: int) -> int:
        if number == 2:
            raise AuthFailed("the account is locked")
        return number

    with pytest.raises(AuthFailed, match="locked"):
        collect(locked, range(10), concurrency=1)


def test_no_more_run_at_once_than_asked_and_an_endless_iterable_is_read_as_needed() -> None:
    running = most = 0

    async def watch(_: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    items = Counted()

    async def main() -> None:
        async with aclosing(batchllm.map(watch, items, concurrency=3)) as stream:
            for _ in range(60):
                await anext(stream)

    live(main)
    assert most == 3
    assert items.read - 60 <= 2 * (2 * 3 + 16) + 32


def test_a_rate_is_kept_to() -> None:
    began: list[float] = []

    async def note(_: int) -> None:
        began.append(asyncio.get_running_loop().time())

    collect(note, range(8), rps=20, burst=0.05)
    assert began[-1] - began[0] >= 0.3  # seven of them at 20 a second


def test_with_an_output_it_goes_on_where_it_stopped_and_items_must_be_json(folder: Path) -> None:
    calls: list[Any] = []

    async def name(item: Any) -> Any:
        calls.append(item)
        return {"was": item}

    async def items() -> AsyncIterator[Any]:
        for item in ({"id": "a"}, "text", {"item": 5}, [1, 2], {"id": object()}):
            yield item

    async def first() -> None:
        async with aclosing(batchllm.map(name, items(), output="o.jsonl", concurrency=1)) as stream:
            assert (await anext(stream)).result() == {"was": {"id": "a"}}

    live(first)
    settled = {row["seq"] for row in rows(folder / "o.jsonl")}
    if (folder / "o.dead.jsonl").exists():
        settled |= {letter["seq"] for letter in rows(folder / "o.dead.jsonl")}
    expected = [{"id": "a"}, "text", {"item": 5}, [1, 2], None]
    later = collect(name, items(), output="o.jsonl")
    assert [outcome.record for outcome in later] == [expected[n] for n in range(5) if n not in settled]
    assert [letter["error"]["kind"] for letter in rows(folder / "o.dead.jsonl")] == ["bad_input"]
    assert [row["output"] for row in rows(folder / "o.jsonl")] == [
        {"was": item} for item in ({"id": "a"}, "text", {"item": 5}, [1, 2])
    ]
    assert [row["id"] for row in rows(folder / "o.jsonl")][:2] == ["a", "line-2"]
    assert calls.count({"id": "a"}) == 1


def test_a_result_that_json_can_not_carry_is_an_error_where_it_has_to_be_written() -> None:
    (outcome,) = collect(lambda item: object(), [1], output="o.jsonl")

    assert outcome.error is not None
    assert outcome.error.cause == "not_json"
    with pytest.raises(Internal):
        outcome.result()


def test_neither_environment_nor_job_file_count_and_unknown_settings_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "batchllm.toml").write_text("nonsense = 1\n")
    monkeypatch.setenv("BATCHLLM_OUTPUT", "o.jsonl")

    assert len(collect(double, range(3))) == 3
    with pytest.raises(ConfigError, match="no setting 'prompt'"):
        batchllm.map(double, range(3), prompt="x")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="whole number"):
        batchllm.map(double, range(3), concurrency=0)


@pytest.mark.parametrize(
    ("function", "retry_on", "message"),
    [
        (5, (OSError,), "expected a function, not int"),
        (double, [OSError], "retry_on: expected a tuple of exception classes"),
        (double, OSError, "retry_on: expected a tuple of exception classes"),
        (double, (OSError, "timeout"), "retry_on: expected a tuple of exception classes"),
    ],
)
def test_what_is_no_function_and_no_exception_to_retry_on_is_a_type_error_at_once(
    function: Any, retry_on: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        batchllm.map(function, range(3), retry_on=retry_on)


def test_what_fails_alike_everywhere_ends_the_iteration_with_a_hint_that_speaks_of_the_function() -> None:
    async def down(_: int) -> None:
        raise ConnectionRefusedError("nobody there")

    async def wrong(_: int) -> None:
        raise LookupError("never heard of it")

    with pytest.raises(SameFailure, match="20 records in a row") as caught:
        collect(down, range(50), max_retries=0)
    assert "what the function calls" in (caught.value.hint or "")
    assert len(collect(wrong, range(250))) == 250
