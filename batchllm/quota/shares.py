"""Decisions about limits that several runs share, pure: state and time in, a wait or an admission out.

One token bucket a dimension, from which runs lease small slices, and one line in which they wait for their
turn. No clock, no file, no waiting: `shared` brings the state from the file and back again.

Why no window sees more than rate x time + size: level and unspent leases together never exceed the size,
so a window can admit no more than both of them at its start and what flows in until its end. That is also
why a lease which ran out is lost, not given back: others may have been promised its room already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from batchllm.fields import mutable
from batchllm.model import DIMENSIONS

LEASE = 0.5
"""Seconds after which what a run leased and didn't spend is lost."""
SLICE = 0.05
"""Seconds' worth of a rate that all runs together lease ahead of need."""
GRACE = 1.0
"""Seconds that a run's place in the line is kept for it after the time at which it was to ask again."""
LONGEST = 1.0
"""The longest wait that is told, in seconds: who waits longer shows in between that it is still there."""
LEAST = 0.001
"""The shortest wait that is told, in seconds, so that nobody spins while a lease of others runs out."""
NEAR = 1e-9
"""Units that are no shortage; levels are sums of floats."""


def nothing() -> list[float]:
    """An amount of nothing."""
    return [0.0] * len(DIMENSIONS)


@mutable
class Run:
    """A run as the file knows it; amounts in the order of DIMENSIONS, times in monotonic seconds.

    `space` and `started` make the `pid` unique, `limits` are the indexes of the dimensions that it limits.
    `lease` is what it may still spend before `until`, at most. With a `ticket` it stands in the line for
    `want` and asks again at `due`.
    """

    pid: int
    started: str | None
    space: str | None
    limits: list[int]
    seen: float
    lease: list[float] = field(default_factory=nothing)
    until: float = 0.0
    want: list[float] = field(default_factory=nothing)
    ticket: int = 0
    due: float = 0.0


@mutable
class Group:
    """The buckets of one account and model as they stood `at`; a `rate` of 0 is a dimension without limit.

    Rates are in units a second, sizes and levels in units; a level below 0 is debt.
    """

    at: float
    rates: list[float] = field(default_factory=nothing)
    sizes: list[float] = field(default_factory=nothing)
    levels: list[float] = field(default_factory=nothing)
    tickets: int = 0
    runs: dict[str, Run] = field(default_factory=dict)


def group_of(parts: dict[str, Any]) -> Group:
    """A group from its JSON."""
    group = Group(**parts)
    group.runs = {name: Run(**run) for name, run in parts["runs"].items()}
    return group


def conflict(group: Group, rates: Sequence[float]) -> int | None:
    """The dimension that a run of the group limits in another way than `rates`, or None."""
    held = {i for run in group.runs.values() for i in run.limits}
    for i, rate in enumerate(rates):
        if rate and i in held and not math.isclose(rate, group.rates[i], rel_tol=1e-9):
            return i
    return None


def enter(group: Group, name: str, run: Run, rates: Sequence[float], burst: float, known: float) -> None:
    """Make a run one of the group, whose rates stand where others hold them; the smaller burst counts.

    Buckets that are new hold what has flown in during the `known` seconds, in which nobody took of them.
    """
    held = {i for other in group.runs.values() for i in other.limits}
    for i in run.limits:
        size = max(1.0, rates[i] * burst)
        if not group.rates[i]:
            group.levels[i] = min(size, rates[i] * max(0.0, known))
        if i in held:
            group.sizes[i] = min(group.sizes[i], max(1.0, group.rates[i] * burst))
        else:
            group.rates[i], group.sizes[i] = rates[i], size
        group.levels[i] = min(group.levels[i], group.sizes[i])
    group.runs[name] = run


def advance(group: Group, now: float) -> None:
    """Let flow in what has since `at`, and end the leases that ran out."""
    passed = max(0.0, now - group.at)
    group.at += passed
    for i, rate in enumerate(group.rates):
        if rate:
            group.levels[i] = min(_room(group, i), group.levels[i] + rate * passed)
    for run in group.runs.values():
        if run.until <= now:  # only now, or its room would count twice within one window
            run.lease = nothing()


def give_back(group: Group, run: Run, unspent: Sequence[float]) -> None:
    """End a run's lease, of which it says it hasn't spent `unspent`."""
    for i in run.limits:
        group.levels[i] += min(unspent[i], run.lease[i])
    run.lease = nothing()


def correct(group: Group, run: Run, owed: Sequence[float]) -> None:
    """Settle what admissions used otherwise than they reserved: `owed` comes back, or goes below 0."""
    for i in run.limits:
        group.levels[i] = min(_room(group, i), group.levels[i] + owed[i])


def ask(group: Group, run: Run, need: Sequence[float], now: float) -> float:
    """0.0 with `need` taken and a slice leased, or a place in the line and the seconds until the turn.

    Those ahead in the line are served first unless they are late. A need larger than a bucket is admitted
    when the bucket is full, and leaves it in debt. The run must have ended its lease before.
    """
    times = _times(group, run, need)
    free = _free(group, run, now)
    wait, fit = 0.0, float(times)
    for i in run.limits:
        amount, rate, size = need[i], group.rates[i], group.sizes[i]
        if min(amount, size) - free[i] > NEAR:
            wait = max(wait, (min(amount * times, size) - free[i]) / rate)
        elif amount > 0:
            fit = min(fit, free[i] // amount)
    if wait:
        run.want = [amount * times if i in run.limits else 0.0 for i, amount in enumerate(need)]
        wait = min(max(wait, LEAST), LONGEST)
        run.due = now + wait
        if not run.ticket:
            group.tickets = run.ticket = group.tickets + 1
        return wait
    more = max(0.0, fit - 1)
    for i in run.limits:
        run.lease[i] = need[i] * more
        group.levels[i] -= need[i] + run.lease[i]
    run.until = now + LEASE
    run.ticket = 0
    return 0.0


def _room(group: Group, i: int) -> float:
    """The highest that a level may stand beside the leases that are out."""
    return group.sizes[i] - sum(run.lease[i] for run in group.runs.values())


def _free(group: Group, run: Run, now: float) -> list[float]:
    """What the levels hold beyond the wants of those ahead of `run` in the line."""
    free = list(group.levels)
    for other in group.runs.values():
        first = other.ticket and (not run.ticket or other.ticket < run.ticket)
        if first and other is not run and now < other.due + GRACE:
            for i in run.limits:
                free[i] -= other.want[i]
    return free


def _times(group: Group, run: Run, need: Sequence[float]) -> int:
    """How many needs like this one make a slice; half of the bucket stays outside of slices at least."""
    times = math.inf
    for i in run.limits:
        if need[i] > 0:
            share = min(SLICE * group.rates[i], group.sizes[i] / 2) / len(group.runs)
            times = min(times, share // need[i])
    return max(1, int(times)) if times < math.inf else 1
