"""Blocks of bytes in, physical lines out, whatever the blocks' borders.

Pure: it reads nothing and judges no content. A line that is too long is never held whole.
"""

from __future__ import annotations

from batchllm.fields import mutable

KEPT_BYTES = 2**16
BOM = b"\xef\xbb\xbf"


@mutable
class Line:
    """One physical line: `data` without line end and byte-order mark, its first 64 KiB if it is `too_long`.

    `number` counts from 1; `start` and `end` are offsets in the content, the line end included; `whole`
    says that it had one.
    """

    data: bytes
    number: int
    start: int
    end: int
    whole: bool
    too_long: bool


class Lines:
    """Splits one input; `offset` and `number` are where the next line starts and how many lie before it."""

    def __init__(self, max_line: int, offset: int = 0, number: int = 0) -> None:
        self.offset = offset
        self.number = number
        self.over = False
        self._max_line = max_line
        # A byte-order mark and a carriage return don't count, so a line is only surely too long beyond them.
        self._bound = max(max_line + len(BOM) + 1, KEPT_BYTES + len(BOM))
        self._block = b""
        self._at = 0
        self._carry = bytearray()
        self._length = 0
        self._back: Line | None = None

    def feed(self, block: bytes) -> None:
        """Take the next block; every line of the one before must have been taken out."""
        self._block = block
        self._at = 0

    def finish(self) -> None:
        """Say that no block will come: what is left is an unterminated line."""
        self.over = True

    def next(self) -> Line | None:
        """The next line, or None where another block is needed or the input is over."""
        if self._back is not None:
            line, self._back = self._back, None
            self.offset, self.number = line.end, line.number
            return line
        end = self._block.find(b"\n", self._at)
        if end >= 0:
            if not self._length:
                data = self._block[self._at : end]
                length, self._at = end - self._at, end + 1
                start = self.offset
                if start and length <= self._max_line and not data.endswith(b"\r"):  # nearly all are so
                    self.number += 1
                    self.offset = start + length + 1
                    return Line(data, self.number, start, self.offset, True, False)
                return self._line(data, length, whole=True)
            self._stash(end)
            self._at = end + 1
            return self._line(bytes(self._carry), self._length, whole=True)
        self._stash(len(self._block))
        self._block, self._at = b"", 0
        if self.over and self._length:
            return self._line(bytes(self._carry), self._length, whole=False)
        return None

    def plain(self, most: int, room: int) -> list[bytes]:
        """The next whole lines, at most `most` in `room` bytes; none where the next needs a closer look.

        They stay until `took` says that they were taken.
        """
        if self._back is not None or self._length or not self.offset:
            return []
        end = self._block.rfind(b"\n", self._at, self._at + min(room, self._max_line))
        piece = self._block[self._at : end] if end >= 0 else b""
        if not piece:
            return []
        lines = piece.split(b"\n", most)
        return lines if len(lines) <= most else lines[:most]

    def took(self, lines: int, size: int) -> None:
        """So many lines of `plain` were taken, of so many bytes with their ends."""
        self._at += size
        self.offset += size
        self.number += lines

    def push_back(self, line: Line) -> None:
        """Give back the line that came last; `next` hands it out again."""
        self._back = line
        self.offset, self.number = line.start, line.number - 1

    def ahead(self) -> bytes:
        """What has come behind the last line, at most 64 KiB of it."""
        return self._block[self._at : self._at + KEPT_BYTES]

    def _stash(self, end: int) -> None:
        """Carry the block's bytes up to `end` into the line that they are part of."""
        if self._length <= self._bound:
            self._carry += self._block[self._at : end]
        self._length += end - self._at
        if self._length > self._bound:
            del self._carry[KEPT_BYTES + len(BOM) :]

    def _line(self, data: bytes, length: int, whole: bool) -> Line:
        start = self.offset
        self.offset = end = start + length + whole
        self.number += 1
        if self._length:
            self._carry = bytearray()
            self._length = 0
        too_long = length > self._bound
        if start == 0 and data.startswith(BOM):
            data = data[len(BOM) :]
        if not too_long:
            data = data.removesuffix(b"\r")
            too_long = len(data) > self._max_line
        if too_long:
            data = data[:KEPT_BYTES]
        return Line(data, self.number, start, end, whole, too_long)
