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
from batchllm.pipeline import Pipeline, Stage
from batchllm.prompt import Prompt
from batchllm.providers.chat import at_a_glance, encode, read_answer
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
    limiter = RateLimiter({"requests": 1e9}, stop)
    gate = Gate(anyio.CapacityLimiter(200), limiter, stop, max_stall=900)
    gated = Gated(Traced(Canned()), gate)
    retrying = Retrying(gated, most=5, backoff=1.0, stop=stop, witness=gate)
    return Structured(retrying, schema=Schema.load(SCHEMA, "schema"), repair=2, stop=stop), gate


def pipeline(provider: Any) -> Pipeline:
    """One stage over `provider`."""
    prompt = Prompt(PROMPT)
    stage = Stage(
        provider,
        lambda data, answers: {"messages": prompt.messages(data), "temperature": 0},
        "bench",
        schema=SCHEMA,
    )
    return Pipeline({None: [stage]}, run_id="run", generation=0, record_timeout=None)


def outcomes() -> list[Outcome | Note]:
    """Settled records, as the engine hands them on."""
    made: list[Outcome | Note] = []

    async def main() -> None:
        provider, _ = stack(Stop())
        work = pipeline(provider)
        for n in range(COUNT):
            made.append(await work(record(n), lambda note: None))

    anyio.run(main)
    return made


_spent: list[float] = []


@contextmanager
def measured() -> Iterator[None]:
    """Count the CPU of what happens inside towards the piece."""
    start = time.process_time()
    yield
    _spent.append(time.process_time() - start)


def each(call: Callable[[int], object]) -> Callable[[Path], None]:
    """A piece that is called once a record."""

    def run(folder: Path) -> None:
        with measured():
            for n in range(COUNT):
                call(n)

    return run


def in_groups(call: Callable[[Any], object], items: Sequence[object]) -> Callable[[Path], None]:
    """A piece that is called for 64 records at once."""

    def run(folder: Path) -> None:
        with measured():
            for at in range(0, COUNT, 64):
                call(items[at : at + 64])

    return run


def in_loop(main: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    """A piece that needs the event loop."""
    return lambda folder: anyio.run(main, folder, backend_options={"use_uvloop": True})


async def read_input(folder: Path) -> None:
    """Blocks → lines → Records."""
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(record(n).line + b"\n" for n in range(COUNT)))
    with measured():
        async for _ in JsonlSource([str(path)]).chunks():
            pass


async def the_layers(folder: Path) -> None:
    """Structured, Retrying, Gated and Traced around a ready reply, judged with the schema."""
    provider, _ = stack(Stop())
    request = Request("bench", {"messages": [{"role": "user", "content": TEXT}]}, "k", SCHEMA)
    with measured():
        for _ in range(COUNT):
            await provider.complete(request, Trail())


async def the_pipeline(folder: Path) -> None:
    """Rendering and the outcome around a ready reply, no layer."""
    work = pipeline(Canned())
    records = [record(n) for n in range(COUNT)]
    with measured():
        for one in records:
            await work(one, lambda note: None)


async def the_engine(folder: Path) -> None:
    """Streams and workers around a process that only yields once."""
    reply = await Canned().complete(None, Trail())  # type: ignore[arg-type]

    async def process(record: Record, emit: Callable[[Note], None]) -> Outcome:
        await anyio.lowlevel.checkpoint()
        return Done(record, reply, Trail(), 0.0)

    stop = Stop()
    engine = Engine(process, workers_for(200), stop, FailureWatch(None), 4.0)
    to_engine, inbox = anyio.create_memory_object_stream[Any](1)
    to_ledger, outbox = anyio.create_memory_object_stream[Any](1)
    chunks = [[record(n) for n in range(at, at + 1000)] for at in range(0, COUNT, 1000)]

    async def feed() -> None:
        async with to_engine:
            for chunk in chunks:
                await to_engine.send(chunk)

    async def drain() -> None:
        async for _ in outbox:
            pass

    with measured():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed)
            tasks.start_soon(drain)
            await engine.run(inbox, to_ledger)
    outbox.close()


