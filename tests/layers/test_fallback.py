"""What the fallback layer promises: who stands in, for what, and when a run has to stop instead."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from batchllm.errors import (
    AuthFailed,
    BatchError,
    Exhausted,
    Internal,
    Invalid,
    Refused,
    RouteGone,
    SameFailure,
    Stalled,
    Stopped,
    TooLarge,
)
from batchllm.layers.fallback import Fallback, Standby
from batchllm.model import Reply, Request, Trail, Usage
from batchllm.ports import Provider
from batchllm.stop import Stop
from batchllm.testing import Answers

CONSTANT = Reply("none", "none", Usage(), None, "fallback_answer", fallback=True)
REQUEST = Request("a/one", {"messages": []}, "k" * 64)
DOWN = Exhausted("after 4 tries: no connection", cause="disconnected")


def ask(
    inner: Provider,
    others: Sequence[tuple[str, Provider]] = (),
    constant: Reply | None = None,
    times: int = 1,
    request: Request = REQUEST,
    stop: Stop | None = None,
) -> list[Reply | BatchError]:
    """The layer's replies or errors, one after another, in a run that goes on throughout."""
    run = Stop() if stop is None else stop
    standbys = [Standby(model, stack, run.aside()) for model, stack in others]
    layer = Fallback(inner, standbys, constant, run)
    got: list[Reply | BatchError] = []

    async def main() -> None:
        for _ in range(times):
            try:
                got.append(await layer.complete(request, Trail()))
            except BatchError as error:
                got.append(error)

    anyio.run(main)
    assert stop is not None or run.reason is None
    return got


def test_a_reply_of_the_model_itself_passes_untouched() -> None:
    others = Answers("two")
    (reply,) = ask(Answers("one"), [("b/two", others)], CONSTANT)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.fallback) == ("one", False)
    assert others.requests == []


@pytest.mark.parametrize(
    "error",
    [
        DOWN,
        Invalid("the answer was empty", cause="empty", raw=""),
        Refused("the model refused to answer", cause="refusal"),
        Refused("withheld", cause="content_filter", status=400),
    ],
)
def test_models_are_asked_in_their_order_and_then_the_constant_stands_in(error: BatchError) -> None:
    two, three = Answers(Invalid("bad")), Answers("three")
    (reply,) = ask(Answers(error), [("b/two", two), ("c/three", three)], CONSTANT)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.fallback) == ("three", True)
    (request,) = three.requests
    assert (request.model, request.key) == ("c/three", "k" * 61 + "-f2")
    assert ask(Answers(error), [("b/two", two)], CONSTANT) == [CONSTANT]
    assert ask(Answers(error), [("b/two", two)]) == [error]


@pytest.mark.parametrize(
    "error",
    [Refused("temperature is wrong", cause="invalid_value", status=400), AuthFailed("the key"), Stopped()],
)
def test_nobody_stands_in_for_a_wrong_request_or_a_run_that_stops(error: BatchError) -> None:
    two = Answers("two")
    assert ask(Answers(error), [("b/two", two)], CONSTANT) == [error]
    assert two.requests == []


@pytest.mark.parametrize("error", [AuthFailed("the key"), RouteGone("no such model")])
def test_a_fallback_whose_account_or_name_is_refused_is_asked_once_and_the_run_goes_on(
    error: BatchError,
) -> None:
    two, three = Answers(error), Answers("three")
    got = ask(Answers(DOWN), [("b/two", two), ("c/three", three)], times=3)
    assert [each.text for each in got if isinstance(each, Reply)] == ["three"] * 3
    assert (len(two.requests), len(three.requests)) == (1, 3)
    assert ask(Answers(DOWN), [("b/two", Answers(error))], times=2) == [DOWN, DOWN]


@pytest.mark.parametrize("error", [TooLarge("too long"), Refused("no", status=400), Internal("a check's")])
def test_where_no_fallback_answers_the_record_has_the_failure_of_its_own_model(error: BatchError) -> None:
    assert ask(Answers(DOWN), [("b/two", Answers(error))]) == [DOWN]


def test_a_model_that_the_record_names_is_not_asked_of_a_fallback() -> None:
    two = Answers("two")
    request = Request("a/one", {"messages": [], "model": "one-large", "seed": 1}, "k")
    ask(Answers(DOWN), [("b/two", two)], request=request)
    (asked,) = two.requests
    assert (asked.model, asked.body) == ("b/two", {"messages": [], "seed": 1})
    assert request.body["model"] == "one-large"


class Stops:
    """A Provider that is asked in the moment in which the run stops."""

    def __init__(self, stop: Stop, error: BatchError) -> None:
        self._stop = stop
        self._error = error

    async def complete(self, request: Request, trail: Trail) -> Reply:
        self._stop.set(signal.SIGINT)
        raise self._error


class Waits:
    """A Provider that waits until it is stopped, as a gate does."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    async def complete(self, request: Request, trail: Trail) -> Reply:
        await self._stop.sleep(1e9)
        raise AssertionError


@pytest.mark.parametrize("error", [AuthFailed("the key"), Stopped()])
def test_a_run_that_stops_meanwhile_asks_nobody_else_and_settles_nothing(error: BatchError) -> None:
    stop, three = Stop(), Answers("three")
    others = [("b/two", Stops(stop, error)), ("c/three", three)]
    assert [type(end) for end in ask(Answers(DOWN), others, CONSTANT, stop=stop)] == [Stopped]
    assert three.requests == []


def test_one_that_gets_nowhere_is_given_up_by_all_who_wait_for_it() -> None:
    run = Stop()
    its = run.aside()
    waiting = Fallback(Answers(DOWN), [Standby("b/two", Waits(its), its)], CONSTANT, run)
    got: list[Reply] = []

    async def one() -> None:
        got.append(await waiting.complete(REQUEST, Trail()))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            tasks.start_soon(one)
            await anyio.lowlevel.checkpoint()
            its.set(Stalled("nothing has succeeded for 900 s"))

    anyio.run(main)
    assert got == [CONSTANT, CONSTANT]
    assert run.reason is None


def test_constants_stand_for_a_model_that_is_never_reached_only_so_often() -> None:
    got = ask(Answers(DOWN), constant=CONSTANT, times=20)
    assert got[:19] == [CONSTANT] * 19
    assert isinstance(got[19], SameFailure)
    later = ask(Answers("one", DOWN), constant=CONSTANT, times=201)
    assert later[1:200] == [CONSTANT] * 199
    assert isinstance(later[200], SameFailure)


def test_bad_answers_and_other_models_are_no_reason_to_stop() -> None:
    assert ask(Answers(Invalid("bad")), constant=CONSTANT, times=300) == [CONSTANT] * 300
    got = ask(Answers(DOWN), [("b/two", Answers("two"))], CONSTANT, times=300)
    assert all(isinstance(each, Reply) and each.text == "two" for each in got)
