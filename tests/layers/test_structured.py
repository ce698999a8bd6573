"""What the structured layer promises: no bad answer passes, and every repair is asked once and well."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from typing import Any

import anyio
import pytest

from batchllm.errors import Invalid, Overloaded, Refused, Stopped
from batchllm.layers.structured import Check, Structured
from batchllm.model import Reply, Request, Trail, Usage
from batchllm.ports import Provider
from batchllm.schema import Schema
from batchllm.stop import Stop

SCHEMA = Schema.load(
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, "schema.json"
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]


def reply(text: str, finish: str | None = "stop") -> Reply:
    return Reply(text, text, Usage(1, 1), finish, "m", request_id="r")


class Scripted:
    """Answers with the given replies in turn and keeps what it was asked."""

    def __init__(self, *replies: Reply | Exception) -> None:
        self.replies = list(replies)
        self.asked: list[Request] = []

    async def complete(self, request: Request, trail: Trail) -> Reply:
        self.asked.append(request)
        answer = self.replies.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def ask(
    inner: Provider,
    *,
    schema: Schema | None = SCHEMA,
    repair: int = 1,
    stop: Stop | None = None,
    body: dict[str, Any] | None = None,
    key: str = "key",
    raw: bool = False,
    trail: Trail | None = None,
    check: Check | None = None,
    ceiling: int | None = None,
) -> Reply:
    stop = Stop() if stop is None else stop
    layer = Structured(inner, schema=schema, repair=repair, stop=stop, check=check, ceiling=ceiling)
    document = schema.document if schema else None
    body = body or {"messages": MESSAGES, "temperature": 0}
    request = Request("m", body, key, schema=document, raw=raw, record={"id": 7} if check else None)
    return anyio.run(layer.complete, request, trail or Trail())


def test_a_valid_answer_passes_with_its_parsed_value_and_one_ask() -> None:
    inner = Scripted(reply('Here: {"a": 1}'))
    trail = Trail()
    judged = ask(inner, trail=trail)
    assert judged.value == {"a": 1}
    assert (judged.text, judged.request_id) == ('Here: {"a": 1}', "r")
    assert trail.asks == len(inner.asked) == 1
    assert inner.asked[0].key == "key"


def test_without_a_schema_the_text_passes_exactly_as_sent() -> None:
    assert ask(Scripted(reply(' {"a": 1}\n')), schema=None).value == ' {"a": 1}\n'


@pytest.mark.parametrize("finish", [None, "stop", "tool_calls", "end_turn", "something_new"])
def test_other_finish_reasons_are_no_fault(finish: str | None) -> None:
    assert ask(Scripted(reply("yes", finish)), schema=None).value == "yes"


@pytest.mark.parametrize("finish", ["content_filter", "refusal"])
def test_a_refusal_is_final_and_never_repaired(finish: str) -> None:
    inner = Scripted(reply("I can't", finish))
    with pytest.raises(Refused) as caught:
        ask(inner, repair=3)
    assert (caught.value.cause, caught.value.raw) == (finish, "I can't")
    assert len(inner.asked) == 1


def test_a_repair_shows_the_model_its_answer_and_what_is_wrong() -> None:
    inner = Scripted(reply('{"a": "x"}'), reply('{"a": 2}'))
    trail = Trail()
    assert ask(inner, trail=trail).value == {"a": 2}
    assert trail.asks == 2
    first, second = inner.asked
    assert second.body["messages"][:3] == [*MESSAGES, {"role": "assistant", "content": '{"a": "x"}'}]
    complaint = second.body["messages"][3]
    assert complaint["role"] == "user"
    assert "at $.a: 'x' is not of type 'integer'" in complaint["content"]
    assert complaint["content"].endswith("Answer again with the corrected JSON only.")
    assert (first.key, second.key) == ("key", "key-1")
    assert (second.body["temperature"], second.schema) == (0, SCHEMA.document)
    assert first.body["messages"] == MESSAGES


def test_repairs_are_built_from_the_first_request_and_the_last_answer_only() -> None:
    inner = Scripted(reply("one"), reply('{"a": null}'), reply("three"), reply('{"a": 4}'))
    trail = Trail()
    assert ask(inner, repair=3, trail=trail).value == {"a": 4}
    assert [request.key for request in inner.asked] == ["key", "key-1", "key-2", "key-3"]
    assert [len(request.body["messages"]) for request in inner.asked] == [2, 4, 4, 4]
    assert [request.body["messages"][2]["content"] for request in inner.asked[1:]] == [
        "one",
        '{"a": null}',
        "three",
    ]
    assert trail.asks == 4


def test_a_long_bad_answer_is_shown_cut_and_kept_whole() -> None:
    answer = "é" * 10_000
    inner = Scripted(reply(answer), reply(answer))
    with pytest.raises(Invalid) as caught:
        ask(inner)
    assert len(inner.asked[1].body["messages"][2]["content"].encode()) == 8192
    assert caught.value.raw == answer


@pytest.mark.parametrize(
    ("bad", "cause", "message"),
    [
        (reply("Sorry, no."), "no_json", "there is no JSON in the answer"),
        (reply('{"a": 1,}'), "no_json", "doesn't parse"),
        (reply('{"b": 1}'), "schema", "the answer breaks the schema: at $: 'a' is a required property"),
        (reply("  \n"), "empty", "the answer was empty"),
        (reply("", "tool_calls"), "empty", "the answer was empty"),
        (reply('{"a": 1}', "length"), "truncated", "cut at the token limit"),
        (reply('{"a":', "max_tokens"), "truncated", "cut at the token limit"),
    ],
)
@pytest.mark.parametrize("repair", [0, 2])
def test_an_answer_that_stays_bad_is_invalid_with_its_cause_and_text(
    bad: Reply, cause: str, message: str, repair: int
) -> None:
    inner = Scripted(*[bad] * (repair + 1))
    trail = Trail()
    with pytest.raises(Invalid) as caught:
        ask(inner, repair=repair, trail=trail, body={"messages": MESSAGES, "max_tokens": 10})
    assert (caught.value.cause, caught.value.raw) == (cause, bad.text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert trail.asks == len(inner.asked) == repair + 1


def test_empty_and_cut_answers_are_asked_again_without_a_schema_too() -> None:
    inner = Scripted(reply(""), reply("half", "length"), reply("whole"))
    body = {"messages": MESSAGES, "max_tokens": 10}
    assert ask(inner, schema=None, repair=2, body=body).value == "whole"
    assert all(request.body["messages"] == MESSAGES for request in inner.asked)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_cut_answer_gets_twice_the_room_where_room_was_set(name: str) -> None:
    cut = reply("half", "length")
    inner = Scripted(cut, cut, reply("no json"), reply('{"a": 1}'))
    ask(inner, repair=3, body={"messages": MESSAGES, name: 100})
    assert [request.body[name] for request in inner.asked] == [100, 200, 400, 400]


@pytest.mark.parametrize("room", [{}, {"max_tokens": 0}, {"max_tokens": 2.5}, {"max_tokens": "many"}])
def test_a_cut_answer_that_can_be_given_no_more_room_is_not_asked_again(room: dict[str, Any]) -> None:
    inner = Scripted(reply("half", "length"))
    with pytest.raises(Invalid) as caught:
        ask(inner, repair=3, body={"messages": MESSAGES, **room})
    assert caught.value.cause == "truncated"
    assert "max_tokens" in (caught.value.hint or "")
    assert len(inner.asked) == 1


def test_a_body_without_a_list_of_messages_is_only_asked_again() -> None:
    body = {"input": "How many?"}
    inner = Scripted(reply("none"), reply('{"a": 1}'))
    assert ask(inner, body=body, raw=True).value == {"a": 1}
    assert [request.body for request in inner.asked] == [body, body]
    assert inner.asked[1].raw
    assert inner.asked[1].key == "key-1"


def test_a_raw_body_with_messages_is_repaired_like_any_other() -> None:
    inner = Scripted(reply("none"), reply('{"a": 1}'))
    ask(inner, body={"messages": MESSAGES, "model": "x"}, raw=True)
    assert [len(request.body["messages"]) for request in inner.asked] == [2, 4]


def test_keys_of_repairs_stay_portable() -> None:
    inner = Scripted(reply(""), reply(""), reply('{"a": 1}'))
    ask(inner, repair=2, key="k" * 64)
    keys = [request.key for request in inner.asked]
    assert len(set(keys)) == 3
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", key) for key in keys)


def test_no_repair_starts_in_a_run_that_stops() -> None:
    stop = Stop()

    class StopsMeanwhile:
        calls = 0

        async def complete(self, request: Request, trail: Trail) -> Reply:
            self.calls += 1
            stop.set(signal.SIGINT)
            return reply("")

    inner = StopsMeanwhile()
    with pytest.raises(Stopped):
        ask(inner, repair=3, stop=stop)
    assert inner.calls == 1


def test_a_good_answer_that_comes_while_the_run_stops_is_kept() -> None:
    stop = Stop()
    stop.set(signal.SIGINT)
    assert ask(Scripted(reply('{"a": 1}')), stop=stop).value == {"a": 1}


def test_what_goes_wrong_below_passes_through() -> None:
    inner = Scripted(reply(""), Overloaded("busy"))
    with pytest.raises(Overloaded):
        ask(inner, repair=3)


def test_of_several_values_the_one_that_fits_the_schema_is_the_answer() -> None:
    inner = Scripted(reply('Draft {"a": "one"}, final {"a": 1}, source [1] {"x": 0}'))
    assert ask(inner).value == {"a": 1}


def test_a_cut_answer_gets_room_up_to_the_ceiling_and_is_not_asked_again_there() -> None:
    cut = reply("half", "length")
    inner = Scripted(*[cut] * 4)
    with pytest.raises(Invalid) as caught:
        ask(inner, repair=9, ceiling=350, body={"messages": MESSAGES, "max_tokens": 100})
    assert [request.body["max_tokens"] for request in inner.asked] == [100, 200, 350]
    assert caught.value.cause == "truncated"
    assert "--max-tokens-ceiling" in caught.value.message
    assert caught.value.violations == (caught.value.message,)
    unset = Scripted(cut, reply('{"a": 1}'))
    ask(unset, ceiling=350)
    assert ["max_tokens" in request.body for request in unset.asked] == [False, True]
    assert unset.asked[1].body["max_tokens"] == 350


def test_what_was_made_of_the_schema_for_the_server_is_undone_before_the_answer_is_judged() -> None:
    def restore(value: Any) -> Any:
        return {name: item for name, item in value.items() if item is not None}

    draft = replace(reply('{"a": 1, "b": null} or {"a": null}'), restore=restore)
    assert ask(Scripted(draft)).value == {"a": 1}
    with pytest.raises(Invalid) as caught:
        ask(Scripted(replace(reply('{"a": null}'), restore=restore)), repair=0)
    assert caught.value.violations == ("at $: 'a' is a required property",)


def test_a_check_has_the_last_word_and_its_complaints_go_into_the_repair() -> None:
    seen: list[Any] = []

    async def check(value: Any, record: dict[str, Any] | None) -> list[str]:
        seen.append((value, record))
        return [] if value["a"] > 1 else ["a is too small", "try 2"]

    inner = Scripted(reply('{"a": "x"}'), reply('{"a": 1}'), reply('{"a": 2}'))
    assert ask(inner, repair=2, check=check).value == {"a": 2}
    assert seen == [({"a": 1}, {"id": 7}), ({"a": 2}, {"id": 7})]  # what breaks the schema is not shown it
    assert "- a is too small\n- try 2\n" in inner.asked[2].body["messages"][-1]["content"]
    with pytest.raises(Invalid) as caught:
        ask(Scripted(reply('{"a": 0}')), repair=0, check=check)
    assert (caught.value.cause, caught.value.raw) == ("check", '{"a": 0}')
    assert caught.value.violations == ("a is too small", "try 2")


def test_without_a_schema_a_check_sees_the_text() -> None:
    async def check(value: Any, record: dict[str, Any] | None) -> list[str]:
        return [] if value == "yes" else ["say yes"]

    inner = Scripted(reply("no"), reply("yes"))
    assert ask(inner, schema=None, check=check).value == "yes"
    assert inner.asked[1].body["messages"][-1]["content"].endswith("with the corrected answer only.")
