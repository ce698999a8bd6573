"""Each record of a source under each variant, side by side: what a run reads that compares some.

It numbers them (unit = seq × variants + variant), leaves out what is settled of a record, and asks the source
behind it for everything else. `wire` puts it before the reader; a pass over dead letters needs none, since a
letter tells its variant.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from batchllm.model import Dead, Position, Record
from batchllm.ports import Source

_CHUNK = 1024
"""Items handed on together at most."""


class Variants:
    """A Source that yields every record once for each of `names`; `settled(unit)` says what is left out."""

    def __init__(self, source: Source, names: Sequence[str], settled: Callable[[int], bool]) -> None:
        self._source = source
        self._names = tuple(names)
        self._settled = settled

    async def chunks(self) -> AsyncGenerator[list[Record | Dead], None]:
        """Yield lists of at most 1,024 items; the variants of a record follow each other."""
        some = max(1, _CHUNK // len(self._names))
        async with aclosing(self._source.chunks()) as chunks:
            async for chunk in chunks:
                for start in range(0, len(chunk), some):
                    if found := [each for item in chunk[start : start + some] for each in self._each(item)]:
                        yield found

    def position(self, seq: int) -> Position:
        """The source's position for the record of unit `seq`."""
        return self._source.position(seq // len(self._names))

    def _each(self, item: Record | Dead) -> list[Record | Dead]:
        record = item.record if isinstance(item, Dead) else item
        first = record.seq * len(self._names)
        found: list[Record | Dead] = []
        for unit, name in enumerate(self._names, first):
            if not self._settled(unit):
                one = replace(record, variant=name, place=unit)
                found.append(replace(item, record=one) if isinstance(item, Dead) else one)
        return found
