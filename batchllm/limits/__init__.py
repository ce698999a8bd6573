"""Decisions about quotas, pure: state and time in, a wait, a rate or a window out.

`bucket` admits, `estimate` says what a request will use, `told` and `pace` at which rate (by what the service
tells, or by its refusals), `pauses` when everyone waits, `window` how many calls may be out. No clock, no
I/O, no waiting: `layers` do those.
"""

from batchllm.limits.bucket import MARGIN, TokenBucket
from batchllm.limits.estimate import Estimate
from batchllm.limits.pace import Pace
from batchllm.limits.pauses import BELIEVED, Pauses
from batchllm.limits.told import Told, rate_left, rate_of
from batchllm.limits.window import Adaptive

__all__ = [
    "BELIEVED",
    "MARGIN",
    "Adaptive",
    "Estimate",
    "Pace",
    "Pauses",
    "TokenBucket",
    "Told",
    "rate_left",
    "rate_of",
]
