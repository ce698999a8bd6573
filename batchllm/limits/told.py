"""The rate that a service's own words about a limit allow: pure.

Providers read the headers into a `Standing`; the limiter asks here what it means for the pace.
"""

from __future__ import annotations

import math

from batchllm.model import Standing

_MINUTE = 60.0
_LONGER = 75.0
"""Seconds to full beyond which a limit can't be one a minute: it counts an hour or a day."""
_SCARCE = 5.0
"""Seconds' worth of a limit that are left when the rate starts to follow what is left; where all of it is
back sooner, nothing is scarce."""
_LEAST = 0.1
"""Share of a limit that is asked for even where nothing is left of it: others may have taken it all."""


def rate_of(standing: Standing) -> float:
    """Units a second that the limit allows, infinite where it tells no pace.

    A minute's limit is spread evenly, since services enforce it over shorter spans. One of less than a unit
    a minute is no limit that anybody meant.
    """
    limit, reset = standing.per_minute, standing.reset
    if limit is None or limit < 1.0 or (reset is not None and reset > _LONGER):
        return math.inf
    return limit / _MINUTE


def rate_left(standing: Standing) -> float:
    """Units a second until the reset: fewer where little is left and it takes long to come back.

    Then another client is on the account, or the minute is counted from the full minute on: the rate follows
    what remains, evenly over the time until the reset, or so that it never runs out.
    """
    rate, left, reset = rate_of(standing), standing.remaining, standing.reset
    if rate == math.inf or left is None or reset is None or reset <= _SCARCE:
        return rate
    if left >= rate * _SCARCE or left > rate * _MINUTE / 2:
        return rate
    return min(rate, max(left / reset, left / _SCARCE, rate * _LEAST))


class Told:
    """The rates a second that a service has told, by dimension; `scarce` are the lowered ones.

    A rate that was lowered because little was left holds until the reset.
    """

    def __init__(self, dimensions: int) -> None:
        self.rates = [math.inf] * dimensions
        self._full = list(self.rates)
        self.scarce: dict[int, float] = {}

    def heed(self, i: int, standing: Standing, now: float) -> bool:
        """Take in how a limit stands; whether its rate is another now."""
        before, full, rate = self.rates[i], rate_of(standing), rate_left(standing)
        self.rates[i], self._full[i] = rate, full
        self.scarce.pop(i, None)
        if rate < full and standing.reset is not None:
            self.scarce[i] = now + standing.reset
        return rate != before

    def relax(self, now: float) -> bool:
        """Whether a rate that was lowered is back, its reset having come."""
        back = [i for i, until in self.scarce.items() if now >= until]
        for i in back:
            del self.scarce[i]
            self.rates[i] = self._full[i]
        return bool(back)
