"""How a server is told a schema: the body of each way, and when a refusal is the schema's."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from batchllm.errors import BatchError, Overloaded, RateLimited, Refused, RouteGone
from batchllm.model import Reply, Request, Trail
from batchllm.ports import ProviderSpec
from batchllm.providers.openai import OpenAI
from batchllm.providers.shaping import Shaping
from tests.unit.test_openai import Recorder

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a"],
}
FREE: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "integer"}}
USER = {"role": "user", "content": "How many?"}
TOO_STRICT = "Invalid schema for response_format 'answer': 'required' has to name every key."
NO_FORMAT = "This model doesn't support response_format."
NO_TOOLS = "any/model does not support tools"


def request(schema: Any = SCHEMA, *messages: Any, raw: bool = False, **more: Any) -> Request:
    body = {"messages": list(messages) or [USER], **more}
    return Request("openai/any", body, "key", schema, raw)


def answer(text: str | None = '{"a": 1}', **message: Any) -> tuple[int, dict[str, str], bytes]:
    finish = message.pop("finish", "stop")
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    body = {"object": "chat.completion", "model": "m", "choices": [choice], "usage": {}}
    return 200, {}, json.dumps(body).encode()


def refusal(words: str, status: int = 400, code: str | None = None) -> tuple[int, dict[str, str], bytes]:
    return status, {}, json.dumps({"error": {"message": words, "code": code}}).encode()


async def ask(mode: str, asked: Request, *answers: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """One ask for each answer: the bodies that were sent, and the replies or errors."""
    recorder = Recorder(list(answers))
    provider = OpenAI(recorder, ProviderSpec("any", schema_mode=mode))
    got: list[Reply | BatchError] = []
    for _ in answers:
        try:
            got.append(await provider.complete(asked, Trail()))
        except BatchError as error:
            got.append(error)
    return recorder.asked, got


pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_natively_a_schema_goes_strict_where_it_can_and_as_it_is_where_not() -> None:
    (sent,), (reply,) = await ask("native", request(), answer())
    told = sent["response_format"]["json_schema"]
    assert told["strict"] is True
    assert told["schema"]["required"] == ["a", "b"]
    assert reply.restore({"a": 1, "b": None}) == {"a": 1}
    (sent,), (reply,) = await ask("native", request(FREE), answer())
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": FREE},
    }
    assert reply.restore is None


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
@pytest.mark.parametrize("finish", ["tool_calls", "stop", "length"])
async def test_a_tools_arguments_are_the_text_its_call_a_whole_answer(arguments: Any, finish: str) -> None:
    call = {"type": "function", "function": {"name": "answer", "arguments": arguments}}
    (sent,), (reply,) = await ask("tool", request(), answer(None, tool_calls=[call], finish=finish))
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "answer"}}
    assert sent["tools"][0]["function"]["parameters"]["required"] == ["a", "b"]
    assert "response_format" not in sent
    assert json.loads(reply.text) == {"a": 1}
    assert reply.finish == ("length" if finish == "length" else "stop")
    assert reply.raw["choices"][0]["message"]["tool_calls"] == [call]


async def test_a_model_that_says_it_in_words_instead_of_the_tool_is_heard() -> None:
    _, (reply, old) = await ask(
        "tool", request(), answer(), answer(None, function_call={"arguments": '{"a": 2}'})
    )
    assert (reply.text, old.text) == ('{"a": 1}', '{"a": 2}')


async def test_in_the_prompt_the_schema_stands_in_the_system_message() -> None:
    (sent,), _ = await ask("prompt", request(), answer())
    words, user = sent["messages"]
    assert user == USER
    assert words["role"] == "system"
    assert json.loads(words["content"].split("\n\n")[1]) == SCHEMA
    system = {"role": "system", "content": "Be brief."}
    (sent,), _ = await ask("prompt", request(SCHEMA, system, USER), answer())
    assert sent["messages"][0]["content"] == "Be brief.\n\n" + words["content"]
    assert len(sent["messages"]) == 2
    parts = {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}
    (sent,), _ = await ask("prompt", request(SCHEMA, parts, USER), answer())
    assert sent["messages"][0]["content"][1] == {"type": "text", "text": words["content"]}
    assert set(sent) == {"messages", "model"}


@pytest.mark.parametrize("mode", ["native", "tool", "prompt"])
async def test_raw_bodies_and_shapes_of_the_users_own_go_as_they_stand(mode: str) -> None:
    raw = request(raw=True)
    (sent,), (reply,) = await ask(mode, raw, answer())
    assert sent == raw.body
    assert reply.restore is None
    own = request(tool_choice="mine")
    (sent,), (error,) = await ask(mode, own, refusal(NO_FORMAT))
    assert sent == own.body | {"model": "any"}
    assert isinstance(error, Refused)


@pytest.mark.parametrize(
    ("mode", "words", "names"),
    [
        ("native", TOO_STRICT, ["response_format", "response_format", None]),
        ("tool", NO_TOOLS, ["tools", "tools", None]),
    ],
)
async def test_what_is_refused_goes_looser_step_by_step_and_says_so_once(
    mode: str, words: str, names: list[str | None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "batchllm"):
        sent, got = await ask(mode, request(), refusal(words), refusal(words), answer(), answer())
    shapes = [next((name for name in ("response_format", "tools") if name in body), None) for body in sent]
    assert shapes == [*names, None]
    assert [type(each) for each in got] == [RateLimited, RateLimited, Reply, Reply]
    assert {each.cause for each in got[:2]} == {"in_doubt"}
    assert [record.getMessage().count("sent as words in the prompt") for record in caplog.records] == [1]
    assert len(sent[3]["messages"]) == 2


def ask_of(key: str, **more: Any) -> Request:
    """One record's request."""
    return replace(request(**more), key=key)


