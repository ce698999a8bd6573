"""Input order in the finished output: a merge through the index, committed by the snapshot that names it.

Copies of index and sinks in order of unit are written and synced beside the originals; a document
`swap` then says that they replace them. Whoever opens the run finishes the renames, so every moment of a
crash leaves either the old files or the new ones, index and sinks together.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from batchllm.ledger.folder import sync_folder
from batchllm.ledger.index import DEAD, OUTPUT, SINK_OF, SIZE, Entry, unpack
from batchllm.ledger.settled import Settled

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal

_BLOCK = 4096 * SIZE
_BUFFER = 1 << 20
_SUFFIX = ".ordered"


def in_order(journal: Journal) -> bool:
    """Whether every sink's lines stand in order of unit already."""
    last = dict.fromkeys(journal.sinks, -1)
    for entry, _ in _entries(journal):
        name = SINK_OF[entry.kind]
        if entry.unit < last[name]:
            return False
        last[name] = entry.unit
    return True


def order(journal: Journal) -> None:
    """Put sinks and index in order of unit. All units that were read must be settled."""
    targets = {
        name: path
        for name, path in _targets(journal).items()
        if name == "index" or journal.sinks[name].length
    }
    writers = {name: _Copy(path) for name, path in targets.items()}
    offsets = dict.fromkeys(journal.sinks, 0)
    heap: list[tuple[int, int, int, int, bytes]] = []
    settled = Settled()

    def emit() -> None:
        _, kind, start, length, packed = heapq.heappop(heap)
        name = SINK_OF[kind]
        writers[name].write(journal.sinks[name].read(start, length))
        writers["index"].write(packed)

    try:
        for entry, packed in _entries(journal):
            name = SINK_OF[entry.kind]
            heapq.heappush(heap, (entry.unit, entry.kind, offsets[name], entry.length, packed))
            offsets[name] += entry.length
            if entry.kind in (OUTPUT, DEAD):
                settled.add(entry.unit)
            while heap and heap[0][0] < settled.watermark:
                emit()
        while heap:
            emit()
        for writer in writers.values():
            writer.finish()
    except OSError:
        for path in targets.values():
            path.unlink(missing_ok=True)
        raise
    journal.folder.write("swap", {"names": sorted(targets)})
    finish_swap(journal)


def finish_swap(journal: Journal) -> None:
    """Do the renames that a `swap` document tells of; without one, remove half-written copies."""
    targets = _targets(journal)
    if journal.folder.read("swap") is None:
        for path in targets.values():
            path.unlink(missing_ok=True)
        return
    for name, path in targets.items():
        sink = journal.index if name == "index" else journal.sinks[name]
        if path.exists():
            final = Path(os.path.realpath(sink.path))
            path.rename(final)
            sync_folder(final.parent)
        sink.reopen()
    (journal.folder.path / "swap").unlink()


def _targets(journal: Journal) -> dict[str, Path]:
    """Where the ordered copies stand: beside the real files, on the same file system."""
    files = {"index": journal.index.path} | {name: sink.path for name, sink in journal.sinks.items()}
    return {name: Path(os.path.realpath(path) + _SUFFIX) for name, path in files.items()}


def _entries(journal: Journal) -> Iterator[tuple[Entry, bytes]]:
    at, end = 0, journal.index.length
    while at < end:
        block = journal.index.read(at, min(_BLOCK, end - at))
        for number, entry in enumerate(unpack(block)):
            yield entry, block[number * SIZE : (number + 1) * SIZE]
        at += len(block)


class _Copy:
    """A file that is written in large pieces and synced at the end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=_BUFFER)
        original = Path(str(path).removesuffix(_SUFFIX))
        path.chmod(original.stat().st_mode & 0o7777)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
