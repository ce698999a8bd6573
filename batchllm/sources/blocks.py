"""Bytes of one input, in blocks: a plain file, a packed file, or a pipe.

Files are read in a thread, one hop a block; pipes when the event loop says that bytes are there. Knows
nothing of lines or records; `JsonlSource` reads through it, `check_inputs` looks at the first block.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from batchllm.errors import ConfigError
from batchllm.sources.zstd import ZstdContent

STDIN = "-"
BLOCK_BYTES = 2**20
PIPE_BYTES = 2**16
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAGIC_BYTES = 4
_AGAIN = "get the whole file and run the same command again"


class Broken(Exception):
    """The input can't be read on; `what` goes behind its name: `ends in the middle of …`."""

    def __init__(self, what: str, hint: str = "mend that and run the same command again") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


def too_short() -> Broken:
    """The input holds less than an earlier run has read of it."""
    return Broken(
        "ends before the place where the earlier run left off",
        "give the same input again, or forget the earlier run with --fresh",
    )


class Blocks(Protocol):
    """An open input. `seekable` says that it began at the offset asked for, not at its start."""

    seekable: bool

    async def read(self) -> bytes:
        """The next bytes, or none at the end. Cancelling it loses nothing. Raises Broken."""
        ...

    def taken(self, offset: int) -> int:
        """How far into the input as stored (compressed or not) the content's byte `offset` is."""
        ...

    def close(self) -> None: ...


class PlainFile:
    """A regular file, read from `offset` on (bytes behind where the descriptor stands)."""

    seekable = True

    def __init__(self, fd: int, offset: int, block_bytes: int) -> None:
        self._fd = fd
        self._base = os.lseek(fd, 0, os.SEEK_CUR)
        self._at = self._base + offset
        self._block_bytes = block_bytes
        self._size = os.fstat(fd).st_size
        self._limiter = anyio.CapacityLimiter(1)
        if offset and self._at > self._size:
            raise too_short()

    def fetch(self) -> bytes:
        """Read one block, blocking."""
        try:
            block = os.pread(self._fd, self._block_bytes, self._at)
        except OSError as error:
            raise Broken(f"can't be read: {_reason(error)}") from error
        if not block and self._at < self._size:
            raise Broken("became shorter while it was read")
        self._at += len(block)
        return block

    async def read(self) -> bytes:
        return await anyio.to_thread.run_sync(self.fetch, limiter=self._limiter)

    def taken(self, offset: int) -> int:
        return offset

    def close(self) -> None:
        os.close(self._fd)


class _Unmoved:
    """A descriptor read in order without moving where it stands, which others may share."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._base = os.lseek(fd, 0, os.SEEK_CUR)
        self.taken = 0

    def read(self, size: int) -> bytes:
        piece = os.pread(self._fd, size, self._base + self.taken)
        self.taken += len(piece)
        return piece

    def seek(self, offset: int) -> None:
        self.taken = offset


class PackedFile:
    """A regular file of gzip or zstd data, read from its start; what comes before a defect is handed on."""

    seekable = False

    def __init__(self, fd: int, packing: str, block_bytes: int) -> None:
        self._fd = fd
        self._stored = _Unmoved(fd)
        self._content: gzip.GzipFile | ZstdContent = (
            gzip.GzipFile(fileobj=self._stored, mode="rb") if packing == "gzip" else ZstdContent(self._stored)
        )
        self.packing = packing
        self._block_bytes = block_bytes
        self._limiter = anyio.CapacityLimiter(1)
        self._out = 0
        self._packed = 0
        self._broken: Broken | None = None

    def fetch(self) -> bytes:
        """Read and unpack one block, blocking."""
        if self._broken is not None:
            raise self._broken
        pieces: list[bytes] = []
        room = self._block_bytes
        try:
            while room > 0 and (piece := self._content.read1(room)):
                pieces.append(piece)
                room -= len(piece)
        except EOFError:
            self._broken = Broken(f"ends in the middle of its {self.packing} data", _AGAIN)
        except (gzip.BadGzipFile, zlib.error, ValueError):
            self._broken = Broken(f"is damaged in its {self.packing} data", _AGAIN)
        except OSError as error:
            self._broken = Broken(f"can't be read: {_reason(error)}")
        if not pieces and self._broken is not None:
            raise self._broken
        block = b"".join(pieces)
        self._out += len(block)
        self._packed = self._stored.taken
        return block

    async def read(self) -> bytes:
        return await anyio.to_thread.run_sync(self.fetch, limiter=self._limiter)

    def taken(self, offset: int) -> int:
        return self._packed * offset // self._out if self._out else 0

    def close(self) -> None:
        self._content.close()
        os.close(self._fd)


class Pipe:
    """A pipe, FIFO or socket: what is there is handed on at once. `head` keeps its first 64 KiB."""

    seekable = False

    def __init__(self, fd: int, block_bytes: int) -> None:
        self._fd = fd
        self._block_bytes = min(block_bytes, PIPE_BYTES)
        self.head = b""

    async def read(self) -> bytes:
        while True:
            await anyio.wait_readable(self._fd)
            try:
                block = os.read(self._fd, self._block_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Broken(f"can't be read: {_reason(error)}") from error
            self.head += block[: PIPE_BYTES - len(self.head)]
            return block

    def taken(self, offset: int) -> int:
        return offset

    def close(self) -> None:
        os.close(self._fd)


def open_blocks(path: str, offset: int = 0, block_bytes: int = BLOCK_BYTES) -> PlainFile | PackedFile | Pipe:
    """Open a path, or stdin for `-`; only a plain file begins at `offset`. Raises OSError or Broken.

    A FIFO is opened without waiting for its writer; reading waits. Packed data is told by its first bytes.
    Raises ConfigError where what unpacks it is not installed.
    """
    fd = os.dup(0) if path == STDIN else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            return Pipe(fd, block_bytes)
        if stat.S_ISDIR(mode):
            raise Broken("is a directory", f"name the files in it: {path.rstrip('/')}/*.jsonl")
        if not stat.S_ISREG(mode):
            what = "is a terminal, not a file or a pipe" if os.isatty(fd) else "is neither a file nor a pipe"
            raise Broken(what, "give a file, or pipe one in: cat tickets.jsonl | batchllm run -")
        packing = packing_of(os.pread(fd, MAGIC_BYTES, os.lseek(fd, 0, os.SEEK_CUR)))
        if packing is not None:
            return PackedFile(fd, packing, block_bytes)
        return PlainFile(fd, offset, block_bytes)
    except (OSError, Broken, ConfigError):
        os.close(fd)
        raise


def packing_of(head: bytes) -> str | None:
    """How data that begins so is packed: gzip, zstd (maybe with a frame to skip in front), or None."""
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    return "zstd" if head.startswith(ZSTD_MAGIC) or skippable else None


def stored_bytes(path: str) -> int | None:
    """Size in bytes of what a path will give, as stored; None for what is no regular file."""
    try:
        facts = os.fstat(0) if path == STDIN else Path(path).stat()
        if not stat.S_ISREG(facts.st_mode):
            return None
        return facts.st_size - (os.lseek(0, 0, os.SEEK_CUR) if path == STDIN else 0)
    except OSError:
        return None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
