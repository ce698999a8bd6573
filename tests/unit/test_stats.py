"""Interval, test and confusion table, each against another way to compute it."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchllm.stats import LABELS, Z95, Confusion, mcnemar, wilson


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 100_000))
    return draw(st.integers(0, n)), n


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_the_one_in_newcombe_s_table(right: int, n: int, low: float, high: float) -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    interval = wilson(right, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_z_is_the_normal_s_for_95_percent() -> None:
    assert pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-15) == Z95


@given(shares())
def test_the_ends_of_the_interval_are_z_standard_errors_from_the_share(share: tuple[int, int]) -> None:
    right, n = share
    interval = wilson(right, n)
    assert 0 <= interval.low <= right / n <= interval.high <= 1
    for p in (interval.low, interval.high):
        exact = Fraction(p)
        far = abs(Fraction(right, n) - exact)
        assert float(far) == pytest.approx(
            Z95 * math.sqrt(float(exact * (1 - exact) / n)), rel=1e-6, abs=1e-9
        )


@given(shares())
def test_each_end_is_the_double_nearest_to_the_solution(share: tuple[int, int]) -> None:
    """Solved in whole numbers: the roots of (1 + z²/n) p² - (2 k/n + z²/n) p + k²/n², to 60 digits."""
    right, n = share
    z, share_of, scale = Fraction(Z95), Fraction(right, n), 10**120
    a, b, c = 1 + z * z / n, 2 * share_of + z * z / n, share_of * share_of
    inside = b * b - 4 * a * c
    root = Fraction(math.isqrt(inside.numerator * scale // inside.denominator), 10**60)
    low, high = ((b + sign * root) / (2 * a) for sign in (-1, 1))

    interval = wilson(right, n)

    assert interval.low == (0.0 if right == 0 else float(low))
    assert interval.high == (1.0 if right == n else float(high))


@given(shares())
def test_right_and_wrong_have_mirrored_intervals(share: tuple[int, int]) -> None:
    right, n = share
    interval, mirrored = wilson(right, n), wilson(n - right, n)
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-15)
    assert interval.high == pytest.approx(1 - mirrored.low, abs=1e-15)


def test_of_nothing_nothing_is_known() -> None:
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    assert (wilson(0, 7).low, wilson(7, 7).high) == (0.0, 1.0)


def exact_p(b: int, c: int) -> float:
    """The definition in whole numbers, rounded once."""
    n = b + c
    tail, term = 0, 1
    for i in range(min(b, c) + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_sum_to_the_last_digit(b: int, c: int) -> None:
    assert mcnemar(b, c) == exact_p(b, c) == mcnemar(c, b)


@pytest.mark.parametrize(("b", "c"), [(9_800, 10_200), (700, 4_000), (0, 1_000), (1, 1_060), (7_999, 8_001)])
def test_mcnemar_is_exact_for_many_pairs(b: int, c: int) -> None:
    assert mcnemar(b, c) == exact_p(b, c)


def test_mcnemar_of_millions_neither_overflows_nor_ends_in_noise() -> None:
    assert mcnemar(0, 5_000_000) == 0.0
    assert mcnemar(300_000, 300_000) == mcnemar(0, 0) == 1.0
    by_the_normal = math.erfc((1_000 - 1) / math.sqrt(2 * 399_000))
    assert mcnemar(199_000, 200_000) == pytest.approx(by_the_normal, rel=1e-3)


def test_a_confusion_table_has_the_counts_with_the_commonest_labels_first() -> None:
    confusion = Confusion()
    answers = [("a", "a")] * 3 + [("b", "a")] * 2 + [("b", "b")] * 4 + [("a", "none")]
    for expected, answered in answers:
        confusion.add(expected, answered)
    table = confusion.table()
    assert table.labels == ("b", "a", "none")
    assert not table.other
    assert table.counts == ((4, 2, 0), (0, 3, 1), (0, 0, 0))


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 400)), max_size=600))
def test_a_confusion_table_stays_small_and_counts_everything_once(answers: list[tuple[int, int]]) -> None:
    confusion = Confusion()
    for expected, answered in answers:
        confusion.add(str(expected), str(answered))
    table = confusion.table()
    assert len(table.labels) <= LABELS
    assert {len(row) for row in table.counts} <= {len(table.labels) + table.other}
    assert sum(map(sum, table.counts)) == len(answers)
    rows = Counter(str(expected) for expected, _ in answers)
    if not table.other:
        assert [sum(row) for row in table.counts] == [rows[label] for label in table.labels]


def test_a_million_labels_are_not_held() -> None:
    confusion = Confusion()
    for number in range(3_000):
        confusion.add(f"l{number}", f"m{number}")
    assert len(confusion.known) == 256
    assert len(confusion.cells) <= 257
    assert len(confusion.table().labels) == LABELS
    assert confusion.table().other
