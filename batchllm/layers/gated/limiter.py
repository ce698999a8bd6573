"""Admission: who may go out when, as the limits of the account and the pauses of its service allow.

Owns the buckets, the rates that the service told or that its refusals showed, and the pauses. It knows no
window and judges no error; the gate tells it of both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic

import anyio

from batchllm.errors import RateLimited, Stopped
from batchllm.limits import MARGIN, Estimate, Pace, Pauses, TokenBucket, Told
from batchllm.model import DIMENSIONS, Reply, Standing
from batchllm.ports import Allowance
from batchllm.stop import Stop

HOLD_S = 900.0
"""Seconds that a rate is held which the service asked to lower ("slow down")."""
_REFRESH_S = 0.05
"""Seconds after which rates that change by themselves are looked at again."""
_LOOK_AGAIN_S = 0.5
"""Seconds after which a wait is computed anew while a rate rises quickly."""
_PATIENCE, _FORGIVEN_S = 2, 60.0
"""Refusals within so many seconds that don't yet say that a limit which is known is another in truth."""
ONE = (1.0, 0.0, 0.0, 0.0)
_REQUESTS = 0
_FEW = 20
"""Requests over which a pace in tokens creeps up at the least, and without which no rate was ever seen."""
_SAMPLE_S, _SAMPLES = 5.0, 12
"""Seconds between looks at what has gone out, and how many are remembered."""
_NOTICED_S = 1.0
"""Seconds from which on a single wait is worth a word."""
_SLOWEST = 1e-6
"""Units a second of the lowest limit."""


