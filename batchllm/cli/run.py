"""`batchllm run`: options into a Job, the Job into a live run, and how it ended into an exit code.

The options come from the table of settings. This file owns signals and the event loop; the run itself is
`batchllm.run`.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchllm.errors import BatchError, OutputClosed
from batchllm.job import Setting, load, settings

if TYPE_CHECKING:
    from batchllm.job import Loaded
    from batchllm.ports import Observer
    from batchllm.stop import Stop
    from batchllm.wire import Finished, Live


def run(**options: Any) -> None:
    """Send every record of INPUT to a model and write every answer, or why there is none.

    INPUT is one or more JSONL files (.gz too), or - for stdin. Run the same command again to go on where
    it stopped. Settings also come from BATCHLLM_… variables and from batchllm.toml in the working folder.
    """
    import anyio

    loaded = load(options, os.environ, Path())
    use_uvloop = _has_uvloop()
    raise typer.Exit(anyio.run(_main, loaded, backend_options={"use_uvloop": use_uvloop}))


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401 - asked for, used by anyio
    except ImportError:
        return False
    return True


def _parameters() -> Iterator[inspect.Parameter]:
    """The command's parameters, one for each row of the table."""
    files = typer.Argument(help="JSONL files, .gz too; - is stdin.", metavar="INPUT", show_default=False)
    yield _parameter("input", Annotated[list[str] | None, files])
    job_file = typer.Option(
        "-j",
        "--job",
        metavar="FILE",
        help="Job file, TOML (default batchllm.toml here)",
        rich_help_panel="Files",
    )
    yield _parameter("job", Annotated[str | None, job_file])
    for setting in settings().values():
        if setting.flags:
            yield _parameter(setting.name, _annotation(setting))


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _annotation(setting: Setting) -> Any:
    is_flag = setting.metavar is None
    option = typer.Option(
        *setting.flags,
        metavar=setting.metavar or "",
        help=setting.help,
        rich_help_panel=setting.panel,
        show_default=False,
        count=setting.name == "verbose",
    )
    if setting.name == "verbose":
        return Annotated[int | None, option]
    if is_flag or setting.name == "ordered":
        return Annotated[bool | None, option]
    if setting.many:
        return Annotated[list[str] | None, option]
    return Annotated[str | None, option]


run.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]


async def _main(loaded: Loaded) -> int:
    from contextlib import AsyncExitStack

    from batchllm import ui
    from batchllm.stop import Stop
    from batchllm.wire import Finished, build

    job = loaded.job
    observers: list[Observer] = [ui.JsonEvents()] if job.verbose >= 2 else []
    stop, started = Stop(), time.monotonic()
    say = (lambda text: None) if job.quiet else ui.say
    async with AsyncExitStack() as stack:
        live = await build(
            loaded,
            stop,
            stack,
            environ=os.environ,
            terminal=sys.stderr is not None and sys.stderr.isatty(),
            say=say,
            observers=observers,
        )
        if isinstance(live, Finished):
            ui.final(
                live.summary,
                _finished_facts(live),
                kind=_kind(loaded, live.places.on_stdout),
                quiet=job.quiet,
            )
            return 1 if live.summary.failed or live.unfinished_line else 0
        if not job.quiet:
            for warning in live.warnings:
                ui.warn(warning)
        await _run(live, stop, observers, _kind(loaded, live.places.on_stdout))
        return _end(live, stop, time.monotonic() - started, _kind(loaded, live.places.on_stdout))


def _kind(loaded: Loaded, on_stdout: bool) -> str:
    from batchllm import ui

    if loaded.job.quiet:
        return "none"
    to_terminal = on_stdout and sys.stdout is not None and sys.stdout.isatty()
    return ui.kind_for(loaded.job.progress, data_on_terminal=to_terminal)


async def _run(live: Live, stop: Stop, observers: Sequence[Observer], kind: str) -> None:
    import anyio

    from batchllm import ui
    from batchllm.run import run as run_parts

    facts = {"run_id": live.run_id, "model": live.model, "output": live.places.output}
    for observer in observers:
        observer.run_started(facts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed_signals, live, stop)
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
    import anyio

    heeded = [
        s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN
    ]
    with anyio.open_signal_receiver(*heeded) as signals:
        async for received in signals:
            if stop:
                live.parts.engine.abort()
            else:
                stop.set(received)


def _end(live: Live, stop: Stop, elapsed: float, kind: str) -> int:
    """Say how the session ended; the exit code."""
    from batchllm import ui

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
        resumed=live.skipped,
    )
    ui.final(live.summary, facts, kind=kind, quiet=live.job.quiet)
    if isinstance(reason, signal.Signals):
        return 128 + reason.value
    if isinstance(reason, BatchError):
        return 3
    return 1 if live.summary.failed or live.source.unfinished else 0


def _finished_facts(finished: Finished) -> Any:
    from batchllm import ui

    return ui.Facts(
        output=finished.places.output,
        elapsed=0.0,
        dead_letter=finished.places.dead_letter if finished.summary.failed else None,
        resumed=finished.summary.settled,
        already_done=True,
        hint=f"{finished.unfinished_line} is still not whole" if finished.unfinished_line else None,
    )
