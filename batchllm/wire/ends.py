"""The two ends of a run's main path: where its records come from, and the ledger that its outcomes go to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from batchllm.fields import frozen
from batchllm.job import Job
from batchllm.ledger import Ledger, Noted, Reorder, State
from batchllm.lines import Shape
from batchllm.model import Dead
from batchllm.ports import Observer, Sink, Source
from batchllm.sinks import JsonlFile, Nowhere, Stdout
from batchllm.sources import JsonlSource, Variants
from batchllm.stop import Stop
from batchllm.summary import Summary
from batchllm.wire.asking import same_failure_hint
from batchllm.wire.expecting import expectation
from batchllm.wire.later import meaning_digest
from batchllm.wire.opening import Opened, Say, meaning_of
from batchllm.wire.places import Places
from batchllm.wire.plan import Plan

if TYPE_CHECKING:
    from batchllm.cache import Store
    from batchllm.sources.handed import Handed


@frozen
class Wiring:
    """What a run is wired from: what is asked, where it goes, who is told, and what is open until its end.

    `opened` is its output with the run folder, None on stdout. `handed` are a program's own records, `store`
    the answers that may be used again. `advice` says what to do where everything fails alike.
    """

    job: Job
    plan: Plan
    where: Places
    opened: Opened | None
    stop: Stop
    observers: Sequence[Observer]
    stack: AsyncExitStack
    say: Say
    store: Store | None = None
    handed: Handed | None = None
    advice: Callable[[Dead], str | None] = same_failure_hint


def source_of(wiring: Wiring, state: State) -> JsonlSource:
    """The inputs from where they are settled on, or the letters of a later pass."""
    job, opened, plan = wiring.job, wiring.opened, wiring.plan
    each, settled = plan.variants, state.settled
    if opened is not None and state.later is not None:
        return JsonlSource(
            [str(opened.journal.folder.path / state.later.source)],
            id_field=job.id_field,
            max_line=2 * job.max_line + (1 << 20),
            input_format="dead",
            start=state.position,
            settled=settled.__contains__,
            later=plan.names,
        )
    return inputs(
        job,
        wiring.where,
        wiring.handed,
        start=state.position,
        limit=job.limit,
        settled=settled.__contains__
        if each == 1
        else lambda seq: all(unit in settled for unit in range(seq * each, (seq + 1) * each)),
        known=state.inputs,
    )


def inputs(job: Job, where: Places, handed: Handed | None, **more: Any) -> JsonlSource:
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


def fed_by(source: JsonlSource, plan: Plan, state: State) -> Source:
    """What the reader reads: the source, or its records under each variant."""
    if plan.names and state.later is None:
        return Variants(source, plan.names, state.settled.__contains__)
    return source


def ledger_of(
    wiring: Wiring, summary: Summary, state: State, source: JsonlSource, fed: Source, noted: Noted
) -> Ledger:
    """The ledger over the run's files; `noted` are stages that were answered and are not settled."""
    job, where, opened = wiring.job, wiring.where, wiring.opened
    meaning = opened.header["meaning"] if opened is not None else meaning_of(job, where)
    output, dead = _sinks(where, opened)
    ledger = Ledger(
        output,
        dead,
        Shape(job.emit, job.keep, job.merge_failed, expectation(job)),
        summary,
        state.settled,
        wiring.stop,
        journal=opened.journal if opened is not None else None,
        later=state.later,
        durability=job.durability,
        meaning=meaning_digest(meaning),
        position=fed.position,
        observers=wiring.observers,
        reorder=Reorder() if opened is None and job.ordered else None,
        noted=noted.places,
    )
    if state.later is not None:
        ledger.inputs = lambda position: state.inputs
    else:
        ledger.inputs = source.prints
    return ledger


def _sinks(where: Places, opened: Opened | None) -> tuple[Sink, Sink]:
    """Where successes and dead letters go."""
    if opened is not None:
        return opened.journal.sinks["output"], opened.journal.sinks["dead"]
    return (Nowhere(), Nowhere()) if where.nowhere else (Stdout(), JsonlFile(where.dead_letter, lazy=True))
