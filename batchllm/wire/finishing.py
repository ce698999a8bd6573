"""The last step of a session, whoever began it: `[finish]`, once everything is settled. It shows nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio

from batchllm.errors import FinishFailed
from batchllm.stop import Stop
from batchllm.summary import Summary
from batchllm.summary.ending import Ending, figures

if TYPE_CHECKING:
    from batchllm.finish import Finish
    from batchllm.job import Job
    from batchllm.report import Comparison

_AGAIN = "run the same command again: nothing but finish is left to do"


async def prepared(job: Job, stop: Stop) -> Finish | None:
    """The job's [finish], None without one or where a stop comes first; raises ConfigError."""
    if job.finish is None:
        return None
    from batchllm.finish import prepare

    with anyio.CancelScope() as scope:
        stop.then(scope.cancel)
        return await prepare(job.finish)
    return None


async def finishing(
    finish: Finish, summary: Summary, ending: Ending, comparison: Comparison | None, stop: Stop
) -> FinishFailed | None:
    """Do it unless an earlier session did; what went wrong, None if nothing did. A stop gives it up."""
    compared = comparison.to_dict() if comparison is not None else {}
    told = json.loads(json.dumps(figures(summary, ending, compared), default=str))
    with anyio.CancelScope() as scope:
        stop.then(scope.cancel)
        try:
            await finish.once(ending.output, ending.dead_letter, told)
        except FinishFailed as error:
            return FinishFailed(f"finish failed: {error.message}", f"mend it, then {_AGAIN}")
    return FinishFailed("finish was cut short by a stop", _AGAIN) if scope.cancelled_caught else None
