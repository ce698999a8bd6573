"""Whoever reads our stdout: a run stops when that one has gone, and doesn't wait for it for ever."""

from __future__ import annotations

import anyio

from batchllm import ui
from batchllm.errors import OutputClosed
from batchllm.sinks import reader_gone
from batchllm.stop import Stop
from batchllm.wire import Live

_PATIENCE = 1.0
"""Seconds that a stopped run waits at least for stdout's reader to take anything more."""
_LAST_LINE = 0.1
"""Seconds after which stdout's reader has not merely gone with the last line."""


async def heed_reader(live: Live, stop: Stop) -> None:
    """Stop when stdout's reader has gone, and give stdout up where a stop waits for it in vain."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed_closed, live, stop)
        await stop.wait()
        while True:
            taken = live.ledger.taken
            await anyio.sleep(max(_PATIENCE, live.job.grace))
            if live.ledger.writing and live.ledger.taken == taken:
                break
        ui.warn("nobody takes anything from stdout: the answers that it has no room for are given up")
        live.abort()


async def _heed_closed(live: Live, stop: Stop) -> None:
    await reader_gone()
    await anyio.sleep(_LAST_LINE)
    if not live.read_and_settled:
        stop.set(OutputClosed("stdout was closed"))
