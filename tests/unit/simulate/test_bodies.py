"""Refusals in every service's words mean to the run what they mean from the service itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchllm.providers.complaints import read, retry_after
from batchllm.simulate.bodies import SERVICES, body, status
from batchllm.simulate.problems import OVERLOADED, SLOW_DOWN, SPENT, WRONG_KEY, Problem, rate_limited

LIMITED = rate_limited(1.5, "tokens", 20_000)


def error(problem: Problem, service: str, told: str = "yes") -> Any:
    return json.loads(body(problem, service, told=told, request_id="req_1"))["error"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_rate_limit_s_body_tells_the_wait_unless_it_must_not(service: str) -> None:
    assert retry_after({}, read(body(LIMITED, service)), 0.0) == pytest.approx(1.5, abs=0.5)
    assert retry_after({}, read(body(LIMITED, service, told="text")), 0.0) == pytest.approx(1.5, abs=0.5)
    assert retry_after({}, read(body(LIMITED, service, told="no")), 0.0) is None
    assert status(LIMITED, service) == 429


def test_gemini_s_minute_and_day_are_told_apart_by_the_quota_s_id() -> None:
    minute, day = error(LIMITED, "gemini"), error(SPENT, "gemini")
    assert minute["status"] == day["status"] == "RESOURCE_EXHAUSTED"
    violation = minute["details"][0]["violations"][0]
    assert "PerMinute" in violation["quotaId"]
    assert violation["quotaValue"] == "20000"
    assert minute["details"][1]["retryDelay"] == "1.5s"
    assert "PerDay" in day["details"][0]["violations"][0]["quotaId"]


def test_a_spent_account_is_named_as_each_service_names_it() -> None:
    assert error(SPENT, "openai")["code"] == error(SPENT, "openai")["type"] == "insufficient_quota"
    assert error(SPENT, "azure")["code"] == "insufficient_quota"
    assert error(SPENT, "anthropic")["details"]["error_code"] == "enforced_spend_limit_reached"


def test_overload_is_529_at_anthropic_and_503_elsewhere() -> None:
    assert [status(SLOW_DOWN, service) for service in SERVICES] == [503, 529, 503, 503]
    assert error(SLOW_DOWN, "anthropic")["type"] == "overloaded_error"
    assert error(SLOW_DOWN, "openai")["code"] == "slow_down"
    assert "slow" not in json.dumps(error(OVERLOADED, "openai")).lower()


def test_a_wrong_key_has_each_service_s_code() -> None:
    assert error(WRONG_KEY, "anthropic")["type"] == "authentication_error"
    assert error(WRONG_KEY, "gemini")["status"] == "UNAUTHENTICATED"
    assert error(WRONG_KEY, "azure")["code"] == "401"
