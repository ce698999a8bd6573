"""What chats, examples, earlier answers and conditions promise: the right messages, or where it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from batchllm.errors import BadInput, ConfigError
from batchllm.job import Job, Loaded
from batchllm.prompt import ChatPrompt, Condition, Examples, GivenMessages, Messages, Prompt
from batchllm.schema import Schema
from batchllm.wire.prompting import check_first, prompt_of, rendering

SYSTEM = {"role": "system", "content": "Be brief."}
LABELS = {"type": "object", "required": ["label"], "properties": {"label": {"enum": ["spam", "ham"]}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def refused(prompt: Messages, data: dict[str, Any], answers: dict[str, Any] | None = None) -> BadInput:
    with pytest.raises(BadInput) as caught:
        prompt.messages(data, answers)
    return caught.value


def made(schema: dict[str, Any] | None = None, model: str = "openai/m", **given: Any) -> Messages:
    origins = {"example": "job.toml line 3", "message": "job.toml line 9", "system": "--system"}
    loaded = Loaded(Job(**{"param": {}, **given}), origins | {"prompt": "--prompt", "param": "--param"})
    return prompt_of(loaded, Schema.load(schema, "schema.json") if schema else None, model)


def not_made(**given: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        made(**given)
    return caught.value


def body(data: dict[str, Any], model: str = "openai/m", **given: Any) -> dict[str, Any]:
    job = Job(**{"param": {}, "prompt": "{{ text }}", **given})
    rendered = rendering(job, Prompt(job.prompt or ""), model)({"text": "hi"} | data)
    assert isinstance(rendered, dict)
    return rendered


# --- examples ---


def test_examples_stand_between_what_the_system_says_and_the_record() -> None:
    examples = [
        {"record": {"text": "win $$"}, "answer": {"label": "spam"}},
        {"user": "{{ raw }}", "answer": "ham"},
    ]
    prompt = made(prompt="Sort: {{ text }}", system="Be brief.", example=examples)
    assert prompt.messages({"text": "hello"}) == [
        SYSTEM, user("Sort: win $$"), said('{"label":"spam"}'), user("{{ raw }}"), said("ham"),
        user("Sort: hello"),
    ]  # fmt: skip
    assert prompt.messages({"text": "again"})[:-1] == prompt.messages({"text": "hello"})[:-1]


def test_the_fields_of_the_system_prompt_are_not_asked_of_examples() -> None:
    prompt = made(prompt="{{ q }}", system="In {{ lang }}.", example=[{"record": {"q": "a"}, "answer": "b"}])
    assert prompt.fields == {"q", "lang"}
    assert [m["content"] for m in prompt.messages({"q": "c", "lang": "fr"})] == ["In fr.", "a", "b", "c"]


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "{{ text }}", "example": [{"record": {"text": " "}, "answer": "b"}]},
        {"prompt": "{{ text }}", "example": [{"user": "", "answer": "b"}]},
        {
            "message": [{"role": "system", "content": "Be brief."}],
            "example": [{"record": {"text": "a"}, "answer": "b"}],
        },
    ],
)
def test_an_example_that_asks_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"job\.toml line 3: example 1 asks nothing") as caught:
        made(**settings)
    assert caught.value.hint


def test_an_example_that_lacks_a_field_is_a_configuration_error_with_its_number() -> None:
    error = not_made(
        prompt="{{ text }}", example=[{"user": "a", "answer": "b"}, {"record": {"txt": "a"}, "answer": "b"}]
    )
    assert error.message == (
        "job.toml line 3: example 2: the record has no field 'text' "
        "(--prompt line 1: {{ text }}); the record has: txt"
    )


def test_an_answer_that_breaks_the_schema_is_named_with_its_path() -> None:
    good = {"user": "a", "answer": {"label": "ham"}}
    error = not_made(
        prompt="{{ text }}", schema=LABELS, example=[good, {"user": "a", "answer": {"label": "x"}}]
    )
    assert error.message.startswith(
        "job.toml line 3: example 2: the answer breaks the schema at $.label: 'x'"
    )
    prose = not_made(prompt="{{ text }}", schema=LABELS, example=[{"user": "a", "answer": "It is ham."}])
    assert "example 1: the answer breaks the schema at $: 'It is ham.'" in prose.message


def test_with_a_schema_an_answer_goes_out_as_the_json_that_it_is() -> None:
    written = made(prompt="{{ t }}", schema=LABELS, example=[{"user": "a", "answer": '{"label": "ham"}'}])
    word = made(prompt="{{ t }}", schema={"enum": ["spam", 1]}, example=[{"user": "a", "answer": "spam"}])
    number = made(prompt="{{ t }}", schema={"enum": ["spam", 1]}, example=[{"user": "a", "answer": 1}])
    answers = [prompt.messages({"t": "x"})[1]["content"] for prompt in (written, word, number)]
    assert answers == ['{"label": "ham"}', '"spam"', "1"]


# --- chats ---


def test_a_chat_of_templates_is_rendered_message_by_message_and_blank_ones_go() -> None:
    chat = [
        {"role": "system", "content": "{% if tone is defined %}Be {{ tone }}.{% endif %}"},
        {"role": "user", "content": "{{ first }}"},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": "{{ second }}"},
    ]
    prompt = made(message=chat)
    assert prompt.fields == {"first", "second"}
    asked = [user("a"), said("I see."), user("b")]
    assert prompt.messages({"first": "a", "second": "b"}) == asked
    assert prompt.messages({"first": "a", "second": "b", "tone": "kind"})[0]["content"] == "Be kind."
    error = refused(prompt, {"first": "a", "second": " "})
    assert (error.cause, "message 4" in error.message) == ("empty_prompt", True)
    assert "job.toml line 9: message 2 line 1: {{ first }}" in refused(prompt, {"second": "b"}).message
    shown = Examples(prompt, [{"record": {"first": "c", "second": "d"}, "answer": "e"}])
    assert shown.messages({"first": "a", "second": "b"})[:4] == [
        user("c"),
        said("I see."),
        user("d"),
        said("e"),
    ]


@pytest.mark.parametrize("name", ["prompt", "system"])
def test_a_chat_excludes_prompt_and_system_and_the_message_names_both(name: str) -> None:
    error = not_made(message=[{"role": "user", "content": "a"}], **{name: "b"})
    assert error.message == f"[[message]] (job.toml line 9) and {name} (--{name}) exclude each other"


def test_messages_that_a_record_holds_are_sent_as_they_stand() -> None:
    prompt = made(system="Be brief.")
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "Ann"}
    tool = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    own = {"role": "developer", "content": "Mine."}
    assert prompt.messages({"messages": [parts, tool]}) == [SYSTEM, parts, tool]
    assert prompt.messages({"messages": [own, parts], "text": "unused"}) == [own, parts]
    assert prompt.messages({"text": "t", "messages": None}) == [SYSTEM, user("t")]
    assert prompt.messages({"text": "t", "messages": ["kept", "from", "before"]}) == [SYSTEM, user("t")]
    assert made(messages_field="chat").messages({"chat": [user("x")]}) == [user("x")]
    shown = made(example=[{"user": "q", "answer": "a"}]).messages({"messages": [own, user("x")]})
    assert shown == [own, user("q"), said("a"), user("x")]
    assert made(prompt="{{ q }}").messages({"q": "a", "messages": [user("x")]}) == [user("a")]


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ("hello", "messages is text, not a list"),
        ([], "messages has no message"),
        ([5], "messages[0] is a number"),
        ([user("a"), {"content": "b"}], "messages[1].role is missing"),
        ([{"role": 1, "content": "b"}], "messages[0].role is a number"),
        ([{"role": "user"}], "messages[0].content is missing"),
        ([{"role": "user", "content": {"a": 1}}], "messages[0].content is an object"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0] is no part"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0] is no part"),
    ],
)
def test_messages_that_can_not_be_sent_are_the_records_error_with_the_place(
    messages: Any, place: str
) -> None:
    error = refused(GivenMessages(Prompt("{{ text }}"), "messages"), {"messages": messages})
    assert (error.kind, error.cause) == ("bad_input", "messages")
    assert place in error.message


def test_records_with_neither_text_nor_messages_are_told_of_both() -> None:
    prompt = made()
    job = Job(param={})
    check_first(job, prompt, [{"messages": [user("a")]}])
    check_first(job, prompt, [{"text": "a"}, {"id": 1}])
    check_first(job, prompt, [])
    with pytest.raises(ConfigError) as caught:
        check_first(job, prompt, [{"body": "b", "id": 1}])
    assert caught.value.message == (
        "no prompt was given, and the records have no field 'text' and no messages in 'messages'; "
        "they have: body, id"
    )
    assert "-p '{{ body }}'" in (caught.value.hint or "")
    error = refused(prompt, {"id": 1})
    assert error.cause == "missing_field"
    assert error.message.endswith("the record has: id; it has no messages in 'messages' either")


# --- stages ---


def test_a_template_sees_the_answers_of_earlier_stages_which_are_no_field_of_the_records() -> None:
    prompt = Prompt(
        "{{ text }}: {{ answers.check.label }}{{ answers['my-own'] }}", "{{ answers.check.label }}"
    )
    assert prompt.fields == {"text"}
    answers = {"check": {"label": "spam"}, "my-own": 1}
    assert [m["content"] for m in prompt.messages({"text": "a", "answers": "mine"}, answers)] == [
        "spam",
        "a: spam1",
    ]
    assert Prompt("{{ answers }}").messages({"answers": "mine"}) == [user("mine")]
    chat = ChatPrompt([{"role": "user", "content": "{{ answers.check }}"}])
    assert chat.messages({}, {"check": "x"}) == [user("x")]


def test_a_stage_that_has_not_answered_is_named_with_those_that_have() -> None:
    error = refused(Prompt("a\n{{ answers.chek.label }}"), {"text": "a"}, {"check": {"label": "spam"}})
    assert error.cause == "missing_field"
    assert "no earlier stage 'chek' has answered, those that have: check" in error.message
    assert "--prompt line 2: {{ answers.chek.label }}" in error.message
    assert Prompt("{{ answers.no | default('-') }}").messages({}, {}) == [user("-")]


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("answers.check.label == 'spam'", True),
        ("n > 3", False),
        ("n", True),
        ("empty", False),
        ("gone is defined and gone", False),
        ("answers.no is not defined", True),
        ("record.n == n and 'a' in text", True),
        ("text\n== 'abc'", True),
    ],
)
def test_a_condition_is_judged_over_the_record_and_the_answers(source: str, holds: bool) -> None:
    data = {"n": 3, "text": "abc", "empty": ""}
    assert Condition(source, "stage post: when").holds(data, {"check": {"label": "spam"}}) is holds


def test_a_condition_is_strict_about_fields_and_syntax() -> None:
    condition = Condition("urgnt and answers.check", "when")
    assert condition.fields == {"urgnt"}
    with pytest.raises(BadInput, match=r"no field 'urgnt' \(when line 1: urgnt and .*the record has: urgent"):
        condition.holds({"urgent": True})
    with pytest.raises(BadInput, match="no earlier stage 'check' has answered"):
        condition.holds({"urgnt": 1}, {})
    for wrong in ("", "a ==", "a b", "{{ a }}", "a %} b", "a | nosuch", "{% if a %}"):
        with pytest.raises(ConfigError, match="the condition has an error") as caught:
            Condition(wrong, "when")
        assert "an expression without braces" in (caught.value.hint or "")
    with pytest.raises(BadInput):
        Condition("''.__class__", "when").holds({})


# --- parameters and models by record ---


def test_parameters_of_a_record_join_those_of_the_run_and_win() -> None:
    given: dict[str, Any] = {"param": {"temperature": 0, "seed": 1}, "params_field": "ask"}
    assert body({"ask": {"temperature": 1, "top_p": 0.5}}, **given) | {"messages": []} == {
        "messages": [], "temperature": 1, "seed": 1, "top_p": 0.5,
    }  # fmt: skip
    for none in ({}, {"ask": None}):
        assert body(none, **given)["temperature"] == 0
    for wrong, told in [("hot", "ask is text"), ([], "ask is a list"), ({"model": "m"}, "ask holds model")]:
        with pytest.raises(BadInput, match=told) as caught:
            body({"ask": wrong}, **given)
        assert caught.value.cause == "params"


def test_a_record_names_a_model_of_the_runs_own_provider() -> None:
    def named(model: Any) -> Any:
        return body({"llm": model}, model_field="llm").get("model")

    assert [named(name) for name in ("gpt-4o", "openai/gpt-4o", "meta/llama", None)] == [
        "gpt-4o", "gpt-4o", "meta/llama", None,
    ]  # fmt: skip
    assert "model" not in body({}, model_field="llm")
    assert named("openai/anthropic/claude") == "anthropic/claude"
    for wrong, told in [
        ("anthropic/claude", "another provider"),
        (5, "llm is a number"),
        ("", "llm is empty"),
    ]:
        with pytest.raises(BadInput, match=told) as caught:
            named(wrong)
        assert caught.value.cause == "model"


def test_what_can_not_be_a_parameter_or_name_models_is_refused_before_the_start() -> None:
    assert "model is no parameter" in not_made(param={"model": "x"}).message
    assert "is one function" in not_made(model_field="llm", model="python/a:b").message
    assert "no folder" in not_made(image=["pic"], image_root="/no/such/folder").message
