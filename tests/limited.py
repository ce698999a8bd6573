"""A service with limits on the virtual clock, and a gate that meets it with many who ask.

The service is the rehearsal server's own Quota and Line, so that what is proved here holds over sockets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import anyio

from batchllm.errors import BatchError, CallError, RateLimited
from batchllm.layers.gated import Gate, Gated, RateLimiter
from batchllm.limits import Adaptive
from batchllm.model import Reply, Request, Standing, Trail, Usage
from batchllm.simulate.load import Line
from batchllm.simulate.quota import Quota
from batchllm.stop import Stop
from tests import virtual

REFUSES_S = 0.005
"""Seconds until a refusal."""


@dataclass
class Service:
    """Answers after `latency` seconds, varied by the share `jitter`, within `limits` a minute.

    `tells` says how: headers (in each answer), words (a refusal names its limit), name (it names only which),
    nothing. `waits` is whether a refusal says how long to wait. `failing` gives an error to raise instead, by
    the number of the call and the time. `knee` calls are answered at once, more wait in line.
    """

    limits: Mapping[str, int | None] = field(default_factory=dict)
    latency: float = 0.1
    jitter: float = 0.0
    tells: str = "nothing"
    waits: bool = True
    window: float | None = None
    knee: int | None = None
    failing: Callable[[int, float], CallError | None] = lambda call, now: None
    seed: int = 1
    admitted: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    took: list[tuple[float, float]] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._quota = Quota(self.limits, 0.0, self.window)
        self._line = Line(self.knee, None) if self.knee else None
        self._draw = random.Random(self.seed)

    def change(self, limits: Mapping[str, int | None], now: float) -> None:
        """Other limits from now on."""
        self._quota = Quota(limits, now, self.window)

    def used_by_others(self) -> None:
        """Another client of the account asks, too."""
        self._quota.ask({"requests": 1, "tokens": 0}, anyio.current_time())

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """A Provider's."""
        now, amount = anyio.current_time(), request.body["tokens"]
        self.calls.append(now)
        error = self.failing(len(self.calls), now)
        if error is None:
            refusal = self._quota.ask({"requests": 1, "tokens": amount}, now)
            told = self._told(now) if self.tells == "headers" else ()
            if refusal is not None:
                if self.tells in ("words", "name"):
                    limit = refusal.per_minute if self.tells == "words" else None
                    told = (Standing(refusal.dimension, limit, 0.0),)
                wait = refusal.wait if self.waits else None
                error = RateLimited("too many requests", retry_after=wait, limits=told)
        if error is not None:
            self.refused.append(now)
            await anyio.sleep(REFUSES_S)
            raise error
        self.admitted.append((now, amount))
        takes = self.latency * (1 + self.jitter * self._draw.uniform(-1, 1))
        await anyio.sleep(self._line.enter(takes, now) if self._line is not None else takes)
        self.took.append((anyio.current_time(), anyio.current_time() - now))
        half = amount // 2
        return Reply("a", "a", Usage(amount - half, half), "stop", "m", limits=told)

    def _told(self, now: float) -> tuple[Standing, ...]:
        return tuple(
            Standing(found.dimension, found.per_minute, found.remaining, found.reset)
            for found in self._quota.standings(now)
        )

    def share(self, per_minute: float, since: float, until: float, *, tokens: bool = False) -> float:
        """The share of a limit that was used in a span of time."""
        amounts = [amount if tokens else 1 for at, amount in self.admitted if since <= at < until]
        return sum(amounts) / (per_minute / 60 * (until - since))

    @property
    def share_refused(self) -> float:
        """Of all calls."""
        return len(self.refused) / max(1, len(self.calls))


@dataclass
class Crowd:
    """`concurrency` calls at once (None finds how many, `ceiling` at most) for `seconds`, then drained.

    `own_time` is the time of each record, in seconds; `at` says what to do when, `waits` is what the gate
    said in the end.
    """

    service: Service
    limits: Mapping[str, float | None] = field(default_factory=dict)
    concurrency: int | None = 20
    ceiling: int = 128
    seconds: float = 180.0
    sizes: Callable[[random.Random], int] = lambda draw: 100
    max_stall: float = 900.0
    own_time: float | None = None
    at: Mapping[float, Callable[[Crowd], None]] = field(default_factory=dict)
    windows: list[tuple[float, float]] = field(default_factory=list)
    failed: list[BatchError] = field(default_factory=list)
    answered: int = 0
    waits: str | None = None

    def run(self) -> Crowd:
        """Run it in virtual time."""
        virtual.run(self._main)
        return self

    async def _main(self) -> None:
        most = self.concurrency or self.ceiling
        self.stop = Stop()
        self.limiter = RateLimiter(self.limits, self.stop, clock=anyio.current_time)
        self.gate = Gate(
            anyio.CapacityLimiter(most),
            self.limiter,
            self.stop,
            max_stall=self.max_stall,
            adaptive=Adaptive(most, 0.0) if self.concurrency is None else None,
            ramp=True,
            clock=anyio.current_time,
            draw=random.Random(3).random,
        )
        layer = Gated(self.service, self.gate)
        async with anyio.create_task_group() as beside:
            beside.start_soon(self.gate.tend)
            beside.start_soon(self._watch)
            for moment, do in self.at.items():
                beside.start_soon(self._later, moment, do)
            async with anyio.create_task_group() as tasks:
                for number in range(most + 10):
                    tasks.start_soon(self._ask, layer, number)
            self.waits = self.gate.waits()
            beside.cancel_scope.cancel()

    async def _later(self, moment: float, do: Callable[[Crowd], None]) -> None:
        await anyio.sleep(moment)
        do(self)

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(0.25)
            self.windows.append((anyio.current_time(), self.gate.target))

    async def _ask(self, layer: Gated, number: int) -> None:
        draw, turn = random.Random(number), 0
        while anyio.current_time() < self.seconds and not self.stop:
            tokens, turn = self.sizes(draw), turn + 1
            half = tokens // 2
            body = {
                "messages": [{"role": "user", "content": "x" * (4 * (tokens - half))}],
                "max_tokens": half,
                "tokens": tokens,
            }
            self.gate.began()
            trail = Trail(None if self.own_time is None else anyio.current_time() + self.own_time)
            try:
                await layer.complete(Request("m", body, f"{number}-{turn}"), trail)
                self.answered += 1
            except BatchError as error:
                self.failed.append(error)
                await anyio.sleep(0.01)
            finally:
                self.gate.ended()
