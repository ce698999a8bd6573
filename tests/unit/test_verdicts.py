"""The verdict table against bodies recorded from the providers' documents (tests/data/verdicts.jsonl).

A line holds an answer as it comes over the wire, whether its route has answered others, and what it means:
`error` (none for an answer to be read, then its `finish`), `cause`, and `retry_after` where one is named.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from batchllm.errors import (
    AuthFailed,
    BatchError,
    CallError,
    FatalError,
    Overloaded,
    RateLimited,
    RecordError,
    RouteGone,
)
from batchllm.model import Reply
from batchllm.providers.chat import at_a_glance, heed_headers, read_answer
from batchllm.providers.complaints import Complaint, read, retry_after, shown
from batchllm.providers.rules import ANYTHING_ELSE, RULES
from batchllm.providers.verdicts import Case, row, under_ok, verdict

NOW = 1_700_000_000.0
RECORDED = Path(__file__).parents[1] / "data" / "verdicts.jsonl"
CASES = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
SERVICES = {"openai", "azure", "anthropic", "gemini", "mistral", "vllm", "ollama", "litellm", "gateway"}
BRANCHES = {"AuthFailed", "QuotaGone", "RouteGone", "TooLarge", "Refused", "RateLimited", "Overloaded"}


def judged(case: dict[str, Any]) -> BatchError | Reply:
    """What a recorded answer becomes: the verdict, the error under 2xx, or the answer read."""
    status, headers, body, proven = case["status"], case["headers"], case["body"].encode(), case["proven"]
    error = None if 200 <= status < 300 else verdict(status, headers, body, proven=proven, now=NOW)
    if error is not None:
        return error
    try:
        return read_answer(status, headers, body, model="m", now=NOW, proven=proven)
    except BatchError as found:
        return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['provider']}: {case['name']}")
def test_a_recorded_answer_means_what_the_oracle_says(case: dict[str, Any]) -> None:
    met, expect = judged(case), case["expect"]
    if isinstance(met, Reply):
        assert (expect["error"], expect["finish"]) == ("none", met.finish)
        return
    assert type(met).__name__ == expect["error"]
    if isinstance(met, FatalError):
        assert set(expect) == {"error"}
        return
    assert isinstance(met, CallError | RecordError)
    assert (met.cause, met.status) == (expect["cause"], case["status"])
    if isinstance(met, CallError):
        assert met.retry_after == pytest.approx(expect.get("retry_after"))


def test_the_record_covers_every_service_branch_and_shape_without_repeating_itself() -> None:
    assert len(CASES) >= 120
    assert {case["provider"] for case in CASES} >= SERVICES
    assert {case["expect"]["error"] for case in CASES} == BRANCHES | {"BadReply", "none"}
    shapes = {read(case["body"].encode(), case["headers"].get("content-type", "")).form for case in CASES}
    assert shapes == {"json", "html", "text", "empty"}
    named = Counter((case["provider"], case["name"]) for case in CASES)
    sent = Counter(
        json.dumps([case[part] for part in ("status", "headers", "body", "proven")]) for case in CASES
    )
    assert [*(named - Counter(set(named))), *(sent - Counter(set(sent)))] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['provider']}: {case['name']}")
def test_every_message_is_one_short_line_with_the_status(case: dict[str, Any]) -> None:
    error = judged(case)
    if isinstance(error, BatchError):
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
    assert [rule for rule in (*RULES, ANYTHING_ELSE) if rule not in reached] == []


@pytest.mark.parametrize("status", [100, 418, 508, 599, 700, 999])
def test_a_status_that_nobody_knows_gets_the_safe_verdict_and_is_marked_as_unknown(status: int) -> None:
    error = verdict(status, {}, b'{"error":{"message":"odd","code":"E_17"}}', now=NOW)
    assert isinstance(error, Overloaded | RecordError)
    assert isinstance(error, RecordError) == (400 <= status < 500)
    assert error.cause == "unknown"


def test_a_400_that_quotes_the_records_text_does_not_stop_the_run() -> None:
    for quoted in (
        "this account was disabled",
        "insufficient_quota",
        "The plain HTTP request was sent to HTTPS port",
        "user location is not supported",
        "my client does not support chat",
        "please enable billing on your project",
    ):
        error = verdict(
            400, {}, json.dumps({"error": {"message": f"can't read: {quoted}"}}).encode(), now=NOW
        )
        assert isinstance(error, RecordError)


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
        ("Please try again in 1m2.5s.", 62.5),
        ("try again in about 5 minutes", 300),
        ("Your quota will reset after 3h20m.", 12000),
        ("try again in " + "9" * 400 + "s", None),
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
        ({"retry-after": "2023-11-14T22:13:50Z"}, 30),
        ({"llm_provider-retry-after": "4"}, 4),
        ({"retry-after": "2", "llm_provider-retry-after": "4"}, 2),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7),
        ({}, None),
    ],
)
def test_a_wait_is_read_from_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, read(b""), NOW) == pytest.approx(seconds)


def test_an_unknown_error_under_200_shows_the_providers_words() -> None:
    error = under_ok({"error": "something odd"}, {}, now=NOW)
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


@pytest.mark.parametrize("whole", [True, False])
def test_a_reply_holds_the_body_only_where_it_is_wanted(whole: bool) -> None:
    document = {"choices": [{"message": {"content": "yes"}, "finish_reason": "length"}], "model": "m"}
    body = json.dumps(document).encode()
    reply = read_answer(200, {}, body, model="m", now=NOW, whole=whole)
    assert reply.raw == (document if whole else None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['provider']}: {case['name']}")
def test_a_glance_sees_what_the_closer_look_sees_or_nothing(case: dict[str, Any]) -> None:
    headers, body = case["headers"], case["body"].encode()
    glanced = at_a_glance(case["status"], body, True)
    if glanced is not None:
        heed_headers(glanced, headers, NOW)
    assert glanced is None or glanced == judged(case)
