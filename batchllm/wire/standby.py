"""Who stands by where a model can't answer a record: other models, and at last a constant answer.

It finds them in the job and refuses what can't be; `layers/fallback` decides when they are asked.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace

from batchllm.errors import BatchError, ConfigError
from batchllm.job import Loaded
from batchllm.model import Reply, Usage
from batchllm.schema import Schema
from batchllm.stop import Stop


def others(loaded: Loaded, model: str) -> list[Loaded]:
    """The job as each fallback model is asked; another provider has its own address and key."""
    found = []
    for name in loaded.job.fallback or ():
        job = replace(loaded.job, model=name, fallback=None, fallback_answer=None)
        if name.partition("/")[0] != model.partition("/")[0]:
            job = replace(job, base_url=None, api_key_env=None)
        found.append(Loaded(job, loaded.origins | {"model": loaded.origin("fallback")}))
    return found


def stop_of(model: str, run: Stop) -> Stop:
    """What stops the asking of a model that only stands by, which is said, and not the run."""
    stop = run.aside()

    def say() -> None:
        if run.reason is None and isinstance(stop.reason, BatchError):
            logging.getLogger("batchllm").warning(
                "the fallback %s is not asked any more in this run: %s", model, stop.reason.message
            )

    stop.then(say)
    return stop


def check_constant(loaded: Loaded, schema: Schema | None) -> None:
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


def constant(answer: str | None) -> Reply | None:
    """The reply that stands in where all models failed."""
    if answer is None:
        return None
    value = json.loads(answer)
    text = value if isinstance(value, str) else answer
    return Reply(text, value, Usage(), None, "fallback_answer", fallback=True)
