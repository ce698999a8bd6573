"""The server's limits admit a client that keeps the pace and refuse one that spends a minute at once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.simulate.quota import Quota, Standing

PACED = [0.0] * 5 + [0.1 * n for n in range(1, 1000)]
"""600 a minute with half a second's worth at once."""


def needs(tokens: int = 1, output: int = 0) -> dict[str, int]:
    both = {"input-tokens": tokens - output, "output-tokens": output}
    return {"requests": 1, "tokens": tokens, **both}


def limited(window: float | None = None, **limits: int) -> Quota:
    named: Mapping[str, int] = {name.replace("_", "-"): limit for name, limit in limits.items()}
    return Quota(named, 0.0, window)


def admitted(quota: Quota, times: list[float]) -> list[float]:
    """The times at which a request came through."""
    return [now for now in times if quota.ask(needs(), now) is None]


def densest(times: list[float], span: float) -> int:
    """The most times that any span of so many seconds holds."""
    return max(sum(start <= at < start + span for at in times) for start in times)


@pytest.mark.parametrize("window", [None, 1, 10, 60])
def test_a_client_at_the_permitted_pace_is_never_refused(window: float | None) -> None:
    assert admitted(limited(window, requests=600), PACED) == PACED


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 0.45), min_size=150, max_size=150))
def test_delays_on_the_way_refuse_nobody_who_keeps_the_pace(delays: list[float]) -> None:
    quota = limited(requests=600)
    sends = [0.0] * 10 + [0.1 * n for n in range(1, 141)]
    arrivals = sorted(send + delay for send, delay in zip(sends, delays, strict=True))
    assert admitted(quota, arrivals) == arrivals


@pytest.mark.parametrize(("window", "most"), [(None, 15), (1, 15), (10, 105), (60, 605)])
def test_a_client_that_spends_everything_at_once_gets_a_window_s_worth(
    window: float | None, most: int
) -> None:
    assert len(admitted(limited(window, requests=600), [0.0] * 1200)) == most  # with the slack


@pytest.mark.parametrize("window", [1, 10, 60])
def test_whoever_hammers_never_gets_more_than_a_window_s_worth_nor_more_than_the_average(
    window: float,
) -> None:
    times = admitted(limited(window, requests=600), [0.02 * n for n in range(6000)])
    assert densest(times, window) <= 10 * window + 5
    assert len(times) <= 10 * 120 + 10 * window + 5
    assert len(times) >= 10 * 120


@pytest.mark.parametrize(("slack", "most"), [(0, 100), (0.5, 105), (1, 110)])
def test_the_slack_is_what_a_window_may_be_overdrawn_by(slack: float, most: int) -> None:
    quota = Quota({"requests": 600}, 0.0, 10, slack)
    times = admitted(quota, [0.02 * n for n in range(2000)])
    assert densest(times, 10) == most


def test_a_window_is_empty_again_when_it_has_passed() -> None:
    quota = limited(10, requests=60)
    assert len(admitted(quota, [0.0] * 20)) == 10
    assert admitted(quota, [9.9, 10.0]) == [10.0]


def test_a_window_too_short_for_one_request_is_as_long_as_one_takes() -> None:
    assert len(admitted(limited(1, requests=6), [0.1 * n for n in range(1200)])) == 12


@pytest.mark.parametrize("window", [None, 1, 10, 60])
def test_a_refusal_says_when_to_come_back_and_keeps_its_word(window: float | None) -> None:
    quota = limited(window, requests=60)
    refusal = None
    while refusal is None:
        refusal = quota.ask(needs(), 0.0)
    assert refusal.dimension == "requests"
    assert refusal.wait == pytest.approx(window or 1.0)
    assert quota.ask(needs(), refusal.wait) is None


def test_tokens_are_limited_beside_requests_and_a_refused_request_counts_nowhere() -> None:
    quota = limited(requests=6000, tokens=60_000)
    assert quota.ask(needs(1000), 0.0) is None
    refusal = quota.ask(needs(1000), 0.0)
    assert refusal is not None
    assert refusal.dimension == "tokens"
    assert quota.standings(0.0)[0] == Standing("requests", 6000, 5999, 0.01)


def test_input_and_output_have_limits_of_their_own() -> None:
    quota = limited(60, input_tokens=1000, output_tokens=100)
    assert quota.ask(needs(500, output=90), 0.0) is None
    refusal = quota.ask(needs(100, output=90), 0.0)
    assert refusal is not None
    assert refusal.dimension == "output-tokens"


@pytest.mark.parametrize("window", [None, 60])
def test_what_was_reserved_and_not_used_comes_back(window: float | None) -> None:
    quota = limited(window, output_tokens=600)
    assert quota.ask(needs(600, output=600), 0.0) is None
    assert quota.ask(needs(600, output=10), 0.0) is not None
    quota.settle(needs(600, output=600), {"output-tokens": 5, "tokens": 5}, 0.0, 0.0)
    assert quota.standings(0.0)[0].remaining >= 595
    assert quota.ask(needs(600, output=5), 0.0) is None


def test_what_comes_back_after_its_window_has_passed_is_not_counted_twice() -> None:
    quota = limited(10, output_tokens=600)
    assert quota.ask(needs(100, output=100), 0.0) is None
    quota.settle(needs(100, output=100), {"output-tokens": 1}, 20.0, 0.0)
    assert quota.standings(20.0)[0].remaining == 600
    assert quota.ask(needs(100, output=100), 20.0) is None
    assert quota.ask(needs(6, output=6), 20.0) is not None


@pytest.mark.parametrize("window", [None, 1])
def test_a_request_larger_than_the_limit_holds_goes_alone_and_is_paid_for_after(window: float | None) -> None:
    quota = limited(window, tokens=6000)
    assert quota.ask(needs(500), 0.0) is None
    assert quota.ask(needs(1), 3.0) is not None
    assert quota.ask(needs(1), 5.0) is None


def test_a_bucket_s_standing_tells_the_refill_rate() -> None:
    quota = limited(requests=600)
    admitted(quota, [0.0] * 5)
    assert quota.standings(0.0) == [Standing("requests", 600, 595, 0.5)]


def test_a_window_s_standing_tells_what_is_in_it_and_when_it_is_empty() -> None:
    quota = limited(60, requests=600)
    admitted(quota, [0.0, 1.0, 2.0])
    assert quota.standings(10.0) == [Standing("requests", 600, 597, 52.0)]
    assert quota.standings(61.5) == [Standing("requests", 600, 599, 0.5)]


def test_without_limits_nothing_is_refused_or_told() -> None:
    quota = Quota({"requests": None, "tokens": None}, 0.0)
    assert quota.ask(needs(10**9), 0.0) is None
    assert quota.standings(0.0) == []
