"""The verdict table against bodies recorded from the providers' documents (tests/data/verdicts.jsonl)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchllm.errors import AuthFailed, BadReply, CallError, Overloaded, RateLimited, RecordError, RouteGone
from batchllm.providers.complaints import Complaint, read, retry_after, shown
from batchllm.providers.rules import RULES
from batchllm.providers.verdicts import Case, row, under_ok, verdict

NOW = 1_700_000_000.0
RECORDED = Path(__file__).parents[1] / "data" / "verdicts.jsonl"
CASES = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]


def judged(case: dict[str, Any]) -> Any:
    return verdict(case["status"], case["headers"], case["body"].encode(), proven=case["proven"], now=NOW)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['provider']}: {case['name']}")
def test_a_recorded_answer_means_what_the_oracle_says(case: dict[str, Any]) -> None:
    error, expect = judged(case), case["expect"]
    if expect["error"] == "none":
        assert error is None
        return
    assert type(error).__name__ == expect["error"]
    if "cause" in expect:
        assert error.cause == expect["cause"]
    if isinstance(error, CallError):
        assert error.retry_after == pytest.approx(expect.get("retry_after"))
    if isinstance(error, CallError | RecordError):
        assert error.status == case["status"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['provider']}: {case['name']}")
def test_every_message_is_one_short_line_with_the_status(case: dict[str, Any]) -> None:
    error = judged(case)
    if error is not None:
        assert str(case["status"]) in error.message
        assert len(error.message) <= 300
        assert error.message.isprintable()
        assert "secret" not in error.message


def test_every_row_is_the_first_that_fits_some_recorded_answer() -> None:
    reached = []
    for case in CASES:
        complaint = read(case["body"].encode(), case["headers"].get("content-type", ""))
        at = case["status"]
        reached.append(row(Case(at, at, case["headers"], complaint, case["proven"], NOW, None)))
    assert [rule for rule in RULES if rule not in reached] == []


def test_the_providers_own_words_are_in_the_message() -> None:
    body = {
        "error": {"message": "Invalid type for 'max_tokens': expected an integer.", "code": "invalid_type"}
    }
    error = verdict(400, {}, json.dumps(body).encode(), now=NOW)
    assert error is not None
    assert error.message == "the provider answered 400: Invalid type for 'max_tokens': expected an integer."


def test_a_validation_error_names_the_field_and_not_the_input() -> None:
    body = b'{"detail":[{"loc":["body","max_tokens"],"msg":"Input should be an integer","input":"my text"}]}'
    error = verdict(422, {}, body, now=NOW)
    assert error is not None
    assert error.message == "the provider answered 422: body.max_tokens: Input should be an integer"


def test_the_refused_parameter_is_named_where_the_words_do_not() -> None:
    error = verdict(400, {}, b'{"error":{"message":"Invalid value.","param":"top_p"}}', now=NOW)
    assert error is not None
    assert error.message.endswith("Invalid value. (param: top_p)")


@pytest.mark.parametrize(
    "echoed",
    [
        "sk-proj-abcdefgh12345678",
        "sk-ab*******************yz12",
        "gsk_abcdefghijklmnop",
        "AIzaSyA1234567890abcdefg",
        "Bearer abc123def456",
        "0123456789abcdef0123456789abcdef",
        "api_key=hunter2hunter2",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln",
    ],
)
def test_a_key_that_the_body_echoes_is_masked(echoed: str) -> None:
    for body in (json.dumps({"error": {"message": f"Incorrect key provided: {echoed}."}}), f"no: {echoed}"):
        error = verdict(401, {}, body.encode(), now=NOW)
        assert isinstance(error, AuthFailed)
        assert echoed.removeprefix("Bearer ").removeprefix("api_key=") not in error.message
        assert "***" in error.message


def test_the_key_in_use_is_masked_whatever_it_looks_like() -> None:
    error = verdict(401, {}, b"wrong: my-own.key/with odd=chars", now=NOW, secret="my-own.key/with odd=chars")
    assert error is not None
    assert error.message == "the provider answered 401: wrong: ***"


def test_masking_comes_before_cutting() -> None:
    line = shown("x" * 290 + " sk-abcdefghijklmnopqrstuvwxyz")
    assert "sk-abc" not in line
    assert len(line) <= 300


def test_a_request_id_is_no_key() -> None:
    said = "include the request ID req_0123456789abcdef0123456789abcdef in your message"
    assert shown(said) == said


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert shown("a\x1b[31mb\r\nc\x00d\u202ee\x9bf") == "a [31mb c d e f"


def test_a_call_error_carries_the_request_id_from_header_or_body() -> None:
    for headers, body in (
        ({"x-request-id": "r1"}, b""),
        ({"request-id": "r1"}, b"{}"),
        ({}, b'{"type":"error","error":{"message":"busy"},"request_id":"r1"}'),
    ):
        error = verdict(503, headers, body, now=NOW)
        assert isinstance(error, Overloaded)
        assert error.request_id == "r1"


def test_a_redirect_tells_where_to_without_user_path_or_query() -> None:
    headers = {"location": "https://user:pw@other.example:8443/v1?token=t"}
    error = verdict(301, headers, b"", now=NOW)
    assert isinstance(error, RouteGone)
    assert error.message.endswith("a redirect to https://other.example:8443")
    assert error.hint
    assert "--base-url" in error.hint


def test_a_wrong_path_is_answered_with_a_hint_about_the_base_url() -> None:
    error = verdict(404, {}, b"404 page not found", now=NOW)
    assert isinstance(error, RouteGone)
    assert error.hint
    assert "/v1" in error.hint


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("Please try again in 599ms.", 0.599),
        ("Please try again in 1.5s.", 1.5),
        ("Please try again in 6m0s. Visit us", 360),
        ("try again in 1h2m3s", 3723),
        ("Please retry after 6 seconds.", 6),
        ("please try again in 2 minutes", 120),
        ("Please retry in 20.04466179s.", 20.04466179),
        ("please try again later", None),
        ("retry 3 times", None),
    ],
)
def test_a_wait_is_read_from_the_words(said: str, seconds: float | None) -> None:
    assert retry_after({}, Complaint("text", said), NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "30s"}, 30),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50"}, 30),
        ({"llm_provider-retry-after": "4"}, 4),
        ({"retry-after": "2", "llm_provider-retry-after": "4"}, 2),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7),
        ({}, None),
    ],
)
def test_a_wait_is_read_from_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, read(b""), NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"error": {"code": 502, "message": "Provider returned error"}}, "Overloaded"),
        ({"error": {"code": "429", "message": "wait"}}, "RateLimited"),
        (
            {"error": {"message": "no", "type": "insufficient_quota", "code": "insufficient_quota"}},
            "QuotaGone",
        ),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "Overloaded"),
        ({"error": {"message": "too long", "code": "context_length_exceeded"}}, "TooLarge"),
        ({"error": {"message": "bad", "type": "invalid_request_error"}}, "Refused"),
        ([{"error": {"status": "RESOURCE_EXHAUSTED", "message": "wait"}}], "RateLimited"),
        ({"object": "error", "message": "no such model", "type": "NotFoundError", "code": 404}, "RouteGone"),
        ({"error": "something odd"}, "BadReply"),
        ({"error": True}, "BadReply"),
    ],
)
def test_an_error_object_under_200_means_what_its_own_code_says(document: Any, kind: str) -> None:
    error = under_ok(document, {}, now=NOW)
    assert type(error).__name__ == kind
    assert "200" in error.message


def test_an_unknown_error_under_200_is_tried_again_under_a_cause_of_its_own() -> None:
    error = under_ok({"error": "something odd"}, {}, now=NOW)
    assert isinstance(error, BadReply)
    assert error.cause == "error_object"
    assert error.message == "the provider answered 200 with an error: something odd"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"[1]",
        b'"text"',
        b"{}",
        b'{"error": null}',
        b'{"error": []}',
        b'{"error": {"message": 5, "code": [], "details": [1, null], "innererror": "x"}}',
        b'{"detail": [1, {"loc": 3}]}',
        b'{"error": {"message": "{broken"}}',
        b"\xff\xfe\x00",
        b"<html",
        b"{" * 5000,
    ],
)
def test_no_body_is_too_odd_to_be_judged(body: bytes) -> None:
    for status in (302, 400, 403, 404, 429, 500, 700):
        error = verdict(status, {"location": "http://[bad"}, body, now=NOW)
        assert error is not None
        assert error.message.isprintable()


def test_a_429_without_a_word_about_waiting_has_no_wait() -> None:
    error = verdict(429, {}, b'{"error":{"message":"Rate limited"}}', now=NOW)
    assert isinstance(error, RateLimited)
    assert error.retry_after is None


def test_a_huge_error_body_is_judged_by_its_beginning_and_shown_short() -> None:
    for unit in (b"model ", b"<script ", b"<title>", b"try again in 1m", b'{"a":'):
        error = verdict(404, {"content-type": "text/html"}, b"<p>" + unit * 500_000, now=NOW)
        assert error is not None
        assert len(error.message) <= 300
