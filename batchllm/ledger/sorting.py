"""Rows of bytes in their order, more than memory should hold: sorted in runs in a file, the runs merged.

It knows nothing of what the rows mean. Rows that come in order by and large, as what is settled does, are
merged in large pieces, since few runs then have anything to do with each other at a time.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from batchllm.fields import mutable

RUN = 1 << 13
"""Rows that are sorted in memory at once."""
_FEWEST = 8
"""Rows that are read ahead of a run at the least."""


@mutable
class _Run:
    """A sorted run: its first row, the part of the file that is not read yet, and the rows that are."""

    first: bytes
    at: int
    end: int
    rows: list[bytes]


class Sorter:
    """Sorts rows of `size` bytes by way of `file`, which is empty and its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._row = struct.Struct(f"{size}s")
        self._rows: list[bytes] = []
        self._runs: list[_Run] = []

    def add(self, rows: list[bytes]) -> None:
        """Take up further rows, in whatever order."""
        self._rows += rows
        if len(self._rows) >= RUN:
            self._flush()

    def merged(self) -> Iterator[list[bytes]]:
        """All rows in order, a list of them at a time; to be called once, when all are there."""
        self._flush()
        self._file.flush()
        coming = sorted(self._runs, key=lambda run: run.first, reverse=True)
        begun: list[_Run] = []
        while coming or begun:
            bound = min((run.rows[-1] for run in begun if run.at < run.end), default=None)
            if coming and (bound is None or coming[-1].first <= bound):
                begun.append(coming.pop())
                self._read(begun[-1], len(begun))
                continue
            yield self._up_to(bound, begun)
            begun = [run for run in begun if run.rows or self._read(run, len(begun))]

    def _flush(self) -> None:
        if not self._rows:
            return
        self._rows.sort()
        at = self._file.tell()
        self._file.write(b"".join(self._rows))
        self._runs.append(_Run(self._rows[0], at, self._file.tell(), []))
        self._rows = []

    def _read(self, run: _Run, beside: int) -> bool:
        """Read a run's next rows, the fewer the more runs are `beside`; whether there were any."""
        most = max(_FEWEST, RUN // beside) * self._row.size
        block = os.pread(self._file.fileno(), min(most, run.end - run.at), run.at)
        run.at += len(block)
        run.rows = list(chain.from_iterable(self._row.iter_unpack(block)))
        return bool(run.rows)

    def _up_to(self, bound: bytes | None, runs: list[_Run]) -> list[bytes]:
        """Take the rows up to `bound`, or all, which no row that isn't read yet comes before."""
        taken: list[bytes] = []
        for run in runs:
            count = len(run.rows) if bound is None else bisect_right(run.rows, bound)
            taken += run.rows[:count]
            del run.rows[:count]
        taken.sort()
        return taken