class RateLimiter:
    """Admits requests in the order in which they came, as buckets and pauses allow.

    Only the request at the head of the line sleeps, so there is one timer whatever the number of waiters.
    `limits` are the user's own a minute, by dimension, and stay the ceiling of what is found; `burst` is how
    many seconds' worth may go out at once. `shared` are limits that other processes take from, too.
    """

    def __init__(
        self,
        limits: Mapping[str, float | None],
        stop: Stop,
        *,
        burst: float = MARGIN,
        shared: Allowance | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        now = clock()
        self._own = [math.inf] * len(DIMENSIONS)
        self._told = Told(len(DIMENSIONS))
        self._most = [math.inf] * len(DIMENSIONS)
        self._sent: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._paces: dict[int, Pace] = {}
        self._bucket = TokenBucket(self._own, now, burst)
        self._shared = shared
        self._estimate = Estimate()
        self._stop = stop
        self.clock = clock
        self._line = anyio.Lock()
        self._changed = anyio.Event()
        self._held_at: float | None = None
        self._refreshed = now
        self._began = now
        self._admitted = 0
        self._struck = (0, now)
        self._early: list[float] | None = [0.0] * len(DIMENSIONS)
        self.counts_tokens = True
        self._plain = False  # nothing but a bucket stands before a request
        self.pauses = Pauses()
        self.waiting = 0
        self.episode = 0
        self.retune(limits)
        if shared is not None:
            self._most = list(self._own)  # others hold to them, too
        stop.then(self._wake)

    def retune(self, limits: Mapping[str, float | None]) -> None:
        """Other limits of the user's a minute, by dimension; None for none."""
        for name, limit in limits.items():
            i = DIMENSIONS.index(name)
            self._own[i] = min(self._most[i], math.inf if limit is None else max(limit / 60, _SLOWEST))
        self._refresh(self.clock())
        self._wake()

    def limits(self) -> dict[str, float]:
        """The limits a minute that hold now, whoever set them."""
        return {DIMENSIONS[i]: 60 * self._bucket.rate(i) for i in self._bucket.limited}

    @property
    def free(self) -> bool:
        """Whether nothing at all limits the rate."""
        return not self._bucket.limited and self._shared is None

    def need(self, size: int, most: int | None) -> Sequence[float]:
        """What a request of `size` bytes would take; `most` is its max_tokens, if any."""
        sent, made = self._estimate.parts(size, most)
        return 1.0, sent + made, sent, made

    def paused(self) -> float:
        """Seconds that everyone has stood still in all until now."""
        return self.pauses.total(self.clock())

    def admitted(self, need: Sequence[float]) -> bool:
        """Whether it may go at once, with its share taken; raises Stopped in a run that stops."""
        if self._stop.reason is not None:
            raise Stopped
        if self.waiting or self._held_at is not None:
            return False
        if not self._plain:
            return self._take(need, self.clock()) <= 0
        now = self.clock()
        if now < self.pauses.until or (self._bucket.limited and self._bucket.take(need, now) > 0.0):
            return False
        self._admitted += 1
        return True

    async def admit(self, need: Sequence[float]) -> None:
        """Wait for the turn, the pauses and the buckets; raises Stopped when the run stops meanwhile."""
        self.waiting += 1
        try:
            async with self._line:
                self._stop.check()
                while (wait := self._wait(need)) > 0:
                    await self.sleep(wait)
        finally:
            self.waiting -= 1

    async def sleep(self, seconds: float) -> None:
        """Sleep so long, or until something is another; raises Stopped as soon as the run is stopping."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()
        self._stop.check()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _wait(self, need: Sequence[float]) -> float:
        return math.inf if self._held_at is not None else self._take(need, self.clock())

    def _take(self, need: Sequence[float], now: float) -> float:
        """0.0 and taken, or the seconds to wait."""
        if now < self.pauses.until:
            return self.pauses.until - now
        if self._told.scarce and self._told.relax(now):
            self._refresh(now)
        if self._paces:
            self._go_on(need, now)
        bucket = self._bucket
        wait = bucket.take(need, now) if bucket.limited else 0.0
        if not wait and self._shared is not None and (wait := self._shared.take(need, now)) > 0:
            bucket.settle(need, (0.0,) * len(need))
        if wait and self._told.scarce:
            wait = min(wait, max(_REFRESH_S, min(self._told.scarce.values()) - now))
        if wait and any(pace.rising for pace in self._paces.values()):
            wait = min(wait, _LOOK_AGAIN_S)
        if not wait:
            self._admitted += 1
            if self._early is not None:
                self._early = [sum(pair) for pair in zip(self._early, need, strict=True)]
            for i, pace in self._paces.items():
                pace.admitted(need[i])
        return wait

    def _go_on(self, need: Sequence[float], now: float) -> None:
        """Paces go on after a pause, with the one at the head of the line, and creep."""
        fresh = [i for i, pace in self._paces.items() if pace.go_on(now)]
        if fresh or now - self._refreshed >= _REFRESH_S:
            self._refresh(now)
        for i in fresh:
            self._bucket.empty(i, now, need[i])

    def _refresh(self, now: float) -> None:
        """Let each bucket have the lowest of the rates that are known for it."""
        self._refreshed = now
        for i in range(len(DIMENSIONS)):
            pace = self._paces.get(i)
            rate = min(self._own[i], self._told.rates[i], pace.rate(now) if pace is not None else math.inf)
            known = self._bucket.rate(i)
            if rate != known:
                self._bucket.limit(i, rate, now)
                if known == math.inf and self._early is not None:
                    self._bucket.draw(i, self._early[i])
        self._count_tokens()

    def _count_tokens(self) -> None:
        """See whether what a request takes has to be known in tokens, too."""
        limited = (*self._bucket.limited, *self._paces)
        self.counts_tokens = any(i != _REQUESTS for i in limited) or (
            self._shared is not None or self._early is not None
        )
        self._plain = not (self._paces or self._told.scarce or self._shared or self._early is not None)

    def heed(self, standings: Sequence[Standing]) -> None:
        """The service told how its limits stand."""
        now = self.clock()
        told = [(DIMENSIONS.index(standing.dimension), standing) for standing in standings]
        changed = [i for i, standing in told if self._told.heed(i, standing, now)]
        if changed:
            self._refresh(now)
        for i, standing in told:  # what is used up and soon back is waited for
            left, reset = standing.remaining, standing.reset
            if left is not None and left < 1.0 and reset is not None and i not in self._told.scarce:
                self._bucket.empty(i, now, 1.0 - reset * min(self._bucket.rate(i), 1e9))

    def refused(self, error: RateLimited, need: Sequence[float], episode: int, jitter: float) -> float:
        """A call that was admitted in `episode` was refused: pause everyone; the seconds from now.

        Calls of an earlier episode only lengthen the pause. `jitter` is in [0, 1).
        """
        now = self.clock()
        first = episode == self.episode
        seconds = self.pauses.add(now, error.retry_after, jitter)
        self.heed([replace(s, remaining=None) if s.remaining == 0 else s for s in error.limits])
        if first:
            self.episode += 1
            self._strike(now)
            if error.cause == "slow_down":
                self._ease(now)
        if self._early is not None:
            self._early = [early - part for early, part in zip(self._early, need, strict=True)]
        for i in _refusing(error.limits):
            self._bucket.empty(i, now)
            if i not in self._paces and (self._struck[0] > _PATIENCE or self._bucket.rate(i) == math.inf):
                self._paces[i] = self._pace(i)
            if i in self._paces:
                self._paces[i].refused(need[i] or 1.0, now, error.retry_after or seconds, first)
        self._count_tokens()
        return seconds

    def _pace(self, i: int) -> Pace:
        """What begins to find the rate of dimension `i`; tokens were not counted until now."""
        if i == _REQUESTS:
            return Pace(self._began, granted=self._admitted, count=self._admitted)
        return Pace(self._began, few=_FEW, count=self._admitted)

    def _strike(self, now: float) -> None:
        """Count refusals that begin an episode, as far as they are recent."""
        count, last = self._struck
        self._struck = (count + 1 if now - last < _FORGIVEN_S else 1, now)

    def sample(self) -> None:
        """Remember how much has gone out by now; to be called a few times a second."""
        now = self.clock()
        if not self._sent or now - self._sent[-1][0] >= _SAMPLE_S:
            self._sent.append((now, self._admitted))

    def _ease(self, now: float) -> None:
        """Go back to half of the rate that went out lately and hold that, where that many went out at all."""
        if self._admitted < _FEW:
            return
        spans = zip(self._sent, list(self._sent)[1:], strict=False)
        rates = [(after - before) / (end - start) for (start, before), (end, after) in spans]
        lately = max(rates, default=self._admitted / max(1.0, now - self._began))
        self._paces.setdefault(_REQUESTS, Pace(now)).ease(now, lately / 2, HOLD_S)

    def settle(self, need: Sequence[float], size: int, reply: Reply) -> None:
        """A call was answered: put back what it didn't use."""
        if self.pauses.troubled:
            self.pauses.succeeded()
        if reply.limits:
            self.heed(reply.limits)
        if self._early is not None:
            self._early = None  # the first answer has told the limits, or will not
            self._count_tokens()
        if not self.counts_tokens:
            return
        usage = reply.usage
        self._estimate.learn(size, usage.input_tokens, usage.output_tokens)
        if usage.input_tokens:
            sent, made = float(usage.input_tokens), float(usage.output_tokens)
            used = (1.0, sent + made, sent, made)
            self._bucket.settle(need, used)
            if self._shared is not None:
                self._shared.settle(need, used)
            if self.waiting and used[1] < need[1]:
                self._wake()  # the one at the head may not have to wait so long

    @property
    def held(self) -> bool:
        """Whether nobody is admitted until `go_on`."""
        return self._held_at is not None

    def hold(self) -> None:
        """Admit nobody until `go_on`."""
        if self._held_at is None:
            self._held_at = self.clock()

    def go_on(self) -> None:
        """Admit again; the time between counts as a pause."""
        if self._held_at is not None:
            self.pauses.stood(self.clock() - self._held_at)
            self._held_at = None
            self._wake()

    def waits(self) -> str | None:
        """Why nobody is admitted, or only slowly, in words; None where all are."""
        now = self.clock()
        if self._held_at is not None:
            return "paused by ctl"
        if self.pauses.until > now:
            return f"paused {self.pauses.until - now:.0f} s by the service's rate limit"
        if not self.waiting or (self.waiting == 1 and self._full_in() < _NOTICED_S):
            return None
        return self._slowest()

    @property
    def throttled(self) -> bool:
        """Whether requests wait for a limit that is lower than the user's own."""
        bucket = self._bucket
        return self.waiting > 0 and any(bucket.rate(i) < self._own[i] for i in bucket.limited)

    def _full_in(self) -> float:
        return max((self._bucket.wait(i, self.clock()) for i in self._bucket.limited), default=0.0)

    def _slowest(self) -> str | None:
        """Which limit requests wait for, and whose it is: the one that the next would wait for longest."""
        bucket = self._bucket
        waits = [(bucket.wait(i, self.clock()), i) for i in bucket.limited]
        if not waits:
            return "held to --quota-file" if self._shared is not None else None
        i = max(waits)[1]
        rate = bucket.rate(i)
        shown = f"{60 * rate:,.6g} {DIMENSIONS[i].replace('-', ' ')} a minute"
        if rate < min(self._own[i], self._told.rates[i]):
            return f"held to {shown}, found from refusals"
        if rate < self._own[i]:
            return f"held to the service's {shown}"
        return f"held to your limit of {shown}" + (", shared" if self._shared is not None else "")


def _refusing(standings: Sequence[Standing]) -> Sequence[int]:
    """The dimensions that refused: those with nothing left, else all that were told, else the requests."""
    spent = [s for s in standings if s.remaining is not None and s.remaining <= 0]
    return [DIMENSIONS.index(s.dimension) for s in spent or standings] or [_REQUESTS]
