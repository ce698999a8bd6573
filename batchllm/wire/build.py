"""Job → live objects: source, stack, engine and ledger of one run, wired and ready for `run.run`.

Everything that can be refused is refused here, before any call and before the run folder is written to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from batchllm.engine import Engine, FailureWatch, workers_for
from batchllm.errors import BadInput, ConfigError
from batchllm.job import Job, Loaded
from batchllm.layers.gated import Gate, Gated, RateLimiter
from batchllm.layers.retrying import Retrying
from batchllm.layers.structured import Structured
from batchllm.layers.traced import Traced
from batchllm.ledger import Ledger, Settled, restore
from batchllm.lines import Shape
from batchllm.model import Dead, Position, Record
from batchllm.pipeline import Pipeline, Render
from batchllm.ports import Observer, Provider
from batchllm.prompt import DEFAULT_PROMPT, Prompt, explain_missing, missing_fields
from batchllm.run import Parts
from batchllm.schema import Schema
from batchllm.sinks import JsonlFile, Stdout
from batchllm.sources import JsonlSource, check_inputs, fingerprint
from batchllm.stop import Stop
from batchllm.summary import Summary
from batchllm.transport import raise_descriptor_limit
from batchllm.wire.places import Places, places
from batchllm.wire.registry import Chosen, provider_of
from batchllm.wire.resume import Opened, Say, discard, move_old_letters, open_run, write_header

SPARE_DESCRIPTORS = 64
"""Files and pipes beside one connection for each call in flight."""


@dataclass(slots=True)
class Live:
    """A run that is ready to go; also what the ui samples while it goes (see `ui.View`)."""

    job: Job
    places: Places
    model: str
    parts: Parts
    source: JsonlSource
    ledger: Ledger
    gate: Gate
    skipped: int
    run_id: str
    opened: Opened | None
    warnings: list[str] = field(default_factory=list)

    @property
    def summary(self) -> Summary:
        """The totals of what is committed, earlier sessions included."""
        return self.ledger.summary

    def total(self) -> tuple[int | None, bool]:
        """Records expected in all; exact once the input has been read to its end, else from bytes."""
        source, limit = self.source, self.job.limit
        if source.ended:
            return source.records, True
        if source.total_bytes is None or not source.read_bytes or not source.records:
            return (limit, False) if limit else (None, False)
        expected = round(source.records * source.total_bytes / source.read_bytes)
        return (min(expected, limit), False) if limit else (expected, False)

    def in_flight(self) -> int:
        """Calls in flight now."""
        return self.gate.in_flight

    def waiting(self) -> str | None:
        """Why it is slow now."""
        return self.gate.waits()

    @property
    def complete(self) -> bool:
        """Whether every record of the input is settled."""
        source = self.source
        return source.ended and self.ledger.settled.watermark >= source.records and not self._cut_short()

    def _cut_short(self) -> bool:
        return self.job.limit is not None and self.source.records >= self.job.limit

    async def close(self, *, ordered: bool) -> None:
        """Finish the ledger's files. `ordered` asks for input order once all that was read is settled."""
        unfinished = self.source.unfinished
        line = f"{unfinished[0]} line {unfinished[1]}" if unfinished else None
        settled = self.source.ended and self.ledger.settled.watermark >= self.source.records
        await self.ledger.finish(complete=self.complete, ordered=ordered and settled, unfinished_line=line)
        if self.opened is not None:
            self.opened.journal.close()


@dataclass(frozen=True, slots=True)
class Finished:
    """An earlier session settled everything: there is nothing to run."""

    places: Places
    summary: Summary
    unfinished_line: str | None


async def build(
    loaded: Loaded,
    stop: Stop,
    stack: AsyncExitStack,
    *,
    environ: Mapping[str, str],
    terminal: bool,
    say: Say,
    observers: Sequence[Observer] = (),
) -> Live | Finished:
    """Wire a run. `stack` will hold what must be closed after it; `say` tells people of moved files.

    Raises ConfigError and InUse; nothing has been called then, and no file of an earlier run is changed.
    """
    job = loaded.job
    where = places(job)
    check_inputs(where.inputs)
    chosen = provider_of(loaded, environ, terminal=terminal)
    schema = Schema.load(job.schema, loaded.origin("schema")) if job.schema is not None else None
    prompt = Prompt(
        job.prompt or DEFAULT_PROMPT,
        job.system,
        prompt_name=loaded.origin("prompt"),
        system_name=loaded.origin("system"),
    )
    if where.on_stdout and job.ordered:
        raise ConfigError("--ordered needs an output file: stdout is written as answers come", "give -o FILE")
    _check_descriptors(job)

    opened = None if where.on_stdout else open_run(job, where, say)
    if opened is None:
        move_old_letters(where, say)
    elif _nothing_to_do(opened, where):
        finished = Finished(where, restore(opened.state), opened.state.unfinished_line)
        opened.journal.close()
        return finished
    with ExitStack() as undo:
        if opened is not None:
            undo.callback(discard, opened)
        live = await _assemble(job, where, chosen, schema, prompt, stop, opened, observers, stack)
        undo.pop_all()
    if chosen.warning:
        live.warnings.append(chosen.warning)
    return live


