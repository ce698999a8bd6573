"""What the cache layer promises: the same is asked once, only good answers are kept, nobody holds a slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from batchllm.errors import Invalid, Refused
from batchllm.layers.cached import Cached
from batchllm.layers.gated import Gate, Gated, RateLimiter
from batchllm.model import NO_USAGE, Reply, Request, Trail, Usage
from batchllm.ports import Provider
from batchllm.stop import Stop
from tests import virtual
from tests.calls import Parked, Script, reply, request

BAD = Refused("no")


class Shelf:
    """Answers in memory."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.looked_up = 0

    async def find(self, digest: bytes) -> bytes | None:
        self.looked_up += 1
        await anyio.lowlevel.checkpoint()
        return self.kept.get(digest)

    def keep(self, digest: bytes, answer: bytes) -> None:
        self.kept[digest] = answer


async def _one_by_one(layer: Provider, *requests: Request) -> list[Reply | str]:
    """The reply to each, or the message of its failure."""
    ends: list[Reply | str] = []
    for each in requests:
        try:
            ends.append(await layer.complete(each, Trail()))
        except (Refused, Invalid) as error:
            ends.append(error.message)
    return ends


def one_by_one(layer: Provider, *requests: Request) -> list[Reply | str]:
    return virtual.run(_one_by_one, layer, *requests)


def all_at_once(layer: Provider, *requests: Request) -> list[tuple[Reply | str, Trail]]:
    """What each comes to, asked together; with its trail."""
    ends: dict[int, tuple[Reply | str, Trail]] = {}

    async def ask(n: int, each: Request) -> None:
        trail = Trail(deadline=100.0)
        try:
            ends[n] = await layer.complete(each, trail), trail
        except (Refused, Invalid) as error:
            ends[n] = error.message, trail

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for n, each in enumerate(requests):
                tasks.start_soon(ask, n, each)

    virtual.run(main)
    return [ends[n] for n in sorted(ends)]


def test_the_same_request_is_asked_once_and_then_answered_from_the_cache() -> None:
    inner, shelf = Script(reply("yes")), Shelf()

    first, again = one_by_one(Cached(inner, shelf), request("a"), request("b"))
    (later,) = one_by_one(Cached(inner, shelf), request("c"))

    assert inner.asked == ["a"]
    assert isinstance(first, Reply)
    assert not first.cached
    assert first.usage == Usage(3, 2)
    assert again == later == Reply("yes", "yes", NO_USAGE, "stop", "m", "q1", cached=True)


def test_what_decides_on_the_answer_is_in_the_key_and_nothing_else() -> None:
    shelf, schema = Shelf(), {"type": "object"}
    same = [
        Request("m", {"messages": [], "a": 1, "b": 2}, "x"),
        Request("m", {"b": 2, "a": 1, "messages": []}, "y"),
    ]
    others = [
        Request("n", {"messages": [], "a": 1, "b": 2}, "x"),
        Request("m", {"messages": [], "a": 1, "b": 3}, "x"),
        Request("m", {"messages": [], "a": 1}, "x"),
        Request("m", {"messages": [], "a": 1, "b": 2}, "x", raw=True),
        Request("m", {"messages": [], "a": 1, "b": 2}, "x", schema=schema),
        Request("m", {"messages": [], "a": 1, "b": 2}, "x", schema={"type": "array"}),
    ]

    for one in [*same, *others]:
        one_by_one(Cached(Script(), shelf), one)
    one_by_one(Cached(Script(), shelf, judge="mine:check"), same[0])

    assert len(shelf.kept) == 1 + len(others) + 1


def test_requests_that_carry_their_records_share_answers_with_the_same_record_alone() -> None:
    inner = Script(lasts=5.0)
    records = [{"want": "a"}, {"want": "b"}, {"want": "a"}, {}]

    ends = all_at_once(Cached(inner, Shelf()), *[replace(request(), record=record) for record in records])

    assert [end.cached for end, _ in ends if isinstance(end, Reply)] == [False, False, True, False]


@pytest.mark.parametrize(
    "value",
    [{"n": 12345678901234567890123, "s": "a"}, [1.5, None, True], "text of its own", {"a": "é"}],
)
def test_a_value_comes_back_as_it_was_and_is_nobody_elses(value: Any) -> None:
    layer = Cached(Script(Reply("raw text", value, Usage(1, 1), "stop", "m")), Shelf())

    _, second, third = one_by_one(layer, request(), request(), request())

    assert isinstance(second, Reply)
    assert isinstance(third, Reply)
    assert second.value == third.value == value
    assert second.text == "raw text"
    assert isinstance(value, str) or second.value is not third.value


