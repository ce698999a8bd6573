"""The gate before every call: a window of calls in flight, and the limits of the account.

Owns anyio's CapacityLimiter (the window) and the RateLimiter (buckets, pauses); all stacks of a run on one
account share them. A refused call gives its slot back, pauses everyone, and waits again; that costs no
retry. It never judges an answer and never gives up on a record, except when the run stops.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from time import monotonic

import anyio

from batchllm.errors import CallError, RateLimited, Stalled, Stopped
from batchllm.limits import Estimate, Pauses, TokenBucket
from batchllm.model import Reply, Request, Trail
from batchllm.ports import Observer, Provider
from batchllm.stop import Stop


class RateLimiter:
    """Admits requests in the order in which they came, as buckets and pauses allow.

    Only the request at the head of the line sleeps, so there is one timer whatever the number of waiters.
    `rpm` and `tpm` are per minute, None for no limit.
    """

    def __init__(
        self,
        rpm: float | None,
        tpm: float | None,
        stop: Stop,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        rates = [limit / 60 for limit in (rpm, tpm) if limit is not None]
        self._bucket = TokenBucket(rates, clock()) if rates else None
        self._estimate = Estimate()
        self.counts_tokens = tpm is not None
        self._stop = stop
        self._clock = clock
        self._line = anyio.Lock()
        self.pauses = Pauses()
        self.waiting = 0
        self.one: Sequence[float] = (1.0,) if rpm is not None else ()

    def need(self, size: int, most: int | None) -> Sequence[float]:
        """What a request of `size` bytes would take from each bucket; `one` where tokens don't count."""
        return (*self.one, self._estimate.tokens(size, most)) if self.counts_tokens else self.one

    def paused(self) -> float:
        """Seconds that everyone has stood still in all until now."""
        return self.pauses.total(self._clock())

    def admitted(self, need: Sequence[float]) -> bool:
        """Whether it may go at once, with its share taken; raises Stopped in a run that stops."""
        if self._stop.reason is not None:
            raise Stopped
        return not self.waiting and self._wait(need, self._clock()) <= 0

    async def admit(self, need: Sequence[float]) -> None:
        """Wait for the turn, the pauses and the buckets; raises Stopped when the run stops meanwhile."""
        self.waiting += 1
        try:
            async with self._line:
                while (wait := self._wait(need, self._clock())) > 0:
                    await self._stop.sleep(wait)
                self._stop.check()
        finally:
            self.waiting -= 1

    def _wait(self, need: Sequence[float], now: float) -> float:
        if now < self.pauses.until:
            return self.pauses.until - now
        return self._bucket.take(need, now) if self._bucket is not None else 0.0

    def settle(self, need: Sequence[float], size: int, reply: Reply) -> None:
        """A call was answered: put back what it didn't use."""
        self.pauses.succeeded()
        if not self.counts_tokens:
            return
        usage = reply.usage
        self._estimate.learn(size, usage.input_tokens, usage.output_tokens)
        if self._bucket is not None and usage.input_tokens:
            used = [*need[:-1], float(usage.input_tokens + usage.output_tokens)]
            self._bucket.settle(need, used)


class Gate:
    """The window and the limits of one account; `in_flight` counts the calls that are out now.

    It is told of every request from its first try to its last, waits between included, so that it knows
    silence from idleness. A run that stops opens the window: who waits there comes through and is dropped.
    `freed` is called where a slot becomes free and its holder is not about to take it again.
    """

    def __init__(
        self,
        window: anyio.CapacityLimiter,
        limiter: RateLimiter,
        stop: Stop,
        *,
        max_stall: float,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.window = window
        self.limiter = limiter
        self.in_flight = 0
        self._stop = stop
        self._max_stall = max_stall
        self._observers = observers
        self.clock = clock
        self._draw = draw
        self._moved = clock()
        self._at_work = 0
        self.freed: Callable[[], None] = lambda: None
        stop.then(self._open)

    def _open(self) -> None:
        self.window.total_tokens = math.inf

    def room(self) -> float:
        """Calls that could go out now, as far as the window is concerned."""
        return self.window.available_tokens

    def began(self) -> None:
        """A request is taken up; after a time without any, silence is counted from here."""
        if not self._at_work:
            self._moved = self.clock()
        self._at_work += 1

    def ended(self) -> None:
        """A request is answered or given up."""
        self._at_work -= 1

    def succeeded(self) -> None:
        """A call was answered."""
        self._moved = self.clock()

    def refused(self, error: RateLimited) -> None:
        """The quota is used up: pause everyone on it."""
        seconds = self.limiter.pauses.add(self.clock(), error.retry_after, self._draw())
        for observer in self._observers:
            observer.pause(seconds, error.message)
        self.failed(error)

    def failed(self, error: CallError) -> None:
        """A call failed: stop the run if nothing has succeeded for too long, or too long a wait is asked."""
        asked = error.retry_after or 0.0
        if asked > self._max_stall:
            self._stop.set(
                Stalled(
                    f"the service asks to wait {asked:.0f} s, --max-stall is {self._max_stall:.0f} s",
                    "run the same command again then, or raise --max-stall",
                )
            )
        silent = self.clock() - self._moved
        if silent > self._max_stall:
            self._stop.set(
                Stalled(
                    f"nothing has succeeded for {silent:.0f} s; last: {error.message}",
                    "check the service, then run the same command again",
                )
            )
        self.freed()

    def waits(self) -> str | None:
        """Why calls are held back now, in words, or None."""
        left = self.limiter.pauses.until - self.clock()
        if left > 0:
            return f"paused {left:.0f} s by the service's rate limit"
        if self.limiter.waiting > 1:
            return "held to --rpm/--tpm"
        return None


class Gated:
    """A Provider behind a Gate."""

    def __init__(self, inner: Provider, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Wait for a slot and the limits, then ask; a refusal waits and asks again."""
        gate, window, limiter = self._gate, self._gate.window, self._gate.limiter
        size, need = 0, limiter.one
        if limiter.counts_tokens:
            size = _size(request)
            need = limiter.need(size, _most(request))
        while True:
            paused = limiter.paused() if trail.deadline is not None else 0.0
            slot = object()
            try:  # a tenth of the cost of waiting, where there is a place
                window.acquire_on_behalf_of_nowait(slot)
            except anyio.WouldBlock:
                await window.acquire_on_behalf_of(slot)
            try:
                if trail.deadline is not None:
                    trail.deadline += limiter.paused() - paused
                if not limiter.admitted(need):
                    began = gate.clock()
                    await limiter.admit(need)
                    if trail.deadline is not None:  # our own limits are no fault of the record's either
                        trail.deadline += gate.clock() - began
                gate.in_flight += 1
                try:
                    reply = await self._inner.complete(request, trail)
                finally:
                    gate.in_flight -= 1
            except RateLimited as error:
                gate.refused(error)
                continue
            finally:
                window.release_on_behalf_of(slot)
            gate.succeeded()
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
    return size
