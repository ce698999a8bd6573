"""A small file of state that processes share: a lock, and two slots that are written in turn.

A process that dies while it writes leaves its slot torn and the other one as it was, which is the state
before whatever it was about to do. Nothing here knows what the state means, blocks, or syncs to the disk:
the state is worth nothing after the machine has stopped.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from zlib import crc32

from batchllm.errors import ConfigError

_MAGIC = b"batchllm quota 1\n"
_PAGE = 4096
_SLOT = 1 << 16
_HEAD = struct.Struct("<QII")
"""Of a slot: the number of the writing, bytes of the state, and a CRC-32 of these and the state."""
LARGEST = _SLOT - _HEAD.size
"""Bytes of state that a slot holds."""


class SlotFile:
    """The file, made where there is none; `read` and `write` are for whoever holds the lock.

    Raises ConfigError where it can't be opened. One thread of one process uses it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._number = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise ConfigError(
                f"can't open the quota file {path}: {(error.strerror or str(error)).lower()}",
                "name a file that every run may read and write, in a folder that exists: --quota-file FILE",
            ) from None

    def lock(self) -> bool:
        """Take the lock if it is free; at once in any case. Raises OSError where files can't be locked."""
        if self._fd < 0:
            raise OSError("it is closed")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Give the lock back."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def current(self) -> bool:
        """Whether the path still leads to this file, so that others who open it find the same."""
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self.path)  # noqa: PTH116 - beside fstat
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def begin(self) -> bool:
        """Check that it is a quota file, under the lock; an empty one becomes one: whether it did."""
        facts = os.fstat(self._fd)
        if stat.S_ISREG(facts.st_mode):
            head = os.pread(self._fd, len(_MAGIC), 0)
            if head == _MAGIC:
                return False
            if not head or self._zeros(facts.st_size):
                self._put(_MAGIC, 0)
                return not head
        raise ConfigError(
            f"{self.path} is no quota file of this batchllm, and stays as it is",
            "name another one, it is made where there is none: --quota-file FILE",
        )

    def _zeros(self, size: int) -> bool:
        """Whether there is nothing but zeros in it, as after a power loss."""
        return size <= _PAGE + 2 * _SLOT and not os.pread(self._fd, size, 0).strip(b"\0")

    def age(self, wall: float) -> float:
        """Seconds since the last writing, by the wall clock."""
        return wall - os.fstat(self._fd).st_mtime

    def read(self) -> bytes | None:
        """The newest state that is whole, None where there is none."""
        found = []
        for slot in (0, 1):
            page = os.pread(self._fd, _PAGE, _PAGE + slot * _SLOT)
            if len(page) >= _HEAD.size:
                found.append((_HEAD.unpack_from(page), slot, page))
        for (number, length, crc), slot, page in sorted(found, key=lambda each: each[0][0], reverse=True):
            if not 0 < length <= LARGEST:
                continue
            end = _HEAD.size + length
            state = page[_HEAD.size : end]
            if end > _PAGE:
                state += os.pread(self._fd, end - _PAGE, 2 * _PAGE + slot * _SLOT)
            if crc == _crc(number, state) and number & 1 == slot:
                self._number = number
                return state
        return None

    def write(self, state: bytes) -> None:
        """Replace the state, of LARGEST bytes at most; on OSError the one before it stays."""
        number = (self._number + 1) & 0xFFFFFFFFFFFFFFFF
        slot = _PAGE + (number & 1) * _SLOT
        self._put(_HEAD.pack(number, len(state), _crc(number, state)) + state, slot)
        self._number = number

    def _put(self, data: bytes, offset: int) -> None:
        if os.pwrite(self._fd, data, offset) != len(data):
            raise OSError("not all of it was written")

    def close(self) -> None:
        """Close the file; the lock goes with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _crc(number: int, state: bytes) -> int:
    return crc32(state, crc32(struct.pack("<QI", number, len(state))))
