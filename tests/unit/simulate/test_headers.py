"""Limits are told in each service's own headers, and our reader of them agrees."""

from __future__ import annotations

import pytest

from batchllm.simulate.headers import duration, limit_headers, moment, wait_headers
from batchllm.simulate.quota import Standing

STANDINGS = [Standing("requests", 600, 595, 0.5), Standing("output-tokens", 8000, 0, 61.5)]
WALL = 1_800_000_000.2


def test_openai_s_headers_have_durations_and_no_output_tokens() -> None:
    assert limit_headers("openai", STANDINGS, WALL) == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "595",
        "x-ratelimit-reset-requests": "500ms",
    }


def test_anthropic_s_headers_have_times_of_day_and_every_dimension() -> None:
    assert limit_headers("anthropic", STANDINGS, WALL) == {
        "anthropic-ratelimit-requests-limit": "600",
        "anthropic-ratelimit-requests-remaining": "595",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:01Z",
        "anthropic-ratelimit-output-tokens-limit": "8000",
        "anthropic-ratelimit-output-tokens-remaining": "0",
        "anthropic-ratelimit-output-tokens-reset": "2027-01-15T08:01:02Z",
    }


def test_no_headers_are_no_headers() -> None:
    assert limit_headers("none", STANDINGS, WALL) == {}


@pytest.mark.parametrize(
    ("service", "found"),
    [
        ("openai", {"retry-after-ms": "1200", "retry-after": "2"}),
        ("azure", {"retry-after-ms": "1200", "retry-after": "2"}),
        ("anthropic", {"retry-after": "2"}),
        ("gemini", {}),
    ],
)
def test_a_wait_is_told_as_the_service_tells_it(service: str, found: dict[str, str]) -> None:
    assert wait_headers(service, 1.2) == found


def test_times_of_day_are_never_too_early() -> None:
    assert moment(0.1) == "1970-01-01T00:00:01Z"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (61.5, "1m1.5s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
