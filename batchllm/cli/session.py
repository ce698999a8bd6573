"""A session: one process's work on a job, from wiring to the exit code.

It owns signals and what is shown; the run itself is `batchllm.mainpath`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, redirect_stdout
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from batchllm import ui
from batchllm.cli.asking import Display, goes_on
from batchllm.cli.reader import heed_reader
from batchllm.errors import OutputClosed
from batchllm.fields import mutable
from batchllm.job import Loaded
from batchllm.mainpath import run as run_parts
from batchllm.stop import Stop
from batchllm.wire import Again, Finished, Live, build
from batchllm.wire.finishing import finishing, prepared
from batchllm.wire.passes import (
    every_pass,
    exit_code,
    heed_deadline,
    run_in_loop,
    steered,
    too_many_failed,
    why,
)

if TYPE_CHECKING:
    from batchllm.ports import Observer
    from batchllm.summary import Summary


def start(loaded: Loaded, retry: Again | None = None) -> int:
    """Run a job in an event loop of its own; the exit code. Raises ConfigError and InUse."""
    log = logging.getLogger("batchllm")
    log.addHandler(logging.NullHandler() if loaded.job.quiet else ui.Notes())
    if not loaded.job.quiet:
        log.setLevel(logging.INFO)
    with redirect_stdout(sys.stderr):  # what functions of the user's print is no data
        return run_in_loop(_session, loaded, retry)


async def _session(loaded: Loaded, retry: Again | None) -> int:
    """All passes of the session under its signals and its deadline; the exit code."""
    session = _Session(loaded, Stop(), time.monotonic())
    failed: Exception | None = None
    code = 0
    async with anyio.create_task_group() as tasks:
        await tasks.start(_heed_signals, session)
        tasks.start_soon(heed_deadline, loaded.job, session.stop, session.started)
        try:
            code = await _passes(session, retry)
        except Exception as error:
            failed = error  # raised below: the task group would wrap it
        tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return code


@mutable
class _Session:
    """What the passes of a session share; `live` is the one that runs, None while it is still being wired.

    `asked` is how long people took to answer questions, in seconds.
    """

    loaded: Loaded
    stop: Stop
    started: float
    live: Live | None = None
    skipped: int | None = None
    asked: float = 0.0

    def kind(self, on_stdout: bool) -> str:
        """Which progress to show."""
        job = self.loaded.job
        if job.quiet:
            return "none"
        to_terminal = on_stdout and sys.__stdout__ is not None and sys.__stdout__.isatty()
        return ui.kind_for(job.progress, data_on_terminal=to_terminal)


async def _passes(session: _Session, retry: Again | None) -> int:
    """Pass after pass, until nothing is left to run or the run is stopped."""
    job, stop = session.loaded.job, session.stop
    observers: list[Observer] = [ui.JsonEvents()] if job.verbose >= 2 else []
    finish = await prepared(job, stop)
    live = await every_pass(job, stop, lambda again: _pass(session, again, observers), retry)
    if isinstance(live, Live):
        code, facts = _end(session, live)
    elif isinstance(live, Finished):
        facts = _finished_facts(live)
        ui.final(live.summary, facts, kind=session.kind(False), quiet=job.quiet)
        code = int(too_many_failed(live.summary, job) or bool(live.unfinished_line))
    if isinstance(live, Live | Finished):
        if finish is None or stop or not (isinstance(live, Finished) or live.complete):
            return code
        failed = await finishing(finish, live.summary, facts, facts.comparison, stop)
        if failed is not None:
            ui.error(failed.message, failed.hint)
        return exit_code(stop) or code or int(failed is not None)
    reason, hint = why(stop)
    if not isinstance(stop.reason, OutputClosed):
        ui.say(f"stopped: {reason}\nhint: {hint}")
    return exit_code(stop)


async def _pass(session: _Session, retry: Again | None, observers: list[Observer]) -> Live | Finished | None:
    """Wire one pass and run it; None where a stop came before it was wired."""
    job, stop, earlier = session.loaded.job, session.stop, session.live
    session.live = None
    with anyio.CancelScope() as scope:
        stop.then(lambda: scope.cancel() if session.live is None else None)
        async with AsyncExitStack() as stack:
            live = await build(
                session.loaded,
                stop,
                stack,
                environ=os.environ,
                terminal=sys.stderr is not None and sys.stderr.isatty(),
                say=(lambda text: None) if job.quiet else ui.say,
                observers=observers,
                retry=retry,
            )
            if isinstance(live, Finished):
                return live
            session.live = live
            if earlier is not None:
                live.follow(earlier)
            gc.freeze()  # what is here now is here to stay: not to be searched for cycles
            if session.skipped is None:
                session.skipped = live.skipped
                for warning in () if job.quiet else live.warnings:
                    ui.warn(warning)
            await _run(session, live, observers)
        return live
    return None


async def _run(session: _Session, live: Live, observers: Sequence[Observer]) -> None:
    stop, kind = session.stop, session.kind(live.places.on_stdout)
    facts = {"run_id": live.run_id, "model": live.model, "output": live.places.output}
    for observer in observers:
        observer.run_started(facts)
    async with anyio.create_task_group() as beside:
        if live.places.on_stdout:
            beside.start_soon(heed_reader, live, stop)
        display = Display(
            lambda: ui.show(
                live,
                kind=kind,
                interval=live.job.progress_interval,
                silent=lambda: isinstance(stop.reason, OutputClosed),
            )
        )
        beside.start_soon(display.run)
        if live.pilot is not None:
            live.pilot.confirm = lambda summary: _confirm(session, live, display, summary)
        async with anyio.create_task_group() as steering:
            if not live.places.on_stdout:
                steering.start_soon(steered, live, (lambda text: None) if live.job.quiet else ui.warn)
            await run_parts(live.parts)
            steering.cancel_scope.cancel()
        await live.close()
        beside.cancel_scope.cancel()
    for observer in observers:
        observer.run_stopped(facts | {"settled": live.summary.settled, "failed": live.summary.failed})


async def _confirm(session: _Session, live: Live, display: Display, summary: Summary) -> bool:
    """Whether to go on after a pilot; the time that the answer takes is not the run's."""
    began = time.monotonic()
    try:
        return await goes_on(live, display, summary)
    finally:
        session.asked += time.monotonic() - began


