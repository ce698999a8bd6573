"""The gate before every call: a window of calls in flight, and the limits of the account.

Owns anyio's CapacityLimiter (the window) and the RateLimiter (buckets, pauses); all stacks of a run on one
account share them. A refused call gives its slot back, pauses everyone, and waits again; that costs no
retry. It never judges an answer and never gives up on a record, except when the run stops.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from time import monotonic

import anyio

from batchllm.errors import RateLimited, Stalled
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
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._rpm, self._tpm = rpm, tpm
        rates = [limit / 60 for limit in (rpm, tpm) if limit is not None]
        self._bucket = TokenBucket(rates, clock()) if rates else None
        self._estimate = Estimate()
        self._stop = stop
        self._clock = clock
        self._line = anyio.Lock()
        self.pauses = Pauses()
        self.waiting = 0

    def need(self, size: int, most: int | None) -> Sequence[float]:
        """What a request of `size` bytes would take from each bucket."""
        need = []
        if self._rpm is not None:
            need.append(1.0)
        if self._tpm is not None:
            need.append(self._estimate.tokens(size, most))
        return need

    async def admit(self, need: Sequence[float]) -> float:
        """Wait for the turn, the pauses and the buckets; returns the seconds of it that were pauses.

        Raises Stopped when the run stops meanwhile.
        """
        self._stop.check()
        now = self._clock()
        if not self.waiting and self._wait(need, now) <= 0:
            return 0.0
        paused = self.pauses.total(now)
        self.waiting += 1
        try:
            async with self._line:
                while (wait := self._wait(need, self._clock())) > 0:
                    await self._stop.sleep(wait)
                self._stop.check()
        finally:
            self.waiting -= 1
        return self.pauses.total(self._clock()) - paused

    def _wait(self, need: Sequence[float], now: float) -> float:
        if now < self.pauses.until:
            return self.pauses.until - now
        return self._bucket.take(need, now) if self._bucket is not None else 0.0

    def settle(self, need: Sequence[float], size: int, reply: Reply) -> None:
        """A call was answered: put back what it didn't use."""
        self.pauses.succeeded()
        usage = reply.usage
        self._estimate.learn(size, usage.input_tokens, usage.output_tokens)
        if self._tpm is not None and self._bucket is not None and usage.input_tokens:
            used = [*need[:-1], float(usage.input_tokens + usage.output_tokens)]
            self._bucket.settle(need, used)


class Gate:
    """The window and the limits of one account; `in_flight` counts the calls that are out now."""

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
        self._clock = clock
        self._draw = draw
        self._moved = clock()

    def entered(self) -> None:
        """A call goes out."""
        if not self.in_flight and not self.limiter.waiting:
            self._moved = self._clock()
        self.in_flight += 1

    def succeeded(self) -> None:
        """A call was answered."""
        self._moved = self._clock()

    def refused(self, error: RateLimited) -> None:
        """The quota is used up: pause everyone on it."""
        seconds = self.limiter.pauses.add(self._clock(), error.retry_after, self._draw())
        for observer in self._observers:
            observer.pause(seconds, error.message)
        if seconds > self._max_stall:
            self._stop.set(
                Stalled(
                    f"the service asks to wait {seconds:.0f} s, --max-stall is {self._max_stall:.0f} s",
                    "run the same command again then, or raise --max-stall",
                )
            )
        self.check_stall(error.message)

    def check_stall(self, last: str) -> None:
        """Stop the run when nothing has succeeded for too long; `last` is the newest failure's message."""
        silent = self._clock() - self._moved
        if silent > self._max_stall:
            self._stop.set(
                Stalled(
                    f"nothing has succeeded for {silent:.0f} s; last: {last}",
                    "check the service, then run the same command again",
                )
            )

    def waits(self) -> str | None:
        """Why calls are held back now, in words, or None."""
        left = self.limiter.pauses.until - self._clock()
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
        gate, limiter = self._gate, self._gate.limiter
        size = _size(request)
        need = limiter.need(size, _most(request))
        while True:
            async with gate.window:
                paused = await limiter.admit(need)
                if trail.deadline is not None:
                    trail.deadline += paused
                gate.entered()
                try:
                    reply = await self._inner.complete(request, trail)
                except RateLimited as error:
                    gate.refused(error)
                    continue
                finally:
                    gate.in_flight -= 1
            gate.succeeded()
            limiter.settle(need, size, reply)
            return reply


def _most(request: Request) -> int | None:
    most = request.body.get("max_tokens") or request.body.get("max_completion_tokens")
    return most if isinstance(most, int) else None


def _size(request: Request) -> int:
    """Bytes of text in the messages, near enough for an estimate."""
    messages = request.body.get("messages")
    if not isinstance(messages, list):
        return 0
    return sum(len(content) for m in messages if isinstance(content := m.get("content"), str))