def test_a_failure_is_never_kept() -> None:
    inner, shelf = Script(BAD, Invalid("empty"), reply("at last")), Shelf()

    ends = one_by_one(Cached(inner, shelf), *map(request, "abcd"))

    assert ends[:2] == ["no", "empty"]
    assert [end.cached for end in ends[2:] if isinstance(end, Reply)] == [False, True]
    assert inner.asked == ["a", "b", "c"]
    assert len(shelf.kept) == 1


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"text":"t"}', b"\xff", b"3", b"[" * 5000])
def test_what_is_kept_and_can_not_be_read_is_asked_again(kept: bytes) -> None:
    shelf, inner = Shelf(), Script()
    one_by_one(Cached(inner, shelf), request())
    shelf.kept = dict.fromkeys(shelf.kept, kept)

    (end,) = one_by_one(Cached(inner, shelf), request())

    assert isinstance(end, Reply)
    assert not end.cached
    assert len(inner.asked) == 2


def test_an_answer_that_is_wanted_whole_is_kept_whole() -> None:
    inner, shelf = Script(after=lambda: Reply("t", "t", Usage(), "stop", "m", raw={"id": 7})), Shelf()

    one_by_one(Cached(inner, shelf), request())
    whole = one_by_one(Cached(inner, shelf, whole=True), request(), request())

    assert [(end.raw, end.cached) for end in whole if isinstance(end, Reply)] == [
        ({"id": 7}, False),
        ({"id": 7}, True),
    ]


def test_identical_requests_in_flight_are_asked_once_and_the_leader_alone_pays() -> None:
    inner, shelf = Script(reply("yes", Usage(7, 7)), lasts=5.0), Shelf()

    ends = all_at_once(Cached(inner, shelf), *map(request, "abcdef"))

    replies = [end for end, _ in ends if isinstance(end, Reply)]
    assert inner.asked == ["a"]
    assert shelf.looked_up == 1
    assert [one.text for one in replies] == ["yes"] * 6
    assert [one.cached for one in replies] == [False] + [True] * 5
    assert sum((one.usage for one in replies), NO_USAGE) == Usage(7, 7)
    assert [len(trail.attempts) for _, trail in ends] == [1, 0, 0, 0, 0, 0]


def test_waiting_for_another_records_answer_is_not_the_records_time() -> None:
    layer = Cached(Script(lasts=5.0), Shelf(), clock=anyio.current_time)

    (_, leader), (_, waiter) = all_at_once(layer, request("a"), request("b"))

    assert leader.deadline == 100.0
    assert waiter.deadline == pytest.approx(105.0)


def test_a_leader_that_fails_hands_over_to_one_and_a_second_to_each() -> None:
    inner = Script(BAD, BAD, lasts=5.0, after=lambda: reply("fine"))

    ends = all_at_once(Cached(inner, Shelf()), *map(request, "abcde"))

    assert inner.asked[:2] == ["a", "b"]
    assert sorted(inner.asked[2:]) == ["c", "d", "e"]
    assert inner.at == pytest.approx([0, 5, 10, 10, 10], abs=0.1)
    assert [end if isinstance(end, str) else end.text for end, _ in ends] == ["no", "no"] + ["fine"] * 3


def test_a_leader_that_is_cancelled_hands_over() -> None:
    inner = Script(lasts=5.0)
    layer = Cached(inner, Shelf())
    ends: list[Reply] = []

    async def ask(key: str) -> None:
        ends.append(await layer.complete(request(key), Trail()))

    async def main() -> None:
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as first:
            first.start_soon(ask, "a")
            await anyio.sleep(1)
            tasks.start_soon(ask, "b")
            tasks.start_soon(ask, "c")
            await anyio.sleep(1)
            first.cancel_scope.cancel()

    virtual.run(main)
    assert inner.asked == ["a", "b"]
    assert [end.cached for end in ends] == [False, True]


def test_who_waits_for_another_holds_no_slot_and_says_that_it_waits() -> None:
    parked, waiting = Parked(), list[int]()
    stop = Stop()
    gate = Gate(anyio.CapacityLimiter(2), RateLimiter({}, stop), stop, max_stall=900.0)
    layer = Cached(Gated(parked, gate), Shelf(), waits=lambda: waiting.append(1))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for key in "abcd":
                tasks.start_soon(layer.complete, request(key), Trail())
            tasks.start_soon(layer.complete, request("e", temperature=1), Trail())
            await anyio.sleep(1)
            assert parked.inside == 2
            parked.release.set()

    virtual.run(main)
    assert len(waiting) == 3
