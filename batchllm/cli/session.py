"""A session: one process's work on a job, from wiring to the exit code.

It owns the event loop, signals, the deadline and what is shown; the run itself is `batchllm.run`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio

from batchllm import ui
from batchllm.errors import BatchError, DeadlinePassed, OutputClosed
from batchllm.job import Loaded
from batchllm.run import run as run_parts
from batchllm.stop import Stop
from batchllm.wire import Again, Finished, Live, build

if TYPE_CHECKING:
    from batchllm.ports import Observer


def start(loaded: Loaded, retry: Again | None = None) -> int:
    """Run a job in an event loop of its own; the exit code. Raises ConfigError and InUse."""
    return anyio.run(_session, loaded, retry, backend_options={"use_uvloop": _has_uvloop()})


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401 - asked for, used by anyio
    except ImportError:
        return False
    return True


async def _session(loaded: Loaded, retry: Again | None) -> int:
    """Pass after pass, until nothing is left to run or the run is stopped."""
    job = loaded.job
    stop, started = Stop(), time.monotonic()
    observers: list[Observer] = [ui.JsonEvents()] if job.verbose >= 2 else []
    rounds, skipped, last = job.rounds, None, None
    while True:
        async with AsyncExitStack() as stack:
            live = await build(
                loaded,
                stop,
                stack,
                environ=os.environ,
                terminal=sys.stderr is not None and sys.stderr.isatty(),
                say=(lambda text: None) if job.quiet else ui.say,
                observers=observers,
                retry=retry,
            )
            if isinstance(live, Finished):
                break
            if not job.quiet and last is None:
                for warning in live.warnings:
                    ui.warn(warning)
            skipped = live.skipped if skipped is None else skipped
            await _run(live, stop, observers, _kind(loaded, live.places.on_stdout), started)
        last = live
        if stop or not live.complete:
            break
        if live.cut_short:
            continue  # that pass was an earlier session's; now for this one's own
        if not rounds or live.opened is None or not live.summary.by_kind().get("exhausted"):
            break
        rounds -= 1
        retry = Again(("exhausted",))
    if last is not None:
        return _end(
            last, stop, time.monotonic() - started, skipped or 0, _kind(loaded, last.places.on_stdout)
        )
    assert isinstance(live, Finished)
    ui.final(live.summary, _finished_facts(live), kind=_kind(loaded, False), quiet=job.quiet)
    return 1 if live.summary.failed or live.unfinished_line else 0


def _kind(loaded: Loaded, on_stdout: bool) -> str:
    if loaded.job.quiet:
        return "none"
    to_terminal = on_stdout and sys.stdout is not None and sys.stdout.isatty()
    return ui.kind_for(loaded.job.progress, data_on_terminal=to_terminal)


async def _run(live: Live, stop: Stop, observers: Sequence[Observer], kind: str, started: float) -> None:
    from batchllm import ui

    facts = {"run_id": live.run_id, "model": live.model, "output": live.places.output}
    for observer in observers:
        observer.run_started(facts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed_signals, live, stop)
        if live.job.deadline is not None:
            tasks.start_soon(_heed_deadline, live.job.deadline, started, stop)
        async with anyio.create_task_group() as shown:
            shown.start_soon(
                lambda: ui.show(
                    live,
                    kind=kind,
                    interval=live.job.progress_interval,
                    silent=lambda: isinstance(stop.reason, OutputClosed),
                )
            )
            await run_parts(live.parts)
            await live.close()
            shown.cancel_scope.cancel()
        tasks.cancel_scope.cancel()
    for observer in observers:
        observer.run_stopped(facts | {"settled": live.summary.settled, "failed": live.summary.failed})


async def _heed_signals(live: Live, stop: Stop) -> None:
    """The first signal stops the run in order, the second gives up what is in flight."""
    heeded = [
        s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN
    ]
    with anyio.open_signal_receiver(*heeded) as signals:
        async for received in signals:
            if stop:
                live.parts.engine.abort()
            else:
                stop.set(received)


async def _heed_deadline(seconds: float, started: float, stop: Stop) -> None:
    await anyio.sleep(started + seconds - time.monotonic())
    stop.set(
        DeadlinePassed(f"the deadline of {seconds:g} s has passed", "run the same command again to go on")
    )


def _end(live: Live, stop: Stop, elapsed: float, skipped: int, kind: str) -> int:
    """Say how the session ended; the exit code."""
    reason = stop.reason
    if isinstance(reason, OutputClosed):
        return 141
    stopped, hint = None, None
    if isinstance(reason, signal.Signals):
        stopped, hint = f"by {reason.name}", "run the same command again to go on"
    elif reason is not None:
        stopped, hint = reason.message, reason.hint
    if reason is None and live.source.unfinished:
        path, line = live.source.unfinished
        ui.warn(
            f"the last line of {path} (line {line}) is not whole: it has no line end and is no JSON",
            "it is read again next time, once it is whole",
        )
    facts = ui.Facts(
        output=live.places.output,
        elapsed=elapsed,
        dead_letter=live.places.dead_letter if live.summary.failed else None,
        stopped=stopped,
        hint=hint,
        given_up=live.parts.engine.cancelled,
        dropped=live.parts.engine.dropped,
        resumed=skipped,
    )
    ui.final(live.summary, facts, kind=kind, quiet=live.job.quiet)
    if isinstance(reason, signal.Signals):
        return 128 + reason.value
    if isinstance(reason, BatchError):
        return 3
    return 1 if live.summary.failed or live.source.unfinished else 0


def _finished_facts(finished: Finished) -> Any:
    return ui.Facts(
        output=finished.places.output,
        elapsed=0.0,
        dead_letter=finished.places.dead_letter if finished.summary.failed else None,
        resumed=finished.summary.settled,
        already_done=True,
        hint=f"{finished.unfinished_line} is still not whole" if finished.unfinished_line else None,
    )
