"""The rate that a service grants without telling it, found from its refusals: pure, times in seconds.

A limit that refuses is used up. What is granted until it refuses again, over the time between, is its rate
exactly, whatever burst it allows, so long as it never filled up meanwhile: so long as the pace was not below
it for long. A pace that was found by rising is therefore first held as it is, until the next refusal
measures it; then it goes on a little below what was measured and creeps up until it is measured anew.
"""

from __future__ import annotations

import math

BELOW = 0.95
"""Share of the measured rate at which it goes on."""
_CREEP_S, _CREEP_N = 20.0, 100
"""It takes at least so long and so many requests to come back to the measured rate."""
_FAST = 1.5
"""So many times that without a refusal, and the rate doubles with each further one: the limit was raised."""
_RAMP_S = 2.0
"""Seconds in which a rate doubles that starts from a first refusal, with nothing measured yet."""
_PROBE, _PROBE_S = 0.8, 10.0
"""Share of the rate that was refused after rising, which is held for so long to be measured."""
_RISEN = 1.3
"""A rate that rose by more since the last refusal may have left the limit unused."""
_MEASURED = ((1.0, 10), (5.0, 2))
"""A measurement takes one of these at the least: seconds, requests."""
_MANY = 0.3
"""Share of the calls until the first refusals that must be refused for it to be the rate at once."""
_LONG_S = 30.0
"""Seconds after which even a few refusals may be."""
_FIRST_S = (0.05, 1.0)
"""What a first refusal asks to wait is taken for the time of one request, within these bounds; half of that
rate is where it begins."""
_SLOWEST_S = 30.0
"""Seconds for a request at the slowest: what takes longer, the service's own waits tell."""
_HELPED = (50, 30.0)
"""A cut helped if so many requests went through after it, or so many seconds went by."""
_USELESS = 4
"""Cuts in a row that didn't help: the refusals have another reason than the rate."""
_REST_S = 60.0
"""Seconds for which a pace that didn't help is left off, doubled each time."""
_EASE_S = 600.0
"""Seconds in which a rate comes back that was eased."""
_OFF, _RAMP, _HOLD, _CREEP = "off", "ramp", "hold", "creep"


class Pace:
    """The rate of one dimension, infinite until a refusal; amounts in its units.

    It is told of each amount that is admitted, of refusals, and, before the next admission after the pause
    that a refusal brings, that everything goes on. It creeps up over `few` requests at least: fewer where
    they are of different sizes, and few make much. `granted` went out in `count` requests from `since` on.
    """

    def __init__(self, since: float, *, few: int = _CREEP_N, granted: float = 0.0, count: int = 0) -> None:
        self._few = few
        self._way = _OFF
        self._rate = math.inf  # at `_start`
        self._start = self._since = since
        self._granted, self._count = granted, count
        self._refused = 0
        self._useless = 0
        self._rests = 0
        self._rest_until = 0.0
        self._hold_until = 0.0
        self._creep_s = _CREEP_S
        self._closed: tuple[float, float, float] | None = None

    def rate(self, now: float) -> float:
        """Units a second that may go out now."""
        if self._way == _OFF or now < self._hold_until:
            return self._rate
        passed = max(0.0, now - max(self._start, self._hold_until))
        if self._way == _RAMP:
            return self._rate * _doubled(passed / _RAMP_S)
        if self._way == _HOLD:
            return self._rate * _doubled(passed / _PROBE_S - 1.0)
        progress = min(passed / self._creep_s, self._count / self._few)
        crept = self._rate * (1.0 + (1.0 - BELOW) * min(progress, _FAST))
        return crept * _doubled(progress - _FAST)

    @property
    def rising(self) -> bool:
        """Whether the rate doubles within seconds, so that a wait which was computed soon is too long."""
        return self._way == _RAMP

    def admitted(self, amount: float) -> None:
        """So much went out."""
        self._granted += amount
        self._count += 1

    def refused(self, amount: float, now: float, wait: float, first: bool) -> None:
        """So much of what went out was refused; `first` says whether it opens an episode, `wait` its wait."""
        self._granted -= amount
        self._count -= 1
        self._refused += 1
        if first and self._closed is None:
            self._closed = (now, wait, amount)

    def go_on(self, now: float) -> bool:
        """The pause after a refusal is over: settle at which rate to go on; whether there was one."""
        if self._closed is None:
            return False
        until, wait, amount = self._closed
        if now >= self._hold_until:
            self._creep_s = _CREEP_S
            if self._way != _OFF:
                self._change(until)
            elif not self._begin(now, until, wait, amount):
                self._closed = None
                return True
        self._rate = max(self._rate, amount / _SLOWEST_S)
        self._closed = None
        self._start, self._since = now, until
        self._granted, self._count, self._refused = 0.0, 0, 0
        return True

    def _begin(self, now: float, until: float, wait: float, amount: float) -> bool:
        """Rise from about what the first refusal asks, where many were refused; go on a little more slowly
        where some are, time and again; whether either is so.
        """
        span, asked = until - self._since, self._count + self._refused
        if self._refused >= max(3, _MANY * asked) and (
            now >= self._rest_until or self._refused > self._count
        ):
            self._way = _RAMP
            self._rate = 0.5 * amount / min(max(wait, _FIRST_S[0]), _FIRST_S[1])
        elif span >= _LONG_S and now >= self._rest_until and self._granted > 0:
            self._way, self._rate = _CREEP, BELOW * self._granted / span
        return self._way != _OFF or span >= _LONG_S

    def _change(self, until: float) -> None:
        """Go on by what the refusal at `until` says of the rate."""
        then, span = self.rate(until), until - self._since
        sure = any(span >= least and self._count >= few for least, few in _MEASURED)
        risen = self._way == _RAMP or then > _RISEN * self._rate
        tried = until - self._start
        if self._way == _RAMP and tried < _RAMP_S:
            self._useless += 2  # it was still below what the service itself said would pass
        elif self._way == _CREEP:
            count, seconds = _HELPED
            self._useless = 0 if self._count >= count or tried >= seconds else self._useless + 1
        if self._useless >= _USELESS:
            self._rest_until = until + _REST_S * _doubled(min(self._rests, 6))
            self._rests += 1
            self._useless = 0
            self._way, self._rate = _OFF, math.inf
        elif self._way == _RAMP and tried < _RAMP_S:
            pass  # once more
        elif risen or not sure:
            self._way, self._rate = _HOLD, _PROBE * then
        else:
            self._way, self._rate = _CREEP, BELOW * min(self._granted / span, then)

    def ease(self, now: float, rate: float, seconds: float) -> None:
        """Hold at most `rate` for so long, then come back slowly: the service asked for a lower rate."""
        self._rate = min(rate, self.rate(now))
        self._way = _CREEP
        self._start = self._since = now
        self._hold_until = now + seconds
        self._granted, self._count, self._refused = 0.0, 0, 0
        self._closed = None
        self._creep_s = _EASE_S


def _doubled(times: float) -> float:
    return math.pow(2.0, min(max(0.0, times), 64.0))
