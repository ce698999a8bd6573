"""The server's limits admit a client that keeps the pace and refuse one that spends a minute at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.simulate.quota import Quota, duration


def test_a_client_at_the_permitted_pace_is_never_refused() -> None:
    quota = Quota(600, None, now=0.0)
    sends = [0.0] * 10 + [0.1 * n for n in range(1, 141)]
    assert not any(quota.ask(1, now) for now in sends)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 0.45), min_size=150, max_size=150))
def test_delays_on_the_way_refuse_nobody_who_keeps_the_pace(delays: list[float]) -> None:
    quota = Quota(600, None, now=0.0)
    sends = [0.0] * 10 + [0.1 * n for n in range(1, 141)]
    arrivals = sorted(send + delay for send, delay in zip(sends, delays, strict=True))
    assert not any(quota.ask(1, now) for now in arrivals)


def test_a_client_that_spends_a_whole_minute_at_once_is_refused() -> None:
    quota = Quota(600, None, now=0.0)
    admitted = sum(quota.ask(1, 0.0) is None for _ in range(600))
    assert admitted == 15  # a second's worth and the slack


def test_a_refusal_says_when_to_come_back_and_keeps_its_word() -> None:
    quota = Quota(60, None, now=0.0)
    assert quota.ask(1, 0.0) is None
    refusal = quota.ask(1, 0.0)
    assert refusal is not None
    assert refusal.dimension == "requests"
    assert refusal.wait == pytest.approx(1.0)
    assert quota.ask(1, refusal.wait) is None


def test_tokens_are_limited_beside_requests_and_a_refused_request_counts_nowhere() -> None:
    quota = Quota(6000, 60_000, now=0.0)
    assert quota.ask(1000, 0.0) is None
    refusal = quota.ask(1000, 0.0)
    assert refusal is not None
    assert refusal.dimension == "tokens"
    assert quota.headers()["x-ratelimit-remaining-requests"] == "5999"


def test_a_request_larger_than_the_bucket_is_admitted_alone_and_paid_for_after() -> None:
    quota = Quota(None, 6000, now=0.0)
    assert quota.ask(500, 0.0) is None
    assert quota.ask(1, 3.0) is not None
    assert quota.ask(1, 4.0) is None


def test_the_headers_tell_the_refill_rate() -> None:
    quota = Quota(600, None, now=0.0)
    for _ in range(5):
        quota.ask(1, 0.0)
    headers = quota.headers()
    assert headers["x-ratelimit-limit-requests"] == "600"
    assert headers["x-ratelimit-remaining-requests"] == "595"
    assert headers["x-ratelimit-reset-requests"] == "500ms"


def test_without_limits_nothing_is_refused_or_told() -> None:
    quota = Quota(None, None, now=0.0)
    assert quota.ask(10**9, 0.0) is None
    assert quota.headers() == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (61.5, "1m1.5s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
