"""What is asked of each record and of whom: provider, schema, prompt and the stage's stack of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from batchllm.errors import BadInput
from batchllm.job import Job, Loaded
from batchllm.layers.gated import Gate, Gated
from batchllm.layers.retrying import Retrying
from batchllm.layers.structured import Structured
from batchllm.layers.traced import Traced
from batchllm.model import Dead, Record, frozen
from batchllm.pipeline import Render
from batchllm.ports import Observer, Provider
from batchllm.prompt import DEFAULT_PROMPT, Prompt, explain_missing, missing_fields
from batchllm.schema import Schema
from batchllm.stop import Stop
from batchllm.wire.registry import Chosen, provider_of

_BATCH_URLS = ("/v1/chat/completions", "/chat/completions")


@frozen
class Asking:
    """The provider, the prompt and the schema of a job, each checked."""

    job: Job
    chosen: Chosen
    prompt: Prompt
    schema: Schema | None

    def enough(self, records: Sequence[Record]) -> bool:
        """Whether these records have every field that the prompt needs."""
        return not missing_fields(self.prompt.fields, _objects(records))

    def check_fields(self, first: Sequence[Record]) -> None:
        """A template field that none of the first records has is a mistake in the template: ConfigError."""
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

    def stack(self, provider: Provider, gate: Gate, stop: Stop, observers: Sequence[Observer]) -> Provider:
        """The stage's stack, outermost first: Structured(Retrying(Gated(Traced(provider))))."""
        job = self.job
        gated = Gated(Traced(provider, observers), gate)
        retrying = Retrying(gated, most=job.max_retries, backoff=job.backoff, stop=stop, witness=gate)
        return Structured(retrying, schema=self.schema, repair=job.repair, stop=stop)


class Asks(Protocol):
    """What makes an Asking of a job; `asking` is the one for models."""

    def __call__(self, loaded: Loaded, environ: Mapping[str, str], *, terminal: bool) -> Asking: ...


def asking(loaded: Loaded, environ: Mapping[str, str], *, terminal: bool) -> Asking:
    """Check provider, schema and templates of a job; ConfigError says what is wrong with them."""
    job = loaded.job
    chosen = provider_of(loaded, environ, terminal=terminal)
    schema = Schema.load(job.schema, loaded.origin("schema")) if job.schema is not None else None
    prompt = Prompt(
        job.prompt or DEFAULT_PROMPT,
        job.system,
        prompt_name=loaded.origin("prompt"),
        system_name=loaded.origin("system"),
    )
    return Asking(job, chosen, prompt, schema)


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
