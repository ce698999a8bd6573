"""What the limits promise, by example; tests/property has the same for any sequence."""

from __future__ import annotations

import pytest

from batchllm.limits import MARGIN, Estimate, Pauses, TokenBucket


def test_a_bucket_starts_with_half_a_second_of_its_rate() -> None:
    bucket = TokenBucket([100.0], 0.0)
    assert [bucket.take([1.0], 0.0) for _ in range(51)] == [0.0] * 50 + [pytest.approx(0.01)]
    assert MARGIN == 0.5


def test_a_slow_bucket_holds_one() -> None:
    bucket = TokenBucket([0.1], 0.0)
    assert bucket.take([1.0], 0.0) == 0.0
    assert bucket.take([1.0], 0.0) == pytest.approx(10)


def test_all_dimensions_are_taken_together_or_none() -> None:
    bucket = TokenBucket([10.0, 10.0], 0.0)
    assert bucket.take([1.0, 5.0], 0.0) == 0.0
    assert bucket.take([1.0, 1.0], 0.0) == pytest.approx(0.1)  # tokens are out
    assert bucket.take([4.0, 0.0], 0.0) == 0.0  # and no request was taken for it


def test_the_longest_wait_of_all_dimensions_counts() -> None:
    bucket = TokenBucket([2.0, 4.0], 0.0)
    assert bucket.take([1.0, 2.0], 0.0) == 0.0
    assert bucket.take([1.0, 1.0], 0.0) == pytest.approx(0.5)


def test_the_longest_pause_wins() -> None:
    pauses = Pauses()
    assert pauses.add(0.0, 10.0, 0.0) == 10.0
    assert pauses.add(1.0, 2.0, 0.0) == 9.0
    assert pauses.add(1.0, 30.0, 0.0) == 30.0
    assert pauses.until == 31.0


def test_refusals_of_one_episode_are_one_pause() -> None:
    pauses = Pauses()
    assert pauses.add(0.0, None, 1.0) == 1.0
    assert pauses.add(0.5, None, 1.0) == 0.5
    assert pauses.add(1.0, None, 1.0) == 2.0


def test_after_a_success_unnamed_pauses_start_small_again() -> None:
    pauses = Pauses()
    for now in (0.0, 10.0, 20.0):
        pauses.add(now, None, 1.0)
    pauses.succeeded()
    assert pauses.add(100.0, None, 1.0) == 1.0


def test_an_asked_wait_of_nothing_is_no_licence_to_ask_at_once() -> None:
    pauses = Pauses()
    assert pauses.add(0.0, 0.0, 0.0) == 0.5
    assert pauses.add(1.0, -3.0, 0.0) == 1.0


def test_an_estimate_follows_what_it_learns() -> None:
    estimate = Estimate()
    assert sum(estimate.parts(400, None)) == 356
    assert sum(estimate.parts(400, 50)) == 150
    for _ in range(200):
        estimate.learn(400, 200, 10)
    assert sum(estimate.parts(400, None)) == pytest.approx(210, rel=0.01)


def test_an_answer_without_usage_teaches_nothing() -> None:
    estimate = Estimate()
    estimate.learn(400, 0, 0)
    estimate.learn(0, 100, 0)
    assert sum(estimate.parts(400, None)) == 356