def _nothing_to_do(opened: Opened, where: Places) -> bool:
    """Whether the run is finished and its files hold nothing new."""
    state = opened.state
    if not state.finished or "-" in where.inputs or len(state.inputs) != len(where.inputs):
        return False
    paths = zip(where.inputs, state.inputs, strict=True)
    return all(Path(path).stat().st_size == known["size"] for path, known in paths)


async def _assemble(
    job: Job,
    where: Places,
    chosen: Chosen,
    schema: Schema | None,
    prompt: Prompt,
    stop: Stop,
    opened: Opened | None,
    observers: Sequence[Observer],
    stack: AsyncExitStack,
) -> Live:
    state = opened.state if opened is not None else None
    settled = state.settled if state is not None else Settled()
    summary = restore(state) if state is not None else Summary()
    source = JsonlSource(
        where.inputs,
        id_field=job.id_field,
        max_line=job.max_line,
        input_format=job.input_format,
        start=state.position if state is not None else Position(),
        limit=job.limit,
        settled=settled.__contains__,
    )
    stack.callback(source.close)
    first = await source.peek(lambda records: not missing_fields(prompt.fields, _objects(records)))
    raw = source.format == "openai-batch"
    if not raw and (opened is None or opened.new):
        _check_fields(job, prompt, first)
    if opened is not None:
        write_header(opened, job, where)
    provider = await stack.enter_async_context(chosen.connect(chosen.spec))
    ceiling = getattr(provider, "ceiling", None)
    window = min(job.concurrency, ceiling) if ceiling else job.concurrency
    gate = Gate(
        anyio.CapacityLimiter(window),
        RateLimiter(job.rpm, job.tpm, stop),
        stop,
        max_stall=job.max_stall,
        observers=observers,
    )
    run_id = opened.run_id if opened is not None else os.urandom(8).hex()
    pipeline = Pipeline(
        _stack(provider, job, schema, gate, stop, observers),
        _batch_body if raw else _renderer(prompt, job),
        model=chosen.model,
        schema=job.schema,
        raw=raw,
        run_id=run_id,
        generation=state.generation if state is not None else 0,
        record_timeout=job.record_timeout,
    )
    watch = FailureWatch(job.max_failures, summary.settled, summary.failed, hint=_same_failure_hint)
    engine = Engine(pipeline, workers_for(window), stop, watch, job.grace)
    ledger = Ledger(
        Stdout() if opened is None else opened.journal.sinks["output"],
        JsonlFile(where.dead_letter, lazy=True) if opened is None else opened.journal.sinks["dead"],
        Shape(job.emit, job.keep, job.merge_failed),
        summary,
        settled,
        stop,
        journal=opened.journal if opened is not None else None,
        durability=job.durability,
        position=source.position,
        observers=observers,
    )
    ledger.inputs = lambda position: [
        fingerprint(path, position.offset if number == position.file else -1)
        for number, path in enumerate(where.inputs)
    ]
    return Live(
        job=job,
        places=where,
        model=chosen.model,
        parts=Parts(source, engine, ledger, stop),
        source=source,
        ledger=ledger,
        gate=gate,
        skipped=summary.settled,
        run_id=run_id,
        opened=opened,
    )


def _stack(
    provider: Provider, job: Job, schema: Schema | None, gate: Gate, stop: Stop, observers: Sequence[Observer]
) -> Provider:
    """The stage's stack, outermost first: Structured(Retrying(Gated(Traced(provider))))."""
    traced = Traced(provider, observers)
    gated = Gated(traced, gate)
    retrying = Retrying(gated, most=job.max_retries, backoff=job.backoff, stop=stop, witness=gate)
    return Structured(retrying, schema=schema, repair=job.repair, stop=stop)


def _renderer(prompt: Prompt, job: Job) -> Render:
    params = dict(job.param)

    def render(data: dict[str, Any]) -> dict[str, Any]:
        return {"messages": prompt.messages(data), **params}

    return render


def _batch_body(data: dict[str, Any]) -> dict[str, Any]:
    body, url = data.get("body"), data.get("url")
    if not isinstance(body, dict):
        raise BadInput("the batch line's body is no JSON object", cause="not_an_object")
    if url not in ("/v1/chat/completions", "/chat/completions"):
        raise BadInput(f"the batch line's url {url!r} is none that can be sent here", cause="url")
    return body


def _objects(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [record.data for record in records if record.data is not None]


def _check_fields(job: Job, prompt: Prompt, first: Sequence[Record]) -> None:
    """A template field that none of the first records has is a mistake in the template."""
    objects = _objects(first)
    missing = missing_fields(prompt.fields, objects) if objects else []
    if missing:
        raise explain_missing(missing, objects, default_prompt=job.prompt is None)


def _check_descriptors(job: Job) -> None:
    needed = job.concurrency + SPARE_DESCRIPTORS
    allowed = raise_descriptor_limit(needed)
    if allowed < needed:
        raise ConfigError(
            f"--concurrency {job.concurrency} needs {needed} open files, this system allows {allowed}",
            f"ulimit -n {needed}, or -c {max(1, allowed - SPARE_DESCRIPTORS)}",
        )


def _same_failure_hint(dead: Dead) -> str | None:
    message = dead.error.message
    if dead.error.kind == "exhausted":
        return "check that the server runs and that --base-url is right, then run the same command again"
    if "max_completion_tokens" in message:
        return "this model wants --param max_completion_tokens=N"
    return "mend the parameter or the schema that it names, then run again with --fresh"
