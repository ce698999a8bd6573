"""`stream`: records of a program in, outcomes out, as they come or in order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from typing import Any

import anyio

from batchllm import model
from batchllm.api.handing import Handing
from batchllm.api.outcome import Outcome, outcome_of
from batchllm.api.session import Confirm, Session
from batchllm.api.settings import JobLike, Settings, Unpack, read
from batchllm.engine import workers_for
from batchllm.errors import Drained
from batchllm.job import Job
from batchllm.sources.handed import Handed
from batchllm.wire.limiting import FOUND_AT_MOST

Shown = Callable[[model.Outcome], Outcome[Any, Any]]


def stream(
    records: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
    job: JobLike | None = None,
    /,
    *,
    environ: Mapping[str, str] | None = None,
    confirm: Confirm | None = None,
    **settings: Unpack[Settings],
) -> AsyncGenerator[Outcome[dict[str, Any], Any], None]:
    """Ask about each record, and yield each outcome once: as it comes, or with `ordered=True` in order.

    `records` may be endless: as many are read ahead as keep the calls busy (about twice `concurrency`, four
    times with `ordered`), and no more while nobody takes an outcome. A sync iterable is iterated on the event
    loop. `job`, `environ`, `confirm` and the settings are those of `run`.

    Without `output` nothing is written to disk. With it, outcomes are also written as `run` writes them, and
    are yielded when that is done; an iteration over the same records goes on where an earlier one ended, and
    yields what is new alone. With `rounds`, a record that failed may come again.

    Leaving the loop gives up what is in flight and closes everything; `contextlib.aclosing` waits for that.
    Failed records are outcomes. Raised are: ConfigError and InUse before anything is called, the FatalError
    that stops a run after the outcomes until then, and what `records` raises, likewise.
    """
    variables = os.environ if environ is None else environ
    loaded = read(job, settings, variables)
    handed = Handed(checked(records))
    session = Session(loaded, variables, confirm, handed, handing_for(loaded.job, bool(loaded.job.ordered)))
    return outcomes(session, outcome_of)


def checked(records: Any) -> Any:
    """The records, if they can be iterated; raises TypeError for what is one record, or a text."""
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable | AsyncIterable):
        raise TypeError(f"expected an iterable, sync or async, not {type(records).__name__}")
    return records


def handing_for(job: Job, ordered: bool) -> Handing:
    """What hands on the outcomes of a job; one slow record of an ordered iteration holds up twice as many."""
    window = FOUND_AT_MOST if job.concurrency == "auto" else job.concurrency
    return Handing((2 if ordered else 1) * workers_for(window), ordered=ordered)


async def outcomes(
    session: Session, shown: Shown, *, raise_errors: bool = False
) -> AsyncGenerator[Outcome[Any, Any], None]:
    """Run a session beside the consumer, and yield what it settles.

    A task group may not be left open across a yield, since the consumer's own scopes would be closed within
    it: so the session is a task of the event loop's, which the generator's end asks to stop and waits for.
    """
    handing = session.handing
    assert handing is not None
    task = asyncio.create_task(session.run(), name="batchllm")
    try:
        while (settled := await handing.next()) is not None:
            outcome = shown(settled)
            if raise_errors:
                outcome.result()
            yield outcome
        await asyncio.wait([task])
        if task.cancelled():
            raise Drained("the iteration was cancelled from outside", "run it again to go on")
        _raise_of(task)
        session.check()
    finally:
        if not task.done():
            session.give_up()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([task])


def _raise_of(task: asyncio.Task[None]) -> None:
    """Raise what ended a session that came to no end of its own, such as a SystemExit of the iterable's."""
    error = task.exception()
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # of the task group that it came through
    if error is not None:
        raise error
