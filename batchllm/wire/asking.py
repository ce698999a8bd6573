"""What is asked of each record and of whom: provider, schema, prompt and the stage's stack of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import field
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from batchllm.errors import BadInput
from batchllm.fields import frozen
from batchllm.job import Job, Loaded
from batchllm.layers.gated import Gate, Gated
from batchllm.layers.retrying import Retrying
from batchllm.layers.structured import Structured
from batchllm.layers.traced import Traced
from batchllm.layers.within import Within
from batchllm.model import Dead, Record
from batchllm.pipeline import Render, Stage
from batchllm.ports import Answers, Observer, Provider, ProviderSpec
from batchllm.prompt import Messages, explain_missing, missing_fields
from batchllm.schema import Schema
from batchllm.stop import Stop
from batchllm.wire.prompting import check_first, missing_images, prompt_of, rendering
from batchllm.wire.registry import Chosen, provider_of
from batchllm.wire.standby import check_constant, constant, others

if TYPE_CHECKING:
    from batchllm.layers.fallback import Standby
    from batchllm.prompt import Condition
    from batchllm.schema.checking import Check

_BATCH_URLS = ("/v1/chat/completions", "/chat/completions")


@frozen
class Shared:
    """What all stacks of a run share: `window` where there are several gates, `answers` of a cache.

    `several` are the models that the run asks at more than one address, `called` tells accounts apart in
    errors.
    """

    job: Job
    stop: Stop
    observers: Sequence[Observer]
    window: anyio.CapacityLimiter | None = None
    answers: Answers | None = None
    several: frozenset[str] = frozenset()
    called: Mapping[Any, str] = field(default_factory=dict)

    def traced(self, provider: Provider, asked: Asking) -> Traced:
        """The provider with its calls written down, as those of `asked`."""
        return Traced(provider, self.observers, asked.name, self.called.get(asked.account))


@frozen
class Asking:
    """One stage's provider, prompt and schema, each checked; `stage` is its table, where it has one.

    `check` is the user's own judge of answers, `fallbacks` ask the same of others. A stage that runs a
    function of the user's is a `Stepping`.
    """

    job: Job
    chosen: Chosen
    prompt: Messages | None = None
    schema: Schema | None = None
    stage: dict[str, Any] | None = None
    when: Condition | None = None
    check: Check | None = None
    fallbacks: tuple[Asking, ...] = ()
    stands_by: bool = False

    @property
    def name(self) -> str | None:
        """The stage's name."""
        return None if self.stage is None else str(self.stage["name"])

    @property
    def model(self) -> str:
        """Who is asked."""
        return self.chosen.model

    @property
    def spec(self) -> ProviderSpec:
        """What its provider needs to connect."""
        return self.chosen.spec

    @property
    def connection(self) -> Any:
        """Equal for those that can share a connection."""
        return self.model, self.spec

    @property
    def account(self) -> Any:
        """Equal for those on the same account and model, hashable."""
        return self.model, self.spec.base_url, self.spec.key

    def connect(self) -> AbstractAsyncContextManager[Provider]:
        """Open what it is asked through."""
        return self.chosen.connect(self.spec)

    def ready(self, stack: Provider, *, raw: bool) -> Stage:
        """The stage for the pipeline; `raw` records hold their request bodies."""
        when = self.when.holds if self.when is not None else None
        return Stage(
            stack,
            self.render(raw=raw),
            self.model,
            self.job.schema,
            raw,
            self.name,
            when,
            with_record=self.check is not None and self.check.wants_record,
        )

    def render(self, *, raw: bool) -> Render:
        """What makes a request body of a record's data; `raw` records hold theirs."""
        if raw or self.prompt is None:
            return _batch_body
        return rendering(self.job, self.prompt, self.model)

    def stack(
        self, provider: Provider, gate: Gate, shared: Shared, others: Sequence[Standby] = ()
    ) -> Provider:
        """The stack, outermost first: Cached(Fallback(Structured(Retrying(Gated(Traced(provider)))))).

        `others` are the models that stand by.
        """
        job = self.job
        judged = self._judged(provider, gate, shared)
        if others or job.fallback_answer is not None:
            from batchllm.layers.fallback import Fallback  # most runs have none

            judged = Fallback(judged, others, constant(job.fallback_answer), shared.stop)
        if shared.answers is None:
            return judged
        from batchllm.layers.cached import Cached

        judge = f"{job.check or ''} {job.schema_mode if job.schema is not None else ''}".strip()
        if self.model in shared.several:
            judge = f"{judge}\n{self.spec.base_url}"
        whole = self.spec.whole
        return Cached(judged, shared.answers, whole=whole, judge=judge, waits=lambda: gate.spared())

    def _judged(self, provider: Provider, gate: Gate, shared: Shared) -> Provider:
        job, run = self.job, shared.job
        inner: Provider = shared.traced(provider, self)
        if shared.window is not None:
            inner = Within(inner, shared.window)
        gated: Provider = Gated(inner, gate)
        if job.concurrency != "auto" and (run.concurrency == "auto" or job.concurrency < run.concurrency):
            gated = Within(gated, anyio.CapacityLimiter(job.concurrency))
        retrying = Retrying(gated, most=job.max_retries, backoff=job.backoff, stop=shared.stop, witness=gate)
        return Structured(
            retrying,
            schema=self.schema,
            repair=job.repair,
            stop=shared.stop,
            check=self.check,
            ceiling=job.max_tokens_ceiling,
        )


