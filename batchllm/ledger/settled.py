"""Which units are settled: a watermark, and a bitmap of those done above it.

Memory is fixed: the window of units that may be open at once is `WINDOW`, and the reader waits for room.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

WINDOW = 1 << 20
"""Units between the oldest unsettled one and the newest that may be read."""

_MASK = WINDOW - 1


class Settled:
    """`unit in settled`, `settled.add(unit)`, `settled.watermark`: all units below it are settled."""

    def __init__(self, watermark: int = 0, above: str = "") -> None:
        self.watermark = watermark
        self._flags = bytearray(WINDOW)
        self._top = watermark
        if above:
            flags = zlib.decompress(base64.b64decode(above))
            self.add_all([watermark + i for i, flag in enumerate(flags) if flag])

    def __contains__(self, unit: int) -> bool:
        if unit < self.watermark:
            return True
        return unit < self._top and bool(self._flags[unit & _MASK])

    def add(self, unit: int) -> None:
        """Settle a unit; one below the watermark is settled already."""
        self.add_all((unit,))

    def add_all(self, units: Sequence[int]) -> None:
        """Settle units, in whatever order; the watermark moves once."""
        if not units:
            return
        flags, mark, newest = self._flags, self.watermark, max(units)
        if newest >= mark + WINDOW:
            raise ValueError(f"unit {newest} is beyond the window at {mark}")
        for unit in units:
            if unit >= mark:
                flags[unit & _MASK] = 1
        if newest >= self._top:
            self._top = newest + 1
        while flags[at := mark & _MASK]:
            end = flags.find(0, at)
            size = (end if end >= 0 else WINDOW) - at
            flags[at : at + size] = bytes(size)
            mark += size
        self.watermark = mark

    @property
    def count(self) -> int:
        """How many units are settled."""
        return self.watermark + self._flags.count(1)

    def above(self) -> str:
        """The units done above the watermark, as text for a snapshot."""
        if self._top <= self.watermark:
            return ""
        start, size = self.watermark & _MASK, self._top - self.watermark
        flags = bytes((self._flags[start:] + self._flags[:start])[:size])
        return base64.b64encode(zlib.compress(flags, 1)).decode()
