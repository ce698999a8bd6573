"""What the pieces of a record's way cost, one by one, in microseconds of CPU at the reference speed.

`python -m tests.perf.costs [NAME…]`. Each piece is the program's own, fed with ready-made inputs, in one
process; the median of several rounds, each scaled by calibrations around it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from batchllm.engine import Engine, workers_for
from batchllm.layers.gated import Gate, Gated, RateLimiter
from batchllm.layers.retrying import Retrying
from batchllm.layers.structured import Structured
from batchllm.layers.traced import Traced
from batchllm.ledger import Journal, Ledger, RunFolder
from batchllm.lines import Shape, output_line
from batchllm.model import Done, Note, Outcome, Position, Record, Reply, Request, Trail
from batchllm.pipeline import Pipeline
from batchllm.prompt import Prompt
from batchllm.providers.chat import encode, read_answer
from batchllm.schema import Schema, find_json
from batchllm.sinks import JsonlFile
from batchllm.sources import JsonlSource
from batchllm.stop import Stop
from batchllm.summary import Summary
from batchllm.transport import open_endpoint
from batchllm.watch import FailureWatch
from tests.perf.calibrate import scaled
from tests.perf.server import ANSWER, completion
from tests.perf.serving import serving
from tests.perf.workload import PROMPT, SCHEMA

COUNT, ROUNDS = 5_000, 5
TEXT = "I still have not received my new card, I ordered it over a week ago and need it."
HEADERS = {"content-type": "application/json"}
BODY = completion().partition(b"\r\n\r\n")[2]


class Canned:
    """A Provider that has its reply ready."""

    def __init__(self) -> None:
        self._reply = read_answer(200, HEADERS, BODY, model="bench", now=0.0)

    async def complete(self, request: Request, trail: Trail) -> Reply:
        return self._reply


def record(n: int) -> Record:
    """Record `n` of the input."""
    line = b'{"id":"r%d","text":"%b"}' % (n, TEXT.encode())
    return Record(n, f"r{n}", {"id": f"r{n}", "text": TEXT}, line)


def stack(stop: Stop) -> tuple[Structured, Gate]:
    """Everything but a cache around a provider that answers at once."""
    limiter = RateLimiter(1e9, 1e12, stop)
    gate = Gate(anyio.CapacityLimiter(200), limiter, stop, max_stall=900)
    gated = Gated(Traced(Canned()), gate)
    retrying = Retrying(gated, most=5, backoff=1.0, stop=stop, witness=gate)
    return Structured(retrying, schema=Schema.load(SCHEMA, "schema"), repair=2, stop=stop), gate


def pipeline(provider: Any) -> Pipeline:
    """One stage over `provider`."""
    prompt = Prompt(PROMPT)
    return Pipeline(
        provider,
        lambda data: {"messages": prompt.messages(data), "temperature": 0},
        model="bench",
        schema=SCHEMA,
        raw=False,
        run_id="run",
        generation=0,
        record_timeout=None,
    )


def outcomes() -> list[Outcome | Note]:
    """Settled records, as the engine hands them on."""
    made: list[Outcome | Note] = []

    async def table(url: str, wanted: Sequence[str] = ()) -> Iterator[tuple[str, float]]:
    """Each piece whose name has one of the `wanted` words, or every piece, and its cost; `url` is the endpoint's."""
    for name, piece in pieces(f"{url}/chat/completions").items():
        if not wanted or any(word in name for word in wanted):
            yield name, cost(piece)


if __name__ == "__main__":
    with serving() as address:
        for piece_name, us in table(address, sys.argv[1:]):
            print(f"{piece_name:20} {us:7.2f} µs", flush=True)
