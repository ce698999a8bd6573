"""Input order on stdout: lines that came early wait in memory until all before them are out.

Pure bookkeeping. The ledger puts every settled record in, by its number; a dead one without a line fills its
place. The reader is held back while the window is full; the record that all wait for has been read long
before, so it always comes.
"""

from __future__ import annotations

RECORDS = 100_000
"""Records between the oldest that is not out and the newest that may be read."""
BYTES = 64 << 20
"""Bytes of lines that may wait while more is read."""


class Reorder:
    """Lines in, lines out in order of their number, each number once."""

    def __init__(self, records: int = RECORDS, most: int = BYTES) -> None:
        self._records = records
        self._most = most
        self._next = 0
        self._waiting: dict[int, bytes] = {}
        self.bytes = 0

    def full(self, number: int) -> bool:
        """Whether record `number` must not be read yet."""
        return number >= self._next + self._records or self.bytes >= self._most

    def put(self, number: int, line: bytes) -> None:
        """Record `number` is settled; `line` is empty where it has none."""
        self._waiting[number] = line
        self.bytes += len(line)

    def take(self) -> list[bytes]:
        """The lines whose turn it is."""
        ready: list[bytes] = []
        while self._next in self._waiting:
            line = self._waiting.pop(self._next)
            self._next += 1
            if line:
                ready.append(line)
        self.bytes -= sum(map(len, ready))
        return ready

    def rest(self) -> list[bytes]:
        """All lines that wait still, in order: a stop left gaps before them, which nothing will fill."""
        ready = [line for _, line in sorted(self._waiting.items()) if line]
        self._waiting.clear()
        self.bytes = 0
        return ready
