"""What a job asks of each record: its prompt made from the settings, and the request body made with it.

Whatever can be found wrong without a record is a ConfigError here. `asking` calls it once for each stage; it
knows neither layers nor calls.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from batchllm.errors import BadInput, ConfigError
from batchllm.job import Job, Loaded
from batchllm.pipeline import Render
from batchllm.prompt import (
    DEFAULT_PROMPT,
    ChatPrompt,
    Examples,
    GivenMessages,
    Messages,
    Prompt,
    explain_no_images,
    missing_fields,
    model_in,
    params_in,
)
from batchllm.schema import Schema

Body = dict[str, Any]
_PROVIDERS = frozenset({"anthropic", "fake", "gemini", "local", "ollama", "openai", "python"})
"""Names that before a slash mean a provider, whether or not this release has it."""
_ONE_MODEL = {"local": "serves one model", "python": "is one function"}


def prompt_of(loaded: Loaded, schema: Schema | None, model: str) -> Messages:
    """The job's prompt with its examples, whose answers satisfy `schema`; raises ConfigError.

    `model` is that of the run, its provider before the slash.
    """
    job = loaded.job
    _check(loaded, model)
    prompt = _asked(loaded)
    if not job.example:
        return prompt
    name = loaded.origin("example")
    shown = [
        {**example, "answer": _answer(example["answer"], schema, f"{name}: example {number}")}
        for number, example in enumerate(job.example, 1)
    ]
    return Examples(prompt, shown, name=name)


def rendering(job: Job, prompt: Messages, model: str) -> Render:
    """What makes a request body of a record's data and earlier answers; to be awaited where it reads images.

    `model` is that of the run, its provider before the slash.
    """
    params = dict(job.param)

    def plainly(data: dict[str, Any], answers: dict[str, Any] | None = None) -> Body:
        return {"messages": prompt.messages(data, answers), **params}

    own = job.params_field is not None or job.model_field is not None
    render = _with_own(job, plainly, model.partition("/")[0]) if own else plainly
    return _with_images(job, render) if job.image else render


def missing_images(job: Job, records: Sequence[dict[str, Any]]) -> list[str]:
    """The image fields that none of these records has."""
    return missing_fields(frozenset(job.image or ()), records)


def check_first(job: Job, prompt: Messages, records: Sequence[dict[str, Any]]) -> None:
    """A field that none of the first records has is a mistake in the settings: ConfigError."""
    missing = prompt.missing(records)
    if missing:
        raise prompt.explain(missing, records)
    missing = missing_images(job, records)
    if missing:
        raise explain_no_images(missing, records)


def _asked(loaded: Loaded) -> Messages:
    job = loaded.job
    if job.message:
        return ChatPrompt(job.message, name=loaded.origin("message"))
    prompt = Prompt(
        job.prompt or DEFAULT_PROMPT,
        job.system,
        prompt_name=loaded.origin("prompt"),
        system_name=loaded.origin("system"),
    )
    return prompt if job.prompt else GivenMessages(prompt, job.messages_field)


def _check(loaded: Loaded, model: str) -> None:
    job = loaded.job
    for name in ("prompt", "system"):
        if job.message and getattr(job, name) is not None:
            raise ConfigError(
                f"[[message]] ({loaded.origin('message')}) and {name} ({loaded.origin(name)}) exclude "
                "each other",
                "put what it says into a [[message]] of its own, or leave out one of the two",
            )
    for name, hint in (("model", "name it with -m"), ("messages", "give -p, or [[message]] in a job file")):
        if name in job.param:
            raise ConfigError(f"{loaded.origin('param')}: {name} is no parameter of its own", hint)
    if job.image and job.image_root is not None and not Path(job.image_root).is_dir():
        raise ConfigError(
            f"{loaded.origin('image_root')}: {job.image_root} is no folder", "name the folder of the images"
        )
    provider = model.partition("/")[0]
    if job.model_field is not None and provider in _ONE_MODEL:
        raise ConfigError(
            f"{loaded.origin('model_field')}: records can't name models here, "
            f"{provider}/ {_ONE_MODEL[provider]}",
            "leave out --model-field, or run on a server that has several models",
        )


def _answer(answer: Any, schema: Schema | None, place: str) -> str:
    """An example's answer as the model would write it; with a schema, JSON that satisfies it."""
    text = answer if isinstance(answer, str) else _compact(answer)
    if schema is None:
        return text
    value = answer
    if isinstance(answer, str):
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            text = _compact(answer)  # a string is an answer, too, where the schema wants one
    violations = schema.violations(value)
    if violations:
        raise ConfigError(
            f"{place}: the answer breaks the schema {violations[0]}",
            "an example has to be an answer that would be taken",
        )
    return text


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _with_own(job: Job, render: Callable[..., Body], provider: str) -> Callable[..., Body]:
    """With what records say of parameters and model."""

    def render_own(data: dict[str, Any], answers: dict[str, Any] | None = None) -> Body:
        body = render(data, answers)
        if job.params_field is not None:
            body.update(params_in(data, job.params_field))
        if job.model_field is not None and (model := model_in(data, job.model_field)) is not None:
            body["model"] = _model_of(model, provider, job.model_field)
        return body

    return render_own


def _model_of(name: str, provider: str, field: str) -> str:
    """The name that the server knows a record's model by."""
    prefix, slash, rest = name.partition("/")
    if not slash or prefix not in _PROVIDERS:
        return name
    if prefix != provider:
        raise BadInput(
            f"{field} names {name}, a model of another provider than this run's, {provider}: run such "
            f"records with -m {name}, or write {provider}/{name} where this server itself calls it so",
            cause="model",
        )
    if not rest:
        raise BadInput(f"{field} is {name!r}, a provider without a model", cause="model")
    return rest


def _with_images(job: Job, render: Callable[..., Body]) -> Callable[..., Awaitable[Body]]:
    """With the images that records name, read off the event loop."""
    from batchllm.prompt.images import Images  # few jobs have any

    images = Images(job.image or (), job.image_root or ".")

    async def render_images(data: dict[str, Any], answers: dict[str, Any] | None = None) -> Body:
        body = render(data, answers)
        body["messages"] = await images.attach(body["messages"], data)
        return body

    return render_images
