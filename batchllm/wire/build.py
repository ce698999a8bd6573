"""Job → live objects: source, stack, engine and ledger of one run, wired and ready for `mainpath.run`.

Everything that can be refused is refused here, before any call and before the run folder is written to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchllm.engine import Engine, workers_for
from batchllm.errors import ConfigError
from batchllm.job import Job, Loaded
from batchllm.layers.gated import Gate
from batchllm.ledger import Ledger, Reorder, Settled, State, restore
from batchllm.lines import Shape
from batchllm.mainpath import Parts
from batchllm.model import frozen
from batchllm.pipeline import Pipeline
from batchllm.ports import Observer, Provider, Sink
from batchllm.sinks import JsonlFile, Nowhere, Stdout
from batchllm.sources import JsonlSource, check_inputs
from batchllm.stop import Stop
from batchllm.summary import Summary
from batchllm.watch import FailureWatch
from batchllm.wire.asking import Asking, Asks, asking, same_failure_hint
from batchllm.wire.later import again, meaning_digest, replan
from batchllm.wire.limiting import allowed_calls, gate_of
from batchllm.wire.live import Finished, Live
from batchllm.wire.opening import Opened, Say, discard, meaning_of, open_folder, without_secrets, write_header
from batchllm.wire.places import Places, places
from batchllm.wire.resume import move_old_letters, open_run

if TYPE_CHECKING:
    from batchllm.pilot import Pilot
    from batchllm.sources.handed import Handed


@frozen
class Again:
    """Dead letters are to be tried again: those of `kinds`, all where there are none.

    `changes` are the settings of that pass which differ from the run's own.
    """

    kinds: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)

    def chooses(self, error: dict[str, Any]) -> bool:
        """Whether a letter with this `error` is among them."""
        return not self.kinds or error["kind"] in self.kinds


async def build(
    loaded: Loaded,
    stop: Stop,
    stack: AsyncExitStack,
    *,
    environ: Mapping[str, str],
    terminal: bool,
    say: Say,
    observers: Sequence[Observer] = (),
    retry: Again | None = None,
    handed: Handed | None = None,
    asks: Asks = asking,
) -> Live | Finished:
    """Wire a run. `stack` will hold what must be closed after it; `say` tells people of moved files.

    With `retry`, the run is a pass over the dead letters of a finished run. The records may be `handed` over
    by a program, which lets it run beside; `asks` makes what is asked of the job. Raises ConfigError and
    InUse; nothing has been called then, and no file of an earlier run is changed.
    """
    where = places(loaded.job, handed=handed is not None)
    if retry is None and handed is None:
        check_inputs(where.inputs)
    if where.on_stdout and loaded.job.rounds:
        raise ConfigError("--rounds needs an output that can be gone on with", "give -o FILE")
    asked = asks(loaded, environ, terminal=terminal)
    allowed_calls(loaded.job)
    if where.on_stdout:
        live = await _assemble(asked, where, None, stop, observers, stack, say, handed=handed)
    else:
        opened = open_run(loaded.job, where, say) if retry is None else _open_again(loaded.job, where, say)
        with ExitStack() as undo:
            undo.callback(discard, opened)
            provider = await _begin_pass(asked, where, opened, retry, stack, handed)
            if _nothing_to_do(opened, where, retry):
                return Finished(where, restore(opened.state), opened.state.unfinished_line)
            if provider is None and opened.state.later is not None and opened.state.later.job:
                changes = opened.state.later.job | (retry.changes if retry is not None else {})
                loaded = replace(loaded, job=replace(loaded.job, **changes))
                asked = asks(loaded, environ, terminal=terminal)
            live = await _assemble(asked, where, opened, stop, observers, stack, say, provider, handed)
            undo.pop_all()
    if asked.chosen.warning:
        live.warnings.append(asked.chosen.warning)
    return live


async def _begin_pass(
    asked: Asking,
    where: Places,
    opened: Opened,
    retry: Again | None,
    stack: AsyncExitStack,
    handed: Handed | None,
) -> Provider | None:
    """Begin the later pass that is asked for, if one is; the provider, connected for it.

    Whatever can be refused is refused before: a pass that has begun has taken lines out of the files.
    """
    if opened.state.later is not None or (retry is None and opened.replan is None):
        return None
    job = asked.job
    if retry is None and job.limit is not None:
        raise ConfigError("--limit can't choose among records that are settled in part", "leave out --limit")
    letters = opened.journal.sinks["dead"].length
    if "-" not in where.inputs if retry is None else letters:
        source = JsonlSource(
            where.inputs if retry is None else [where.dead_letter],
            input_format=job.input_format if retry is None else "dead",
            max_line=2 * job.max_line + (1 << 20),
        )
        try:
            first = await source.peek(asked.enough)
        finally:
            source.close()
        if opened.header.get("shape") != "openai-batch":
            asked.check_fields(first)
    provider = await stack.enter_async_context(asked.chosen.connect(asked.chosen.spec))
    if retry is None:
        await replan(opened, job, where, _inputs(job, where, handed))
    else:
        kept = retry.changes | {"base_url": without_secrets(job.base_url)}
        changes = kept if "base_url" in retry.changes else retry.changes
        again(opened, retry.chooses, changes | {"pilot": None})
    return provider


def _open_again(job: Job, where: Places, say: Say) -> Opened:
    """Open a finished run for its dead letters, or one whose pass over them was cut short."""
    opened = open_folder(job, where, say)
    with ExitStack() as undo:
        undo.callback(discard, opened)
        state = opened.state
        if opened.new:
            raise ConfigError(f"there is no run of {where.output}", "batchllm run comes first")
        if state.later is not None:
            say("an earlier pass over some records was cut short: finishing that one first")
        elif not state.finished:
            raise ConfigError(
                f"the run of {where.output} is not finished", "run its own command again first, then retry"
            )
        undo.pop_all()
    return opened


def _nothing_to_do(opened: Opened, where: Places, retry: Again | None) -> bool:
    """Whether the run is finished and its files hold nothing new."""
    state = opened.state
    if not state.finished or retry is not None:
        return state.finished
    if "-" in where.inputs or len(state.inputs) != len(where.inputs):
        return False
    paths = zip(where.inputs, state.inputs, strict=True)
    return all(Path(path).stat().st_size == known["size"] for path, known in paths)


async def _assemble(
    asked: Asking,
    where: Places,
    opened: Opened | None,
    stop: Stop,
    observers: Sequence[Observer],
    stack: AsyncExitStack,
    say: Say,
    provider: Provider | None = None,
    handed: Handed | None = None,
) -> Live:
    job = asked.job
    state = opened.state if opened is not None else State(settled=Settled())
    summary = restore(state)
    source = _source(job, where, opened, state, handed)
    stack.callback(source.close)
    first = await source.peek(asked.enough)
    shape = state.later.shape if state.later is not None else source.format
    raw = shape == "openai-batch"
    if not raw and (opened is None or opened.new):
        asked.check_fields(first)
    if provider is None:
        provider = await stack.enter_async_context(asked.chosen.connect(asked.chosen.spec))
    if opened is not None and state.later is None:
        write_header(opened, job, where, shape)
    gate = await gate_of(job, asked.chosen.spec, provider, stop, observers, stack)
    run_id = opened.run_id if opened is not None else os.urandom(8).hex()
    pipeline = Pipeline(
        asked.stack(provider, gate, stop, observers),
        asked.render(raw=raw),
        model=asked.chosen.model,
        schema=job.schema,
        raw=raw,
        run_id=run_id,
        generation=state.generation,
        record_timeout=job.record_timeout,
    )
    watch = FailureWatch(job.max_failures, summary.settled, summary.failed, hint=same_failure_hint)
    engine = _engine(job, pipeline, gate, watch, stop)
    if opened is None and not where.nowhere:
        move_old_letters(where, say)  # nothing can be refused any more, and the file is not open yet
    ledger = _ledger(job, where, opened, summary, state, stop, source, observers)
    pilot = _pilot(job, where, state, source, ledger)
    if opened is not None and opened.new and state.later is None:
        ledger.begin()
    return Live(
        job=job,
        places=where,
        model=asked.chosen.model,
        parts=Parts(pilot or source, engine, ledger, stop),
        source=source,
        ledger=ledger,
        gate=gate,
        skipped=summary.settled,
        before=summary.settled - state.settled.count,
        run_id=run_id,
        opened=opened,
        pilot=pilot,
    )


def _engine(job: Job, pipeline: Pipeline, gate: Gate, watch: FailureWatch, stop: Stop) -> Engine:
    engine = Engine(pipeline, workers_for(gate.target), stop, watch, job.grace, gate.room, gate.tend)
    gate.resized = lambda target: engine.resize(workers_for(target))
    gate.freed = engine.rouse
    return engine


def _pilot(job: Job, where: Places, state: State, source: JsonlSource, ledger: Ledger) -> Pilot | None:
    """The pilot, unless the run is past it; a pass over dead letters has none."""
    of_letters = state.later is not None and "pilot" in state.later.job
    if job.pilot is None or of_letters or state.settled.count > job.pilot:
        return None
    from batchllm.pilot import Pilot, hint  # many runs have none

    advice = hint(where.dead_letter, kept=not where.on_stdout, redo=state.later is None)
    return Pilot(source, ledger, job.pilot, job.max_failures, advice)


def _source(
    job: Job, where: Places, opened: Opened | None, state: State, handed: Handed | None
) -> JsonlSource:
    """The inputs from where they are settled on, or the letters of a later pass."""
    if opened is not None and state.later is not None:
        return JsonlSource(
            [str(opened.journal.folder.path / state.later.source)],
            id_field=job.id_field,
            max_line=2 * job.max_line + (1 << 20),
            input_format="dead",
            start=state.position,
            settled=state.settled.__contains__,
            later=True,
        )
    return _inputs(
        job,
        where,
        handed,
        start=state.position,
        limit=job.limit,
        settled=state.settled.__contains__,
        known=state.inputs,
    )


def _inputs(job: Job, where: Places, handed: Handed | None, **more: Any) -> JsonlSource:
    """The files, or what a program hands over."""
    as_asked: dict[str, Any] = {
        "id_field": job.id_field,
        "max_line": job.max_line,
        "input_format": job.input_format,
    }
    if handed is None:
        return JsonlSource(where.inputs, **as_asked, **more)
    from batchllm.sources.handed import HandedSource

    return HandedSource(handed, **as_asked, **more)


def _sinks(where: Places, opened: Opened | None) -> tuple[Sink, Sink]:
    """Where successes and dead letters go."""
    if opened is not None:
        return opened.journal.sinks["output"], opened.journal.sinks["dead"]
    return (Nowhere(), Nowhere()) if where.nowhere else (Stdout(), JsonlFile(where.dead_letter, lazy=True))


def _ledger(
    job: Job,
    where: Places,
    opened: Opened | None,
    summary: Summary,
    state: State,
    stop: Stop,
    source: JsonlSource,
    observers: Sequence[Observer],
) -> Ledger:
    meaning = opened.header["meaning"] if opened is not None else meaning_of(job, where)
    output, dead = _sinks(where, opened)
    ledger = Ledger(
        output,
        dead,
        Shape(job.emit, job.keep, job.merge_failed),
        summary,
        state.settled,
        stop,
        journal=opened.journal if opened is not None else None,
        later=state.later,
        durability=job.durability,
        meaning=meaning_digest(meaning),
        position=source.position,
        observers=observers,
        reorder=Reorder() if opened is None and job.ordered else None,
    )
    if state.later is not None:
        ledger.inputs = lambda position: state.inputs
    else:
        ledger.inputs = source.prints
    return ledger
