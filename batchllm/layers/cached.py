"""Answers a request that was answered before without asking, and asks once for identical ones in flight.

The outermost layer, so it sees answers that were judged and holds no slot while it waits; a failure is never
kept. It owns what is being asked now; what is kept, and for how long, is the business of its `Answers`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from time import monotonic
from typing import Any

import anyio

from batchllm import exact
from batchllm.fields import mutable
from batchllm.lines import dumps
from batchllm.model import NO_USAGE, Reply, Request, Trail
from batchllm.ports import Answers, Provider

_FORMAT = b"batchllm-cache-1"
_LEADERS = 2
"""Records that another one waits for, one after the other, before it asks itself: what fails for two may fail
for a thousand, which then shouldn't stand in a queue."""


@mutable
class _Asked:
    """One request that is being asked by its leader; `answer` is None where that failed or gave up."""

    answer: bytes | None = None
    over: anyio.Event | None = None


class Cached:
    """A Provider that keeps the answers of the one inside, under a digest of the request's content.

    `judge` names whatever decides on answers beside the request itself, such as a check of the user's: with
    another one, what was kept doesn't count. A request that carries its record is judged with it, so its
    answer is good for no other record. With `whole`, answers need their `raw` too. `waits` is called where a
    record begins to wait for another's answer.
    """

    def __init__(
        self,
        inner: Provider,
        answers: Answers,
        *,
        whole: bool = False,
        judge: str = "",
        waits: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._inner = inner
        self._answers = answers
        self._whole = whole
        self._judge = judge
        self._waits = waits
        self._clock = clock
        self._asked: dict[bytes, _Asked] = {}
        self._schema: dict[str, Any] | None = None
        self._head = blake2b(dumps([judge, None]), digest_size=20, person=_FORMAT)

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """The answer that is kept, or that is on its way for another record, or a new one."""
        digest = self._digest(request)
        leaders = 0
        while leaders < _LEADERS and (asked := self._asked.get(digest)) is not None:
            reply = await self._wait(asked, trail)
            if reply is not None:
                return reply
            leaders += 1
        mine = _Asked()
        asked = self._asked.setdefault(digest, mine)
        try:
            return await self._lead(digest, mine, request, trail)
        finally:
            if asked is mine:
                del self._asked[digest]
            if mine.over is not None:
                mine.over.set()

    async def _lead(self, digest: bytes, asked: _Asked, request: Request, trail: Trail) -> Reply:
        kept = await self._answers.find(digest)
        if kept is not None and (reply := self._reply(kept)) is not None:
            asked.answer = kept
            return reply
        reply = await self._inner.complete(request, trail)
        if not reply.fallback:  # it is no answer of the model that was asked
            asked.answer = self._kept(reply)
            self._answers.keep(digest, asked.answer)
        return reply

    async def _wait(self, asked: _Asked, trail: Trail) -> Reply | None:
        """The answer that another record's request gets, None where there is none; not this record's time."""
        if asked.over is None:
            asked.over = anyio.Event()
        self._waits()
        began = self._clock()
        await asked.over.wait()
        if trail.deadline is not None:
            trail.deadline += self._clock() - began
        return None if asked.answer is None else self._reply(asked.answer)

    def _digest(self, request: Request) -> bytes:
        """160 bits over all that decides on the answer; the order of parameters doesn't."""
        if request.schema is not self._schema:
            self._schema = request.schema
            head = dumps([self._judge, request.schema])
            self._head = blake2b(head, digest_size=20, person=_FORMAT)
        content = self._head.copy()
        content.update(dumps([request.model, request.raw, dict(sorted(request.body.items()))]))
        if request.record is not None:
            content.update(dumps(request.record))
        return content.digest()

    def _kept(self, reply: Reply) -> bytes:
        answer = {
            "text": reply.text,
            "model": reply.model,
            "finish": reply.finish,
            "request_id": reply.request_id,
        }
        if reply.value is not reply.text:
            answer["value"] = reply.value
        if self._whole:
            answer["raw"] = reply.raw
        return dumps(answer)

    def _reply(self, kept: bytes) -> Reply | None:
        """The reply of a kept answer, its value nobody else's; None for one that won't do."""
        try:
            answer = exact.loads(kept)
            if self._whole and "raw" not in answer:
                return None
            text = answer["text"]
            return Reply(
                text=text,
                value=answer.get("value", text),
                usage=NO_USAGE,
                finish=answer["finish"],
                model=answer["model"],
                request_id=answer["request_id"],
                raw=answer.get("raw"),
                cached=True,
            )
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None
