"""How sure a measured share is, whether two differ, and what was taken for what. Pure arithmetic.

The report calls it; it knows nothing of records and files.
"""

from __future__ import annotations

from dataclasses import field
from decimal import Decimal, localcontext

from batchllm.fields import frozen, mutable

Z95 = 1.959963984540054
"""The standard normal's 97.5 % point: 95 % lie within so many standard deviations."""
LABELS = 50
"""Labels that a confusion table shows."""
_TRACKED = 256
_BITS = 256


@frozen
class Interval:
    """From `low` to `high`, both shares of 0 to 1."""

    low: float
    high: float


def wilson(right: int, n: int, z: float = Z95) -> Interval:
    """The score interval of a share, `right` of `n`; from 0 to 1 where `n` is 0.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927):
    the shares p with |right/n - p| <= z sqrt(p (1 - p) / n). Computed with 40 digits and rounded once.
    """
    if not n:
        return Interval(0.0, 1.0)
    with localcontext() as context:
        context.prec = 40
        square, whole = Decimal(z) * Decimal(z), Decimal(n)
        middle = right + square / 2
        half = Decimal(z) * (right * (n - right) / whole + square / 4).sqrt()
        low = 0.0 if right == 0 else float((middle - half) / (whole + square))
        high = 1.0 if right == n else float((middle + half) / (whole + square))
    return Interval(low, high)


def mcnemar(b: int, c: int) -> float:
    """The two-sided p-value of McNemar's exact test; `b` and `c` pairs differ one way and the other.

    Q. McNemar, Psychometrika 12 (1947), by the binomial distribution: under no difference each such pair
    goes either way with probability 1/2, so p is twice P(X <= min(b, c)), X ~ Bin(b + c, 1/2), at most 1.
    The sum is kept to 256 bits, so the result is right to double precision; time is linear in the smaller.
    """
    n, least = b + c, min(b, c)
    if b == c:
        return 1.0
    term = total = 1 << _BITS
    exponent = -_BITS
    for i in range(1, least + 1):
        term = term * (n - i + 1) // i
        total += term
        if term >> (2 * _BITS):
            term, total, exponent = term >> _BITS, total >> _BITS, exponent + _BITS
    return total / (1 << (n - 1 - exponent))


@frozen
class Table:
    """`counts[i][j]`: how often `labels[i]` was expected and `labels[j]` answered.

    With `other`, there is one more row and column for all labels that are not among these.
    """

    labels: tuple[str, ...]
    other: bool
    counts: tuple[tuple[int, ...], ...]


@mutable
class Confusion:
    """Counts of expected and answered labels; the first 256 labels are told apart, so it stays small."""

    cells: dict[tuple[str | None, str | None], int] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)

    def add(self, expected: str, answered: str) -> None:
        """Count one answer."""
        cell = self._known(expected), self._known(answered)
        self.cells[cell] = self.cells.get(cell, 0) + 1

    def table(self, most: int = LABELS) -> Table:
        """The table of the `most` frequent labels, those expected most often first."""
        rank: dict[str, list[int]] = {}
        for (expected, answered), count in self.cells.items():
            for place, label in enumerate((expected, answered)):
                if label is not None:
                    rank.setdefault(label, [0, 0])[place] -= count
        labels = tuple(sorted(rank, key=lambda label: (*rank[label], label)))[:most]
        places = {label: i for i, label in enumerate(labels)}
        folded = any(label not in places for cell in self.cells for label in cell)
        size = len(labels) + folded
        counts = [[0] * size for _ in range(size)]
        for (expected, answered), count in self.cells.items():
            row = len(labels) if expected is None else places.get(expected, len(labels))
            column = len(labels) if answered is None else places.get(answered, len(labels))
            counts[row][column] += count
        return Table(labels, folded, tuple(tuple(row) for row in counts))

    def _known(self, label: str) -> str | None:
        if label in self.known:
            return label
        if len(self.known) >= _TRACKED:
            return None
        self.known.add(label)
        return label
