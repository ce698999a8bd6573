"""A later pass over some of the records: dead letters tried again, or what has changed since.

What is to be asked again is written to a file in the run folder, as dead letters that keep their `seq`;
its lines are taken out of index and sinks; and the snapshot of a new generation makes that file the source.
All of it is committed at once by `swap`. When the pass is through, the run is finished as it was before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchllm.ledger.index import DEAD, FAILED, OUTPUT, SINK_OF, Entry, pack
from batchllm.ledger.ordering import entries
from batchllm.ledger.swap import Copies, commit
from batchllm.model import Position
from batchllm.summary import Summary

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal

Read = Callable[[], bytes]
Keep = Callable[[Entry, Read], Entry | None]


@dataclass(frozen=True, slots=True)
class Later:
    """The pass that a generation is for, as the snapshot keeps it.

    `source` is the file's name in the run folder and `records` its lines; `shape` is the shape of the
    records inside. `watermark` and `position` are where the pass over the input had come, and `job` holds
    the settings of this pass that differ from the run's own.
    """

    source: str
    records: int
    shape: str | None
    watermark: int
    position: Position
    job: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can carry."""
        at = self.position
        return {
            "source": self.source,
            "records": self.records,
            "shape": self.shape,
            "watermark": self.watermark,
            "position": [at.file, at.offset, at.line, at.seq],
            "job": self.job,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Later:
        """The pass that `to_dict` described."""
        return cls(**(data | {"position": Position(*data["position"])}))


def begin(
    journal: Journal,
    lines: Iterable[bytes],
    keep: Keep,
    summary: Summary,
    inputs: list[dict[str, Any]],
    *,
    rewrite: tuple[str, ...],
    watermark: int,
    position: Position,
    shape: str | None,
    job: dict[str, Any],
    header: dict[str, Any] | None = None,
) -> int:
    """Open a generation whose source is `lines`; the records in it.

    `keep` says of each index entry what becomes of it: the entry to keep, with another unit if need be, or
    None to take its line out of the sink, which must be among those to `rewrite`; such lines are kept in the
    run folder. `header` is the run's new job.json, where that changes too. Raises OSError.
    """
    generation = journal.generation + 1
    source = journal.folder.path / f"todo-{generation}"
    records = _write(source, lines)
    written = [name for name in rewrite if journal.sinks[name].length]
    cut_path = journal.folder.path / f"cut-{generation}"
    with Copies(journal, [*written, "index"]) as copies, cut_path.open("ab") as cut:
        offsets = dict.fromkeys(journal.sinks, 0)
        for entry, packed in entries(journal):
            name = SINK_OF[entry.kind]
            read = partial(journal.sinks[name].read, offsets[name], entry.length)
            offsets[name] += entry.length
            kept = keep(entry, read) if entry.kind in (OUTPUT, DEAD, FAILED) else entry
            if kept is None:
                cut.write(read())
                continue
            if name in written:
                copies.write(name, read())
            copies.write("index", packed if kept is entry else pack(kept, read(), generation))
        copies.finish()
    later = Later(source.name, records, shape, watermark, position, job)
    lengths = {name: sink.length for name, sink in journal.sinks.items()} | copies.lengths
    index_length = lengths.pop("index")
    snapshot = {
        "generation": generation,
        "index_length": index_length,
        "sinks": lengths,
        "summary": summary.to_dict(),
        "inputs": inputs,
        "later": later.to_dict(),
    }
    commit(journal, {"snapshot": snapshot} | ({"job.json": header} if header is not None else {}))
    journal.generation = generation
    return records


def end(journal: Journal, later: Later) -> None:
    """The pass is through and the snapshot says so: its source has served."""
    (journal.folder.path / later.source).unlink(missing_ok=True)


def clean(journal: Journal, later: Later | None) -> None:
    """Remove what a kill left behind: sources of passes that never began or are through, half documents."""
    kept = later.source if later is not None else None
    for path in journal.folder.path.iterdir():
        if path.suffix == ".tmp" or (path.name.startswith("todo-") and path.name != kept):
            path.unlink()


def _write(path: Path, lines: Iterable[bytes]) -> int:
    records = 0
    with path.open("wb", buffering=1 << 20) as file:
        for line in lines:
            file.write(line)
            records += 1
        file.flush()
        os.fsync(file.fileno())
    return records
