"""The fake provider: echo with latency, faults and a seed, and answers from a script."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchllm.errors import (
    AuthFailed,
    BadReply,
    BatchError,
    ConfigError,
    Disconnected,
    Overloaded,
    QuotaGone,
    RateLimited,
    Refused,
    TimedOut,
    TooLarge,
)
from batchllm.faults import FAULTS
from batchllm.model import Reply, Request, Trail, Usage
from batchllm.ports import ProviderSpec
from batchllm.providers.fake import connect


def saying(*texts: str) -> Request:
    messages = [{"role": "system", "content": "be brief"}]
    messages += [{"role": "user", "content": text} for text in texts]
    return Request("fake", {"messages": messages}, "k")


def outcomes(
    model: str, *requests: Request, timeout: float = 20, trail: Trail | None = None
) -> list[Reply | BatchError]:
    got: list[Reply | BatchError] = []

    async def main() -> None:
        async with connect(ProviderSpec(model, timeout=timeout)) as provider:
            for request in requests:
                try:
                    got.append(await provider.complete(request, trail or Trail()))
                except BatchError as error:
                    got.append(error)

    anyio.run(main)
    return got


def texts(got: list[Reply | BatchError]) -> list[str]:
    return [one.text if isinstance(one, Reply) else type(one).__name__ for one in got]


def script(folder: Path, *lines: Any) -> str:
    path = folder / "replies.jsonl"
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines), encoding="utf-8")
    return str(path)


def test_echo_answers_the_last_user_message() -> None:
    [reply] = outcomes("echo", saying("one", "two"))
    assert isinstance(reply, Reply)
    assert (reply.text, reply.value, reply.finish, reply.model) == ("echo: two", "echo: two", "stop", "echo")
    assert reply.request_id == "fake-1"
    assert reply.usage.input_tokens > 0
    assert reply.raw["object"] == "chat.completion"


def test_echo_reads_text_parts_and_answers_a_body_without_messages() -> None:
    parts = Request("f", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "k")
    assert texts(outcomes("echo", parts, Request("f", {}, "k", raw=True))) == ["echo: x", "echo: "]


def test_a_message_that_is_json_comes_back_as_it_is() -> None:
    got = outcomes("echo", saying('{"label": "billing"}'), saying("[1]"), saying("{not json"), saying("42"))
    assert texts(got) == ['{"label": "billing"}', "[1]", "echo: {not json", "echo: 42"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("400", Refused),
        ("401", AuthFailed),
        ("402", QuotaGone),
        ("quota", QuotaGone),
        ("429", RateLimited),
        ("500", Overloaded),
        ("502", Overloaded),
        ("503", Overloaded),
        ("drop", Disconnected),
        ("truncate", BadReply),
        ("html", BadReply),
        ("hang", TimedOut),
        ("shape", BadReply),
    ],
)
def test_a_fault_becomes_the_error_that_the_real_one_would(fault: str, kind: type[BatchError]) -> None:
    [error] = outcomes(f"echo?faults={fault}:1", saying("x"), timeout=0.01)
    assert type(error) is kind


@pytest.mark.parametrize(
    ("fault", "text", "finish"),
    [
        ("empty", "", "stop"),
        ("length", '{"label": "', "length"),
        ("filter", "", "content_filter"),
        ("prose", 'Sure, here is the answer: {"label": "a", "n": 1} Let me know if it helps.', "stop"),
        ("fenced", '```json\n{"label": "a", "n": 1}\n```', "stop"),
        ("enum", '{"label":"no-such-value","n":1}', "stop"),
    ],
)
def test_a_fault_of_the_answer_is_a_reply_for_others_to_judge(fault: str, text: str, finish: str) -> None:
    [reply] = outcomes(f"echo?faults={fault}:1", saying('{"label": "a", "n": 1}'))
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish) == (text, finish)


def test_every_named_fault_shows() -> None:
    for fault in FAULTS:
        [got] = outcomes(f"echo?faults={fault}:1", saying('{"a": "b"}'), timeout=0.01)
        assert not isinstance(got, Reply) or got.text != '{"a": "b"}' or got.finish != "stop", fault


def test_a_lost_call_is_ambiguous_and_a_limit_says_how_long() -> None:
    [dropped] = outcomes("echo?faults=drop:1", saying("x"))
    assert isinstance(dropped, Disconnected)
    assert dropped.ambiguous
    [limited] = outcomes("echo?faults=429:1&retry_after_ms=250", saying("x"))
    assert isinstance(limited, RateLimited)
    assert limited.retry_after == 0.25


def test_the_same_seed_brings_the_same_faults_and_another_seed_others() -> None:
    calls = [saying(str(number)) for number in range(200)]
    mix = "faults=500:0.1,429:0.1,empty:0.1&jitter=0.5"
    first = texts(outcomes(f"echo?{mix}&seed=7", *calls))
    assert texts(outcomes(f"echo?{mix}&seed=7", *calls)) == first
    assert texts(outcomes(f"echo?{mix}&seed=8", *calls)) != first
    assert 30 <= sum(not text.startswith("echo") for text in first) <= 90


def test_latency_is_waited_for_and_ends_at_the_timeout_or_the_records_time() -> None:
    start = time.monotonic()
    [reply] = outcomes("echo?latency_ms=20", saying("x"))
    assert time.monotonic() - start >= 0.02
    assert isinstance(reply, Reply)
    [error] = outcomes("echo?latency_ms=5000", saying("x"), timeout=0.01)
    assert isinstance(error, TimedOut)
    assert error.ambiguous
    [error] = outcomes("echo?latency_ms=5000", saying("x"), trail=Trail(deadline=time.monotonic() + 0.01))
    assert isinstance(error, TimedOut)


@pytest.mark.parametrize(
    "model",
    [
        "",
        "gpt",
        "echo?speed=1",
        "echo?latency_ms=fast",
        "echo?latency_ms=-1",
        "echo?latency_ms=nan",
        "echo?jitter=2",
        "echo?faults=404:1",
        "echo?seed=x",
        "script",
        "script?by=order",
        "script?file=x&by=id",
        "script?file=does-not-exist.jsonl",
        "script?file=x&faults=429:1",
    ],
)
def test_a_model_that_no_fake_has_is_a_config_error_with_a_hint(model: str) -> None:
    with pytest.raises(ConfigError) as caught:
        outcomes(model)
    assert caught.value.hint


def test_a_script_answers_by_order_and_then_has_an_end(tmp_path: Path) -> None:
    file = script(
        tmp_path,
        {"id": 1, "text": "first"},
        {"text": "second", "finish": "length", "usage": {"input_tokens": 5, "output_tokens": 2}},
    )
    first, second, third = outcomes(f"script?file={file}", *[saying("x")] * 3)
    assert isinstance(first, Reply)
    assert first.text == "first"
    assert isinstance(second, Reply)
    assert (second.finish, second.usage) == ("length", Usage(5, 2, 0))
    assert isinstance(third, Refused)
    assert third.cause == "script_ended"


def test_an_error_in_a_script_means_what_a_servers_would(tmp_path: Path) -> None:
    file = script(
        tmp_path,
        {"error": {"status": 429, "message": "wait", "headers": {"Retry-After": 3}}},
        {"error": {"status": 429, "message": "broke", "code": "insufficient_quota"}},
        {"error": {"status": 400, "message": "no", "code": "context_length_exceeded"}},
        {"error": {"status": 403, "message": "no"}},
        {"text": "fine"},
        {"error": {"status": 403, "message": "no"}},
        {"error": {"status": 502, "body": "<html>Bad Gateway</html>"}},
        {"error": {"status": 500, "body": {"detail": "oh no"}}},
        {"error": "timeout"},
        {"error": "disconnect"},
        {"error": "bad_reply"},
    )
    got = outcomes(f"script?file={file}", *[saying("x")] * 11)
    kinds = [RateLimited, QuotaGone, TooLarge, AuthFailed, Reply, Refused]
    kinds += [Overloaded, Overloaded, TimedOut, Disconnected, BadReply]
    assert [type(one) for one in got] == kinds
    assert isinstance(got[0], RateLimited)
    assert got[0].retry_after == 3
    assert isinstance(got[7], Overloaded)
    assert got[7].message == "the provider answered 500: oh no"


def test_a_script_answers_by_match_and_the_last_line_of_a_match_repeats(tmp_path: Path) -> None:
    file = script(
        tmp_path,
        {"match": "refund", "error": {"status": 500, "message": "once"}},
        {"match": "login", "text": "access"},
        {"match": "refund", "text": "billing"},
    )
    model = f"script?file={file}&by=match"
    got = outcomes(model, *map(saying, ["my refund", "a login", "my refund", "my refund", "else"]))
    assert texts(got) == ["Overloaded", "access", "billing", "billing", "Refused"]
    assert texts(outcomes(model, saying("a login", "your answer breaks the schema"))) == ["access"]


def test_a_scripts_own_latency_goes_before_the_settings(tmp_path: Path) -> None:
    file = script(tmp_path, {"text": "slow", "latency_ms": 60_000}, {"text": "quick", "latency_ms": 0})
    slow, quick = outcomes(f"script?file={file}&latency_ms=60000", *[saying("x")] * 2, timeout=0.01)
    assert isinstance(slow, TimedOut)
    assert isinstance(quick, Reply)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "{}",
        '{"text": "a", "error": "timeout"}',
        '{"text": 5}',
        '{"txt": "a"}',
        '{"text": "a", "latency_ms": "1"}',
        '{"text": "a", "usage": {"input_tokens": "1"}}',
        '{"text": "a", "finish": 1}',
        '{"error": "boom"}',
        '{"error": {"message": "no status"}}',
        '{"error": {"status": 429, "headers": []}}',
        '{"error": {"status": 429, "wait": 1}}',
    ],
)
def test_a_broken_line_of_a_script_is_a_config_error_that_names_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(f'{{"text": "ok"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        outcomes(f"script?file={path}")
    assert "line 2" in caught.value.message


def test_a_script_by_match_needs_a_match_on_every_line_and_any_script_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        outcomes(f"script?file={script(tmp_path, {'text': 'a'})}&by=match")
    with pytest.raises(ConfigError):
        outcomes(f"script?file={script(tmp_path)}")
