"""The OpenAI-compatible provider: bodies it builds, answers it reads, and both over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from batchllm import __version__
from batchllm.errors import (
    AuthFailed,
    BadReply,
    BatchError,
    ConfigError,
    Disconnected,
    Overloaded,
    RateLimited,
    Refused,
    RouteGone,
    TimedOut,
)
from batchllm.model import Reply, Request, Trail, Usage
from batchllm.ports import ProviderSpec
from batchllm.providers import chat
from batchllm.providers.openai import OpenAI, address, connect, headers_for
from batchllm.transport import Answer

MESSAGES = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}


def ask(schema: dict[str, Any] | None = None, raw: bool = False, **params: Any) -> Request:
    return Request("test", {"messages": MESSAGES, **params}, "key-1", schema, raw)


def completion(text: Any = "hi", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "served-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 3,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }


@dataclass
class Recorder:
    """An endpoint that keeps what it is asked and answers from a list."""

    answers: list[tuple[int, dict[str, str], bytes]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)

    async def post(self, body: bytes, *, headers: Mapping[str, str] | None = None, timeout: float) -> Answer:
        self.asked.append(json.loads(body))
        self.headers.append(headers or {})
        self.timeouts.append(timeout)
        return Answer.of(*self.answers.pop(0))


def exchange(
    request: Request, *answers: Any, model: str = "gpt-4o-mini", trail: Trail | None = None
) -> tuple[Recorder, list[Reply | BatchError]]:
    """Ask once for each answer, over one provider; what was sent and what came of it."""
    made = [a if isinstance(a, tuple) else (200, {}, json.dumps(a).encode()) for a in answers]
    recorder = Recorder(made)
    provider = OpenAI(recorder, ProviderSpec(model, key="sk-test-key-123456"))
    got: list[Reply | BatchError] = []

    async def main() -> None:
        for _ in range(len(made)):
            try:
                got.append(await provider.complete(request, trail or Trail()))
            except BatchError as error:
                got.append(error)

    anyio.run(main)
    return recorder, got


def body_of(request: Request, model: str = "gpt-4o-mini") -> dict[str, Any]:
    return exchange(request, completion(), model=model)[0].asked[0]


def test_a_body_is_the_messages_the_parameters_and_the_model() -> None:
    assert body_of(ask(temperature=0, max_tokens=9)) == {
        "model": "gpt-4o-mini",
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 9,
    }


def test_a_raw_body_goes_as_it_stands() -> None:
    request = Request("x", {"model": "o3", "messages": [], "max_tokens": 1}, "k", SCHEMA, raw=True)
    assert body_of(request) == {"model": "o3", "messages": [], "max_tokens": 1}


def test_a_schema_becomes_a_response_format_strict_only_where_strict_mode_takes_it() -> None:
    strict = body_of(ask(SCHEMA))["response_format"]
    assert strict == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
    loose = body_of(ask({"type": "object"}))["response_format"]
    assert loose["json_schema"] == {"name": "answer", "schema": {"type": "object"}}


@pytest.mark.parametrize("seed", [2**70, 7])
@pytest.mark.parametrize("bound", [2**70, 7])
def test_a_schema_is_sent_beside_integers_of_any_size(seed: int, bound: int) -> None:
    schema = SCHEMA | {"properties": {"n": {"type": "integer", "maximum": bound}}, "required": ["n"]}
    body = body_of(ask(schema, seed=seed))
    assert body["seed"] == seed
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert body["messages"]


def test_a_response_format_of_the_users_own_is_kept() -> None:
    assert body_of(ask(SCHEMA, response_format={"type": "json_object"}))["response_format"] == {
        "type": "json_object"
    }


@pytest.mark.parametrize(
    ("model", "modern"),
    [
        ("o1", True),
        ("o1-mini", True),
        ("o3-2025-04-16", True),
        ("o4-mini", True),
        ("gpt-5", True),
        ("gpt-5-nano", True),
        ("gpt-5.1-chat", True),
        ("openai/gpt-5-mini", True),
        ("openrouter/openai/o3", True),
        ("ft:o4-mini-2025-04-16:org::id", True),
        ("gpt-4o", False),
        ("gpt-4.1", False),
        ("gpt-35-turbo", False),
        ("gpt-oss-120b", False),
        ("olmo-2", False),
        ("o365", False),
        ("llama-o1", False),
        ("claude-opus-4-5", False),
    ],
)
def test_max_tokens_is_renamed_for_the_models_that_refuse_it(model: str, modern: bool) -> None:
    assert chat.wants_max_completion_tokens(model) is modern
    body = body_of(ask(max_tokens=5), model)
    assert ("max_completion_tokens" in body) is modern
    assert ("max_tokens" in body) is not modern


def test_a_number_beyond_64_bits_and_half_a_surrogate_pair_are_sent() -> None:
    body = {"seed": 10**30, "text": "half \ud83d"}
    assert json.loads(chat.encode(body)) == body
    assert chat.encode({"a": "ä"}) == '{"a":"ä"}'.encode()


def test_each_request_carries_its_own_idempotency_key() -> None:
    recorder, _ = exchange(ask(), completion())
    assert recorder.headers == [{"idempotency-key": "key-1"}]


def test_a_call_ends_with_the_records_time_and_is_not_made_after_it() -> None:
    recorder, got = exchange(ask(), completion(), trail=Trail(deadline=time.monotonic() + 50))
    assert isinstance(got[0], Reply)
    assert 0 < recorder.timeouts[0] <= 50
    recorder, got = exchange(ask(), completion(), trail=Trail(deadline=time.monotonic() - 1))
    assert isinstance(got[0], TimedOut)
    assert recorder.asked == []
    assert chat.time_left(120, None, 5.0) == 120


@pytest.mark.parametrize(
    ("base", "url"),
    [
        (None, "https://api.openai.com/v1/chat/completions"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/chat/completions"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1/chat/completions"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions/", "http://h/v1/chat/completions"),
        ("https://h/openai?api-version=1", "https://h/openai/chat/completions?api-version=1"),
        ("http://[::1]:9", "http://[::1]:9/chat/completions"),
    ],
)
def test_the_address_is_made_from_any_usual_base_url(base: str | None, url: str) -> None:
    assert address(base) == url


@pytest.mark.parametrize(
    "base", ["localhost:8000/v1", "/v1", "ftp://h/v1", "http://", "http://h:x/v1", "http://[h"]
)
def test_a_base_url_without_scheme_or_host_is_a_config_error(base: str) -> None:
    with pytest.raises(ConfigError) as caught:
        address(base)
    assert "--base-url" in (caught.value.hint or "")


def test_the_key_is_sent_as_a_bearer_and_a_broken_one_is_a_config_error_that_does_not_show_it() -> None:
    assert headers_for("sk-abc\n")["authorization"] == "Bearer sk-abc"
    assert "authorization" not in headers_for(None)
    assert headers_for(None)["user-agent"] == f"batchllm/{__version__}"
    with pytest.raises(ConfigError) as caught:
        headers_for("sk-a\nx-evil: 1")
    assert "sk-a" not in str(caught.value)


def test_an_answer_is_read_whole() -> None:
    body = completion("hi there")
    _, [reply] = exchange(ask(), (200, {"x-request-id": "req-9"}, json.dumps(body).encode()))
    assert reply == Reply(
        "hi there", "hi there", Usage(11, 3, 4), "stop", "served-model", request_id="req-9", raw=body
    )


def test_what_an_answer_leaves_out_is_filled_in() -> None:
    bare = {"choices": [{"message": {"content": "ok"}}]}
    _, [reply] = exchange(ask(), bare)
    assert reply == Reply("ok", "ok", Usage(), None, "gpt-4o-mini", raw=bare)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {"prompt_tokens": None, "completion_tokens": "7"},
        {"prompt_tokens": -1, "prompt_tokens_details": 3},
    ],
)
def test_odd_usage_counts_as_nothing(usage: Any) -> None:
    _, [reply] = exchange(ask(), {**completion(), "usage": usage})
    assert isinstance(reply, Reply)
    assert reply.usage == Usage()


def test_text_parts_are_joined_and_other_parts_left_out() -> None:
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    _, [reply] = exchange(ask(), completion(parts))
    assert isinstance(reply, Reply)
    assert reply.text == "ab"


def test_a_refusal_is_a_reply_that_says_so() -> None:
    _, [reply] = exchange(ask(), completion(None, refusal="I can't help with that"))
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish) == ("I can't help with that", "refusal")


def test_no_content_and_no_refusal_is_an_empty_text_for_others_to_judge() -> None:
    for message in (completion(None), completion("", refusal=None), completion(None, tool_calls=[])):
        _, [reply] = exchange(ask(), message)
        assert isinstance(reply, Reply)
        assert reply.text == ""


@pytest.mark.parametrize(
    ("answer", "cause", "words"),
    [
        ((200, {}, b"<!doctype html><title>Sign in</title>"), "html", "an HTML page: Sign in"),
        ((200, {"content-type": "text/html"}, b"<p>hello</p>"), "html", "an HTML page: hello"),
        ((200, {}, b'{"choices":[{"message":{"content":"hal'), "truncated", '{"choices"'),
        ((200, {}, b"upstream error"), "not_json", "upstream error"),
        ((200, {}, b""), "empty_body", "an empty body"),
        ((204, {}, b""), "empty_body", "204"),
        ((200, {}, b'data: {"choices": []}\n\n'), "event_stream", "stream"),
        ({}, "not_completion", "no chat completion: {}"),
        ([], "not_completion", "no chat completion: []"),
        (None, "not_completion", "no chat completion: null"),
        ({"choices": []}, "not_completion", "no chat completion"),
        ({"choices": None}, "not_completion", "no chat completion"),
        ({"choices": [{"text": "old"}]}, "not_completion", "no message"),
        ({"choices": [{"message": None}]}, "not_completion", "no message"),
        ({"choices": ["x"]}, "not_completion", "no chat completion"),
        (completion(7), "not_completion", "no text"),
        (completion({"text": "x"}), "not_completion", "no text"),
        (completion(None, tool_calls=[{"id": "c"}]), "not_completion", "tool call"),
        ({"detail": "odd"}, "not_completion", "odd"),
    ],
)
def test_what_is_no_answer_under_200_is_never_taken_for_one(answer: Any, cause: str, words: str) -> None:
    _, [error] = exchange(ask(), answer if answer is not None else (200, {}, b"null"))
    assert isinstance(error, BadReply)
    assert error.cause == cause
    assert words in error.message
    assert len(error.message) <= 300
    assert error.message.isprintable()


def test_an_answer_with_half_a_surrogate_pair_is_whole_and_shows_a_replacement() -> None:
    body = json.dumps(completion("half \ud83d, whole \U0001f600"))
    assert "\\ud83d," in body
    for content in (body.encode(), b"\xef\xbb\xbf" + body.encode()):
        _, [reply] = exchange(ask(), (200, {}, content))
        assert isinstance(reply, Reply)
        assert reply.text == "half \ufffd, whole \U0001f600"
        assert reply.usage == Usage(11, 3, 4)
        json.dumps(reply.raw, ensure_ascii=False).encode()
    _, [error] = exchange(ask(), (200, {}, b'{"choices":[{"message":{"content":"half \\ud83d'))
    assert isinstance(error, BadReply)
    assert error.cause == "truncated"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {}},
            "PROHIBITED_CONTENT",
        ),
        ({"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}, "SAFETY"),
        ({"choices": None, "promptFeedback": {"blockReason": "OTHER"}}, "OTHER"),
        (
            {
                "choices": [],
                "prompt_filter_results": [
                    {
                        "prompt_index": 0,
                        "content_filter_results": {
                            "hate": {"filtered": False, "severity": "safe"},
                            "violence": {"filtered": True, "severity": "high"},
                            "jailbreak": {"filtered": True, "detected": True},
                        },
                    }
                ],
            },
            "violence, jailbreak",
        ),
    ],
)
def test_a_question_that_was_blocked_under_200_is_refused_with_the_reason(body: Any, reason: str) -> None:
    _, [error] = exchange(ask(), body)
    assert isinstance(error, Refused)
    assert (error.cause, error.status) == ("content_filter", 200)
    assert error.message.endswith(f"blocked the question: {reason}")


@pytest.mark.parametrize(
    "more",
    [
        {"promptFeedback": {"blockReason": None}},
        {"promptFeedback": {"safetyRatings": []}},
        {"promptFeedback": "SAFETY"},
        {"prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": False}}}]},
        {"prompt_filter_results": [1, {"content_filter_results": 2}, {"content_filter_results": {"a": 3}}]},
    ],
)
def test_no_answer_without_a_block_is_no_refusal_and_an_answer_beside_one_is_an_answer(more: Any) -> None:
    _, [error] = exchange(ask(), {"choices": [], **more})
    assert isinstance(error, BadReply)
    answered = {**completion(), **more, "promptFeedback": {"blockReason": "SAFETY"}}
    _, [reply] = exchange(ask(), answered)
    assert isinstance(reply, Reply)


def test_an_error_under_200_is_judged_by_its_code() -> None:
    _, [error] = exchange(ask(), {"error": {"code": 429, "message": "wait"}})
    assert isinstance(error, RateLimited)
    inside = completion()
    inside["choices"][0] |= {"error": {"code": 502, "message": "cut"}, "finish_reason": "error"}
    _, [error] = exchange(ask(), inside)
    assert isinstance(error, Overloaded)


def test_a_null_error_beside_an_answer_is_no_error() -> None:
    _, [reply] = exchange(ask(), {**completion(), "error": None})
    assert isinstance(reply, Reply)


def test_a_403_is_the_accounts_until_the_route_has_answered_and_then_the_records() -> None:
    forbidden: Any = (403, {}, b'{"error":{"message":"no"}}')
    _, got = exchange(ask(), forbidden, completion(), forbidden)
    assert [type(one) for one in got] == [AuthFailed, Reply, Refused]


class Doors:
    """An endpoint whose answers are let out one by one: `answer(key, …)` for the call with that key."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}
        self.out: dict[str, tuple[int, bytes]] = {}

    async def post(self, body: bytes, *, headers: Mapping[str, str] | None = None, timeout: float) -> Answer:
        key = (headers or {})["idempotency-key"]
        self.sent[key] = anyio.Event()
        await self.sent[key].wait()
        status, content = self.out.pop(key)
        return Answer.of(status, {}, content)


