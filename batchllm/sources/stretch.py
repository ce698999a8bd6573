"""Stretches of lines that are records as nearly all are, taken together at a third of the cost.

They end before the first line that needs a closer look, which the source then takes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from batchllm.exact import holds_long_number
from batchllm.model import Record
from batchllm.sources.marks import EVERY_BYTES
from batchllm.sources.shapes import BadLine, parse
from batchllm.sources.splitting import Lines

SHORTEST = 1024
"""Bytes that a stretch reaches at the least: behind a line that isn't plain all is looked at in vain."""
IsSettled = Callable[[int], bool]


class Stretches:
    """Takes the lines that come next, as many at once as has proved worth it.

    `settled` says of a record's number that the record is left out.
    """

    def __init__(self, id_field: str, settled: IsSettled | None) -> None:
        self._id_field = id_field
        self._settled = settled
        self._reach = EVERY_BYTES

    def take(
        self, lines: Lines, seq: int, most: int, room: int, name: Callable[[int], str]
    ) -> tuple[list[Record], int, int]:
        """The records of at most so many lines in `room` bytes, how many there were in all, and their bytes.

        `seq` is the first one's number; `name` makes the id of a record that has none of its line's number.
        """
        found = lines.plain(most, min(room, self._reach))
        before = lines.number + 1
        records, count, taken, size = stretch_of(
            found, seq, self._id_field, lambda place: name(before + place), self._settled
        )
        lines.took(taken, size)
        whole = found and taken == len(found)
        self._reach = min(4 * self._reach, EVERY_BYTES) if whole else SHORTEST
        return records, count, size

    def widen(self) -> None:
        """A line that was looked at by itself was a record after all."""
        self._reach = min(2 * self._reach, EVERY_BYTES)


def stretch_of(
    lines: Sequence[bytes],
    seq: int,
    id_field: str,
    name: Callable[[int], str],
    settled: IsSettled | None,
) -> tuple[list[Record], int, int, int]:
    """The records of `lines`, the first of which is number `seq`, up to one that is no JSON object.

    `name` makes an id, for a record that has none, of how many of these lines lie before it. Gives the
    records that aren't settled, how many there were in all, and of how many lines and bytes, blank lines and
    line ends included.
    """
    records: list[Record] = []
    first, taken, size = seq, 0, 0
    read = parse if holds_long_number(b"\n".join(lines)) else orjson.loads
    for line in lines:
        content = line.strip()
        if content:
            if settled is None or not settled(seq):
                try:
                    data = read(content)
                except (BadLine, orjson.JSONDecodeError):
                    break
                if type(data) is not dict:
                    break
                id = data.get(id_field)
                records.append(Record(seq, name(taken) if id is None else id, data, content))
            seq += 1
        taken += 1
        size += len(line) + 1
    return records, seq - first, taken, size
