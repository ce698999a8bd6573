"""Requests, replies and providers for tests of what stands around a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from batchllm.model import Attempt, Reply, Request, Trail, Usage


def request(key: str = "key", **body: Any) -> Request:
    """A request with one short message and these fields beside it."""
    return Request("m", {"messages": [{"role": "user", "content": "How many?"}], **body}, key)


def reply(text: str = "fine", usage: Usage | None = None) -> Reply:
    """A plain answer."""
    return Reply(text, text, usage or Usage(3, 2), "stop", "m", "q1", {})


Turn = Reply | Exception


class Script:
    """Answers or raises what it is told in turn, then what `after` says, each time after `lasts` seconds.

    `asked` are the keys of the requests, `at` the times of the loop when they came; `most` is the highest
    number of calls that were in it at once, `inside` how many are now.
    """

    def __init__(self, *turns: Turn, after: Callable[[], Turn] = reply, lasts: float = 0.0) -> None:
        self._turns = list(turns)
        self._after = after
        self._lasts = lasts
        self.asked: list[str] = []
        self.at: list[float] = []
        self.inside = 0
        self.most = 0

    async def complete(self, request: Request, trail: Trail) -> Reply:
        self.asked.append(request.key)
        self.at.append(anyio.current_time())
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            turn = self._turns.pop(0) if self._turns else self._after()
            trail.attempts.append(Attempt(0.0, 0.0))
            if self._lasts:
                await anyio.sleep(self._lasts)
            if isinstance(turn, Exception):
                raise turn
            return turn
        finally:
            self.inside -= 1


class Parked:
    """Holds every call until `release` is set; `inside` is how many it holds."""

    def __init__(self) -> None:
        self.release = anyio.Event()
        self.inside = 0

    async def complete(self, request: Request, trail: Trail) -> Reply:
        self.inside += 1
        try:
            await self.release.wait()
        finally:
            self.inside -= 1
        return reply()
