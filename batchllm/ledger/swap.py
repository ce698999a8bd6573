"""Replacing index and sinks together: copies beside the originals, and one document that commits them.

Copies are written and synced first; then the document `swap` says that they replace the originals, and may
bring the documents that go with them. Whoever opens the run finishes what it says, so every moment of a
crash leaves either the old files or the new ones, all together.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from batchllm.ledger.folder import sync_folder

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal, SinkFile

_BUFFER = 1 << 20
_SUFFIX = ".next"


class Copies:
    """New versions of some of `index`, `output`, `dead`, `notes`; `with` removes them if it fails."""

    def __init__(self, journal: Journal, names: list[str]) -> None:
        self.lengths = dict.fromkeys(names, 0)
        self._paths = {name: _copy_of(_file(journal, name)) for name in names}
        self._files = {name: path.open("wb", buffering=_BUFFER) for name, path in self._paths.items()}
        for name, path in self._paths.items():
            original = Path(_file(journal, name).path)
            if original.exists():
                path.chmod(original.stat().st_mode & 0o7777)

    def write(self, name: str, data: bytes) -> None:
        """Go on with a copy."""
        self._files[name].write(data)
        self.lengths[name] += len(data)

    def finish(self) -> None:
        """Make the copies durable; `commit` may follow."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def __enter__(self) -> Copies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if kind is not None:
            for path in self._paths.values():
                path.unlink(missing_ok=True)


def commit(journal: Journal, documents: dict[str, dict[str, Any]] | None = None) -> None:
    """Let the copies that are there replace their originals; `documents` of the run folder go along."""
    journal.folder.write("swap", {"documents": documents or {}})
    finish_swap(journal)


def finish_swap(journal: Journal) -> None:
    """Do what a `swap` document says; without one, remove copies that were never committed."""
    swap = journal.folder.read("swap")
    for name in ("index", *journal.sinks):
        file = _file(journal, name)
        copy = _copy_of(file)
        if not copy.exists():
            continue
        if swap is None:
            copy.unlink()
            continue
        final = Path(os.path.realpath(file.path))
        copy.rename(final)
        sync_folder(final.parent)
    if swap is None:
        return
    for name in ("index", *journal.sinks):
        _file(journal, name).reopen()
    for name, document in swap["documents"].items():
        journal.folder.write(name, document)
    (journal.folder.path / "swap").unlink()


def _file(journal: Journal, name: str) -> SinkFile:
    return journal.index if name == "index" else journal.sinks[name]


def _copy_of(file: SinkFile) -> Path:
    """Beside the real file, on the same file system."""
    return Path(os.path.realpath(file.path) + _SUFFIX)
