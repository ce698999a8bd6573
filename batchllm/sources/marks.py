"""Known places in the inputs: kept now and then while they are read, dropped once the run is past them."""

from __future__ import annotations

from collections import deque

from batchllm.model import Position

EVERY_BYTES = 2**20


class Marks:
    """Places in order, at most `every` records or a MiB apart."""

    def __init__(self, start: Position, every: int) -> None:
        self._places = deque([start])
        self._every = every

    def note(self, file: int, offset: int, line: int, seq: int) -> None:
        """Remember where a record begins, unless a place close before it is known."""
        last = self._places[-1]
        if seq - last.seq >= self._every or offset - last.offset >= EVERY_BYTES or file != last.file:
            self._places.append(Position(file, offset, line, seq))

    def end(self, place: Position) -> None:
        """Remember where the input ends."""
        self._places.append(place)

    def at(self, seq: int) -> Position:
        """The last place at or before record `seq`; those before it are dropped."""
        while len(self._places) > 1 and self._places[1].seq <= seq:
            self._places.popleft()
        return self._places[0]
