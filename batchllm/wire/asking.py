"""What is asked of each record and of whom: provider, schema, prompt and the stage's stack of layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batchllm.errors import BadInput, ConfigError
from batchllm.job import Job, Loaded
from batchllm.layers.gated import Gate, Gated
from batchllm.layers.retrying import Retrying
from batchllm.layers.structured import Structured
from batchllm.layers.traced import Traced
from batchllm.model import Dead, Record, Reply, Usage, frozen
from batchllm.pipeline import Render
from batchllm.ports import Observer, Provider
from batchllm.prompt import DEFAULT_PROMPT, Prompt, explain_missing, missing_fields
from batchllm.schema import Schema
from batchllm.stop import Stop
from batchllm.wire.registry import Chosen, provider_of

if TYPE_CHECKING:
    from batchllm.schema.checking import Check
    from batchllm.wire.standby import Standby

_BATCH_URLS = ("/v1/chat/completions", "/chat/completions")


@frozen
class Asking:
    """The provider, the prompt and the schema of a job, each checked; `fallbacks` ask the same of others."""

    job: Job
    chosen: Chosen
    prompt: Prompt
    schema: Schema | None
    check: Check | None = None
    fallbacks: tuple[Asking, ...] = ()

    def enough(self, records: Sequence[Record]) -> bool:
        """Whether these records have every field that the prompt needs."""
        return not missing_fields(self.prompt.fields, _objects(records))

    def check_fields(self, first: Sequence[Record], *, raw: bool = False) -> None:
        """A template field that none of the first records has is a mistake in the template: ConfigError.

        `raw` records hold whole requests, of which only the model matters.
        """
        if raw:
            if self.fallbacks:
                said = "records of the OpenAI batch format name their own model"
                raise ConfigError(said, "leave out --fallback")
            return
        objects = _objects(first)
        missing = missing_fields(self.prompt.fields, objects) if objects else []
        if missing:
            raise explain_missing(missing, objects, default_prompt=self.job.prompt is None)

    def render(self, *, raw: bool) -> Render:
        """What makes a request body of a record's data; `raw` records hold theirs."""
        if raw:
            return _batch_body
        prompt, params = self.prompt, dict(self.job.param)

        def render(data: dict[str, Any]) -> dict[str, Any]:
            return {"messages": prompt.messages(data), **params}

        return render

    def stack(
        self,
        provider: Provider,
        gate: Gate,
        stop: Stop,
        observers: Sequence[Observer],
        standbys: Sequence[Standby] = (),
    ) -> Provider:
        """The stage's stack, outermost first: Fallback(Structured(Retrying(Gated(Traced(provider)))))."""
        job = self.job
        gated = Gated(Traced(provider, observers), gate)
        retrying = Retrying(gated, most=job.max_retries, backoff=job.backoff, stop=stop, witness=gate)
        structured = Structured(
            retrying,
            schema=self.schema,
            repair=job.repair,
            stop=stop,
            check=self.check,
            ceiling=job.max_tokens_ceiling,
        )
        if not standbys and job.fallback_answer is None:
            return structured
        from batchllm.layers.fallback import Fallback  # most runs have none

        others = [
            (other.asking.chosen.model, other.asking.stack(other.provider, other.gate, stop, observers))
            for other in standbys
        ]
        return Fallback(structured, others, _constant(job.fallback_answer))


def asking(loaded: Loaded, environ: Mapping[str, str], *, terminal: bool) -> Asking:
    """Check provider, schema and templates of a job; ConfigError says what is wrong with them."""
    job = loaded.job
    chosen = provider_of(loaded, environ, terminal=terminal)
    schema = Schema.load(job.schema, loaded.origin("schema")) if job.schema is not None else None
    check = _check(job)
    prompt = Prompt(
        job.prompt or DEFAULT_PROMPT,
        job.system,
        prompt_name=loaded.origin("prompt"),
        system_name=loaded.origin("system"),
    )
    if job.fallback_answer is not None:
        _check_constant(loaded, schema)
    others = tuple(
        Asking(other.job, provider_of(other, environ, terminal=terminal), prompt, schema, check)
        for other in _others(loaded, chosen.model)
    )
    return Asking(job, chosen, prompt, schema, check, others)


def _check(job: Job) -> Check | None:
    """The validator that the job names, imported."""
    if job.check is None:
        return None
    from batchllm.job.code import named_object
    from batchllm.schema.checking import Check

    return Check(named_object(job.check), job.check, job.timeout)


def _others(loaded: Loaded, model: str) -> list[Loaded]:
    """The job as each fallback model is asked; another provider has its own address and key."""
    found = []
    for name in loaded.job.fallback or ():
        job = replace(loaded.job, model=name, fallback=None, fallback_answer=None)
        if name.partition("/")[0] != model.partition("/")[0]:
            job = replace(job, base_url=None, api_key_env=None)
        found.append(Loaded(job, loaded.origins | {"model": loaded.origin("fallback")}))
    return found


def _check_constant(loaded: Loaded, schema: Schema | None) -> None:
    """The constant answer has to be one that a model might give: ConfigError."""
    job, origin = loaded.job, loaded.origin("fallback_answer")
    if job.emit == "openai-batch":
        raise ConfigError(
            f"{origin}: a constant is no provider's answer, which --emit openai-batch wants",
            "leave it out, or emit result or merged",
        )
    violations = schema.violations(json.loads(job.fallback_answer or "null")) if schema else []
    if violations:
        raise ConfigError(
            f"{origin}: the constant answer breaks the schema: {'; '.join(violations)}",
            "give one that the schema accepts",
        )


def _constant(answer: str | None) -> Reply | None:
    """The reply that stands in where all models failed."""
    if answer is None:
        return None
    value = json.loads(answer)
    text = value if isinstance(value, str) else answer
    return Reply(text, value, Usage(), None, "fallback_answer", fallback=True)


def same_failure_hint(dead: Dead) -> str | None:
    """What to do when everything fails like this."""
    if dead.error.kind == "exhausted":
        return "check that the server runs and that --base-url is right, then run the same command again"
    if "max_completion_tokens" in dead.error.message:
        return "this model wants --param max_completion_tokens=N"
    return "mend the parameter or the schema that it names, then run again with --on-change redo"


def _batch_body(data: dict[str, Any]) -> dict[str, Any]:
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
