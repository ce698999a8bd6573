"""Input order in the finished output: a merge through the index, committed by the document that names it.

Copies of index and sinks in order of unit are written and synced beside the originals; `swap` then commits
them. Memory stays flat: entries are sorted in runs of a bounded size, and the runs are merged.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import compress
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

from batchllm.ledger.folder import writing
from batchllm.ledger.index import SINK_OF, SIZE, units
from batchllm.ledger.sorting import Sorter
from batchllm.ledger.swap import Copies
from batchllm.ledger.verifying import STRETCH, pieces, stretches

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal, SinkFile

_ROW = struct.Struct(">QBQI")
_WHOLE = struct.Struct(f"{_ROW.format}{SIZE}s")
_ROW_SIZE = _WHOLE.size
_BLOCK = 4096 * SIZE
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
            sorter = Sorter(spool, _ROW_SIZE)
            for stretch in stretches(journal):
                check()
                says = map(_ROW.pack, stretch.units, stretch.kinds, stretch.places, stretch.lengths)
                sorter.add(list(map(add, says, stretch.packed)))
            for rows in sorter.merged():
                _, kinds, places, lengths, packed = zip(*_WHOLE.iter_unpack(b"".join(rows)), strict=True)
                for name in names:
                    mine = [SINK_OF[kind] == name for kind in kinds]
                    for piece in _read(
                        journal.sinks[name], [*compress(places, mine)], [*compress(lengths, mine)]
                    ):
                        check()
                        copies.write(name, piece)
                copies.write("index", b"".join(packed))
            copies.commit()


def _read(file: SinkFile, places: list[int], lengths: list[int]) -> Iterator[bytes]:
    """The lines of a file at these places, one behind the other, many at a time."""
    for start, stop in pieces(lengths, STRETCH):
        froms, sizes = places[start:stop], lengths[start:stop]
        first = min(froms)
        span = max(map(add, froms, sizes)) - first
        if span > _NEAR:
            yield b"".join(map(file.read, froms, sizes))
        else:
            block = file.read(first, span)
            froms = [place - first for place in froms]
            yield b"".join([block[at : at + size] for at, size in zip(froms, sizes, strict=True)])


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
