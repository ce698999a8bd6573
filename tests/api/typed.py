"""What type checkers see of the public names; checked by mypy in test_api_typing.py, and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, assert_type

import batchllm
from batchllm import Outcome, Result, map, run, run_async, stream


def jobs() -> None:
    result = run(
        "job.toml", output=Path("o.jsonl"), concurrency="auto", deadline="2h", schema={"type": "object"}
    )
    assert_type(result, Result)
    assert_type(result.exit_code, int)
    assert_type(result.ok, bool)
    run(
        {"model": "fake/echo"},
        input=["a.jsonl", Path("b.jsonl")],
        confirm=lambda summary: summary.failed == 0,
    )
    run(
        message=[{"role": "user", "content": "{{ text }}"}],
        example=[{"user": "a", "answer": "b"}],
        stage=[{"name": "a", "prompt": "b"}, {"name": "c", "run": "python/module:function"}],
        variant=["a=b", {"name": "c", "prompt": "d"}],
        finish={"run": "python/module:function", "timeout": "5m"},
    )
    run(finish=True)  # type: ignore[arg-type]
    run(concurency=5)  # type: ignore[call-arg]
    run(rpm="many")  # type: ignore[arg-type]


async def iterations(records: AsyncIterator[dict[str, Any]]) -> None:
    assert_type(await run_async(model="fake/echo"), Result)
    async for outcome in stream(records, model="fake/echo", ordered=True):
        assert_type(outcome, Outcome[dict[str, Any], Any])


async def length(text: str) -> int:
    return len(text)


def upper(text: str) -> str:
    return text.upper()


async def functions() -> None:
    async for counted in map(length, ["a", "b"], rps=5, retry_on=(OSError,)):
        assert_type(counted, Outcome[str, int])
        assert_type(counted.result(), int)
        assert_type(counted.output, int | None)
        assert_type(counted.record, str)
    async for raised in batchllm.map(upper, ["a"], raise_errors=True):
        assert_type(raised.result(), str)
    map(length, [1, 2])  # type: ignore[arg-type]
