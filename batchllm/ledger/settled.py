"""Which units are settled: a watermark, and a bitmap of those done above it.

Memory is fixed: the window of units that may be open at once is `WINDOW`, and the reader waits for room.
"""

from __future__ import annotations

import base64
import zlib

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
            for i, flag in enumerate(zlib.decompress(base64.b64decode(above))):
                if flag:
                    self.add(watermark + i)

    def __contains__(self, unit: int) -> bool:
        if unit < self.watermark:
            return True
        return unit < self._top and bool(self._flags[unit & _MASK])

    def add(self, unit: int) -> None:
        """Settle a unit; one below the watermark is settled already."""
        mark = self.watermark
        if unit < mark:
            return
        if unit >= mark + WINDOW:
            raise ValueError(f"unit {unit} is beyond the window at {mark}")
        flags = self._flags
        flags[unit & _MASK] = 1
        if unit >= self._top:
            self._top = unit + 1
        if unit != mark:
            return
        while flags[mark & _MASK]:
            flags[mark & _MASK] = 0
            mark += 1
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
