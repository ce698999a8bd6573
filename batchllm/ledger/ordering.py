"""Input order in the finished output: a merge through the index, committed by the document that names it.

Copies of index and sinks in order of unit are written and synced beside the originals; `swap` then commits
them. Memory stays flat: entries are sorted in runs of a bounded size, and the runs are merged.
"""

from __future__ import annotations

import heapq
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from batchllm.ledger.index import SINK_OF, SIZE, Entry, unpack
from batchllm.ledger.swap import Copies, commit

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal

RUN = 1 << 16
"""Entries that are sorted in memory at once."""

_ROW = struct.Struct(">QBQI")
_ROW_SIZE = _ROW.size + SIZE
_READ = 256 * _ROW_SIZE


def in_order(journal: Journal) -> bool:
    """Whether every sink's lines stand in order of unit already."""
    last = dict.fromkeys(journal.sinks, -1)
    for entry, _ in entries(journal):
        name = SINK_OF[entry.kind]
        if entry.unit < last[name]:
            return False
        last[name] = entry.unit
    return True


def order(journal: Journal) -> None:
    """Put sinks and index in order of unit, kind and age; harmless when repeated. Raises OSError."""
    names = [name for name, sink in journal.sinks.items() if sink.length]
    with (
        Copies(journal, [*names, "index"]) as copies,
        tempfile.TemporaryFile(dir=journal.folder.path) as spool,
    ):
        for row in _merged(spool, _runs(journal, spool)):
            _, kind, start, length = _ROW.unpack_from(row)
            name = SINK_OF[kind]
            copies.write(name, journal.sinks[name].read(start, length))
            copies.write("index", row[_ROW.size :])
        copies.finish()
    commit(journal)


def entries(journal: Journal) -> Iterator[tuple[Entry, bytes]]:
    """Every entry of the index, with its bytes."""
    at, end = 0, journal.index.length
    while at < end:
        block = journal.index.read(at, min(4096 * SIZE, end - at))
        for number, entry in enumerate(unpack(block)):
            yield entry, block[number * SIZE : (number + 1) * SIZE]
        at += len(block)


def _runs(journal: Journal, spool: BinaryIO) -> list[tuple[int, int]]:
    """Sort the entries in runs into `spool`, each row with where its line is; the runs' bounds in bytes."""
    offsets = dict.fromkeys(journal.sinks, 0)
    rows: list[bytes] = []
    bounds: list[tuple[int, int]] = []

    def flush() -> None:
        rows.sort()
        start = spool.tell()
        spool.write(b"".join(rows))
        bounds.append((start, spool.tell()))
        rows.clear()

    for entry, packed in entries(journal):
        name = SINK_OF[entry.kind]
        rows.append(_ROW.pack(entry.unit, entry.kind, offsets[name], entry.length) + packed)
        offsets[name] += entry.length
        if len(rows) == RUN:
            flush()
    flush()
    spool.flush()
    return bounds


def _merged(spool: BinaryIO, bounds: list[tuple[int, int]]) -> Iterator[bytes]:
    return heapq.merge(*(_rows(spool.fileno(), start, end) for start, end in bounds))


def _rows(handle: int, at: int, end: int) -> Iterator[bytes]:
    while at < end:
        block = os.pread(handle, min(_READ, end - at), at)
        for start in range(0, len(block), _ROW_SIZE):
            yield block[start : start + _ROW_SIZE]
        at += len(block)
