"""Where finished lines go: JSONL files that can be cut back to a length, stdout, and nowhere.

All are synchronous and used by the ledger on its one thread. They write whole lines as they are given and
know nothing of what is in them, of commits or of recovery. `reader_gone` tells the session of a closed pipe.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel

from batchllm.errors import ConfigError, InUse, LedgerFailed

_sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
_FLAGS = os.O_RDWR | os.O_APPEND
_NEAR = 1 << 14
"""Bytes around which others are read along, since lines are mostly read near each other."""
_PIECE = 1 << 16
"""Bytes of one write to stdout, so that `length` tells whether its reader still takes anything."""


class JsonlFile:
    """A file of lines, appended to and cut back; a symlink is followed. Implements `ports.Sink`.

    It is opened at once, and made unless `lazy`: then it is made when the first line comes. Raises
    ConfigError where that can't be, LedgerFailed where a later write, sync or cut fails.
    """

    def __init__(self, path: str, *, lazy: bool = False) -> None:
        self.path = path
        self._fd: int | None = None
        self._made = False
        self._length = 0
        self._near = (0, b"")
        try:
            self._open(create=not lazy)
        except FileNotFoundError as error:
            folder = str(Path(path).parent)
            raise ConfigError(
                f"{path} can't be written: there is no folder {folder}", f"mkdir -p {shlex.quote(folder)}"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{path} can't be written: {_reason(error)}", "name another file with -o or -d"
            ) from error

    @property
    def length(self) -> int:
        """Bytes in the file; 0 while there is none."""
        return self._length

    def append(self, lines: list[bytes]) -> int:
        """Write whole lines, each with its newline; the new length in bytes.

        Where it fails, what was written of them is cut off again, if the disk lets us.
        """
        before = self._length
        self._near = (0, b"")
        try:
            fd = self._open(create=True)
            view = memoryview(b"".join(lines))
            while view:
                written = os.write(fd, view)
                self._length += written
                view = view[written:]
        except InUse as error:
            raise LedgerFailed(error.message, error.hint) from None
        except OSError as error:
            if self._length > before:
                self._cut_quietly(before)
            raise self._failed("written", error) from error
        return self._length

    def sync(self) -> None:
        """Return once what was appended would survive a power loss; the file's name too."""
        if self._fd is None:
            return
        try:
            _sync_data(self._fd)
            if self._made:
                _sync_folder(Path(os.path.realpath(self.path)).parent)
                self._made = False
        except OSError as error:
            raise self._failed("synced", error) from error

    def truncate(self, length: int) -> None:
        """Cut back to `length` bytes. Raises ValueError if the file is shorter than that."""
        if length > self._length:
            raise ValueError(f"{self.path} has {self._length} bytes, not {length}")
        if self._fd is None:
            return
        self._near = (0, b"")
        try:
            os.ftruncate(self._fd, length)
        except OSError as error:
            raise self._failed("cut back", error) from error
        self._length = length

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer at the end only. What lies close behind is read along."""
        start, block = self._near
        if start <= offset and offset + size <= start + len(block):
            return block[offset - start : offset - start + size]
        if size > _NEAR:
            return self._read(offset, size)
        start = offset - offset % _NEAR
        block = self._read(start, 2 * _NEAR)
        self._near = (start, block)
        return block[offset - start : offset - start + size]

    def _read(self, offset: int, size: int) -> bytes:
        pieces: list[bytes] = []
        try:
            while self._fd is not None and size > 0 and (piece := os.pread(self._fd, size, offset)):
                pieces.append(piece)
                offset += len(piece)
                size -= len(piece)
        except OSError as error:
            raise self._failed("read", error) from error
        return b"".join(pieces)

    def reopen(self) -> None:
        """Go on with the file that has the path now: it was replaced by a rename."""
        self.close()
        self._length = 0
        self._open(create=False)

    def close(self) -> None:
        """Close the file; nothing is synced."""
        self._near = (0, b"")
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self, create: bool) -> int:
        """The open file; where it isn't there it is made, or, without `create`, its folder looked for."""
        if self._fd is not None:
            return self._fd
        try:
            fd = os.open(self.path, _FLAGS)
        except FileNotFoundError:
            if not create:
                if not Path(os.path.realpath(self.path)).parent.is_dir():
                    raise
                return -1
            fd = os.open(self.path, _FLAGS | os.O_CREAT, 0o644)
            self._made = True
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file (stdout is -o -)")
        self._lock(fd)
        self._fd = fd
        self._length = facts.st_size
        return fd

    def _lock(self, fd: int) -> None:
        """Keep others off, whatever name they call the file by; InUse where one of them was first."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise InUse(
                f"another run writes to {self.path}", "wait for it, or name another file with -o or -d"
            ) from None
        except OSError:
            pass  # a file system without locks: the run folder's is all there is

    def _cut_quietly(self, length: int) -> None:
        try:
            self.truncate(length)
        except LedgerFailed:
            pass  # the write's own failure is the one to tell; recovery cuts the rest

    def _failed(self, done: str, error: OSError) -> LedgerFailed:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "make room" if full else "mend that"
        return LedgerFailed(
            f"{self.path} can't be {done}: {_reason(error)}", f"{hint} and run the same command again"
        )


class Stdout:
    """A stream of lines that can't be cut back; `fd` is stdout's. Implements `ports.Sink`.

    Raises BrokenPipeError once the reader has gone, LedgerFailed where a write fails otherwise.
    """

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._length = 0

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self._length

    def append(self, lines: list[bytes]) -> int:
        """Write whole lines, waiting while the reader is slow; the bytes written so far."""
        view = memoryview(b"".join(lines))
        while view:
            try:
                written = os.write(self._fd, view[:_PIECE])
            except BlockingIOError:
                # Whoever shares our stdout has made it non-blocking.
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll()
                continue
            except BrokenPipeError:
                raise
            except OSError as error:
                raise LedgerFailed(
                    f"stdout can't be written: {_reason(error)}", "mend that and run the same command again"
                ) from error
            self._length += written
            view = view[written:]
        return self._length

    def sync(self) -> None:
        """Sync where stdout is a regular file; a pipe has nothing to sync."""
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.fsync(self._fd)

    def truncate(self, length: int) -> None:
        """Always raises io.UnsupportedOperation."""
        raise io.UnsupportedOperation("stdout can't be cut back")

    def close(self) -> None:
        """Leave stdout open: it is not ours."""


class Nowhere:
    """What keeps nothing, for outcomes that are only handed on. Implements `ports.Sink`."""

    length = 0

    def append(self, lines: list[bytes]) -> int:
        """Forget them."""
        return 0

    def sync(self) -> None:
        """Nothing to sync."""

    def truncate(self, length: int) -> None:
        """Nothing to cut."""


async def reader_gone(fd: int = 1) -> None:
    """Return once nobody reads the pipe any more, though nothing is written; never for anything else."""
    waiting = select.poll()
    waiting.register(fd, 0)
    try:
        piped = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        piped = False
    while piped:
        if waiting.poll(0):
            return
        await anyio.wait_readable(fd)  # the end for writing becomes readable only by this
        await anyio.lowlevel.checkpoint()
    await anyio.sleep_forever()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
