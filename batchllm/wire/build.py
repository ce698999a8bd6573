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
from batchllm.fields import frozen
from batchllm.job import Job, Loaded
from batchllm.ledger import Ledger, Noted, Settled, State, read_notes, restore
from batchllm.mainpath import Parts
from batchllm.pipeline import Pipeline
from batchllm.ports import Observer, Provider, Source
from batchllm.sources import JsonlSource, check_inputs
from batchllm.stop import Stop
from batchllm.watch import FIRST, LATER, FailureWatch
from batchllm.wire.asking import Asks, Shared
from batchllm.wire.ends import Wiring, fed_by, inputs, ledger_of, source_of
from batchllm.wire.expecting import expectation, unlabelled
from batchllm.wire.later import again, replan
from batchllm.wire.limiting import allowed_calls
from batchllm.wire.live import Finished, Live
from batchllm.wire.opening import Opened, Say, discard, open_folder, without_secrets, write_header
from batchllm.wire.places import Places, places
from batchllm.wire.plan import Wired, plan_of
from batchllm.wire.resume import move_old_letters, open_run
from batchllm.wire.reusing import SPARE, answers_of, beside

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
    asks: Asks | None = None,
) -> Live | Finished:
    """Wire a run. `stack` will hold what must be closed after it; `say` tells people of moved files.

    With `retry`, the run is a pass over the dead letters of a finished run. The records may be `handed` over
    by a program, which lets it run beside; `asks` makes what is asked of the job. Raises ConfigError and
    InUse; nothing has been called then, and no file of an earlier run is changed.
    """
    job, where = loaded.job, places(loaded.job, handed=handed is not None)
    if retry is None and handed is None:
        check_inputs(where.inputs)
    if where.on_stdout and job.rounds:
        raise ConfigError("--rounds needs an output that can be gone on with", "give -o FILE")
    plan = plan_of(loaded, environ, terminal=terminal, asks=asks)
    allowed_calls(job)
    expectation(job)
    store = await answers_of(job, stack)
    wiring = Wiring(job, plan, where, None, stop, observers, stack, say, store, handed)
    if asks is not None:
        from batchllm.wire.calling import same_failure_hint

        wiring = replace(wiring, advice=same_failure_hint)
    providers = await _before_moving(wiring) if job.fresh and retry is None else None
    if where.on_stdout:
        live = await _assemble(wiring, providers)
    else:
        opened = open_run(job, where, say) if retry is None else _open_again(job, where, say)
        wiring = replace(wiring, opened=opened)
        with ExitStack() as undo:
            undo.callback(discard, opened)
            providers = await _begin_pass(wiring, opened, retry) or providers
            if _nothing_to_do(opened, where, retry):
                return Finished(where, restore(opened.state), opened.state.unfinished_line, job)
            if providers is None and opened.state.later is not None and opened.state.later.job:
                changes = opened.state.later.job | (retry.changes if retry is not None else {})
                loaded = replace(loaded, job=replace(job, **changes))
                plan = plan_of(loaded, environ, terminal=terminal, asks=asks)
                wiring = replace(wiring, job=loaded.job, plan=plan)
            live = await _assemble(wiring, providers)
            undo.pop_all()
    live.warnings += plan.warnings
    return live


async def _before_moving(wiring: Wiring) -> list[Provider] | None:
    """Refuse what can be refused before --fresh moves an old run aside; the providers, connected.

    Where records come from a pipe or a program, they can be looked at once only: nothing is done here.
    """
    job, plan, where = wiring.job, wiring.plan, wiring.where
    if wiring.handed is not None or not all(map(os.path.isfile, where.inputs)):
        return None
    source = inputs(job, where, None, limit=job.limit)
    try:
        first = await source.peek(plan.enough)
    finally:
        source.close()
    plan.check_fields(first, raw=source.format == "openai-batch")
    return await plan.connect(wiring.stack)


