"""`[finish]`: a function or a command that is given the finished files once everything is settled.

It prepares the call before the run, makes it, and remembers in the run folder for which files it succeeded,
so that a finished run that is run again doesn't repeat it. `wire.finishing` calls it for the cli and the api.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from batchllm.errors import ConfigError, FinishFailed
from batchllm.job.importing import found
from batchllm.ledger import RunFolder

_MEMORY = "finish"
_TERM_S = 2.0
"""Seconds that a command has to end once it was asked to."""
_TAKES = ("output", "dead_letter", "summary")


async def prepare(settings: Mapping[str, Any]) -> Finish:
    """The hook of these settings; ConfigError where its function or program isn't there.

    `settings` are those that `job.values.finish` reads, and `folder`, that of the job file.
    """
    folder = Path(settings["folder"])
    if "run" in settings:
        name = settings["run"].removeprefix("python/")
        function = await to_thread.run_sync(found, name, folder, abandon_on_cancel=True)
        return Finish(partial(_call, function, _taken(name, function)), settings.get("timeout"))
    program, *arguments = settings["command"]
    if os.sep in program:
        program = str(folder / program)
    if shutil.which(program) is None:
        raise ConfigError(f"[finish] command: there is no program {program}", "check its path")
    return Finish(partial(_execute, [program, *arguments]), settings.get("timeout"))


class Finish:
    """What is done with the finished files of a run; `timeout` in seconds."""

    def __init__(self, act: Callable[[dict[str, Any]], Awaitable[None]], timeout: float | None) -> None:
        self._act = act
        self._timeout = timeout

    async def once(self, output: str, dead_letter: str | None, summary: dict[str, Any]) -> None:
        """Do it unless it was done for these files; raises FinishFailed, and InUse while another run goes on.

        `output` is `-` for stdout, of which nothing is remembered. `dead_letter` is None without a letter.
        """
        if output == "-":
            await self._do(output, dead_letter, summary)
            return
        folder = RunFolder(output)
        folder.acquire()
        try:
            files = _standing(folder)
            if (folder.read(_MEMORY) or {}).get("files") != files:
                await self._do(output, dead_letter, summary)
                folder.write(_MEMORY, {"files": files})
        finally:
            folder.release()

    async def _do(self, output: str, dead_letter: str | None, summary: dict[str, Any]) -> None:
        given = {"output": _absolute(output), "dead_letter": _absolute(dead_letter), "summary": summary}
        with anyio.move_on_after(self._timeout) as scope:
            await self._act(given)
        if scope.cancelled_caught:
            raise FinishFailed(f"it took longer than {self._timeout:g} s")


def _absolute(path: str | None) -> str | None:
    return path if path in ("-", None) else str(Path(str(path)).absolute())


def _standing(folder: RunFolder) -> Any:
    """What tells the files of one finished run from those that it becomes by growing or by a retry."""
    snapshot = folder.read("snapshot") or {}
    return [snapshot.get("generation"), snapshot.get("sinks")]


def _taken(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """The things that a function takes; ConfigError where it wants others."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return _TAKES
    for p in parameters:
        by_name = p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name in _TAKES
        if not by_name and p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            raise ConfigError(
                f"[finish] {name} takes {p.name!r}", f"it can have these, by name: {', '.join(_TAKES)}"
            )
    return tuple(p.name for p in parameters if p.name in _TAKES)


async def _call(function: Callable[..., Any], takes: tuple[str, ...], given: dict[str, Any]) -> None:
    """Call a function; what it prints goes to stderr, since stdout is for data."""
    call = partial(function, **{name: given[name] for name in takes})
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if inspect.iscoroutinefunction(function):
                await call()
            else:
                result = await to_thread.run_sync(call, abandon_on_cancel=True)
                if inspect.isawaitable(result):
                    await result
    except (Exception, SystemExit) as error:
        words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise FinishFailed(words) from error


async def _execute(command: list[str], given: dict[str, Any]) -> None:
    """Run a command in our environment and working folder, in a session of its own, to its end."""
    told = {
        "BATCHLLM_FINISHED_OUTPUT": given["output"],
        "BATCHLLM_FINISHED_DEAD_LETTER": given["dead_letter"] or "",
        "BATCHLLM_FINISHED_SUMMARY": json.dumps(given["summary"]),
    }
    try:
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            stderr=2,
            env=os.environ | told,
            start_new_session=True,
        )
    except OSError as error:
        raise FinishFailed(f"{command[0]} can't be run: {(error.strerror or str(error)).lower()}") from None
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(_TERM_S):
                    os.killpg(process.pid, signal.SIGTERM)
                    await process.wait()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.aclose()
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        raise FinishFailed(f"{command[0]} {how}")
