"""Whose error stopped a run that asks several: told once, in the result and in the error's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import batchllm
from batchllm.job import load
from batchllm.wire.plan import plan_of
from tests.running import tickets, write

CODE = """
import asyncio, batchllm.errors as e

SPENT = e.QuotaGone("spent", "pay")

def shared(record):
    raise SPENT

async def late(record):
    # the first record's call outlasts its time, and fails once ten others were answered
    calls.append(record)
    while record["id"] == "t-00000":
        await asyncio.sleep(0)
        if len(calls) > 10:
            raise e.QuotaGone("spent late", "pay")

calls = []
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", tickets(30))
    (tmp_path / "steps.py").write_text(CODE)
    return tmp_path


def stopped(*stages: dict[str, Any], **settings: Any) -> batchllm.Result:
    job = {"model": "fake/echo", "input": "in.jsonl", "stage": list(stages)}
    return batchllm.run(job | settings, environ={}, progress="none")


def test_one_error_for_many_calls_names_its_function_once(folder: Path) -> None:
    ended = stopped({"name": "a", "run": "python/steps.py:shared"}, {"name": "b", "prompt": "{{ text }}"})
    assert ended.stopped == str(ended.error) == "python/steps.py:shared: spent"
    assert ended.error is not None
    assert ended.error.message == "spent"


def test_an_error_that_comes_after_its_call_s_time_names_its_function(folder: Path) -> None:
    late = {"name": "a", "run": "python/steps.py:late", "timeout": 0.05, "on_timeout": "continue"}
    ended = stopped(late, {"name": "b", "prompt": "{{ text }}"}, concurrency=1)
    assert ended.stopped == "python/steps.py:late: spent late"


def test_an_only_model_is_not_named(folder: Path) -> None:
    assert stopped({"name": "a", "run": "python/steps.py:shared"}).stopped == "spent"


def test_a_fallback_that_another_stage_asks_too_is_named(folder: Path) -> None:
    error = {"match": "ticket", "error": {"status": 500, "message": "x"}}
    write(folder / "fails.jsonl", [error])
    write(folder / "gone.jsonl", [error | {"error": {"status": 401, "message": "gone"}}])
    other = "fake/script?file=gone.jsonl&by=match"
    first = {"name": "a", "prompt": "{{ text }}", "model": "fake/script?file=fails.jsonl&by=match"}
    ended = stopped(
        first | {"fallback": [other]},
        {"name": "b", "prompt": "{{ text }}", "model": other},
        max_retries=0,
    )
    assert ended.stopped == f"{other}: the provider answered 401: gone"


def test_a_service_that_asks_for_too_long_a_wait_is_named(folder: Path) -> None:
    error = {"status": 429, "message": "wait", "headers": {"retry-after": "3000"}}
    write(folder / "waits.jsonl", [{"match": "ticket", "error": error}])
    waits = "fake/script?file=waits.jsonl&by=match"
    ended = stopped({"name": "a", "prompt": "{{ text }}", "model": waits}, {"name": "b", "prompt": "x"})
    assert ended.stopped == f"{waits}: the service asks to wait 3000 s, --max-stall is 900 s"


@pytest.mark.parametrize(
    ("variants", "names"),
    [
        ([{}, {"prompt": "x"}], []),
        ([{}, {"model": "openai/large"}], ["openai/m", "openai/large"]),
        (
            [{}, {"base_url": "http://127.0.0.1:9/v1?key=secret"}],
            ["openai/m at its own address", "openai/m at 127.0.0.1:9"],
        ),
        ([{"api_key_env": "A"}, {"api_key_env": "B"}], ["openai/m with A", "openai/m with B"]),
    ],
)
def test_accounts_are_told_apart_by_what_differs(
    folder: Path, variants: list[dict[str, str]], names: list[str]
) -> None:
    keys = {"OPENAI_API_KEY": "sk-own", "A": "sk-a", "B": "sk-b"}
    job = {"model": "openai/m", "variant": [{"name": f"v{n}"} | each for n, each in enumerate(variants)]}
    plan = plan_of(load(job, keys, folder), keys, terminal=False)
    assert sorted(plan.called().values()) == sorted(names)
    assert "secret" not in json.dumps([*plan.called().values()])
