"""The gate of a run: its window, the limits of its account, and how many files all of that may open."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from hashlib import blake2b

import anyio
import anyio.to_thread

from batchllm.descriptors import raise_descriptor_limit
from batchllm.errors import ConfigError
from batchllm.job import Job
from batchllm.layers.gated import Gate, RateLimiter
from batchllm.limits import Adaptive
from batchllm.ports import Allowance, Observer, Provider, ProviderSpec
from batchllm.stop import Stop

SPARE_DESCRIPTORS = 64
"""Files and pipes beside one connection for each call in flight."""
FOUND_AT_MOST = 512
"""Calls in flight that `-c auto` and `ctl` may come to, unless more are asked for at the start."""


def most_calls(job: Job) -> int:
    """The calls that may ever be in flight."""
    return FOUND_AT_MOST if job.concurrency == "auto" else max(FOUND_AT_MOST, job.concurrency)


def limits_of(job: Job) -> dict[str, float | None]:
    """The user's limits a minute by dimension; `--rps` and `--rpm` are one, the lower counts."""
    requests = [limit for limit in (job.rpm, job.rps and 60 * job.rps) if limit is not None]
    return {
        "requests": min(requests, default=None),
        "tokens": job.tpm,
        "input-tokens": job.input_tpm,
        "output-tokens": job.output_tpm,
    }


async def _shared_limits(job: Job, spec: ProviderSpec, stack: AsyncExitStack) -> Allowance | None:
    """The limits that this run shares through `--quota-file`, open until `stack` closes; None without one."""
    if job.quota_file is None:
        return None
    limits = {name: limit for name, limit in limits_of(job).items() if limit is not None}
    if not limits:
        raise ConfigError(
            "--quota-file shares limits, and none is given",
            "give --rpm, --rps, --tpm, --input-tpm or --output-tpm",
        )
    from batchllm.quota import open_shared

    whose = f"{spec.base_url or ''}\n{spec.key or ''}".encode()
    account = blake2b(whose, digest_size=12, person=b"batchllm-quota").hexdigest()
    opened = partial(open_shared, job.quota_file, account, spec.model, limits, job.burst)
    shared = await anyio.to_thread.run_sync(opened)
    stack.callback(shared.close)
    return shared


async def gate_of(
    job: Job,
    spec: ProviderSpec,
    provider: Provider,
    stop: Stop,
    observers: Sequence[Observer],
    stack: AsyncExitStack,
    *,
    ramp: bool = True,
) -> Gate:
    """The gate before `provider`, whose `ceiling` bounds the window; `stack` closes what it opens.

    `ramp` begins with few calls where no limit is known.
    """
    shared = await _shared_limits(job, spec, stack)
    most = min(allowed_calls(job), getattr(provider, "ceiling", None) or most_calls(job))
    limiter = RateLimiter(limits_of(job), stop, burst=job.burst, shared=shared)
    window = anyio.CapacityLimiter(most)
    return Gate(
        window,
        limiter,
        stop,
        max_stall=job.max_stall,
        target=None if job.concurrency == "auto" else min(job.concurrency, most),
        adaptive=Adaptive(most, limiter.clock()) if job.concurrency == "auto" else None,
        ramp=ramp,
        standby=bool(job.fallback),
        observers=observers,
    )


def allowed_calls(job: Job) -> int:
    """The calls that may be in flight as far as this system has descriptors for them, what `ctl` may ask for
    included; ConfigError where a number asked for doesn't fit.
    """
    most = most_calls(job)
    allowed = raise_descriptor_limit(most + SPARE_DESCRIPTORS) - SPARE_DESCRIPTORS
    if job.concurrency != "auto" and allowed < job.concurrency:
        needed = job.concurrency + SPARE_DESCRIPTORS
        raise ConfigError(
            f"--concurrency {job.concurrency} needs {needed} open files, "
            f"this system allows {allowed + SPARE_DESCRIPTORS}",
            f"ulimit -n {needed}, or -c {max(1, allowed)}",
        )
    return max(1, min(most, allowed))