class Asks(Protocol):
    """What makes an Asking of a job; `asking` is the one for models."""

    def __call__(self, loaded: Loaded, environ: Mapping[str, str], *, terminal: bool) -> Asking: ...


def asking(
    loaded: Loaded,
    environ: Mapping[str, str],
    *,
    terminal: bool,
    stage: dict[str, Any] | None = None,
) -> Asking:
    """Check provider, schema and templates of a job; ConfigError says what is wrong with them.

    `stage` is the table that the job is for.
    """
    job = loaded.job
    when = None
    if stage is not None and "when" in stage:
        from batchllm.prompt import Condition

        when = Condition(stage["when"], f"when of stage {stage['name']}")
    if stage is not None and "run" in stage:
        from batchllm.wire.stepping import stepping

        return stepping(job, stage, when)
    chosen = provider_of(loaded, environ, terminal=terminal)
    schema = Schema.load(job.schema, loaded.origin("schema")) if job.schema is not None else None
    prompt, check = prompt_of(loaded, schema, chosen.model), _check(job)
    if job.fallback_answer is not None:
        check_constant(loaded, schema)
    standbys = tuple(
        Asking(
            other.job,
            provider_of(other, environ, terminal=terminal),
            prompt,
            schema,
            stage,
            when,
            check,
            stands_by=True,
        )
        for other in others(loaded, chosen.model)
    )
    return Asking(job, chosen, prompt, schema, stage, when, check, standbys)


def _check(job: Job) -> Check | None:
    """The validator that the job names, imported."""
    if job.check is None:
        return None
    from batchllm.job.code import named_object
    from batchllm.schema.checking import Check

    return Check(named_object(job.check), job.check, job.timeout)


def missing(asked: Asking, records: Sequence[Record]) -> list[str]:
    """The fields that it needs and none of the records has."""
    objects = _objects(records)
    found = missing_fields(asked.when.fields, objects) if asked.when is not None else []
    if asked.prompt is not None:
        found += [*asked.prompt.missing(objects), *missing_images(asked.job, objects)]
    return found


def check_fields(asked: Asking, first: Sequence[Record]) -> None:
    """A field that none of the first records has is a mistake in the settings: ConfigError."""
    objects = _objects(first)
    if asked.when is not None and (lacking := missing_fields(asked.when.fields, objects)):
        raise explain_missing(lacking, objects)
    if asked.prompt is not None:
        check_first(asked.job, asked.prompt, objects)


def same_failure_hint(dead: Dead) -> str | None:
    """What to do when everything fails like this."""
    if dead.error.kind == "exhausted":
        return "check that the server runs and that --base-url is right, then run the same command again"
    if "max_completion_tokens" in dead.error.message:
        return "this model wants --param max_completion_tokens=N"
    again = "--fresh" if dead.record.variant is not None else "--on-change redo"
    return f"mend the parameter or the schema that it names, then run again with {again}"


def _batch_body(data: dict[str, Any], answers: dict[str, Any] | None) -> dict[str, Any]:
    body, url = data.get("body"), data.get("url")
    if not isinstance(body, dict):
        raise BadInput("the batch line's body is no JSON object", cause="not_an_object")
    if data.get("method") != "POST":
        raise BadInput(f"the batch line's method is {data.get('method')!r}, not POST", cause="method")
    if url not in _BATCH_URLS:
        raise BadInput(f"the batch line's url {url!r} is none that can be sent here", cause="url")
    return body


def _objects(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [record.data for record in records if record.data is not None]
