"""What the pipeline promises: every error of a record becomes data here, and nothing else does."""

from __future__ import annotations

import re
import time
from typing import Any

import anyio
import pytest

from batchllm.errors import (
    AuthFailed,
    BadInput,
    ConfigError,
    Exhausted,
    Invalid,
    Overloaded,
    RecordError,
    Refused,
    SameFailure,
    Stopped,
    TooLarge,
)
from batchllm.model import Dead, Done, Note, Outcome, Record, Reply, Request, Trail
from batchllm.pipeline import Pipeline, Stage
from tests.calls import reply
from tests.outcomes import record


class Stack:
    """A provider that answers or raises one thing and keeps what it was asked."""

    def __init__(self, what: Reply | BaseException | None = None) -> None:
        self.what = what or reply()
        self.asked: list[tuple[Request, Trail]] = []

    async def complete(self, request: Request, trail: Trail) -> Reply:
        self.asked.append((request, trail))
        if isinstance(self.what, BaseException):
            raise self.what
        return self.what


def render(data: dict[str, Any], answers: dict[str, Any] | None = None) -> dict[str, Any]:
    if "text" not in data:
        raise BadInput("the record has no field text", cause="missing_field")
    return {"messages": [{"role": "user", "content": data["text"]}], "temperature": 0}


def pipeline(stack: Stack, **given: Any) -> Pipeline:
    asked = {name: given.pop(name) for name in ("render", "model", "schema", "raw") if name in given}
    stage = Stage(stack, **{"render": render, "model": "m"} | asked)
    arguments: dict[str, Any] = {"run_id": "run", "generation": 0, "record_timeout": None}
    return Pipeline({None: [stage]}, **arguments | given)


def settle(stack: Stack, item: Record | None = None, **given: Any) -> Outcome:
    notes: list[Note] = []
    outcome = anyio.run(pipeline(stack, **given), item or record(7), notes.append)
    assert notes == []
    return outcome


def test_an_answer_is_done_with_its_record_reply_and_trail() -> None:
    before, stack = time.time(), Stack(answer := reply("yes"))
    outcome = settle(stack)
    assert isinstance(outcome, Done)
    assert outcome.record == record(7)
    assert outcome.reply is answer
    assert outcome.trail is stack.asked[0][1]
    assert before <= outcome.at <= time.time()


def test_the_request_is_what_the_record_renders_to() -> None:
    stack, schema = Stack(), {"type": "object"}
    settle(stack, schema=schema, model="tiny")
    (request, _), body = stack.asked[0], render({"text": "text"})
    assert (request.model, request.body, request.schema, request.raw) == ("tiny", body, schema, False)


def test_a_raw_body_is_marked_so() -> None:
    stack = Stack()
    settle(stack, raw=True, render=lambda data, answers: data)
    request = stack.asked[0][0]
    assert request.raw
    assert request.body == record(7).data


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (TooLarge("too long", status=400), "too_large", False),
        (Refused("a filter", cause="content_filter", status=400), "refused", False),
        (Invalid("no JSON", cause="no_json", raw="hm"), "invalid", True),
        (Exhausted("after 4 tries: down", cause="server_error", status=503), "exhausted", True),
    ],
)
def test_a_record_s_own_error_is_a_letter_of_its_kind(error: RecordError, kind: str, retryable: bool) -> None:
    outcome = settle(Stack(error))
    assert isinstance(outcome, Dead)
    found = outcome.error
    assert (found.kind, found.retryable) == (kind, retryable)
    assert (found.cause, found.message, found.status, found.raw) == (
        error.cause,
        error.message,
        error.status,
        error.raw,
    )


def test_a_record_that_does_not_render_is_bad_input_and_nobody_is_called() -> None:
    stack, item = Stack(), Record(3, "x", {"other": 1}, b'{"other":1}')
    outcome = settle(stack, item)
    assert isinstance(outcome, Dead)
    assert (outcome.error.kind, outcome.error.cause) == ("bad_input", "missing_field")
    assert stack.asked == []


@pytest.mark.parametrize(
    ("error", "cause", "message"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        (ConfigError("no such thing"), "ConfigError", "no such thing"),
        (Overloaded("nobody caught it"), "Overloaded", "nobody caught it"),
    ],
)
def test_any_other_exception_is_an_internal_letter(error: Exception, cause: str, message: str) -> None:
    outcome = settle(Stack(error))
    assert isinstance(outcome, Dead)
    assert (outcome.error.kind, outcome.error.cause, outcome.error.message) == ("internal", cause, message)


def test_a_template_that_raises_costs_its_record_alone() -> None:
    def broken(data: dict[str, Any]) -> dict[str, Any]:
        raise RecursionError("too deep")

    outcome = settle(Stack(), render=broken)
    assert isinstance(outcome, Dead)
    assert outcome.error.kind == "internal"


@pytest.mark.parametrize("error", [AuthFailed("the key is wrong"), SameFailure("alike"), Stopped()])
def test_what_concerns_the_run_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        settle(Stack(error))
    assert caught.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_what_ends_the_process_is_no_outcome(error: BaseException) -> None:
    async def main() -> None:
        with pytest.raises(type(error)):
            await pipeline(Stack(error))(record(7), lambda note: None)

    anyio.run(main)


def test_cancellation_is_no_outcome() -> None:
    class Hangs(Stack):
        async def complete(self, request: Request, trail: Trail) -> Reply:
            await anyio.sleep_forever()
            raise AssertionError

    async def main() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pipeline(Hangs())(record(7), lambda note: None)
        assert scope.cancelled_caught

    anyio.run(main)


def key_of(item: Record, **given: Any) -> str:
    stack = Stack()
    settle(stack, item, **given)
    return stack.asked[0][0].key


def test_a_key_is_short_plain_and_the_same_for_the_same_record_of_the_same_run() -> None:
    key = key_of(record(7))
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key)
    assert key == key_of(record(7))


def test_another_record_run_or_generation_has_another_key() -> None:
    keys = {key_of(record(i)) for i in range(50)}
    keys |= {key_of(record(7), run_id="other"), key_of(record(7), generation=1)}
    assert len(keys) == 52


def test_the_record_timeout_sets_a_deadline_and_none_sets_none() -> None:
    stack = Stack()
    before = time.monotonic()
    settle(stack, record_timeout=30.0)
    settle(stack)
    with_one, without = stack.asked[0][1].deadline, stack.asked[1][1].deadline
    assert with_one is not None
    assert before + 30 <= with_one <= time.monotonic() + 30
    assert without is None