def the_wire(url: str) -> Callable[[Path], None]:
    """POSTs over loopback, 200 in flight, through the transport alone; the server has its own process."""

    async def main(folder: Path) -> None:
        body = encode({"model": "bench", "messages": [{"role": "user", "content": TEXT}]})
        left = iter(range(COUNT))

        async def work() -> None:
            for n in left:
                await endpoint.post(body, headers={"idempotency-key": str(n)}, timeout=60)

        async with open_endpoint(url, {"authorization": "Bearer none"}, limit=200) as endpoint:
            with measured():
                async with anyio.create_task_group() as tasks:
                    for _ in range(200):
                        tasks.start_soon(work)

    return in_loop(main)


def the_ledger(settled: list[Outcome | Note]) -> Callable[[Path], None]:
    """Entries, lines, files and totals for what is settled."""

    async def main(folder: Path) -> None:
        place = RunFolder(str(folder / "out.jsonl"))
        place.acquire()
        sinks = {name: JsonlFile(str(folder / name), lazy=True) for name in ("output", "dead", "notes")}
        journal = Journal(place, JsonlFile(str(place.index), lazy=True), dict(sinks))
        state = journal.open()
        ledger = Ledger(
            sinks["output"],
            sinks["dead"],
            Shape(),
            Summary(),
            state.settled,
            Stop(),
            journal=journal,
            durability="batch",
            position=lambda seq: Position(seq=seq),
        )
        send, receive = anyio.create_memory_object_stream[list[Outcome | Note]](100)
        with measured():
            async with send:
                for at in range(0, COUNT, 64):
                    await send.send(settled[at : at + 64])
            await ledger.drain(receive)
        journal.close()
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()

    return in_loop(main)


def pieces(url: str) -> dict[str, Callable[[Path], None]]:
    """Every piece by name."""
    schema, prompt, settled = Schema.load(SCHEMA, "schema"), Prompt(PROMPT), outcomes()
    text, data = json.dumps(ANSWER), record(0).data
    assert data is not None
    body = {"model": "bench", "messages": prompt.messages(data), "temperature": 0}
    done = settled[0]
    assert isinstance(done, Done)
    summary = Summary()
    return {
        "read the input": in_loop(read_input),
        "render the prompt": each(lambda n: prompt.messages(data)),
        "encode the body": each(lambda n: encode(body)),
        "read the answer": each(lambda n: at_a_glance(200, BODY, False)),
        "find the JSON": each(lambda n: find_json(text)),
        "check the schema": each(lambda n: schema.violations(ANSWER)),
        "the wire": the_wire(url),
        "the layers": in_loop(the_layers),
        "the pipeline": in_loop(the_pipeline),
        "the engine": in_loop(the_engine),
        "an output line": each(lambda n: output_line(done, Shape())),
        "the totals": in_groups(summary.add_all, settled),
        "the ledger": the_ledger(settled),
    }


def cost(piece: Callable[[Path], None]) -> float:
    """Microseconds a record at the reference speed, the median of the rounds."""
    took = []
    with tempfile.TemporaryDirectory(prefix="batchllm-costs-") as folder:
        for _ in range(ROUNDS):
            _spent.clear()
            _, factor = scaled(lambda: piece(Path(folder)))
            took.append(sum(_spent) * factor * 1e6 / COUNT)
    return statistics.median(took)


def table(url: str, wanted: Sequence[str] = ()) -> Iterator[tuple[str, float]]:
    """Name and cost of each piece, or of those with one of the `wanted` words; `url` is the endpoint's."""
    for name, piece in pieces(f"{url}/chat/completions").items():
        if not wanted or any(word in name for word in wanted):
            yield name, cost(piece)


if __name__ == "__main__":
    with serving() as address:
        for piece_name, us in table(address, sys.argv[1:]):
            print(f"{piece_name:20} {us:7.2f} µs", flush=True)
