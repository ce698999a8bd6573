"""What the fallback layer promises: who stands in, for what, and when a run has to stop instead."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from batchllm.errors import AuthFailed, BatchError, Exhausted, Invalid, Refused, SameFailure, Stopped
from batchllm.layers.fallback import Fallback
from batchllm.model import Reply, Request, Trail, Usage
from batchllm.ports import Provider
from batchllm.testing import Answers

CONSTANT = Reply("none", "none", Usage(), None, "fallback_answer", fallback=True)
REQUEST = Request("a/one", {"messages": []}, "k" * 64)
DOWN = Exhausted("after 4 tries: no connection", cause="disconnected")


def ask(
    inner: Provider,
    others: Sequence[tuple[str, Provider]] = (),
    constant: Reply | None = None,
    times: int = 1,
) -> list[Reply | BatchError]:
    """The layer's replies or errors, one after another."""
    layer = Fallback(inner, others, constant)
    got: list[Reply | BatchError] = []

    async def main() -> None:
        for _ in range(times):
            try:
                got.append(await layer.complete(REQUEST, Trail()))
            except BatchError as error:
                got.append(error)

    anyio.run(main)
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


def test_a_fallback_whose_account_is_wrong_stops_the_run() -> None:
    wrong = AuthFailed("the key")
    assert ask(Answers(DOWN), [("b/two", Answers(wrong))], CONSTANT) == [wrong]


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
