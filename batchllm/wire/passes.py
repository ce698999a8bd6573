"""Driving what was wired, whoever began it: pass after pass, with a deadline and controls beside.

Says how a session ended, as an exit code and in words. It shows nothing and heeds no signal: the command
line and the Python API do.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from batchllm.errors import DeadlinePassed, FatalError, OutputClosed
from batchllm.job import Job
from batchllm.stop import Stop
from batchllm.summary import Summary
from batchllm.transport import expect_dials_given_up
from batchllm.wire.build import Again
from batchllm.wire.live import Finished, Live

_UNSTEERED = 0.2
"""Seconds after which a run listens to `batchllm ctl`."""
Result = TypeVar("Result")


def run_in_loop(function: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
    """Run `function` in an event loop of its own: uvloop's where there is one."""

    async def main() -> Result:
        expect_dials_given_up()
        return await function(*arguments)

    return anyio.run(main, backend_options={"use_uvloop": _has_uvloop()})


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401 - asked for, used by anyio
    except ImportError:
        return False
    return True


async def every_pass(
    job: Job,
    stop: Stop,
    one: Callable[[Again | None], Awaitable[Live | Finished | None]],
    retry: Again | None = None,
) -> Live | Finished | None:
    """Pass after pass, until nothing is left to run or the run is stopped; the last one that ran.

    `one` wires a pass and runs it; None where a stop came before it was wired.
    """
    rounds, last = job.rounds, None
    while True:
        live = await one(retry)
        if not isinstance(live, Live):
            return last or live
        last = live
        if not stop and not live.read_and_settled:
            again = "run the same command again; if that doesn't help, it is a bug of batchllm's"
            stop.set(FatalError("the run ended with records that were read and not settled", again))
        if stop or not live.complete:
            return live
        if live.cut_short:
            continue  # that pass was an earlier session's; now for this one's own
        if not rounds or live.opened is None or not live.summary.by_kind().get("exhausted"):
            return live
        rounds -= 1
        retry = Again(("exhausted",))


async def steered(live: Live, warn: Callable[[str], None]) -> None:
    """Let `batchllm ctl` steer this pass; without a socket for it the run goes on all the same.

    It begins a moment later than the calls, which should not wait for it; the client waits so long.
    """
    await anyio.sleep(_UNSTEERED)
    from batchllm import control

    path = control.socket_of(live.places.output)
    try:
        await control.serve(path, live)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        warn(f"this run can't be steered by batchllm ctl: no socket {path}: {reason}")


async def heed_deadline(job: Job, stop: Stop, started: float) -> None:
    """Stop the run once its deadline has passed, where it has one; `started` is a monotonic time."""
    if job.deadline is not None:
        await anyio.sleep(started + job.deadline - time.monotonic())
        again = "run the same command again to go on"
        stop.set(DeadlinePassed(f"the deadline of {job.deadline:g} s has passed", again))


def why(stop: Stop) -> tuple[str | None, str | None]:
    """Why the run was stopped and what to do, in words."""
    reason = stop.reason
    if isinstance(reason, signal.Signals):
        return f"by {reason.name}", "run the same command again to go on"
    return (str(reason), reason.hint) if reason is not None else (None, None)


def exit_code(stop: Stop) -> int:
    """The exit code that the reason of a stop asks for; 0 without one."""
    reason = stop.reason
    if isinstance(reason, signal.Signals):
        return 128 + reason.value
    if isinstance(reason, OutputClosed):
        return 141
    return 3 if reason is not None else 0


def too_many_failed(summary: Summary, job: Job) -> bool:
    """Whether a finished run has more dead letters than `--accept-failures` allows."""
    most = job.accept_failures
    return summary.failed > (most * summary.settled if isinstance(most, float) else most)