class Asked:
    """Calls of one provider that are sent and answered in an order that the test says."""

    def __init__(self, tasks: Any) -> None:
        self._tasks = tasks
        self._doors = Doors()
        self._provider = OpenAI(self._doors, ProviderSpec("m"))
        self._got: dict[str, Any] = {}

    async def send(self, *keys: str) -> None:
        for key in keys:
            self._tasks.start_soon(self._call, key)
            await anyio.wait_all_tasks_blocked()

    async def _call(self, key: str) -> None:
        try:
            await self._provider.complete(Request("m", {"messages": MESSAGES}, key), Trail())
        except BatchError as error:
            self._got[key] = error
        else:
            self._got[key] = "answered"

    async def answer(self, key: str, status: int = 200) -> Any:
        """What became of the call: "answered", or the type of its error."""
        body = completion() if status == 200 else {"error": {"message": "no"}}
        self._doors.out[key] = (status, json.dumps(body).encode())
        self._doors.sent[key].set()
        await anyio.wait_all_tasks_blocked()
        got = self._got.pop(key)
        return got if got == "answered" else type(got)

    async def prove(self) -> None:
        await self.send("first")
        assert await self.answer("first") == "answered"


def in_order(test: Callable[[Asked], Any]) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            asked = Asked(tasks)
            await asked.prove()
            await test(asked)

    anyio.run(main)


