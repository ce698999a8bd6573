"""A session of a program's: one job driven pass by pass, and closed in order however it ends.

It heeds no signals and shows nothing; what people are told goes to the logger `batchllm` and into `notes`.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import field, replace

import anyio

from batchllm.api.handing import Handing, HeldBack
from batchllm.errors import BatchError, ConfigError, Drained, FinishFailed, InputFailed
from batchllm.fields import mutable
from batchllm.job import Loaded
from batchllm.mainpath import run as run_parts
from batchllm.sources.handed import Handed
from batchllm.stop import Stop
from batchllm.summary import Summary
from batchllm.summary.ending import Ending
from batchllm.wire import Again, Finished, Live, build
from batchllm.wire.asking import Asks
from batchllm.wire.finishing import finishing, prepared
from batchllm.wire.passes import every_pass, heed_deadline, steered, why

Confirm = Callable[[Summary], bool | Awaitable[bool]]
"""Is given what a pilot came to, and says whether the run goes on."""
_log = logging.getLogger("batchllm")


@mutable
class Session:
    """What a run needs beside its settings; `last` is how its last pass went, `failed` what it raised.

    `handed` are the records of an iterator and `handing` its outcomes. `live` is the pass that runs now, None
    while it is still being wired. `unfinished` says what went wrong with `[finish]`. `started` is a monotonic
    time, `asked` the seconds that `confirm` took.
    """

    loaded: Loaded
    environ: Mapping[str, str]
    confirm: Confirm | None = None
    handed: Handed | None = None
    handing: Handing | None = None
    asks: Asks | None = None
    stop: Stop = field(default_factory=Stop)
    live: Live | None = None
    last: Live | Finished | None = None
    failed: Exception | None = None
    notes: list[str] = field(default_factory=list)
    skipped: int | None = None
    unfinished: FinishFailed | None = None
    started: float = field(default_factory=time.monotonic)
    asked: float = 0.0

    def __post_init__(self) -> None:
        job = self.loaded.job
        if job.pilot is not None and not job.yes and self.confirm is None:
            raise ConfigError(
                "a pilot asks whether to go on, and nobody is there to be asked",
                "give yes=True, or a function as confirm",
            )

    async def run(self) -> None:
        """Every pass, to the end; what is raised is left in `failed`."""
        try:
            async with anyio.create_task_group() as tasks:
                if self.handed is not None:
                    tasks.start_soon(self.handed.pull)
                tasks.start_soon(heed_deadline, self.loaded.job, self.stop, self.started)
                try:
                    await self._to_the_end()
                except Exception as error:
                    self.failed = error  # the task group would wrap it
                tasks.cancel_scope.cancel()
        finally:
            if self.handing is not None:
                self.handing.end()

    async def _to_the_end(self) -> None:
        job, stop = self.loaded.job, self.stop
        finish = await prepared(job, stop)
        self.last = last = await every_pass(job, stop, self._pass)
        if finish is None or last is None or stop or not (isinstance(last, Finished) or last.complete):
            return
        self.unfinished = await finishing(finish, last.summary, self.ending(last), last.comparison(), stop)
        if self.unfinished is not None:
            self.warn(self.unfinished.message)

    def ending(self, last: Live | Finished) -> Ending:
        """How the session ended, of which `last` was the last pass."""
        stopped, hint = why(self.stop)
        live = last if isinstance(last, Live) else None
        return Ending(
            output=last.places.output,
            elapsed=time.monotonic() - self.started - self.asked if live is not None else 0.0,
            dead_letter=last.places.dead_letter if last.summary.failed else None,
            stopped=stopped,
            hint=hint,
            given_up=live.parts.engine.cancelled if live is not None else 0,
            dropped=live.parts.engine.dropped if live is not None else 0,
            resumed=last.summary.settled if live is None else self.skipped or 0,
            already_done=live is None,
        )

    def give_up(self) -> None:
        """Stop, and give up what is in flight; what was answered is still committed."""
        self.stop.set(Drained("given up by the program", "run it again to go on"))
        if self.live is not None:
            self.live.abort()

    def check(self) -> None:
        """Raise what ended the session early, if anything did."""
        raised = self.handed.failure if self.handed is not None else None
        if self.failed is not None and (raised is None or not isinstance(self.failed, InputFailed)):
            raise self.failed
        if raised is not None:
            raise raised
        if isinstance(self.stop.reason, BatchError):
            raise self.stop.reason
        if self.unfinished is not None:
            raise self.unfinished

    def say(self, text: str) -> None:
        """For people: to the log, and to whoever looks at the result."""
        self.notes.append(text)
        _log.info(text)

    def warn(self, text: str) -> None:
        """The same, as a warning."""
        self.notes.append(text)
        _log.warning(text)

    async def _pass(self, retry: Again | None) -> Live | Finished | None:
        """Wire one pass and run it; None where a stop came before it was wired."""
        earlier, self.live = self.live, None
        with anyio.CancelScope() as scope:
            self.stop.then(lambda: scope.cancel() if self.live is None else None)
            async with AsyncExitStack() as stack:
                live = await build(
                    self.loaded,
                    self.stop,
                    stack,
                    environ=self.environ,
                    terminal=False,
                    say=self.say,
                    observers=[self.handing] if self.handing is not None else [],
                    retry=retry,
                    handed=self.handed,
                    asks=self.asks,
                )
                if isinstance(live, Finished):
                    return live
                self.live = live
                if earlier is not None:
                    live.follow(earlier)
                if self.skipped is None:
                    self.skipped = live.skipped
                    for warning in live.warnings:
                        self.warn(warning)
                await self._run(live)
            return live
        return None

    async def _run(self, live: Live) -> None:
        if live.pilot is not None:
            live.pilot.confirm = self._goes_on
        parts = live.parts
        if self.handing is not None and self.handed is not None:
            parts = replace(parts, source=HeldBack(parts.source, self.handing, self.handed))
        try:
            async with anyio.create_task_group() as steering:
                if not live.places.on_stdout:
                    steering.start_soon(steered, live, self.warn)
                await run_parts(parts)
                steering.cancel_scope.cancel()
            await live.close()
        finally:
            if live.opened is not None:
                live.opened.journal.close()  # cancelled from outside, it would keep the lock

    async def _goes_on(self, summary: Summary) -> bool:
        if self.confirm is None:
            return True
        began = time.monotonic()
        try:
            answer = self.confirm(summary)
            return bool(await answer if inspect.isawaitable(answer) else answer)
        finally:
            self.asked += time.monotonic() - began
