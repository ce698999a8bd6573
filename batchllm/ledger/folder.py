"""The run folder `OUTPUT.run/`: its lock, its small documents, and moving an old run aside.

Documents are replaced whole (temporary file, sync, rename, sync of the folder), so a reader finds the old
one or the new one. Nothing here knows what the documents mean.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from batchllm import exact
from batchllm.errors import ConfigError, InUse, LedgerFailed

_NEEDS = {
    "job.json": ("run_id", "dead_letter", "meaning", "operation", "inputs"),
    "session": ("boot",),
    "swap": ("documents",),
    "aside": ("moves",),
}
"""What a document must hold."""
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
        while self._lock is None:
            try:
                if not self.path.is_dir():
                    self.path.mkdir(exist_ok=True)
                    sync_folder(self.path.parent)
                lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise ConfigError(
                    f"can't make the run folder {self.path}: {error.strerror}",
                    "choose an output in a folder that exists and that you may write to: -o FILE",
                ) from None
            self._take(lock)
        if (self.path / "ctl").is_socket():
            (self.path / "ctl").unlink(missing_ok=True)  # of a run that was killed
        with suppress(OSError):  # who holds it is only told to people: a full disk is no reason to stop here
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _take(self, lock: int) -> None:
        """Lock the open file and keep it, unless the folder was removed or moved in the meantime."""
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
        if identity(self.path / "lock") == identity(lock):
            self._lock = lock
        else:
            os.close(lock)

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            with suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Remove the folder with all that is in it, and give the lock back."""
        if self._lock is not None and self.held():
            for path in self.path.iterdir():
                path.unlink()
            self.path.rmdir()
        self.release()

    def held(self) -> bool:
        """Whether the folder is still there, with the lock that was taken."""
        return self._lock is not None and identity(self.path / "lock") == identity(self._lock)

    def exists(self) -> bool:
        """Whether a run has begun in it."""
        return (self.path / "job.json").exists()

    def read(self, name: str) -> dict[str, Any] | None:
        """A document, None where there is none; ConfigError where it is no document of this version."""
        try:
            document = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"can't read {self.path / name}: {error}", "--fresh starts over and keeps the old files aside"
            ) from None
        if not isinstance(document, dict) or document.get("version") != VERSION:
            found = document.get("version") if isinstance(document, dict) else "none"
            raise ConfigError(
                f"{self.path / name} has format version {found}, this batchllm writes {VERSION}",
                "go on with the batchllm that began the run, or start over with --fresh",
            )
        if missing := [key for key in _NEEDS.get(name, ()) if key not in document]:
            raise ConfigError(
                f"{self.path / name} is not whole: it says nothing of {', '.join(missing)}",
                "put it back as it was, or start over with --fresh (the old files are kept aside)",
            )
        return document

    def write(self, name: str, document: dict[str, Any], *, sync: bool = True) -> None:
        """Replace a document. Raises LedgerFailed, leaving the old one."""
        temporary = self.path / f"{name}.tmp"
        data = exact.dumps({"version": VERSION} | document)
        with writing():
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    if sync:
                        file.flush()
                        os.fsync(file.fileno())
                temporary.rename(self.path / name)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            if sync:
                sync_folder(self.path)

    def move_aside(self, files: list[Path]) -> list[Path]:
        """Rename `files` and the folder itself by one free number, all of them after any end; the new names.

        A link's file is renamed, the link stays. The lock stays with the folder that was moved.
        """
        files = _behind_links(files)
        old = [path for path in (*files, self.path) if path.exists()]
        new = _free_names(old, [*files, self.path])
        moves = [[str(path.absolute()), str(aside.absolute())] for path, aside in zip(old, new, strict=True)]
        self.write("aside", {"moves": moves})
        self.finish_move()
        return new

    def finish_move(self) -> bool:
        """Do what is left of a move that was begun; whether there was one."""
        document = self.read("aside")
        if document is None:
            return False
        with writing():
            for old, new in document["moves"]:
                if os.path.lexists(old):
                    Path(old).rename(new)
                    sync_folder(Path(new).parent)
            (Path(document["moves"][-1][1]) / "aside").unlink()
        return True


def identity(file: Path | int) -> tuple[int, int] | None:
    """What makes a path or a descriptor this file and no other; None where there is none."""
    try:
        facts = os.stat(file)  # noqa: PTH116 - a descriptor as well
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def boot_id() -> str | None:
    """What is another after each start of the machine; None where the system doesn't tell (Linux does)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


@contextmanager
def writing() -> Iterator[None]:
    """Around what changes the run's files: LedgerFailed for an OSError."""
    try:
        yield
    except OSError as error:
        raise ledger_failed(error) from error


def ledger_failed(error: OSError) -> LedgerFailed:
    """The error that stops the run because its files can't be written."""
    where = f" {Path(error.filename).name}" if isinstance(error.filename, str) else ""
    return LedgerFailed(
        f"can't write the run's files{where}: {(error.strerror or str(error)).lower()}",
        "make room or mend the folder, then run the same command again: nothing that was written is lost",
    )


def move_aside(paths: list[Path]) -> list[Path]:
    """Rename those of `paths` that exist by one free number for all of them; returns the new names."""
    paths = _behind_links(paths)
    present = [path for path in paths if path.exists()]
    names = _free_names(present, paths)
    for path, name in zip(present, names, strict=True):
        path.rename(name)
    return names


def _behind_links(paths: list[Path]) -> list[Path]:
    """The files themselves, as they were named where no link leads to them."""
    return [Path(os.path.realpath(path)) if path.is_symlink() else path for path in paths]


def _free_names(present: list[Path], paths: list[Path]) -> list[Path]:
    """New names for `present`, by a number that is free for each of `paths`."""
    number = 1
    while any(os.path.lexists(_aside(path, number)) for path in paths):
        number += 1
    return [_aside(path, number) for path in present]


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.old{number}")
