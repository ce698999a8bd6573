"""Failures leave no cycles: the cyclic collector looks rarely, and memory stays small all the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import batchllm
from batchllm.errors import BatchError
from batchllm.transport.exchange import Failed
from tests.running import tickets, write
from tests.serving import simulated

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SPOILT = "fake/echo?faults=500:0.3,drop:0.1,truncate:0.1,html:0.1,prose:0.1,length:0.1"


@contextmanager
def in_cycles(found: list[object]) -> Iterator[None]:
    """Collect errors that only the cyclic collector could free."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [thing for thing in gc.garbage if isinstance(thing, BatchError | Failed)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    "job",
    [
        {"model": SPOILT, "schema": SCHEMA, "repair": 1},
        {"model": SPOILT, "schema": SCHEMA, "repair": 1, "fallback": ["fake/echo?faults=500:0.5"]},
        {"model": "fake/echo?faults=500:1", "max_failures": None, "fallback_answer": "none"},
    ],
)
def test_errors_are_freed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", tickets(15))
    found: list[object] = []
    with in_cycles(found):
        result = batchllm.run(input="a.jsonl", max_retries=2, backoff=0, environ={}, **job)

    assert result.summary.calls > 15
    assert found == []


def test_connections_that_break_are_freed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", tickets(60))
    found: list[object] = []
    with simulated("--faults", "drop:0.2,truncate:0.2,500:0.1") as server, in_cycles(found):
        result = batchllm.run(
            input="a.jsonl",
            model="openai/m",
            base_url=server.url,
            environ={"OPENAI_API_KEY": "k"},
            max_retries=9,
            backoff=0,
        )

    assert result.summary.calls > 60
    assert found == []
