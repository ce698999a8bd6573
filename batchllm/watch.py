"""Judges outcomes as they come, and says when a run should not go on: too many failures, or all alike.

Pure: outcomes in, a verdict out. The engine asks it for every outcome; it stops nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from batchllm.errors import BatchError, SameFailure, TooManyFailures
from batchllm.fields import mutable
from batchllm.model import Dead, Done, Outcome

FIRST, LATER = 20, 200
"""So many failures in a row with one and the same provider error stop the run: from its start, and later."""

_VARYING = re.compile(r"\S*\d\S*")


@mutable
class _Streak:
    """Calls settled `here`, how many of the latest ended alike and how; `tripped` is what stopped the run."""

    here: int = 0
    alike: int = 0
    last: tuple[object, ...] | None = None
    tripped: tuple[object, ...] | None = None


class FailureWatch:
    """Judges outcomes as they come: too many failures, or one and the same provider error on everything.

    Each variant is judged by itself: the answers of one don't make up for another's.

    `settled` and `failed` are the counts of earlier sessions of the run. `most` is a count, or a share in
    (0, 1) that holds from 50 settled on. `first` failures in a row from the start stop the run: more of them
    in a pass over dead letters, which are expected to fail again.
    """

    def __init__(
        self,
        most: int | float | None,
        settled: int = 0,
        failed: int = 0,
        hint: Callable[[Dead], str | None] = lambda dead: None,
        first: int = FIRST,
    ) -> None:
        self._most = most
        self._settled = settled
        self._failed = failed
        self._hint = hint
        self._first = first
        self._streaks: dict[str | None, _Streak] = {}

    def judge(self, outcome: Outcome) -> tuple[bool, BatchError | None]:
        """Whether the outcome counts, and the error that stops the run, if it does."""
        streak = self._streaks.get(outcome.record.variant)
        if streak is None:
            streak = self._streaks.setdefault(outcome.record.variant, _Streak())
        if isinstance(outcome, Done):
            self._settled += 1
            streak.here += 1
            streak.alike, streak.last = 1, None
            return True, None
        signature = _signature(outcome)
        if streak.tripped is not None and signature == streak.tripped:
            return False, None
        self._settled += 1
        self._failed += 1
        if outcome.error.kind == "bad_input":  # nobody was called
            return True, self._too_many()
        streak.here += 1
        streak.alike = streak.alike + 1 if signature is not None and signature == streak.last else 1
        streak.last = signature
        return True, self._same(outcome, streak) or self._too_many()

    def _same(self, dead: Dead, streak: _Streak) -> BatchError | None:
        threshold = self._first if streak.alike == streak.here else LATER
        if streak.last is None or streak.alike < threshold:
            return None
        streak.tripped = streak.last
        of_variant = f" under variant {dead.record.variant}" if dead.record.variant is not None else ""
        return SameFailure(
            f"{streak.alike} records in a row failed alike{of_variant}: {dead.error.message}",
            self._hint(dead) or "mend what it names, then run again; --fresh starts over",
        )

    def _too_many(self) -> BatchError | None:
        most = self._most
        if most is None:
            return None
        if isinstance(most, float):
            beyond = self._settled >= 50 and self._failed > most * self._settled
            limit = f"{100 * most:g}%"
        else:
            beyond, limit = self._failed > most, str(most)
        if not beyond:
            return None
        return TooManyFailures(
            f"{self._failed} of {self._settled} records failed, more than --max-failures {limit}",
            "look into the dead letters, then run the same command to go on",
        )


def _signature(dead: Dead) -> tuple[object, ...] | None:
    """What makes two provider errors the same, numbers and ids aside; None for anything else."""
    error = dead.error
    if error.kind not in ("refused", "too_large", "exhausted") or (
        error.kind == "refused" and not error.status
    ):
        return None
    if error.cause == "outlasted":  # the calls that a run ends before are no sign of anything
        return None
    return error.kind, error.cause, error.status, _VARYING.sub("#", error.message)
