"""The last step of a session: `[finish]`, once everything is settled and said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio

from batchllm import ui
from batchllm.stop import Stop
from batchllm.ui.ending import summary_line

if TYPE_CHECKING:
    from batchllm.finish import Finish
    from batchllm.job import Job
    from batchllm.summary import Summary
    from batchllm.ui import Facts


async def prepared(job: Job, stop: Stop) -> Finish | None:
    """The job's [finish], None without one or where a stop comes first; raises ConfigError."""
    if job.finish is None:
        return None
    from batchllm.finish import prepare

    with anyio.CancelScope() as scope:
        stop.then(scope.cancel)
        return await prepare(job.finish)
    return None


async def finishing(finish: Finish, summary: Summary, facts: Facts, stop: Stop) -> bool:
    """Whether it was done, now or by an earlier session; a stop gives it up.

    What went wrong is said.
    """
    from batchllm.finish import FinishFailed

    told = json.loads(summary_line(summary, facts))
    del told["operation"]
    again = "run the same command again: nothing but finish is left to do"
    with anyio.CancelScope() as scope:
        stop.then(scope.cancel)
        try:
            await finish.once(facts.output, facts.dead_letter, told)
            return True
        except FinishFailed as error:
            ui.error(f"finish failed: {error.message}", f"mend it, then {again}")
    if scope.cancelled_caught:
        ui.error("finish was cut short by a stop", again)
    return False
