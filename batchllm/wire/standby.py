"""The models that stand by for a job's own, each with a connection and a gate of its own.

`build` opens them for as long as the run lasts; `layers/fallback` decides when they are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio

from batchllm.layers.gated import Gate
from batchllm.model import frozen
from batchllm.ports import Observer, Provider
from batchllm.stop import Stop
from batchllm.wire.limiting import gate_of

if TYPE_CHECKING:
    from batchllm.wire.asking import Asking


@frozen
class Standby:
    """One model, connected: what is asked of it, its provider and the gate before it."""

    asking: Asking
    provider: Provider
    gate: Gate


async def gates(
    asked: Asking, provider: Provider, stop: Stop, observers: Sequence[Observer], stack: AsyncExitStack
) -> tuple[Gate, list[Standby]]:
    """The gate before `provider`, and the models of `--fallback` connected; `stack` closes them.

    Raises ConfigError.
    """
    gate = await gate_of(asked.job, asked.chosen.spec, provider, stop, observers, stack)
    found = []
    for other in asked.fallbacks:
        provider = await stack.enter_async_context(other.chosen.connect(other.chosen.spec))
        behind = await gate_of(other.job, other.chosen.spec, provider, stop, observers, stack)
        found.append(Standby(other, provider, behind))
    return gate, found


def tending(gate: Gate, others: Sequence[Standby]) -> Callable[[], Coroutine[Any, Any, None]]:
    """What tends all these gates for as long as the run's workers work."""
    if not others:
        return gate.tend

    async def tend() -> None:
        async with anyio.create_task_group() as tasks:
            for each in (gate, *(other.gate for other in others)):
                tasks.start_soon(each.tend)

    return tend
