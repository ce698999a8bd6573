"""Runs on one quota file in virtual time: what they are let through, and what any window of it may hold."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchllm.model import DIMENSIONS
from batchllm.quota import SharedLimits, open_shared
from batchllm.quota.processes import Identity, this_process

REQUESTS = {"requests": 600.0}


@dataclass(frozen=True, slots=True)
class Admission:
    """What one of the runs took, and when."""

    at: float
    run: int
    need: Sequence[float]


class Clock:
    """A clock that stands where it is put."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def opened(
    path: Path,
    clock: Callable[[], float],
    per_minute: Mapping[str, float] = REQUESTS,
    burst: float = 0.5,
    *,
    model: str = "m",
    identity: Identity | None = None,
) -> SharedLimits:
    """A run's part in the file, which draws no lots and sleeps on no clock."""
    return open_shared(
        str(path),
        "account",
        model,
        per_minute,
        burst,
        clock=clock,
        sleep=lambda _: None,
        draw=lambda: 0.0,
        identity=identity or this_process(),
    )


def saturated(
    runs: Sequence[SharedLimits],
    seconds: float,
    need: Callable[[random.Random], Sequence[float]],
    *,
    late: float = 0.003,
    seed: int = 1,
    start: float = 1000.0,
) -> list[Admission]:
    """Let every run ask as soon as it may, each time up to `late` seconds later than it was told."""
    draw = random.Random(seed)
    line = [(start + late * draw.random(), i, need(draw)) for i in range(len(runs))]
    let = []
    while line:
        now, i, amounts = heapq.heappop(line)
        if now > start + seconds:
            continue
        wait = runs[i].take(amounts, now)
        if wait:
            heapq.heappush(line, (now + wait + late * draw.random(), i, amounts))
        else:
            let.append(Admission(now, i, amounts))
            heapq.heappush(line, (now + 1e-6, i, need(draw)))
    return let


def most(let: Sequence[Admission], dimension: str, window: float) -> float:
    """The most of a dimension that any window of so many seconds has seen."""
    index = DIMENSIONS.index(dimension)
    highest = total = 0.0
    first = 0
    for each in let:
        total += each.need[index]
        while let[first].at < each.at - window:
            total -= let[first].need[index]
            first += 1
        highest = max(highest, total)
    return highest
