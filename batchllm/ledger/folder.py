"""The run folder `OUTPUT.run/`: its lock, its two small documents, and moving an old run aside.

Documents are replaced whole (temporary file, sync, rename, sync of the folder), so a reader finds the old
one or the new one. Nothing here knows what the documents mean.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import orjson

from batchllm.errors import ConfigError, InUse

VERSION = 1
"""Of the folder's format; another one is refused."""


class RunFolder:
    """The run folder of an output."""

    def __init__(self, output: str) -> None:
        self.path = Path(f"{output}.run")
        self.index = self.path / "index"
        self._lock: int | None = None

    def acquire(self) -> None:
        """Take the lock, making the folder; InUse where another process holds it."""
        try:
            self.path.mkdir(exist_ok=True)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"can't make the run folder {self.path}: {error.strerror}",
                "choose an output in a folder that exists and that you may write to: -o FILE",
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise InUse(
                f"another run holds {str(self.path).removesuffix('.run')}"
                + (f" (process {holder})" if holder else ""),
                "wait for it, or give this run another output: -o FILE",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def exists(self) -> bool:
        """Whether a run has begun in it."""
        return (self.path / "job.json").exists()

    def read(self, name: str) -> dict[str, Any] | None:
        """A document, None where there is none; ConfigError where it is no document of this version."""
        try:
            document = orjson.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"can't read {self.path / name}: {error}", "--fresh starts over and keeps the old files aside"
            ) from None
        if not isinstance(document, dict) or document.get("version") != VERSION:
            found = document.get("version") if isinstance(document, dict) else "none"
            raise ConfigError(
                f"{self.path / name} has format version {found}, this batchllm writes {VERSION}",
                "go on with the batchllm that began the run, or start over with --fresh",
            )
        return document

    def write(self, name: str, document: dict[str, Any], *, sync: bool = True) -> None:
        """Replace a document."""
        target = self.path / name
        temporary = self.path / f"{name}.tmp"
        data = orjson.dumps({"version": VERSION} | document)
        with temporary.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(target)
        if sync:
            sync_folder(self.path)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move_aside(paths: list[Path]) -> list[Path]:
    """Rename those of `paths` that exist by one free number for all of them; returns the new names."""
    present = [path for path in paths if path.exists() or path.is_symlink()]
    number = 1
    while any(_aside(path, number).exists() for path in paths):
        number += 1
    for path in present:
        path.rename(_aside(path, number))
    return [_aside(path, number) for path in present]


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.old{number}")
