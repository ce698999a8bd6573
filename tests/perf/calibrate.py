"""One speed for all CPU figures: how long a fixed piece of Python takes now, against a reference.

Machines that are shared waver twofold from second to second. Calibrate before and after what is measured;
scaled seconds = seconds · REFERENCE_S / mean of the two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

REFERENCE_S = 0.010
"""What the piece takes on the machine that figures are scaled to, in seconds of CPU."""
_STEPS = 60_000
T = TypeVar("T")


def calibrate(rounds: int = 5) -> float:
    """Seconds of CPU that the piece takes now, the median of so many rounds."""
    took = []
    for _ in range(rounds):
        start = time.process_time()
        table: dict[int, str] = {}
        for step in range(_STEPS):
            table[step & 1023] = str(step)
        took.append(time.process_time() - start)
    return statistics.median(took)


def scaled(measure: Callable[[], T]) -> tuple[T, float]:
    """What `measure` returns, and the factor that scales its seconds to the reference speed."""
    before = calibrate()
    result = measure()
    return result, REFERENCE_S / ((before + calibrate()) / 2)
