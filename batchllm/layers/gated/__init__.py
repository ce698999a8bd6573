"""Every call waits at the gate for a slot in the window and for the limits of the account.

A refused call gives its slot back, pauses everyone, and waits again; that costs no retry. It never gives up
on a record, except when the run stops. `gate` holds the window (anyio's CapacityLimiter), `limiter` the
RateLimiter; both are shared by all stacks of a run on one account.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio

from batchllm.errors import CallError, Disconnected, Overloaded, RateLimited, TimedOut
from batchllm.layers.gated.gate import Gate
from batchllm.layers.gated.limiter import ONE, RateLimiter
from batchllm.model import Reply, Request, Trail
from batchllm.ports import Provider

__all__ = ["Gate", "Gated", "RateLimiter"]


class Gated:
    """A Provider behind a Gate."""

    def __init__(self, inner: Provider, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Wait for a slot and the limits, then ask; a refusal waits and asks again."""
        gate, window, limiter = self._gate, self._gate.window, self._gate.limiter
        size = 0
        while True:
            failed: CallError | None = None
            paused = limiter.paused() if trail.deadline is not None else 0.0
            slot = object()
            try:  # a tenth of the cost of waiting, where there is a place
                window.acquire_on_behalf_of_nowait(slot)
            except anyio.WouldBlock:
                await window.acquire_on_behalf_of(slot)
            try:
                if trail.deadline is not None:
                    trail.deadline += limiter.paused() - paused
                need: Sequence[float] = ONE
                if limiter.counts_tokens:
                    size = size or _size(request)
                    need = limiter.need(size, _most(request))
                if not limiter.admitted(need):
                    began = gate.clock()
                    await limiter.admit(need)
                    if trail.deadline is not None:  # our own limits are no fault of the record's either
                        trail.deadline += gate.clock() - began
                episode, sent = limiter.episode, gate.clock()
                gate.in_flight += 1
                try:
                    reply = await self._inner.complete(request, trail)
                finally:
                    gate.in_flight -= 1
            except RateLimited as error:
                if error.cause == "in_doubt":
                    continue  # asked again at once: no limit refused it
                if error.limits and need is ONE:  # it may have been for its tokens
                    size = _size(request)
                    need = limiter.need(size, _most(request))
                gate.refused(error, need, episode, sent)
                continue
            except (Overloaded, Disconnected, TimedOut) as error:
                over = trail.deadline is not None and gate.clock() >= trail.deadline
                if over or not gate.down(error, request.key, sent):
                    raise
                failed = error
            finally:
                window.release_on_behalf_of(slot)
            if failed is not None:
                if not await gate.back(trail):
                    try:
                        raise failed
                    finally:
                        del failed  # it holds this frame, which would hold it: a cycle
                continue
            gate.answered(sent)
            limiter.settle(need, size, reply)
            return reply


def _most(request: Request) -> int | None:
    """The tokens that a request reserves for its answer, where it sets any that make sense."""
    most = request.body.get("max_tokens") or request.body.get("max_completion_tokens")
    return most if type(most) is int and most > 0 else None


def _size(request: Request) -> int:
    """Bytes of text in the messages, near enough for an estimate."""
    messages = request.body.get("messages")
    if not isinstance(messages, list):
        return 0
    size = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            size += len(content)
        elif isinstance(content, list):
            size += sum(map(_size_of_part, content))
    return size


_IMAGE = 4000
"""Bytes of text that an image costs about as many tokens as."""


def _size_of_part(part: Any) -> int:
    text = part.get("text") if isinstance(part, dict) else None
    return len(text) if isinstance(text, str) else _IMAGE
