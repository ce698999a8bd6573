"""A stretch of lines that are records as nearly all are, taken together at a third of the cost.

Pure: it stops before the first line that needs a closer look, which the source then takes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from batchllm.exact import holds_long_number
from batchllm.model import Record


def stretch_of(
    lines: Sequence[bytes], seq: int, id_field: str, settled: Callable[[int], bool] | None
) -> tuple[list[Record], int, int]:
    """The records of `lines`, the first of which is number `seq`, up to one that is not quite plain.

    Plain is a JSON object with an id and without numbers that would not fit. Gives the records that aren't
    settled, how many lines there were in all, and their bytes, line ends included.
    """
    records: list[Record] = []
    first, size = seq, 0
    closely = holds_long_number(b"\n".join(lines))
    for line in lines:
        content = line.strip()
        if settled is None or not settled(seq):
            try:
                data = orjson.loads(content)
            except orjson.JSONDecodeError:
                break
            if type(data) is not dict or (closely and holds_long_number(content)):
                break
            id = data.get(id_field)
            if id is None:
                break
            records.append(Record(seq, id, data, content))
        elif not content:
            break
        seq += 1
        size += len(line) + 1
    return records, seq - first, size