async def _begin_pass(wiring: Wiring, opened: Opened, retry: Again | None) -> list[Provider] | None:
    """Begin the later pass that is asked for, if one is; the providers, connected for it.

    Whatever can be refused is refused before: a pass that has begun has taken lines out of the files.
    """
    if opened.state.later is not None or (retry is None and opened.replan is None):
        return None
    job, plan, where = wiring.job, wiring.plan, wiring.where
    if retry is None and plan.names:
        raise ConfigError(
            "what changed can't be asked again in a run with variants", "start over with --fresh"
        )
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
            first = await source.peek(plan.enough)
        finally:
            source.close()
        if opened.header.get("shape") != "openai-batch":
            plan.check_fields(first)
    providers = await plan.connect(wiring.stack)
    if retry is None:
        await replan(opened, job, where, inputs(job, where, wiring.handed))
    else:
        kept = retry.changes | {"base_url": without_secrets(job.base_url)}
        changes = kept if "base_url" in retry.changes else retry.changes
        again(opened, retry.chooses, changes | {"pilot": None})
    return providers


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


async def _assemble(wiring: Wiring, providers: list[Provider] | None = None) -> Live:
    job, plan, where, opened, stop = wiring.job, wiring.plan, wiring.where, wiring.opened, wiring.stop
    state = opened.state if opened is not None else State(settled=Settled())
    summary = restore(state)
    source = source_of(wiring, state)
    wiring.stack.callback(source.close)
    first = await source.peek(plan.enough)
    shape = state.later.shape if state.later is not None else source.format
    raw = shape == "openai-batch"
    if opened is None or opened.new:
        plan.check_fields(first, raw=raw)
    if providers is None:
        providers = await plan.connect(wiring.stack)
    if opened is not None and state.later is None:
        write_header(opened, job, where, shape)
    gates = await plan.gates(job, providers, stop, wiring.observers, wiring.stack)
    run_id = opened.run_id if opened is not None else os.urandom(8).hex()
    summary.expect_stages(plan.stages)
    wired = plan.wire(providers, gates, Shared(job, stop, wiring.observers, answers=wiring.store), raw=raw)
    noted = read_notes(opened.journal, state) if opened is not None and plan.stages else Noted()
    alike = FIRST if state.later is None else LATER
    watch = FailureWatch(job.max_failures, summary.settled, summary.failed, wiring.advice, alike)
    engine = _engine(wiring, wired, watch, run_id, state.generation, noted)
    if opened is None and not where.nowhere:
        move_old_letters(where, wiring.say)  # nothing can be refused any more, and the file is not open yet
    fed = fed_by(source, plan, state)
    ledger = ledger_of(wiring, summary, state, source, fed, noted)
    pilot = _pilot(wiring, state, source, fed, ledger)
    if opened is not None and opened.new and state.later is None:
        ledger.begin()
    return Live(
        job=job,
        places=where,
        model=plan.model,
        variants=plan.variants if state.later is None else 1,
        parts=Parts(pilot or fed, engine, ledger, stop),
        source=source,
        ledger=ledger,
        gate=wired.gate,
        skipped=summary.settled,
        before=summary.settled - state.settled.count,
        run_id=run_id,
        opened=opened,
        pilot=pilot,
        warnings=unlabelled(job, first),
    )


def _engine(
    wiring: Wiring, wired: Wired, watch: FailureWatch, run_id: str, generation: int, noted: Noted
) -> Engine:
    job, gate, store = wiring.job, wired.gate, wiring.store
    pipeline = Pipeline(
        wired.stages,
        run_id=run_id,
        generation=generation,
        record_timeout=job.record_timeout,
        answered=noted.answers,
        by_id=job.resume_by == "id",
    )
    workers, tending = workers_for(gate.target), beside(gate.tend, store)
    spare = SPARE if store is not None else 0
    engine = Engine(pipeline, workers, wiring.stop, watch, job.grace, gate.room, tending, spare)
    gate.watch(engine.rouse, lambda target: engine.resize(workers_for(target)), engine.instead)
    for layer in wired.lingering:
        layer.linger = engine.lingering
    return engine


def _pilot(wiring: Wiring, state: State, source: JsonlSource, fed: Source, ledger: Ledger) -> Pilot | None:
    """The pilot, unless the run is past it; a pass over dead letters has none."""
    job, where, each = wiring.job, wiring.where, wiring.plan.variants
    of_letters = state.later is not None and "pilot" in state.later.job
    units = (job.pilot or 0) * each
    if not units or of_letters or state.settled.count > units:
        return None
    from batchllm.pilot import Pilot, hint  # many runs have none

    advice = hint(where.dead_letter, kept=not where.on_stdout, redo=state.later is None)
    return Pilot(source, ledger, units, job.max_failures, advice, fed=fed, each=each)
