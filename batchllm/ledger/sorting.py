"""Rows of bytes in their order, more than memory should hold: sorted in runs in a file, the runs merged.

It knows nothing of what the rows mean. Rows that come in order by and large, as what is settled does, are
merged in large pieces, since few runs then have anything to do with each other at a time.
"""

from __future__ import annotations

import heapq
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from batchllm.fields import mutable

RUN = 1 << 13
"""Rows that are sorted in memory at once; while runs are merged, about as many are read ahead in all."""
_FEWEST = 8
"""Rows that are read ahead of a run at the least."""


@mutable
class _Run:
    """A sorted run: the part of the file that is not read yet, and the rows that are."""

    at: int
    end: int
    rows: list[bytes]


class Sorter:
    """Sorts rows of `size` bytes by way of `file`, which is empty and its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._row = struct.Struct(f"{size}s")
        self._rows: list[bytes] = []
        self._runs: list[tuple[bytes, int, _Run]] = []

    def add(self, rows: list[bytes]) -> None:
        """Take up further rows, in whatever order."""
        self._rows += rows
        if len(self._rows) >= RUN:
            self._flush()

    def merged(self) -> Iterator[list[bytes]]:
        """All rows in order, a list of them at a time; to be called once, when all are there.

        Each turn takes what is certain of those runs whose next row comes before the last one that is read
        of any of them; runs that have nothing to do with that are not touched.
        """
        self._flush()
        self._file.flush()
        coming = self._runs  # a heap by the next row of each
        heapq.heapify(coming)
        begun = 0
        while coming:
            group: list[tuple[int, _Run]] = []
            bound: bytes | None = None
            while coming and (bound is None or coming[0][0] <= bound):
                _, number, run = heapq.heappop(coming)
                begun += not run.rows
                self._read(run, begun)
                if run.at < run.end and (bound is None or run.rows[-1] < bound):
                    bound = run.rows[-1]
                group.append((number, run))
            taken: list[bytes] = []
            for number, run in group:
                count = len(run.rows) if bound is None else bisect_right(run.rows, bound)
                taken += run.rows[:count]
                del run.rows[:count]
                begun -= not run.rows
                if run.rows or run.at < run.end:
                    first = run.rows[0] if run.rows else self._peek(run)
                    heapq.heappush(coming, (first, number, run))
            taken.sort()
            yield taken

    def _flush(self) -> None:
        if not self._rows:
            return
        self._rows.sort()
        at = self._file.tell()
        self._file.write(b"".join(self._rows))
        self._runs.append((self._rows[0], len(self._runs), _Run(at, self._file.tell(), [])))
        self._rows = []

    def _read(self, run: _Run, beside: int) -> None:
        """Read on in a run of which little is left in memory, the less the more runs are `beside`."""
        wanted = max(_FEWEST, RUN // beside)
        if 2 * len(run.rows) <= wanted and run.at < run.end:
            size = min((wanted - len(run.rows)) * self._row.size, run.end - run.at)
            block = os.pread(self._file.fileno(), size, run.at)
            run.at += len(block)
            run.rows += chain.from_iterable(self._row.iter_unpack(block))

    def _peek(self, run: _Run) -> bytes:
        return os.pread(self._file.fileno(), self._row.size, run.at)
