"""A stretch of lines that are records as nearly all are, taken together at a third of the cost.

Pure: it stops before the first line that needs a closer look, which the source then takes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from batchllm.exact import holds_long_number
from batchllm.model import Record
from batchllm.sources.shapes import BadLine, parse


def stretch_of(
    lines: Sequence[bytes],
    seq: int,
    id_field: str,
    name: Callable[[int], str],
    settled: Callable[[int], bool] | None,
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
