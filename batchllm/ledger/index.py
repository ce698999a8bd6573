"""The journal's entry: one fixed-size note for each line in a sink, written just before the line.

Pure packing and checking. The CRC-32 covers the generation, the entry's fields and the line, so neither a
torn entry, nor zeros, nor a line of another run is ever taken for a settled record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

OUTPUT, DEAD, FAILED, NOTE = 1, 2, 3, 4
"""What the line is: a success, a dead letter, a dead record's line among the output, a note."""
SINK_OF = {OUTPUT: "output", FAILED: "output", DEAD: "dead", NOTE: "notes"}
"""The sink that holds the lines of a kind."""

FIELDS = struct.Struct("<QQQBBHIddIIId")
"""The fields of an Entry in their order, but for its checksum."""
MOST_CALLS, MOST_TOKENS = 0xFFFF, 0xFFFFFFFF
"""What there is room for."""
_CRC = struct.Struct("<I")
SIZE = FIELDS.size + _CRC.size
"""Bytes of an entry."""
_UNIT_AND_KIND = struct.Struct(f"<Q16xB{SIZE - 25}x")
_OF_LINE = struct.Struct("<Q16xB3xI36xI")


class Entry(NamedTuple):
    """`at` is Unix seconds, `latency` seconds of the answering call, `length` the line's bytes; never 0.

    `number` is the record's place in the pass that settled it; `digest` tells whether it or what was asked
    of it has changed since; `opens` is 1 for the first entry of a group, else 0; `calls` is how many calls it
    took; `cost` in US dollars, NaN where no price is known.
    """

    unit: int
    number: int
    digest: int
    kind: int
    opens: int = 0
    calls: int = 0
    length: int = 0
    at: float = 0.0
    latency: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float = float("nan")
    crc: int = 0


def pack(entry: Entry, line: bytes, generation: int) -> bytes:
    """The entry's bytes for this line."""
    *says, _ = entry._replace(length=len(line))
    return seal(FIELDS.pack(*says), line, generation)


def seal(fields: bytes, line: bytes, generation: int) -> bytes:
    """The bytes of an entry with these fields, which belongs to this line."""
    return fields + _CRC.pack(crc32(line, crc32(fields, generation)))


def unpack(block: bytes) -> Iterator[Entry]:
    """The whole entries of a block of an index, unchecked."""
    for at in range(0, len(block) - SIZE + 1, SIZE):
        yield Entry(*FIELDS.unpack_from(block, at), *_CRC.unpack_from(block, at + FIELDS.size))


def units(block: bytes) -> Iterator[tuple[int, int]]:
    """Unit and kind of the whole entries of a block, unchecked: a tenth of the time of `unpack`."""
    return _UNIT_AND_KIND.iter_unpack(block[: len(block) // SIZE * SIZE])


def of_lines(block: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Unit, kind, length and checksum of the whole entries of a block."""
    return _OF_LINE.iter_unpack(block[: len(block) // SIZE * SIZE])


def agrees(packed: bytes, line: bytes, generation: int) -> bool:
    """Whether an entry's bytes and a line belong together."""
    (expected,) = _CRC.unpack_from(packed, FIELDS.size)
    return bool(crc32(line, crc32(packed[: FIELDS.size], generation)) == expected)