@pytest.mark.parametrize(("status", "fatal"), [(403, AuthFailed), (404, RouteGone)])
def test_a_key_that_ends_in_the_middle_costs_one_record_and_then_the_run(
    status: int, fatal: type[BatchError]
) -> None:
    async def test(asked: Asked) -> None:
        await asked.send("a", "b", "c")
        assert await asked.answer("a", status) is Refused
        await asked.send("later")
        assert await asked.answer("b", status) is RateLimited  # it was out already: asked again
        assert await asked.answer("later", status) is fatal
        assert await asked.answer("c", status) is RateLimited
        await asked.send("b", "c")
        assert await asked.answer("c", status) is fatal
        assert await asked.answer("b", status) is fatal

    in_order(test)


def test_a_403_of_one_record_is_its_own_where_the_next_call_is_answered() -> None:
    async def test(asked: Asked) -> None:
        for _ in range(3):
            await asked.send("a", "b")
            assert await asked.answer("a", 403) is Refused
            await asked.send("probe", "beside")
            assert await asked.answer("probe") == "answered"
            assert await asked.answer("beside", 403) is Refused  # doubt again, of its own
            assert await asked.answer("b", 403) is RateLimited
            await asked.send("b")
            assert await asked.answer("b") == "answered"

    in_order(test)


