"""What the innermost layer promises: every call is an attempt, whatever came of it."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from batchllm.errors import AuthFailed, Disconnected, Overloaded, Refused
from batchllm.layers.traced import Traced
from batchllm.model import Attempt, Outcome, Reply, Request, Trail, Usage
from tests.calls import reply, request


class Seen:
    """An Observer that keeps the attempts."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, Attempt]] = []

    def run_started(self, facts: dict[str, Any]) -> None: ...
    def settled(self, outcome: Outcome) -> None: ...
    def pause(self, seconds: float, reason: str) -> None: ...
    def run_stopped(self, facts: dict[str, Any]) -> None: ...

    def attempt(self, request: Request, attempt: Attempt) -> None:
        self.attempts.append((request.key, attempt))


class Says:
    """A provider that answers or raises one thing."""

    def __init__(self, what: Reply | Exception) -> None:
        self.what = what

    async def complete(self, request: Request, trail: Trail) -> Reply:
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


def attempt_of(what: Reply | Exception) -> Attempt:
    """The one attempt that a call leaves on the trail and with the observer."""
    seen, trail = Seen(), Trail()
    layer = Traced(Says(what), [seen])
    if isinstance(what, Exception):
        with pytest.raises(type(what)) as caught:
            anyio.run(layer.complete, request("k7"), trail)
        assert caught.value is what
    else:
        assert anyio.run(layer.complete, request("k7"), trail) is what
    assert seen.attempts == [("k7", trail.attempts[0])]
    assert len(trail.attempts) == 1
    return trail.attempts[0]


def test_an_answer_is_an_attempt_with_its_usage_status_and_id() -> None:
    before = time.time()
    attempt = attempt_of(reply(usage=Usage(30, 20)))
    assert (attempt.status, attempt.usage, attempt.request_id) == (200, Usage(30, 20), "q1")
    assert (attempt.error, attempt.cause) == (None, None)
    assert before <= attempt.at <= time.time()
    assert 0 <= attempt.seconds < 60


def test_a_failure_is_an_attempt_with_its_status_id_and_message() -> None:
    attempt = attempt_of(Overloaded("the server failed", status=503, request_id="q9"))
    assert (attempt.status, attempt.request_id, attempt.error) == (503, "q9", "the server failed")
    assert attempt.usage is None
    assert attempt.cause == "server_error"


@pytest.mark.parametrize(
    ("error", "status"),
    [(Disconnected("broke"), None), (Refused("no", status=400), 400), (AuthFailed("a wrong key"), None)],
)
def test_every_branch_of_the_taxonomy_leaves_an_attempt(error: Exception, status: int | None) -> None:
    attempt = attempt_of(error)
    assert (attempt.status, attempt.error) == (status, str(error))


def test_a_call_that_dies_of_a_bug_is_an_attempt_too() -> None:
    attempt = attempt_of(KeyError("choices"))
    assert (attempt.error, attempt.cause) == ("KeyError: 'choices'", None)


def test_a_call_that_is_cancelled_is_no_attempt() -> None:
    class Hangs:
        async def complete(self, request: Request, trail: Trail) -> Reply:
            await anyio.sleep_forever()
            raise AssertionError

    async def main() -> Trail:
        trail = Trail()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Traced(Hangs()).complete, request(), trail)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        return trail

    assert anyio.run(main).attempts == []


def test_the_attempts_of_one_record_add_up() -> None:
    trail = Trail()

    async def main() -> None:
        for what in (Overloaded("down"), reply(usage=Usage(3, 2, 1)), reply(usage=Usage(30, 20, 10))):
            try:
                await Traced(Says(what)).complete(request(), trail)
            except Overloaded:
                pass

    anyio.run(main)
    assert len(trail.attempts) == 3
    assert trail.usage() == Usage(33, 22, 11)
