"""A later pass over some of the records: dead letters tried again, or what has changed since.

What is to be asked again is written to a file in the run folder, as dead letters that keep their `seq`;
its lines are taken out of index and sinks; and the snapshot of a new generation makes that file the source.
All of it is committed at once by `swap`. When the pass is through, the run is finished as it was before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchllm.fields import frozen
from batchllm.ledger.folder import writing
from batchllm.ledger.index import DEAD, FAILED, OUTPUT, SINK_OF, Entry, pack
from batchllm.ledger.swap import Copies
from batchllm.ledger.verifying import verified
from batchllm.model import Position
from batchllm.summary import Summary

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal

Keep = Callable[[Entry, bytes], tuple[Entry, bytes] | None]


@frozen
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

    `keep` says of each index entry and its line what becomes of them: the same, another unit and line, or
    None to take the line out. Sinks with lines that change must be among those to `rewrite`; lines that are
    taken out are kept in the run folder. `header` is the run's new job.json, where that changes too. Raises
    LedgerFailed, and ConfigError where index and lines don't belong together; nothing has changed then.
    """
    generation = journal.generation + 1
    source = journal.folder.path / f"todo-{generation}"
    written = [name for name in rewrite if journal.sinks[name].length]
    cut_path = journal.folder.path / f"cut-{generation}"
    with writing(), cut_path.open("wb") as cut, Copies(journal, [*written, "index"]) as copies:
        records = _write(source, lines)
        for entry, packed, _, line in verified(journal):
            kept = keep(entry, line) if entry.kind in (OUTPUT, DEAD, FAILED) else (entry, line)
            if kept is None:
                cut.write(line)
                continue
            if SINK_OF[entry.kind] in written:
                copies.write(SINK_OF[entry.kind], kept[1])
            copies.write("index", packed if kept[0] is entry else pack(*kept, generation))
        cut.flush()
        os.fsync(cut.fileno())
        journal.sync()
        lengths = {name: sink.length for name, sink in journal.sinks.items()} | copies.lengths
        snapshot = {
            "generation": generation,
            "index_length": lengths.pop("index"),
            "sinks": lengths,
            "synced": True,
            "summary": summary.to_dict(),
            "inputs": inputs,
            "later": Later(source.name, records, shape, watermark, position, job).to_dict(),
        }
        copies.commit({"snapshot": snapshot} | ({"job.json": header} if header is not None else {}))
    journal.generation = generation
    return records


def clean(journal: Journal, later: Later | None) -> None:
    """Remove what has served or was never committed: sources and cuts of other passes, half documents."""
    kept = later.source if later is not None else None
    for path in journal.folder.path.iterdir():
        kind, _, number = path.name.partition("-")
        served = kind == "todo" and path.name != kept
        uncommitted = kind == "cut" and number.isdigit() and int(number) > journal.generation
        if served or uncommitted or path.suffix == ".tmp":
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
