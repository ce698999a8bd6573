"""Changing index, sinks and documents together: one document that says what becomes of them all.

New versions of files are written and synced beside the originals, or a place is named from which a file goes
on otherwise; then the document `swap` commits it. Whoever opens the run does what it says, as often as it
takes, so every moment of a crash leaves either the old state or the new one.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from batchllm.ledger.folder import sync_folder, writing

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal, SinkFile

_BUFFER = 1 << 20
_SUFFIX = ".batchllm-next"


class Copies:
    """New versions of some of `index`, `output`, `dead`, `notes`; `with` removes what wasn't committed."""

    def __init__(self, journal: Journal, names: list[str]) -> None:
        self.lengths = dict.fromkeys(names, 0)
        self._journal = journal
        self._paths = {name: _copy_of(_file(journal, name)) for name in names}
        self._files = {}
        try:
            for name, path in self._paths.items():
                self._files[name] = path.open("wb", buffering=_BUFFER)
                original = Path(_file(journal, name).path)
                if original.exists():
                    path.chmod(original.stat().st_mode & 0o7777)
        except OSError:
            self._remove()
            raise

    def write(self, name: str, data: bytes) -> None:
        """Go on with a copy."""
        self._files[name].write(data)
        self.lengths[name] += len(data)

    def commit(self, documents: dict[str, dict[str, Any]] | None = None) -> None:
        """Let the copies replace their originals; `documents` of the run folder go along."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        commit(self._journal, documents or {})

    def __enter__(self) -> Copies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not (self._journal.folder.path / "swap").exists():
            self._remove()

    def _remove(self) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError:
                pass  # what didn't fit into the file
        for path in self._paths.values():
            path.unlink(missing_ok=True)


def commit(
    journal: Journal, documents: dict[str, dict[str, Any]], tails: dict[str, tuple[int, bytes]] | None = None
) -> None:
    """Let copies replace their originals, `documents` those of the run folder, and files end otherwise.

    `tails` says for some files from which length on they go on with which bytes. Raises LedgerFailed.
    """
    coded = {
        name: [length, base64.b64encode(tail).decode()] for name, (length, tail) in (tails or {}).items()
    }
    journal.folder.write("swap", {"documents": documents, "tails": coded})
    finish_swap(journal)


def finish_swap(journal: Journal) -> None:
    """Do what a `swap` document says; without one, remove copies that were never committed."""
    swap = journal.folder.read("swap")
    with writing():
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
            file = _file(journal, name)
            file.reopen()
            if tails := swap.get("tails", {}).get(name):
                length, tail = tails
                file.truncate(length)
                if tail:
                    file.append([base64.b64decode(tail)])
                file.sync()
        for name, document in swap["documents"].items():
            journal.folder.write(name, document)
        (journal.folder.path / "swap").unlink()
        sync_folder(journal.folder.path)  # or a power loss could bring it back, and it would cut what follows


def _file(journal: Journal, name: str) -> SinkFile:
    return journal.index if name == "index" else journal.sinks[name]


def _copy_of(file: SinkFile) -> Path:
    """Beside the real file, on the same file system."""
    return Path(os.path.realpath(file.path) + _SUFFIX)