def test_an_answer_to_a_call_that_was_out_before_the_doubt_says_nothing_of_the_key() -> None:
    async def test(asked: Asked) -> None:
        await asked.send("a", "b")
        assert await asked.answer("a", 403) is Refused
        await asked.send("probe")
        assert await asked.answer("b") == "answered"
        assert await asked.answer("probe", 403) is AuthFailed

    in_order(test)


def test_a_probe_that_comes_to_nothing_leaves_the_decision_to_the_next() -> None:
    async def test(asked: Asked) -> None:
        await asked.send("a")
        assert await asked.answer("a", 403) is Refused
        await asked.send("probe", "next")
        assert await asked.answer("probe", 500) is Overloaded
        assert await asked.answer("next", 403) is AuthFailed

    in_order(test)


def test_a_wrong_model_in_a_raw_body_is_that_records_once_the_route_has_answered() -> None:
    gone: Any = (404, {}, b'{"error":{"message":"no such model","code":"model_not_found"}}')
    _, got = exchange(ask(raw=True, model="x"), gone, completion(), gone)
    assert [type(one) for one in got] == [RouteGone, Reply, Refused]
    _, got = exchange(ask(), completion(), gone)
    assert isinstance(got[1], RouteGone)


def test_the_key_never_comes_back_in_a_message() -> None:
    for status in (200, 401, 500):
        _, [error] = exchange(ask(), (status, {}, b"your key is sk-test-key-123456, really"))
        assert isinstance(error, BatchError)
        assert "sk-test-key" not in error.message


