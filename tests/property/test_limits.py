"""What the limits promise for any sequence of needs, waits and answers."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.limits import MARGIN, Estimate, Pauses, TokenBucket

rates = st.floats(0.01, 10_000)
pauses = st.floats(0, 100)


def size(rate: float) -> float:
    return max(1.0, rate * MARGIN)


@st.composite
def demands(draw: st.DrawFn) -> tuple[list[float], list[tuple[float, list[float]]]]:
    """Rates of one to three dimensions, and needs up to three times a bucket, each after a gap."""
    rate = draw(st.lists(rates, min_size=1, max_size=3))
    need = st.tuples(*(st.floats(0, 3 * size(r)) for r in rate)).map(list)
    return rate, draw(st.lists(st.tuples(pauses, need), min_size=1, max_size=25))


def admitted(rate: list[float], asks: list[tuple[float, list[float]]]) -> list[tuple[float, list[float]]]:
    """When each need is let through by a caller who waits as it is told to."""
    now, bucket, let = 0.0, TokenBucket(rate, 0.0), []
    for gap, need in asks:
        now += gap
        while (wait := bucket.take(need, now)) > 0:
            now += max(wait, math.ulp(now))
        let.append((now, need))
    return let


@given(demands())
@settings(max_examples=60, deadline=None)
def test_no_window_of_time_admits_more_than_its_rate_and_one_burst(
    case: tuple[list[float], list[tuple[float, list[float]]]],
) -> None:
    rate, asks = case
    let = admitted(rate, asks)
    for i, r in enumerate(rate):
        for first in range(len(let)):
            total = 0.0
            for now, need in let[first:]:
                # The last one may be larger than the bucket: it goes alone, and its debt is paid after it.
                allowed = size(r) + r * (now - let[first][0]) + max(0.0, need[i] - size(r))
                total += need[i]
                assert total <= allowed * (1 + 1e-6) + 1e-6


@given(demands())
@settings(max_examples=60, deadline=None)
def test_one_wait_as_told_is_enough(case: tuple[list[float], list[tuple[float, list[float]]]]) -> None:
    rate, asks = case
    now, bucket = 0.0, TokenBucket(rate, 0.0)
    for gap, need in asks:
        now += gap
        wait = bucket.take(need, now)
        if wait > 0:
            now += wait * (1 + 1e-9) + 1e-9
            assert bucket.take(need, now) == 0.0


@given(st.floats(1, 1000), st.floats(1.01, 20), st.floats(0.01, 1))
def test_a_need_larger_than_the_bucket_waits_for_a_full_one_and_leaves_its_debt(
    rate: float, times: float, spent: float
) -> None:
    full, bucket = size(rate), TokenBucket([rate], 0.0)
    large = full * times
    spent *= full
    assert bucket.take([spent], 0.0) == 0.0
    wait = bucket.take([large], 0.0)
    assert math.isclose(wait, spent / rate, rel_tol=1e-6, abs_tol=1e-6)
    assert bucket.take([large], wait + 1e-6) == 0.0
    debt = bucket.take([1.0], wait + 1e-6)
    assert math.isclose(debt, (large - full + 1.0) / rate, rel_tol=1e-3, abs_tol=1e-4)


@given(st.floats(1, 1000), st.data())
def test_settling_gives_back_what_was_not_used_and_never_more_than_full(
    rate: float, data: st.DataObject
) -> None:
    full, bucket = size(rate), TokenBucket([rate], 0.0)
    reserved = data.draw(st.floats(0, full))
    used = data.draw(st.floats(0, 2 * full))
    assert bucket.take([reserved], 0.0) == 0.0
    bucket.settle([reserved], [used])
    wait = bucket.take([full], 0.0)
    assert math.isclose(wait, used / rate, rel_tol=1e-6, abs_tol=1e-6)


@given(st.floats(1, 1000), st.floats(0, 10))
def test_a_clock_that_goes_back_gives_nothing(rate: float, back: float) -> None:
    bucket = TokenBucket([rate], 100.0)
    assert bucket.take([size(rate)], 100.0) == 0.0
    assert bucket.take([size(rate)], 100.0 - back) > 0
    assert math.isclose(bucket.take([size(rate)], 100.0), size(rate) / rate, rel_tol=1e-6)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(1, 100)), max_size=30), st.floats(0, 200))
def test_the_time_spent_paused_is_that_in_which_some_pause_held(
    refusals: list[tuple[float, float]], after: float
) -> None:
    book, now, expected, until = Pauses(), 0.0, 0.0, 0.0
    for gap, wait in refusals:
        expected += max(0.0, min(until, now + gap) - now)
        now += gap
        left = book.add(now, wait, 0.0)
        until = max(until, now + wait)
        assert math.isclose(left, until - now, abs_tol=1e-9)
    expected += max(0.0, min(until, now + after) - now)
    assert math.isclose(book.total(now + after), expected, rel_tol=1e-9, abs_tol=1e-6)


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=2000))
@settings(max_examples=20, deadline=None)
def test_unnamed_pauses_double_to_a_minute_within_their_jitter(jitters: list[float]) -> None:
    book, now = Pauses(), 0.0
    for episode, jitter in enumerate(jitters):
        longest = min(60.0, 2.0 ** min(episode, 6))
        wait = book.add(now, None, jitter)
        assert longest / 2 - 1e-6 <= wait <= longest
        now += wait + 0.001


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=50))
def test_an_estimate_is_a_finite_number_of_tokens_whatever_was_learnt(
    usages: list[tuple[int, int, int]],
) -> None:
    estimate = Estimate()
    for usage in usages:
        estimate.learn(*usage)
    assert 0 <= sum(estimate.parts(1000, None)) < math.inf
    assert math.isclose(sum(estimate.parts(1000, 50)) - sum(estimate.parts(1000, 0)), 50)