def connected(*answers: Any, mode: str = "native") -> tuple[OpenAI, list[dict[str, Any]]]:
    """A provider whose server gives these answers, and the bodies that it was sent."""
    recorder = Recorder(list(answers))
    return OpenAI(recorder, ProviderSpec("any", schema_mode=mode)), recorder.asked


def how(body: dict[str, Any]) -> str:
    """The way in which a body tells the schema."""
    if "response_format" not in body:
        return "tool" if "tools" in body else "words"
    return "strict" if "strict" in body["response_format"]["json_schema"] else "loose"


async def test_calls_in_flight_that_are_refused_alike_ask_again_in_the_way_that_holds_now() -> None:
    shaping = Shaping("native")
    ladder, first = shaping.way(ask_of("a"))
    assert ladder is not None
    assert first is not None
    error = Refused(TOO_STRICT, cause="http_400", status=400)
    assert all(ladder.refused(first, error, 400, key) for key in "abc")
    _, looser = shaping.way(ask_of("a"))
    assert looser is not None
    ladder.answered(looser, "a")
    assert ladder.refused(first, error, 400, "d")
    assert {id(shaping.way(ask_of(key))[1]) for key in "abcd"} == {id(looser)}
    assert "strict" not in looser.fields["response_format"]["json_schema"]


async def test_a_record_that_is_refused_in_every_way_takes_the_schema_from_nobody_else() -> None:
    own = refusal("Invalid message: it mentions a function.")
    provider, sent = connected(own, own, own, answer(), answer())
    errors = []
    for _ in range(3):
        with pytest.raises(BatchError) as caught:
            await provider.complete(ask_of("bad"), Trail())
        errors.append(type(caught.value))
    assert errors == [RateLimited, RateLimited, Refused]
    await provider.complete(ask_of("good"), Trail())
    await provider.complete(ask_of("bad"), Trail())
    assert [how(body) for body in sent] == ["strict", "loose", "words", "strict", "strict"]


async def test_others_keep_the_way_until_a_refused_record_is_answered_in_a_looser_one() -> None:
    provider, sent = connected(refusal(TOO_STRICT), refusal(TOO_STRICT), answer(), answer(), answer())
    for key in "ab":
        with pytest.raises(RateLimited):
            await provider.complete(ask_of(key), Trail())
    for key in "abc":
        await provider.complete(ask_of(key), Trail())
    assert [how(body) for body in sent] == ["strict", "strict", "loose", "loose", "loose"]


