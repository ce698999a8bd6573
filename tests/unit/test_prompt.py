"""What a prompt promises: strict, sandboxed, exact, and clear about what is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.errors import BadInput, ConfigError
from batchllm.prompt import DEFAULT_PROMPT, Prompt, explain_missing, missing_fields


def render(template: str, data: dict[str, Any]) -> str:
    (message,) = Prompt(template).messages(data)
    assert message["role"] == "user"
    return message["content"]


def refuse(template: str, data: dict[str, Any]) -> BadInput:
    prompt = Prompt(template)
    with pytest.raises(BadInput) as caught:
        prompt.messages(data)
    return caught.value


def test_the_system_message_comes_first() -> None:
    prompt = Prompt("{{ q }}", "You speak {{ language }}.")
    assert prompt.messages({"q": "Hi", "language": "Dutch"}) == [
        {"role": "system", "content": "You speak Dutch."},
        {"role": "user", "content": "Hi"},
    ]
    assert prompt.fields == {"q", "language"}


def test_a_system_prompt_that_comes_out_blank_is_left_away() -> None:
    prompt = Prompt("{{ q }}", "{% if tone is defined %}Be {{ tone }}.{% endif %}")
    assert prompt.messages({"q": "Hi"}) == [{"role": "user", "content": "Hi"}]
    assert [m["role"] for m in prompt.messages({"q": "Hi", "tone": "kind"})] == ["system", "user"]


def test_text_is_not_escaped_for_html_and_one_final_newline_goes() -> None:
    assert render("<b>{{ q }}</b> & 100%\n", {"q": "<a> & 'b' 50%"}) == "<b><a> & 'b' 50%</b> & 100%"


def test_record_is_the_whole_object_as_plain_json_in_its_own_order() -> None:
    data = {"z": "Grüße <b>'&'</b> 語", "a": 123456789012345678901234567890, "n": None}
    assert json.loads(render("{{ record | tojson }}", data)) == data
    assert render("{{ record | tojson }}", {"z": "<é'>", "a": 1}) == '{"z": "<é\'>", "a": 1}'
    assert render("{{ record | tojson(indent=1) }}", {"a": 1}) == '{\n "a": 1\n}'
    assert Prompt("{{ record | tojson }}").fields == frozenset()


def test_a_field_named_record_wins_over_the_whole_object() -> None:
    assert render("{{ record }}", {"record": "mine"}) == "mine"
    assert render("{{ record }} {{ a }}", {"record": "mine", "a": 1}) == "mine 1"


def test_a_field_wins_over_a_dict_method_and_a_jinja_global_of_the_same_name() -> None:
    assert render("{{ order.items }} {{ order.keys }}", {"order": {"items": 3, "keys": 4}}) == "3 4"
    assert render("{{ range }}", {"range": "short"}) == "short"
    assert refuse("{{ range }}", {"a": 1}).cause == "missing_field"
    assert Prompt("{{ range }} {{ dict(a=b) }}").fields == {"range", "b"}
    assert (
        render("{% for k, v in order.items() %}{{ k }}={{ v }} {% endfor %}", {"order": {"a": 1}}) == "a=1 "
    )


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{{ a }} {{ b.c }}", {"a", "b"}),
        ("{{ a | default('x') }}{{ b | d(c) }}", {"c"}),
        ("{{ a.b | default('x') }}", {"a"}),
        ("{{ a | default('x') }} {{ a }}", {"a"}),
        ("{% if a is defined %}{{ a }}{% endif %}", set()),
        ("{% if a is defined and a.b %}{{ a.b }}{% endif %}", set()),
        ("{% if a is not defined or a > 1 %}x{% endif %}", set()),
        ("{% if a is defined or b %}{{ a }}{% endif %}", {"a", "b"}),
        ("{% if a is defined %}{{ b }}{% else %}{{ a }}{% endif %}", {"a", "b"}),
        ("{% if a is not defined %}none{% elif a %}{{ a }}{% else %}{{ a }}!{% endif %}", set()),
        ("{{ a if a is defined else b }}", {"b"}),
        ("{% set a = a | default('x') %}{{ a }}", set()),
        ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", set()),
        ("{% for x in xs %}{{ x }}{{ loop.index }}{% endfor %}", {"xs"}),
        ("{% macro m(x) %}{{ x }}{{ y }}{% endmacro %}{{ m(z) }}", {"y", "z"}),
        ("{% with v = w %}{{ v }}{% endwith %}", {"w"}),
        ("{% set text %}{{ a }}{% endset %}{{ text }}", {"a"}),
        ("{{ record.a }} {{ range(3) | list }}", set()),
        ("plain", set()),
    ],
)
def test_fields_are_those_without_which_no_record_renders(template: str, fields: set[str]) -> None:
    assert Prompt(template).fields == fields


def test_a_missing_field_is_named_with_its_line_and_what_the_record_has() -> None:
    error = refuse("Ticket:\n{{ subjct }}\n", {"id": 7, "subject": "x"})
    assert (error.kind, error.cause) == ("bad_input", "missing_field")
    assert error.message == (
        "the record has no field 'subjct' (--prompt line 2: {{ subjct }}); the record has: id, subject"
    )


def test_a_missing_inner_field_is_named_too() -> None:
    error = refuse("{{ customer.name | upper }}", {"customer": {"id": 7}})
    assert error.cause == "missing_field"
    assert "the object has no 'name', it has: id" in error.message
    assert "str has no 'name'" in refuse("{{ customer.name }}!", {"customer": "Ann"}).message
    assert refuse("{{ gone | tojson }}", {"a": 1}).cause == "missing_field"


def test_a_template_that_fails_on_a_record_is_that_records_error() -> None:
    error = refuse("a\nb\n{{ 10 // n }}", {"n": 0})
    assert error.cause == "template_error"
    assert "--prompt line 3: {{ 10 // n }}" in error.message


@pytest.mark.parametrize(
    "template",
    [
        "{{ a.__class__ }}",
        "{{ a.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ (a | string).format.__globals__ }}",
        "{{ '{0.__class__}'.format(a) }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ record.update({'a': 2}) }}",
        "{{ record.clear() }}",
    ],
)
def test_a_template_reaches_nothing_beyond_the_record_and_changes_nothing_in_it(template: str) -> None:
    data = {"a": 1}
    error = refuse(template, data)
    assert error.cause in {"template_error", "missing_field"}
    assert data == {"a": 1}


def test_a_record_nested_beyond_reason_is_its_own_error() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert refuse("{{ a | tojson }}", {"a": deep}).cause == "template_error"
    while deep:
        deep = deep.pop()


@pytest.mark.parametrize("value", ["", "  \n\t "])
def test_a_prompt_of_nothing_but_space_is_refused(value: str) -> None:
    error = refuse(" {{ text }}\n", {"text": value})
    assert (error.kind, error.cause) == ("bad_input", "empty_prompt")


@pytest.mark.parametrize(
    ("template", "line", "text"),
    [
        ("one\n{{ a } }\n", 2, "{{ a } }"),
        ("x\n{% if a %}\nb", 2, "{% if a %}"),
        ("a\nb\n{{ a | nosuch }}", 3, "nosuch"),
        ("a\n{% if a %}{{ a | nosuch }}{% endif %}", 2, "no filter 'nosuch'"),
        ("{{ a | map('upper') }}", 1, "map gives no text: add | list or | join"),
        ("{{ a is nosuch }}", 1, "nosuch"),
        ("{% include 'other' %}", 1, "can't load another"),
        ("{{ f(a=1, a=2) }}", 1, "f(a=1, a=2)"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", 1, "can't be compiled"),
    ],
)
def test_a_template_that_never_works_is_a_configuration_error(template: str, line: int, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Prompt("{{ a }}", template, system_name="voice.txt")
    assert f"voice.txt line {line}: " in caught.value.message
    assert text in caught.value.message
    assert caught.value.hint is not None


NAMES = ["a", "b", "title", "loop", "name"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(NAMES) | st.text(st.characters(exclude_characters="{}#"), min_size=1)),
    st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES)),
)
def test_the_short_way_for_plain_templates_gives_what_jinja_gives(
    parts: list[str], data: dict[str, Any]
) -> None:
    source = "".join(f"{{{{ {part} }}}}" if part in NAMES else part for part in parts) + "."
    jinja_only = "{% if true %}{% endif %}" + source
    assert render(source, data) == render(jinja_only, data)


def test_only_fields_that_no_record_has_are_missing() -> None:
    records = [{"id": 1, "subject": "a"}, {"id": 2, "body": "b"}]
    assert missing_fields(frozenset({"subject", "body"}), records) == []
    assert missing_fields(frozenset({"subjct", "body", "also"}), records) == ["also", "subjct"]
    assert missing_fields(frozenset({"x"}), []) == []


def test_a_missing_field_comes_with_the_nearest_name_that_there_is() -> None:
    error = explain_missing(["subjct"], [{"id": 1, "subject": "a", "body": "b"}])
    assert "'subjct'" in error.message
    assert "did you mean 'subject'?" in (error.hint or "")
    assert "id, subject, body" in (error.hint or "")
    assert "did you mean" not in (explain_missing(["zzzz"], [{"id": 1}]).hint or "")


def test_without_a_prompt_the_message_holds_one_that_fits_the_records() -> None:
    records = [
        {"id": "t-1", "subject": "Broken lamp", "body": "It broke on day one.", "lang": "en", "n": 3},
        {"id": "t-2", "subject": "Refund", "body": "Where is my money?", "lang": "en", "n": 4},
    ]
    missing = missing_fields(Prompt(DEFAULT_PROMPT).fields, records)
    error = explain_missing(missing, records, default_prompt=True)
    assert error.message.startswith("no prompt was given")
    assert "id, subject, body, lang, n" in error.message
    assert "-p '{{ subject }} {{ body }}'" in (error.hint or "")
    assert render("{{ subject }} {{ body }}", records[1]) == "Refund Where is my money?"


def test_the_ready_prompt_fits_odd_field_names_and_records_without_text() -> None:
    odd = explain_missing(["text"], [{"the question": "why?"}], default_prompt=True)
    assert """-p '{{ record["the question"] }}'""" in (odd.hint or "")
    none = explain_missing(["text"], [{"n": 1}], default_prompt=True)
    assert "-p '{{ record | tojson }}'" in (none.hint or "")
