"""A function of the program's in the place of a model: each item as it is, behind the same gate and retries.

No prompt, no schema, and no judging of answers: whatever the function returns is the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from batchllm.job import Loaded
from batchllm.layers.gated import Gate, Gated
from batchllm.layers.retrying import Retrying
from batchllm.model import Dead
from batchllm.pipeline import Render
from batchllm.ports import Provider, ProviderSpec
from batchllm.providers.calls import Calls
from batchllm.wire.asking import Asking, Asks, Shared
from batchllm.wire.limiting import most_calls
from batchllm.wire.registry import Chosen

if TYPE_CHECKING:
    from batchllm.layers.fallback import Standby


class Calling(Asking):
    """What is asked of a function: nothing but the record's data."""

    __slots__ = ()

    def render(self, *, raw: bool) -> Render:
        """The data itself."""
        return lambda data, answers: data

    def stack(
        self, provider: Provider, gate: Gate, shared: Shared, others: Sequence[Standby] = ()
    ) -> Provider:
        """The stack of layers, outermost first: Retrying(Gated(Traced(provider)))."""
        job = self.job
        gated = Gated(shared.traced(provider, self), gate)
        return Retrying(gated, most=job.max_retries, backoff=job.backoff, stop=shared.stop, witness=gate)


def calling(
    function: Callable[[Any], Any],
    item_of: Callable[[dict[str, Any]], Any],
    retried: tuple[type[Exception], ...],
) -> Asks:
    """What makes the Asking of a job whose records `function` answers; see `providers.calls.Calls`."""

    def asks(loaded: Loaded, environ: Mapping[str, str], *, terminal: bool) -> Asking:
        job = loaded.job
        spec = ProviderSpec(model=str(job.model), timeout=job.timeout, concurrency=most_calls(job))

        @asynccontextmanager
        async def connect(spec: ProviderSpec) -> AsyncIterator[Provider]:
            yield Calls(
                function,
                item_of,
                retried=retried,
                timeout=spec.timeout,
                threads=spec.concurrency,
                as_json=job.output is not None,
            )

        chosen = Chosen(str(job.model), connect, spec)
        return Calling(job, chosen)

    return asks


def same_failure_hint(dead: Dead) -> str:
    """What to do when the function fails everywhere in the same way."""
    return "check that what the function calls is there, then map the items again"