async def _heed_signals(
    session: _Session, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """The first signal stops the run in order, the second gives up what is in flight, the third just ends."""
    heeded = [
        s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN
    ]
    with anyio.open_signal_receiver(*heeded) as signals:
        _end_at_the_third(heeded)
        task_status.started()
        async for received in signals:
            if not session.stop:
                session.stop.set(received)
            elif session.live is not None:
                session.live.abort()


def _end_at_the_third(heeded: Sequence[signal.Signals]) -> None:
    """End the process at the third signal, without the event loop: a template may hold that for ever."""
    received = 0

    def count(number: int, frame: object) -> None:
        nonlocal received
        received += 1
        if received == 3:
            os._exit(128 + number)

    for number in heeded:
        signal.signal(number, count)  # the loop hears of signals all the same, through its wakeup descriptor


def _end(session: _Session, live: Live) -> tuple[int, ui.Facts]:
    """Say how the session ended; the exit code, and what was said."""
    stop = session.stop
    stopped, hint = why(stop)
    if not stop and live.source.unfinished:
        path, line = live.source.unfinished
        ui.warn(
            f"the last line of {path} (line {line}) is not whole: it has no line end and is no JSON",
            "it is read again next time, once it is whole",
        )
    facts = ui.Facts(
        output=live.places.output,
        elapsed=time.monotonic() - session.started - session.asked,
        dead_letter=live.places.dead_letter if live.summary.failed else None,
        stopped=stopped,
        hint=hint,
        given_up=live.parts.engine.cancelled,
        dropped=live.parts.engine.dropped,
        resumed=session.skipped or 0,
        comparison=live.comparison(),
    )
    if not isinstance(stop.reason, OutputClosed):
        ui.final(live.summary, facts, kind=session.kind(live.places.on_stdout), quiet=live.job.quiet)
    failed = too_many_failed(live.summary, live.job) or bool(live.source.unfinished)
    return exit_code(stop) or int(failed), facts


def _finished_facts(finished: Finished) -> ui.Facts:
    return ui.Facts(
        output=finished.places.output,
        elapsed=0.0,
        dead_letter=finished.places.dead_letter if finished.summary.failed else None,
        resumed=finished.summary.settled,
        already_done=True,
        comparison=finished.comparison(),
        hint=f"{finished.unfinished_line} is still not whole" if finished.unfinished_line else None,
    )
