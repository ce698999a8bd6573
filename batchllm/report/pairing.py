"""Records that two variants both answered, found in one pass over lines that stand near each other.

Memory is bounded by what a window of records takes: an answer that comes more than 65,536 records after its
partner's is not paired, which a finished, ordered output never has. `comparing` calls it.
"""

from __future__ import annotations

from typing import Any

from batchllm.fields import frozen
from batchllm.stats import mcnemar

WINDOW = 1 << 16


@frozen
class Pair:
    """How two variants, `first` and `second`, did on the records that both answered."""

    first: str | None
    second: str | None
    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        """The records that both answered."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: how likely such a difference is if there is none."""
        return mcnemar(self.only_first, self.only_second)

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can carry; `b` and `c` are the pairs that only the first, the second got right."""
        return {
            "first": self.first,
            "second": self.second,
            "n": self.n,
            "both": self.both,
            "b": self.only_first,
            "c": self.only_second,
            "neither": self.neither,
            "p": self.p,
        }


class Pairing:
    """Counts pairs as answers come; variants are numbers from 0.

    Each slot holds the latest record of those whose `seq` falls into it: `seq`, and two sets of bits, which
    variants have answered and which were right.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._slots = [(-1, 0, 0)] * window
        self._counts: dict[tuple[int, int], list[int]] = {}

    def add(self, seq: int, variant: int, right: bool) -> None:
        """Count an answer with each of those that its record has already."""
        place = seq % len(self._slots)
        held, answered, were_right = self._slots[place]
        if held > seq:
            return  # its partners are long past
        if held < seq:
            answered = were_right = 0
        for other in range(answered.bit_length()):
            if answered >> other & 1:
                self._count(other, bool(were_right >> other & 1), variant, right)
        self._slots[place] = (seq, answered | 1 << variant, were_right | right << variant)

    def pairs(self, names: list[str | None]) -> tuple[Pair, ...]:
        """What two variants have in common, for every two of them."""
        found = []
        for first in range(len(names)):
            for second in range(first + 1, len(names)):
                neither, only_second, only_first, both = self._counts.get((first, second), (0, 0, 0, 0))
                found.append(Pair(names[first], names[second], both, only_first, only_second, neither))
        return tuple(found)

    def _count(self, one: int, one_right: bool, other: int, other_right: bool) -> None:
        if one > other:
            one, one_right, other, other_right = other, other_right, one, one_right
        self._counts.setdefault((one, other), [0, 0, 0, 0])[2 * one_right + other_right] += 1
