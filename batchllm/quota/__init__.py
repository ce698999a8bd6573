"""Limits that several runs on one machine share through a file, with nothing to start: `--quota-file`.

`shares` decides (levels, leases, the line), `slots` keeps the file, `processes` tells the living from the
dead, `shared` is the Allowance that `wire` opens. No clock is slept on and nothing is called here.
"""

from batchllm.quota.shared import SharedLimits, open_shared

__all__ = ["SharedLimits", "open_shared"]
