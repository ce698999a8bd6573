"""A stage that runs a Python function of the user's: its connection, its stack, and who waits in it.

`asking` makes one of a `[[stage]]` with `run`; `providers/step` calls the function.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchllm.job import Job
from batchllm.layers.gated import Gate, Gated
from batchllm.layers.lingering import Lingering
from batchllm.layers.retrying import Retrying
from batchllm.pipeline import Render, Stage
from batchllm.ports import Provider, ProviderSpec
from batchllm.wire.asking import Asking, Shared
from batchllm.wire.registry import Chosen

if TYPE_CHECKING:
    from batchllm.prompt import Condition


class Stepping(Asking):
    """What is asked of a function: the record, the answers so far and the key, behind a gate of its own."""

    __slots__ = ()

    @property
    def connection(self) -> Any:
        """Equal for the same stage of each variant."""
        return self.stage

    @property
    def account(self) -> Any:
        """Equal for the same stage of each variant, hashable."""
        return "step", self.name

    def ready(self, stack: Provider, *, raw: bool) -> Stage:
        """The stage for the pipeline, whose key outlives a pass."""
        return replace(super().ready(stack, raw=raw), step=True)

    def render(self, *, raw: bool) -> Render:
        """The record and the answers so far."""
        return lambda data, answers: {"record": data, "answers": answers or {}}

    def lingering_stack(self, provider: Provider, gate: Gate, shared: Shared) -> tuple[Provider, Lingering]:
        """The stack, Retrying(Lingering(Gated(Traced(step)))), and who waits in it."""
        job = self.job
        inner = Gated(shared.traced(provider, self), gate)
        lingering = Lingering(inner, shared.stop, shared.called.get(self.account))
        stack = Retrying(lingering, most=job.max_retries, backoff=job.backoff, stop=shared.stop, witness=gate)
        return stack, lingering


def stepping(job: Job, table: dict[str, Any], when: Condition | None) -> Stepping:
    """What the stage of this table asks; nothing is imported before it is connected."""
    function = str(table["run"]).removeprefix("python/")

    def connect(spec: ProviderSpec) -> AbstractAsyncContextManager[Provider]:
        from batchllm.providers.step import StepSpec, connect_step

        threads = 20 if job.concurrency == "auto" else job.concurrency
        return connect_step(
            StepSpec(
                spec.model,
                folder=Path(table["folder"]),
                process=table.get("process", False),
                timeout=job.timeout,
                on_timeout=table.get("on_timeout", "kill"),
                open=table.get("open"),
                threads=table.get("threads", threads),
            )
        )

    chosen = Chosen(f"python/{function}", connect, ProviderSpec(function))
    return Stepping(job, chosen, stage=table, when=when)
