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
"""Seconds' worth of a limit that are left when the rate starts to follow what is left."""
_LEAST = 0.1
"""Share of a limit that is asked for even where nothing is left of it: others may have taken it all."""


def rate_of(standing: Standing) -> float:
    """Units a second that the standing allows, infinite where it tells no pace.

    A minute's limit is spread evenly, since services enforce it over shorter spans. While little of it is
    left (another client is on the account, or its minute is counted from the full minute on), the rate
    follows what remains: evenly over the time until the reset, or so that it never runs out.
    """
    limit, left, reset = standing.per_minute, standing.remaining, standing.reset
    if not limit or (reset is not None and reset > _LONGER):
        return math.inf
    rate = limit / _MINUTE
    if left is None or left >= rate * _SCARCE or left > limit / 2:
        return rate
    even = left / max(reset, 1.0) if reset is not None else 0.0
    return min(rate, max(even, left / _SCARCE, rate * _LEAST))
