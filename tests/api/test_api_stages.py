"""Stages and variants from Python: the same through `run`, `run_async` and `stream`, whatever holds them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import batchllm
from tests.api.test_api_stream import collect, script
from tests.running import names, rows, tickets, write

CODE = """
def shout(record, answers):
    return answers["draft"].upper()
"""
STAGES: list[dict[str, Any]] = [
    {"name": "draft", "prompt": "Draft: {{ text }}"},
    {"name": "loud", "run": "python/hooks.py:shout"},
    {"name": "last", "prompt": "Mend: {{ answers.loud }}", "when": "record.id != 't-00001'"},
]
VARIANTS: list[str | dict[str, Any]] = ["short=Say {{ text }}", {"name": "long", "prompt": "Tell {{ text }}"}]
SAID = {"draft": "a draft", "loud": "A DRAFT"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hooks.py").write_text(CODE)
    write(tmp_path / "a.jsonl", tickets(2))
    script(
        tmp_path,
        {"match": "Draft:", "text": "a draft"},
        {"match": "Mend:", "text": "mended"},
        {"match": "Say", "text": "short"},
        {"match": "Tell", "text": "long"},
    )
    return tmp_path


MODEL = "fake/script?file=replies.jsonl&by=match"


def test_stream_goes_through_the_stages_functions_too_and_outcomes_tell_them(folder: Path) -> None:
    first, second = collect(tickets(2), model=MODEL, stage=STAGES, ordered=True)

    assert (first.output, first.stages) == ("mended", SAID | {"last": "mended"})
    assert (second.output, second.stages) == ("A DRAFT", SAID)
    assert first.variant is None
    assert names(folder) == {"a.jsonl", "hooks.py", "replies.jsonl"}


def test_run_and_run_async_go_through_them_from_a_job_file_a_mapping_and_keywords(folder: Path) -> None:
    (folder / "job.toml").write_text(
        f'model = "{MODEL}"\n[[stage]]\nname = "draft"\nprompt = "Draft: {{{{ text }}}}"\n'
        '[[stage]]\nname = "loud"\nrun = "python/hooks.py:shout"\n'
    )
    mapping: dict[str, Any] = {"model": MODEL, "input": "a.jsonl", "stage": STAGES[:2]}
    batchllm.run("job.toml", input="a.jsonl", output="file.jsonl", environ={})
    batchllm.run(mapping, output="mapping.jsonl", environ={})
    asyncio.run(
        batchllm.run_async(input="a.jsonl", model=MODEL, stage=STAGES[:2], output="keys.jsonl", environ={})
    )

    for name in ("file.jsonl", "mapping.jsonl", "keys.jsonl"):
        assert [row["output"] for row in rows(folder / name)] == ["A DRAFT"] * 2
        assert [row["stages"] for row in rows(folder / name)] == [SAID] * 2


def test_each_record_is_asked_under_each_variant_and_outcomes_tell_which(folder: Path) -> None:
    asked = collect(tickets(2), model=MODEL, variant=VARIANTS, ordered=True)
    result = batchllm.run(input="a.jsonl", model=MODEL, variant=VARIANTS, environ={})

    expected = [(seq, name, name) for seq in range(2) for name in ("short", "long")]
    assert [(outcome.seq, outcome.variant, outcome.output) for outcome in asked] == expected
    assert result.summary.succeeded == 4
    assert [(row["seq"], row["variant"], row["output"]) for row in rows(folder / "a.out.jsonl")] == expected


def test_a_stream_under_variants_and_stages_goes_on_where_it_stopped(folder: Path) -> None:
    settings: dict[str, Any] = {"model": MODEL, "variant": VARIANTS, "output": "o.jsonl", "ordered": True}
    collect(tickets(1), **settings)

    later = collect(tickets(2), **settings)
    assert [(outcome.seq, outcome.variant) for outcome in later] == [(1, "short"), (1, "long")]
