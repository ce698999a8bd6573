"""The answers of earlier runs that a run may use: its `--cache`, opened once, for all of its stacks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio

from batchllm.errors import ConfigError
from batchllm.job import Job

if TYPE_CHECKING:
    from batchllm.cache import Store

SPARE = 1000
"""Workers that may wait for the answers to identical requests beside those who ask."""
Task = Callable[[], Coroutine[Any, Any, None]]


async def answers_of(job: Job, stack: AsyncExitStack) -> Store | None:
    """The store of this job's cache, open until `stack` closes; None without one. Raises ConfigError."""
    if job.cache is None:
        if job.cache_ttl is not None:
            raise ConfigError("--cache-ttl is for answers in a cache, and none is given", "give --cache FILE")
        return None
    from batchllm.cache import open_store

    store = await open_store(job.cache, job.cache_ttl)
    stack.push_async_callback(store.close)
    return store


def beside(tend: Task, store: Store | None) -> Task:
    """What has to run beside the calls: the gate's `tend`, and the store's work where there is one."""
    if store is None:
        return tend

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tend)
            tasks.start_soon(store.work)

    return both
