"""The gate before every call: a window of calls in flight, and the limits of the account.

Owns anyio's CapacityLimiter (the window) and knows the RateLimiter (buckets, pauses); all stacks of a run on
one account share them. It hears of every call how it went, sizes the window, and stops a run that gets
nowhere. It never judges an answer.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

import anyio

from batchllm.errors import CallError, RateLimited, Stalled, TimedOut
from batchllm.layers.gated.limiter import RateLimiter
from batchllm.layers.gated.outage import Outage
from batchllm.limits import Adaptive
from batchllm.model import Trail
from batchllm.ports import Observer
from batchllm.stop import Stop

FEW = 2
"""Calls that go out at first where no limit is known, and after a pause."""
_DOUBLED_S, _GAINED = 0.25, 3
"""Seconds in which they double; and how many more each answer lets out, where answers come more quickly."""
_AT_ONCE = 0.25
"""Share of the window that goes out at once after a rate limit's pause, once as many were answered."""
_TEND_S = 0.125
_IDLE_S = 0.5
"""Seconds after which nobody comes any more to probe a service that is down."""
_A_YEAR = 365 * 86400.0
_PRESSED = frozenset({429, 503, 529})


class Gate:
    """The window and the limits of one account; `in_flight` counts the calls that are out now.

    It is told of every request from its first try to its last, waits between included, so that it knows
    silence from idleness. A run that stops opens the window: who waits there comes through and is dropped.
    `window` is as wide as it may ever be, which is the `ceiling`; `target` is how wide it is to be, and
    `adaptive` finds that. `ramp` begins with few calls where no limit is known. `freed` is called where a
    slot becomes free and its holder is not about to take it again, and where the window has grown, `spared`
    where a record waits for another's answer and not for a slot, `resized` with each new target. `tend` has
    to run beside. `stop` is what it stops where nothing succeeds,
    and `whose` names the model then, in a run that asks several. `standby` says that others answer where
    this service fails, so that its being down is neither waited for nor a reason to stop.
    """

    def __init__(
        self,
        window: anyio.CapacityLimiter,
        limiter: RateLimiter,
        stop: Stop,
        *,
        max_stall: float,
        target: int | None = None,
        adaptive: Adaptive | None = None,
        ramp: bool = False,
        standby: bool = False,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.window = window
        self.limiter = limiter
        self.adaptive = adaptive
        self.in_flight = 0
        self.ceiling = window.total_tokens
        self.target: float = target or window.total_tokens
        self.stop = stop
        self._max_stall = max_stall
        self._standby = standby
        self._observers = observers
        self.clock = clock
        self._draw = draw
        self._moved = clock()
        self._at_work = 0
        self._outage = Outage()
        self._gained = self._out = self._answers = 0
        self._ramp: tuple[float, int] | None = None
        if ramp and limiter.free and adaptive is None:
            self._ramp = (self._moved, 0)
        self.whose: str | None = None
        self.freed: Callable[[], None] = lambda: None
        self.spared: Callable[[], None] = lambda: None
        self.resized: Callable[[float], None] = lambda target: None
        self._resize(self.target if adaptive is None else adaptive.size)
        stop.then(self._open)

    def _open(self) -> None:
        self.window.total_tokens = math.inf
        self._outage.end(back=True)

    def _fit(self) -> None:
        """Let the window be as wide as it may be now."""
        if self.stop.reason is not None:
            return
        width = self.target
        if self._outage.probes:
            width = 1
        elif self._ramp is not None:
            since, out = self._ramp
            grown = FEW * 2.0 ** min(max(0.0, self.clock() - since) / _DOUBLED_S, 20.0)
            few = out + max(math.floor(grown), FEW + self._gained)
            width = min(width, few)
            if few >= self.target:
                self._ramp = None
        grown = width > self.window.total_tokens
        if width != self.window.total_tokens:
            self.window.total_tokens = width
        if grown:
            self.freed()

    def _rise(self, since: float, out: int) -> None:
        """Let the window widen from `out` calls on, beginning at `since`."""
        self._ramp, self._gained = (since, out), 0
        self._fit()

    def _resize(self, target: float) -> None:
        """Aim at another window."""
        self.target = target
        self.resized(target)
        self._fit()

    async def tend(self) -> None:
        """Heed what only time brings; runs beside the calls until it is cancelled."""
        while True:
            await anyio.sleep(_TEND_S)
            if self._ramp is not None:
                self._fit()
            self.limiter.sample()
            self._probe()
            if self._at_work and not self.held and self.limiter.throttled:
                self._check_silence(self.limiter.waits() or "the service allows nothing")

    def _probe(self) -> None:
        """Let somebody probe a service that is down, once it is time; without anybody the outage ends."""
        late = self.clock() - self.limiter.pauses.until
        if not self._outage.probes or late < 0 or self.in_flight or self.limiter.waiting or self.held:
            return
        if late < _IDLE_S:
            self.freed()
        else:
            self._outage.end(back=False)
            self._rise(self.clock(), 0)

    @property
    def width(self) -> float:
        """Calls that may be in flight now."""
        return self.window.total_tokens

    def limits(self) -> dict[str, float]:
        """The limits a minute that hold now, by dimension."""
        return self.limiter.limits()

    def limit(self, limits: Mapping[str, float | None]) -> None:
        """Other limits of the user's a minute, by dimension; None for none."""
        self.limiter.retune(limits)

    def watch(
        self, freed: Callable[[], None], resized: Callable[[float], None], spared: Callable[[], None]
    ) -> None:
        """Call `freed` where there is room anew, `resized` with each new target, `spared` for who waits."""
        self.freed, self.resized, self.spared = freed, resized, spared

    def retune(self, concurrency: int) -> None:
        """Another window, a fixed one; ValueError above `ceiling`."""
        if not 1 <= concurrency <= self.ceiling:
            raise ValueError(f"this run can have 1 to {self.ceiling:g} calls in flight")
        self.adaptive = None
        self._resize(concurrency)

    @property
    def held(self) -> bool:
        """Whether nobody is admitted until `go_on`."""
        return self.limiter.held

    def hold(self) -> None:
        """Admit nobody until `go_on`; calls in flight go on."""
        self.limiter.hold()

    def go_on(self) -> None:
        """Admit again; the time between is no silence."""
        self.limiter.go_on()
        self._moved = self.clock()
        self.freed()

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

    def answered(self, sent: float) -> None:
        """A call that was sent at `sent` was answered; it still counts as in flight."""
        self._moved = now = self.clock()
        self._answers += 1
        if self._outage.failures:
            self._recovered(now)
        if self._ramp is not None and now >= self._ramp[0]:
            self._gained += _GAINED
            self._fit()
        if self.adaptive is not None and self.adaptive.answered(now, sent, self.in_flight + 1):
            self._resize(self.adaptive.size)

    def _recovered(self, now: float) -> None:
        probed = self._outage.probes
        self._outage.end(back=True)
        if probed:
            self._rise(now, self.in_flight)

    def refused(self, error: RateLimited, need: Sequence[float], episode: int, sent: float) -> None:
        """The quota is used up: pause everyone on it."""
        first = episode == self.limiter.episode
        seconds = self.limiter.refused(error, need, episode, self._draw())
        self._press(sent)
        if first:
            self._out = self.in_flight + min(int(self.target * _AT_ONCE), self._answers)
        if not self._outage.probes:
            self._rise(self.limiter.pauses.until, self._out)
        for observer in self._observers:
            observer.pause(seconds, error.message)
        self.failed(error)

    def down(self, error: CallError, key: str, sent: float) -> bool:
        """A call of the request `key` failed: whether it is the service that is down.

        Then the request waits for `back`, and the service is probed by others, one at a time.
        """
        if isinstance(error, TimedOut) or error.status in _PRESSED:
            self._press(sent)
        if (
            self._standby
            or not self._outage.failed(error, key)
            or not self._answers
            or self.stop.reason is not None
        ):
            return False
        now = self.clock()
        if now >= self.limiter.pauses.until and self._outage.fresh:
            wait = max(self._outage.next_probe(self._draw()), error.retry_after or 0.0)
            seconds = self.limiter.pauses.add(now, wait, 0.0)
            self._fit()
            for observer in self._observers:
                observer.pause(seconds, error.message)
        self.failed(error)
        return self.stop.reason is None

    async def back(self, trail: Trail) -> bool:
        """Wait until the service is back, which is not the record's time; False where it may not be down."""
        began = self.clock()
        try:
            return await self._outage.over()
        finally:
            if trail.deadline is not None:
                trail.deadline += self.clock() - began

    def _press(self, sent: float) -> None:
        if self.adaptive is not None and self.adaptive.pressed(self.clock(), sent):
            self._resize(self.adaptive.size)

    def failed(self, error: CallError) -> None:
        """A call failed: stop the run if nothing has succeeded for too long, or too long a wait is asked."""
        asked = error.retry_after or 0.0
        if asked > self._max_stall:
            self._stall(
                f"the service asks to wait {asked:.0f} s, --max-stall is {self._max_stall:.0f} s",
                f"run the same command again at {_clock_in(asked)}, or raise --max-stall",
            )
        if not self._standby or isinstance(error, RateLimited):
            self._check_silence(f"last: {error.message}")
        self.freed()

    def _check_silence(self, reason: str) -> None:
        silent = self.clock() - self._moved
        if silent > self._max_stall:
            self._stall(
                f"nothing has succeeded for {silent:.0f} s; {reason}",
                "check the service, then run the same command again",
            )

    def _stall(self, message: str, hint: str) -> None:
        stalled = Stalled(message, hint)
        stalled.whose = self.whose
        self.stop.set(stalled)

    @property
    def delayed(self) -> int:
        """Requests that wait to be tried again: neither out, nor in line for the window or the limits."""
        return self._at_work - self.window.borrowed_tokens - self.window.statistics().tasks_waiting

    def waits(self) -> str | None:
        """Why calls are held back now, in words, or None."""
        if self._outage.probes and not self.limiter.held:
            return "the service is down: asked by one call now and then"
        return self.limiter.waits()


def _clock_in(seconds: float) -> str:
    """The date and time in so many seconds, as people here write it down."""
    minutes = math.ceil((time.time() + min(seconds, _A_YEAR)) / 60)
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(60 * minutes))
