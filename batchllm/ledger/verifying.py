"""The lines of a run with their entries, from the beginning on, each checked against the other.

They are read and checked in stretches, by calls that do the work of a whole stretch: a large part of the time
that a pass over a run takes. It changes nothing; recovery walks what may be torn by itself.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, compress, pairwise, repeat
from operator import eq
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from batchllm.errors import ConfigError
from batchllm.ledger.index import SINK_OF, SIZE, Entry, agrees, of_lines, unpack

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal

STRETCH = 1 << 18
"""Bytes of lines that are read at once; a longer line stands alone."""
_BLOCK = 4096 * SIZE
_PACKED = struct.Struct(f"{SIZE}s")
_HEAD = struct.Struct(f"{SIZE - 4}s4x")


class Stretch(NamedTuple):
    """Entries that follow each other, column by column: what they say, their bytes, their lines' places."""

    units: Sequence[int]
    kinds: Sequence[int]
    places: Sequence[int]
    lengths: Sequence[int]
    packed: Sequence[bytes]
    lines: Sequence[bytes]


def verified(journal: Journal, end: int | None = None) -> Iterator[tuple[Entry, bytes, int, bytes]]:
    """Each entry of the index up to byte `end`, with its bytes, its line's place and its line, all checked.

    Raises ConfigError where one doesn't agree.
    """
    for stretch in stretches(journal, end):
        entries = unpack(b"".join(stretch.packed))
        yield from zip(entries, stretch.packed, stretch.places, stretch.lines, strict=True)


def stretches(journal: Journal, end: int | None = None) -> Iterator[Stretch]:
    """The same in a fraction of the time, many at once."""
    ends = dict.fromkeys(journal.sinks, 0)
    generation, at = journal.generation, 0
    end = journal.index.length if end is None else end
    while at + SIZE <= end and (block := journal.index.read(at, min(_BLOCK, end - at))):
        units, kinds, lengths, sums = zip(*of_lines(block), strict=True)
        names = _names(journal, kinds, lengths, at)
        for start, stop in pieces(lengths, STRETCH):
            part = slice(start, stop)
            places, lines = _lines(journal, names[part], lengths[part], ends)
            inside = block[start * SIZE : stop * SIZE]
            packed = list(chain.from_iterable(_PACKED.iter_unpack(inside)))
            heads = map(crc32, chain.from_iterable(_HEAD.iter_unpack(inside)), repeat(generation))
            if not all(map(eq, map(crc32, lines, heads), sums[part])):
                generation = _generation(journal, generation, names[part], places, packed, lines)
            yield Stretch(units[part], kinds[part], places, lengths[part], packed, lines)
        at += len(block)


def pieces(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Where to cut things of these lengths so that no piece but a single thing is longer than `most`."""
    ends = list(accumulate(lengths, initial=0))
    start = 0
    while start < len(lengths):
        stop = max(start + 1, bisect_right(ends, ends[start] + most) - 1)
        yield start, stop
        start = stop


def _names(journal: Journal, kinds: Sequence[int], lengths: Sequence[int], at: int) -> list[str]:
    """The sinks that entries of these kinds belong to; `at` is where they start in the index."""
    if not SINK_OF.keys() >= set(kinds) or 0 in lengths:
        bad = next(i for i, kind in enumerate(kinds) if kind not in SINK_OF or not lengths[i])
        raise changed(journal.index.path, f"the entry at byte {at + bad * SIZE} belongs to no line")
    return list(map(SINK_OF.__getitem__, kinds))


def _lines(
    journal: Journal, names: Sequence[str], lengths: Sequence[int], ends: dict[str, int]
) -> tuple[Sequence[int], Sequence[bytes]]:
    """The next lines of these sinks and where they are; `ends` is where each sink goes on, and moves."""
    several = set(names)
    if len(several) == 1:
        return _of_one(journal, names[0], lengths, ends)
    found: dict[str, Iterator[tuple[int, bytes]]] = {}
    for name in several:
        sizes = list(compress(lengths, map(name.__eq__, names)))
        found[name] = zip(*_of_one(journal, name, sizes, ends), strict=True)
    both = [next(found[name]) for name in names]
    return [place for place, _ in both], [line for _, line in both]


def _of_one(
    journal: Journal, name: str, lengths: Sequence[int], ends: dict[str, int]
) -> tuple[Sequence[int], Sequence[bytes]]:
    """The same of one sink."""
    first = ends[name]
    *places, ends[name] = accumulate(lengths, initial=first)
    block = journal.sinks[name].read(first, ends[name] - first)
    bounds = accumulate(lengths, initial=0)
    return places, [block[start:stop] for start, stop in pairwise(bounds)]


def _generation(
    journal: Journal,
    generation: int,
    names: Sequence[str],
    places: Sequence[int],
    packed: Sequence[bytes],
    lines: Sequence[bytes],
) -> int:
    """The generation of the last of these entries: those of earlier ones stand beside those of this one.

    Raises ConfigError where an entry and its line are of none.
    """
    for name, place, entry, line in zip(names, places, packed, lines, strict=True):
        if not agrees(entry, line, generation):
            older = (g for g in range(journal.generation, -1, -1) if agrees(entry, line, g))
            generation = next(older, -1)
            if generation < 0:
                what = f"the line at byte {place} is not the one that the index tells of"
                raise changed(journal.sinks[name].path, what)
    return generation


def changed(path: str, what: str) -> ConfigError:
    """The refusal of files that are not as the run wrote them."""
    return ConfigError(
        f"{path} was changed since the run wrote it: {what}",
        "put the file back as it was, or start over with --fresh (the old files are kept aside)",
    )