async def test_each_model_that_records_name_has_a_ladder_of_its_own() -> None:
    provider, sent = connected(refusal(NO_FORMAT), refusal(NO_FORMAT), answer(), answer(), answer(), answer())
    for _ in range(2):
        with pytest.raises(RateLimited):
            await provider.complete(ask_of("a", model="old"), Trail())
    for model in ("old", "new", "old", "new"):
        await provider.complete(ask_of("b" if model == "new" else "a", model=model), Trail())
    ways = [(body["model"], how(body)) for body in sent[2:]]
    assert ways == [("old", "words"), ("new", "strict"), ("old", "words"), ("new", "strict")]


@pytest.mark.parametrize("mode", ["native", "tool", "prompt"])
@pytest.mark.parametrize("name", ["response_format", "tools", "functions", "guided_json"])
async def test_nothing_is_added_to_a_shape_that_the_request_tells_itself(mode: str, name: str) -> None:
    own = request(**{name: "mine"})
    (sent,), _ = await ask(mode, own, answer())
    assert sent == {**own.body, "model": "any"}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("No endpoints found that can handle the requested parameters (response_format)", 404),
        ("response_format json_schema is not implemented", 501),
        ("unsupported parameter: response_format", 400),
        ("Bad request: unsupported parameter", 400),
        ("This model does not support structured outputs", 400),
        ("'response_format.type' must be 'text' or 'json_object'", 400),
        ("Invalid schema: keyword 'pattern'", 422),
        ("Failed to compile the grammar", 400),
        ("strict is not supported", 400),
    ],
)
async def test_a_refusal_that_names_the_feature_in_other_words_counts(words: str, status: int) -> None:
    sent, (first, second) = await ask("native", request(), refusal(words, status), answer())
    assert first.cause == "in_doubt"
    assert isinstance(second, Reply)
    assert how(sent[1]) == "loose"


@pytest.mark.parametrize(
    "error",
    [
        refusal("Invalid value for temperature."),
        refusal("your message mentions a function that is prohibited"),
        refusal("The text speaks of tools and a schema of violence."),
        refusal("unsupported parameter: temperature"),
        refusal(TOO_STRICT, 403),
        refusal("The generated JSON breaks the schema.", code="json_validate_failed"),
        refusal("The prompt about a schema was filtered.", code="content_filter"),
        refusal("The model strict-schema does not exist.", 404, "model_not_found"),
        refusal("The schema service failed.", 500),
    ],
)
async def test_a_refusal_of_something_else_is_what_it_was(error: Any) -> None:
    sent, (first, second) = await ask("native", request(), error, answer())
    assert sent[0] == sent[1]
    assert getattr(first, "cause", None) != "in_doubt"
    assert isinstance(second, Reply)


async def test_a_router_without_a_host_for_the_feature_counts_as_a_refusal_of_it() -> None:
    words = "No endpoints found that support tool use."
    _, (first, second) = await ask("tool", request(), refusal(words, 404), answer())
    assert first.cause == "in_doubt"
    assert isinstance(second, Reply)


async def test_once_answered_a_way_stays_and_a_refusal_is_its_records() -> None:
    sent, (_, refused, _) = await ask("native", request(), answer(), refusal(TOO_STRICT), answer())
    assert isinstance(refused, Refused)
    assert sent[0]["response_format"] == sent[2]["response_format"]


async def test_words_that_name_it_outside_a_refusal_change_nothing() -> None:
    _, (error,) = await ask("native", request(), refusal("schema cache is warming up", 503))
    assert isinstance(error, Overloaded)
    _, (gone,) = await ask("native", request(), refusal("model: strict", 404))
    assert isinstance(gone, RouteGone)


async def test_a_refusal_beside_a_fitting_answer_or_tool_call_is_a_refusal() -> None:
    _, (said,) = await ask("native", request(), answer(refusal="I can't."))
    call = {"type": "function", "function": {"name": "answer", "arguments": '{"a": 1}'}}
    _, (called,) = await ask("tool", request(), answer(None, tool_calls=[call], refusal="I can't."))
    assert [(each.finish, each.text) for each in (said, called)] == [("refusal", "I can't.")] * 2
