"""Judges outcomes as they come, and says when a run should not go on: too many failures, or all alike.

Pure: outcomes in, a verdict out. The engine asks it for every outcome; it stops nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from batchllm.errors import BatchError, SameFailure, TooManyFailures
from batchllm.model import Dead, Done, Outcome

FIRST, LATER = 20, 200
"""So many failures in a row with one and the same provider error stop the run: from its start, and later."""

_VARYING = re.compile(r"\S*\d\S*")


class FailureWatch:
    """Judges outcomes as they come: too many failures, or one and the same provider error on everything.

    `settled` and `failed` are the counts of earlier sessions of the run. `most` is a count, or a share in
    (0, 1) that holds from 50 settled on.
    """

    def __init__(
        self,
        most: int | float | None,
        settled: int = 0,
        failed: int = 0,
        hint: Callable[[Dead], str | None] = lambda dead: None,
    ) -> None:
        self._most = most
        self._settled = settled
        self._failed = failed
        self._hint = hint
        self._here = 0
        self._streak = 0
        self._last: tuple[object, ...] | None = None
        self._tripped: tuple[object, ...] | None = None

    def judge(self, outcome: Outcome) -> tuple[bool, BatchError | None]:
        """Whether the outcome counts, and the error that stops the run, if it does."""
        if isinstance(outcome, Done):
            self._settled += 1
            self._here += 1
            self._streak, self._last = 1, None
            return True, None
        signature = _signature(outcome)
        if self._tripped is not None and signature == self._tripped:
            return False, None
        self._settled += 1
        self._failed += 1
        if outcome.error.kind == "bad_input":  # nobody was called
            return True, self._too_many()
        self._follow(signature)
        return True, self._same(outcome, signature) or self._too_many()

    def _follow(self, signature: tuple[object, ...] | None) -> None:
        self._here += 1
        self._streak = self._streak + 1 if signature is not None and signature == self._last else 1
        self._last = signature

    def _same(self, dead: Dead, signature: tuple[object, ...] | None) -> BatchError | None:
        threshold = FIRST if self._streak == self._here else LATER
        if signature is None or self._streak < threshold:
            return None
        self._tripped = signature
        return SameFailure(
            f"{self._streak} records in a row failed alike: {dead.error.message}",
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
    return error.kind, error.cause, error.status, _VARYING.sub("#", error.message)
