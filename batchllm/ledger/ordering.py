"""Input order in the finished output: a merge through the index, committed by the document that names it.

Copies of index and sinks in order of unit are written and synced beside the originals; `swap` then commits
them. Memory stays flat: entries are sorted in runs of a bounded size, and the runs are merged.
"""

from __future__ import annotations

import errno
import heapq
import os
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from batchllm.ledger.folder import writing
from batchllm.ledger.index import SINK_OF, SIZE, units
from batchllm.ledger.recovery import verified_lines
from batchllm.ledger.swap import Copies

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal, SinkFile

RUN = 1 << 13
"""Entries that are sorted in memory at once; while runs are merged, as many are read ahead in all."""

_ROW = struct.Struct(">QBQI")
_ROW_SIZE = _ROW.size + SIZE
_BLOCK = 4096 * SIZE
_CHECK_EVERY = 256
"""Lines that are copied together, between two looks whether to go on."""
_NEAR = 2 << 20
"""Bytes in which such lines may lie to be read at once: they come out of order by what is in flight."""


def in_order(journal: Journal) -> bool:
    """Whether every sink's lines stand in order of unit already."""
    last = dict.fromkeys(SINK_OF.values(), -1)
    at = 0
    while block := journal.index.read(at, _BLOCK):
        for unit, kind in units(block):
            name = SINK_OF.get(kind)
            if name is None or unit < last[name]:
                return False
            last[name] = unit
        at += len(block)
    return True


def order(journal: Journal, check: Callable[[], None] = lambda: None) -> None:
    """Put sinks and index in order of unit, kind and age; harmless when repeated.

    `check` is called again and again until the copies are there, and may raise to end it. Raises
    LedgerFailed, and ConfigError where index and lines don't belong together. Whatever is raised: the files
    are as they were.
    """
    names = [name for name, sink in journal.sinks.items() if sink.length]
    with writing():
        _check_room(journal, names)
        with (
            Copies(journal, [*names, "index"]) as copies,
            tempfile.TemporaryFile(dir=journal.folder.path, suffix=".tmp") as spool,
        ):
            rows = _merged(spool, _runs(journal, spool, check))
            while some := list(islice(rows, _CHECK_EVERY)):
                check()
                places: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
                for row in some:
                    _, kind, start, length = _ROW.unpack_from(row)
                    places[SINK_OF[kind]].append((start, length))
                for name, wanted in places.items():
                    copies.write(name, _joined(journal.sinks[name], wanted))
                copies.write("index", b"".join([row[_ROW.size :] for row in some]))
            copies.commit()


def _joined(file: SinkFile, places: list[tuple[int, int]]) -> bytes:
    """The pieces of a file at these places, beginning and length, one behind the other."""
    if not places:
        return b""
    first = min(places)[0]
    size = max([start + length for start, length in places]) - first
    if size > _NEAR:
        return b"".join([file.read(start, length) for start, length in places])
    block = file.read(first, size)
    return b"".join([block[start - first : start - first + length] for start, length in places])


def _check_room(journal: Journal, names: list[str]) -> None:
    """Raise OSError before anything is written if the file systems have no room for the copies."""
    index = journal.index.length
    needed = Counter({journal.folder.path.resolve(): index + index // SIZE * _ROW_SIZE})
    for name in names:
        needed[Path(os.path.realpath(journal.sinks[name].path)).parent] += journal.sinks[name].length
    by_disk: Counter[int] = Counter()
    for folder, size in needed.items():
        disk = folder.stat().st_dev
        by_disk[disk] += size
        if shutil.disk_usage(folder).free < by_disk[disk]:
            raise OSError(errno.ENOSPC, "no space left for the output in input order", str(folder))


def _runs(journal: Journal, spool: BinaryIO, check: Callable[[], None]) -> list[tuple[int, int]]:
    """Sort the entries in runs into `spool`, each row with where its line is; the runs' bounds in bytes."""
    rows: list[bytes] = []
    bounds: list[tuple[int, int]] = []

    def flush() -> None:
        rows.sort()
        start = spool.tell()
        spool.write(b"".join(rows))
        bounds.append((start, spool.tell()))
        rows.clear()

    entries = verified_lines(journal)
    while some := list(islice(entries, _CHECK_EVERY)):
        check()
        rows += [_ROW.pack(unit, kind, at, len(line)) + packed for unit, kind, packed, at, line in some]
        if len(rows) >= RUN:
            flush()
    flush()
    spool.flush()
    return bounds


def _merged(spool: BinaryIO, bounds: list[tuple[int, int]]) -> Iterator[bytes]:
    ahead = max(8, RUN // len(bounds)) * _ROW_SIZE
    return heapq.merge(*(_rows(spool.fileno(), start, end, ahead) for start, end in bounds))


def _rows(handle: int, at: int, end: int, ahead: int) -> Iterator[bytes]:
    while at < end:
        block = os.pread(handle, min(ahead, end - at), at)
        for start in range(0, len(block), _ROW_SIZE):
            yield block[start : start + _ROW_SIZE]
        at += len(block)