# Over real sockets.

Handler = Callable[[str, dict[str, str], bytes], bytes | None]


def http(status: int, body: Any, headers: str = "") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n{headers}\r\n".encode() + content


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A raw HTTP server that lives as long as the block; a handler's None drops the connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().strip().split("\r\n")
                fields = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in lines}
                answer = handler(first, fields, await reader.readexactly(int(fields["content-length"])))
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await server.wait_closed()


def over_the_wire(handler: Handler, calls: int = 1, timeout: float = 20) -> list[Reply | BatchError]:
    got: list[Reply | BatchError] = []

    async def main() -> None:
        async with serving(handler) as base:
            spec = ProviderSpec("served-model", base, "sk-wire-key-1234", timeout)
            async with connect(spec) as provider:
                for _ in range(calls):
                    try:
                        got.append(await provider.complete(ask(), Trail()))
                    except BatchError as error:
                        got.append(error)

    anyio.run(main)
    return got


def test_a_request_and_its_answer_cross_a_real_socket() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    def handler(first: str, fields: dict[str, str], body: bytes) -> bytes:
        seen.append((first, fields, body))
        return http(200, completion("hi"), "X-Request-Id: wire-1\r\n")

    got = over_the_wire(handler, calls=2)
    assert [one.text for one in got if isinstance(one, Reply)] == ["hi", "hi"]
    assert isinstance(got[0], Reply)
    assert got[0].request_id == "wire-1"
    first, fields, body = seen[0]
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert fields["authorization"] == "Bearer sk-wire-key-1234"
    assert fields["content-type"] == "application/json"
    assert fields["user-agent"] == f"batchllm/{__version__}"
    assert fields["idempotency-key"] == "key-1"
    assert json.loads(body) == {"model": "served-model", "messages": MESSAGES}


def test_verdicts_hold_over_a_real_socket() -> None:
    answers = iter(
        [
            http(429, {"error": {"message": "wait"}}, "Retry-After: 2\r\n"),
            http(503, b"busy"),
            http(200, b"<html><body>maintenance</body></html>"),
            http(200, completion("fine")),
        ]
    )
    limited, busy, page, fine = over_the_wire(lambda *_: next(answers), calls=4)
    assert isinstance(limited, RateLimited)
    assert limited.retry_after == 2
    assert isinstance(busy, Overloaded)
    assert isinstance(page, BadReply)
    assert isinstance(fine, Reply)


def test_a_dropped_connection_is_disconnected() -> None:
    [error] = over_the_wire(lambda *_: None)
    assert isinstance(error, Disconnected)


def test_no_answer_in_time_is_timed_out() -> None:
    [error] = over_the_wire(lambda *_: b"HTTP/1.1 200 OK\r\n", timeout=0.05)
    assert isinstance(error, TimedOut)
    assert error.ambiguous
