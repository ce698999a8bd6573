"""`run` and `run_async`: a whole job, exactly as the command line runs it with the same settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from functools import partial

import anyio

from batchllm.api.session import Confirm, Session
from batchllm.api.settings import JobLike, Settings, Unpack, read
from batchllm.errors import BatchError, ConfigError
from batchllm.fields import frozen
from batchllm.summary import Summary
from batchllm.wire import Live
from batchllm.wire.passes import exit_code, run_in_loop, too_many_failed, why


@frozen
class Result:
    """How a run ended; `exit_code` is the command line's (docs/contract.md): 0 is all well.

    `summary` counts the whole run over all its sessions; `resumed` of its records were settled by earlier
    ones. `output` and `dead_letter` are paths, the latter None where there is no dead letter. `stopped` says
    why the run stopped before its end and `hint` what to do, `error` is the exception for it; None of them
    where it ran to its end, unless `[finish]` went wrong: then `error` is FinishFailed. `given_up` calls were
    in flight when it stopped. `notes` are what the command line would have told people: files that were
    moved, warnings.
    """

    exit_code: int
    summary: Summary
    output: str | None
    dead_letter: str | None
    resumed: int
    stopped: str | None = None
    hint: str | None = None
    error: BatchError | None = None
    given_up: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the run is finished, with no more failures than were to be accepted."""
        return self.exit_code == 0


def run(
    job: JobLike | None = None,
    /,
    *,
    environ: Mapping[str, str] | None = None,
    confirm: Confirm | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Run a job to its end, in an event loop of its own; run it again to go on where it stopped.

    `job` is the path of a job file or a mapping of settings; keywords are settings too and win over both.
    Without either, `batchllm.toml` in the working folder counts, as do `BATCHLLM_…` variables, and relative
    paths start at the working folder. `environ` stands in for `os.environ`, keys to accounts included.
    `confirm` is asked after a `pilot` whether to go on; it may be async.

    Raises ConfigError before anything is called, InUse where another run holds the output, RuntimeError
    inside a running event loop. Every other end is in the Result, the error of a stopped run included. Ctrl-C
    waits `grace` seconds for what is in flight, settles it, and then raises KeyboardInterrupt.
    """
    session = _session(job, environ, confirm, settings)
    if _in_event_loop():
        raise RuntimeError("an event loop is running here: await batchllm.run_async(…) instead")
    return run_in_loop(partial(_to_the_end, session, gently=True))


async def run_async(
    job: JobLike | None = None,
    /,
    *,
    environ: Mapping[str, str] | None = None,
    confirm: Confirm | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """The same in a running event loop (asyncio's or uvloop's).

    When it is cancelled, it gives up what is in flight, commits what was answered, and closes its files
    before it raises; a `deadline` waits for what is in flight.
    """
    return await _to_the_end(_session(job, environ, confirm, settings), gently=False)


def _session(
    job: JobLike | None, environ: Mapping[str, str] | None, confirm: Confirm | None, settings: Settings
) -> Session:
    variables = os.environ if environ is None else environ
    loaded = read(job, settings, variables)
    if not loaded.job.input:
        raise ConfigError("no input", 'name a file: batchllm.run(input="tickets.jsonl")')
    return Session(loaded, variables, confirm)


def _in_event_loop() -> bool:
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True


async def _to_the_end(session: Session, *, gently: bool) -> Result:
    """Run in a task of its own, which a cancellation of ours only asks to stop; `gently` as a signal does."""
    ended = anyio.Event()

    async def work() -> None:
        with anyio.CancelScope(shield=True):
            try:
                await session.run()
            finally:
                ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        try:
            await ended.wait()
        finally:
            if not ended.is_set() and gently:
                session.stop.set(signal.SIGINT)
            elif not ended.is_set():
                session.give_up()
    if session.failed is not None:
        raise session.failed
    return _result(session)


def _result(session: Session) -> Result:
    last, stop, job = session.last, session.stop, session.loaded.job
    code, (stopped, hint) = exit_code(stop), why(stop)
    error: BatchError | None = stop.reason if isinstance(stop.reason, BatchError) else None
    notes = tuple(session.notes)
    if last is None:
        return Result(code, Summary(), None, None, 0, stopped, hint, error, 0, notes)
    if not stop and session.unfinished is not None:
        error, hint = session.unfinished, session.unfinished.hint
    ending, torn = (
        session.ending(last),
        last.source.unfinished if isinstance(last, Live) else last.unfinished_line,
    )
    return Result(
        exit_code=code or int(too_many_failed(last.summary, job) or bool(torn) or error is not None),
        summary=last.summary,
        output=ending.output,
        dead_letter=ending.dead_letter,
        resumed=ending.resumed,
        stopped=stopped,
        hint=hint,
        error=error,
        given_up=ending.given_up,
        notes=notes,
    )
