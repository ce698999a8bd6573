"""A request is read as a strict endpoint reads it, and answered by its own text."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from batchllm.simulate.answers import answer, completion, message
from batchllm.simulate.asks import read, read_message
from batchllm.simulate.bodies import body as worded
from batchllm.simulate.problems import Rejected

MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "where is my parcel?"}]
SCHEMA = {"type": "object", "properties": {"word": {"enum": ["a", "b"]}, "why": {"type": "string"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


def body(**changes: Any) -> bytes:
    return orjson.dumps({"model": "any", "messages": MESSAGES, **changes})


def refusal(raw: bytes) -> tuple[int, str | None, str | None]:
    with pytest.raises(Rejected) as caught:
        read(raw)
    problem = caught.value.problem
    assert json.loads(worded(problem, "openai"))["error"]["message"]
    return problem.status, problem.param, problem.code


def test_plain_text_is_answered_by_the_echo_of_the_last_user_message() -> None:
    given = answer(read(body()), None, b"digest")
    assert given.text == "echo: where is my parcel?"
    assert given.finish == "stop"


def test_content_in_parts_counts_with_its_text() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "image_url"}, {"type": "text", "text": "two"}]
    assert read(body(messages=[{"role": "user", "content": parts}])).text == "one two"


def test_a_schema_is_answered_by_an_instance_with_the_echo() -> None:
    made = json.loads(answer(read(body(response_format=FORMAT)), None, b"digest").text)
    assert made["why"] == "echo: where is my parcel?"
    assert made["word"] in ("a", "b")


def test_an_answer_longer_than_max_tokens_is_cut_and_says_so() -> None:
    given = answer(read(body(max_tokens=2)), None, b"digest")
    assert (given.text, given.finish, given.completion_tokens) == ("echo: wh", "length", 2)


@pytest.mark.parametrize(
    ("fault", "text", "finish"),
    [("empty", "", "stop"), ("filter", "", "content_filter"), ("length", "echo: where", "length")],
)
def test_a_faulty_answer_shows_its_fault(fault: str, text: str, finish: str) -> None:
    given = answer(read(body()), fault, b"digest")
    assert (given.text[:11], given.finish) == (text, finish)


def test_wrapped_answers_hold_the_right_one_and_a_wrong_enum_does_not() -> None:
    ask = read(body(response_format=FORMAT))
    right = answer(ask, None, b"digest").text
    for fault in ("prose", "fenced"):
        wrapped = answer(ask, fault, b"digest").text
        assert right in wrapped
        assert wrapped != right
    assert json.loads(answer(ask, "enum", b"digest").text)["word"] == "no such value"


def test_a_completion_has_openai_s_shape_and_adds_up() -> None:
    ask = read(body())
    made = json.loads(completion(ask, answer(ask, None, b"digest"), "req_1", 1))
    assert made["choices"][0]["message"] == {"role": "assistant", "content": "echo: where is my parcel?"}
    usage = made["usage"]
    assert usage["prompt_tokens"] == 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("value", "code"), [("x", "invalid_type"), (True, "invalid_type"), (1.5, "invalid_type")]
)
def test_a_token_limit_that_is_no_integer_is_refused_by_name(name: str, value: Any, code: str) -> None:
    assert refusal(body(**{name: value})) == (400, name, code)


def test_a_token_limit_below_one_is_refused() -> None:
    assert refusal(body(max_tokens=0)) == (400, "max_tokens", "integer_below_min_value")


def test_an_unknown_model_is_not_found() -> None:
    assert refusal(body(model="no-such-model")) == (404, None, "model_not_found")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        body(model=1),
        body(messages=[]),
        body(messages="hi"),
        body(messages=[1]),
        body(messages=[{"role": "user", "content": 1}]),
        body(stream=True),
        body(temperature="warm"),
        body(temperature=9),
        body(response_format="poem"),
        body(response_format={"type": "json_schema"}),
    ],
    ids=repr,
)
def test_a_request_that_makes_no_sense_is_a_400(raw: bytes) -> None:
    assert refusal(raw)[0] == 400


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"properties": [], "type": "object"}, {"anyOf": 1}], ids=str
)
def test_a_schema_that_has_no_instance_is_a_400(schema: Any) -> None:
    ask = read(body(response_format={"type": "json_schema", "json_schema": {"schema": schema}}))
    with pytest.raises(Rejected) as caught:
        answer(ask, None, b"digest")
    assert (caught.value.problem.status, caught.value.problem.code) == (400, "invalid_json_schema")


def test_input_tokens_are_a_quarter_of_the_bytes_and_limits_count_the_most_that_may_be_answered() -> None:
    ask = read(body(messages=[{"role": "user", "content": "✓" * 8}], max_tokens=100))
    assert ask.needs == {"requests": 1, "tokens": 106, "input-tokens": 6, "output-tokens": 100}


def test_a_message_of_anthropic_s_has_its_shape_and_counts_the_system_prompt() -> None:
    ask = read_message(
        body(messages=MESSAGES[1:], system=[{"type": "text", "text": "be kind"}], max_tokens=2)
    )
    made = json.loads(message(ask, answer(ask, None, b"digest"), "req_1"))
    assert made["content"] == [{"type": "text", "text": "echo: wh"}]
    assert made["stop_reason"] == "max_tokens"
    assert (made["usage"]["input_tokens"], made["usage"]["output_tokens"]) == (7, 2)


def test_a_message_without_max_tokens_is_refused_by_name() -> None:
    with pytest.raises(Rejected) as caught:
        read_message(body())
    assert (caught.value.problem.status, caught.value.problem.param) == (400, "max_tokens")
