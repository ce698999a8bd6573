"""What services tell of their limits, read from headers and from the words of a refusal."""

from __future__ import annotations

import math

import pytest

from batchllm.limits import Told, rate_left, rate_of
from batchllm.model import Standing
from batchllm.providers.complaints import read
from batchllm.providers.standings import refused, told

NOW = 1_800_000_000.0


def test_openais_headers_are_read_with_their_durations() -> None:
    headers = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "29000",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert told(headers, NOW) == (
        Standing("requests", 600.0, 599.0, 0.1),
        Standing("tokens", 30_000.0, 29_000.0, 360.0),
    )


def test_anthropics_headers_are_read_with_their_dates_and_directions() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:30Z",
        "anthropic-ratelimit-output-tokens-limit": "8000",
    }
    assert told(headers, NOW) == (
        Standing("requests", 50.0, 49.0, 30.0),
        Standing("output-tokens", 8000.0, None, None),
    )


def test_no_headers_and_nonsense_tell_nothing() -> None:
    assert told({"content-type": "application/json"}, NOW) == ()
    assert told({"x-ratelimit-limit-requests": "many"}, NOW) == ()
    odd = {
        "x-ratelimit-limit-requests": "nan",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "-5",
        "x-ratelimit-reset-tokens": "soon",
    }
    assert told(odd, NOW) == (Standing("tokens", 100.0, 0.0, None),)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30,000, Used 29900, Requested 900.",
            Standing("tokens", 30_000.0, 0.0),
        ),
        (
            "Rate limit reached for m in org on requests per min. Limit: 3 / min.",
            Standing("requests", 3.0, 0.0),
        ),
        (
            "This request would exceed your organization's rate limit of 40,000 input tokens per minute.",
            Standing("input-tokens", 40_000.0, 0.0),
        ),
        ("Rate limit reached for output tokens per minute (limit 50).", Standing("output-tokens", 50.0, 0.0)),
        ("Limit reached for requests. Retry in 20s.", Standing("requests", None, 0.0)),
    ],
)
def test_a_refusal_that_names_its_limit_is_read(words: str, expected: Standing) -> None:
    complaint = read(b'{"error": {"message": "%s", "code": "rate_limit_exceeded"}}' % words.encode())
    assert refused({}, complaint, NOW) == (expected,)


def test_geminis_details_name_the_limit() -> None:
    body = (
        b'{"error": {"code": 429, "message": "Quota exceeded.", "status": "RESOURCE_EXHAUSTED", "details": [{'
        b'"violations": [{"quotaMetric": "generativelanguage.googleapis.com/free_tier_requests", '
        b'"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": "15"}]}]}}'
    )
    assert refused({}, read(body), NOW) == (Standing("requests", 15.0, 0.0),)


def test_a_refusal_that_names_nothing_tells_what_its_headers_tell() -> None:
    headers = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "0"}
    assert refused(headers, read(b"slow down please"), NOW) == (Standing("requests", 600.0, 0.0),)
    assert refused({}, read(b"busy"), NOW) == ()


def test_a_minutes_limit_is_spread_evenly_and_follows_what_is_left_of_it() -> None:
    for standing in (Standing("requests", 600.0, 590.0, 1.0), Standing("requests", 600.0)):
        assert rate_of(standing) == rate_left(standing) == 10.0
    assert rate_left(Standing("requests", 600.0, 40.0, 8.0)) == 8.0  # little left of a fixed window
    assert rate_left(Standing("requests", 600.0, 25.0, 58.0)) == 5.0  # others use it up
    assert rate_left(Standing("requests", 600.0, 0.0, 60.0)) == 1.0
    assert rate_left(Standing("requests", 120.0, 0.0, 0.5)) == 2.0  # a small bucket: all of it is back soon


def test_a_limit_of_a_day_sets_no_pace_and_none_is_none() -> None:
    assert rate_of(Standing("requests", 14_400.0, 14_000.0, 7200.0)) == math.inf
    assert rate_of(Standing("requests", None, 5.0, 1.0)) == math.inf
    for limit in (0.0, 1e-320, 0.5):
        assert rate_of(Standing("requests", limit, 0.0, 1.0)) == math.inf


def test_a_rate_that_was_lowered_is_back_at_the_reset() -> None:
    told = Told(4)
    assert told.heed(0, Standing("requests", 600.0, 0.0, 30.0), 100.0)
    assert (told.rates[0], told.scarce) == (1.0, {0: 130.0})
    assert not told.relax(129.0)
    assert told.relax(130.0)
    assert (told.rates[0], told.scarce) == (10.0, {})
