"""What a schema promises: checked at load, nothing fetched, plain words for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from batchllm.errors import ConfigError
from batchllm.schema import Schema, find_json

TRIAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "delivery"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "due": {"type": "string", "format": "date"},
        "odd key": {"type": "integer"},
    },
    "required": ["category"],
    "additionalProperties": False,
}


def test_a_valid_value_has_no_violations() -> None:
    schema = Schema.load(TRIAGE, "triage.json")
    value = {"category": "billing", "tags": ["a"], "due": "2026-02-28"}
    assert schema.violations(value) == []
    assert schema.accepts(value)
    assert schema.name == "triage.json"
    assert schema.document is TRIAGE


def test_violations_name_the_path_and_come_sorted() -> None:
    schema = Schema.load(TRIAGE, "triage.json")
    value = {"tags": ["a", 2], "category": "foo", "odd key": "x", "due": "2026-02-30"}
    assert schema.violations(value) == [
        "at $.category: 'foo' is not one of ['billing', 'delivery']",
        "at $.due: '2026-02-30' is not a 'date'",
        "at $.tags[1]: 2 is not of type 'string'",
        "at $[\"odd key\"]: 'x' is not of type 'integer'",
    ]
    assert schema.violations({}) == ["at $: 'category' is a required property"]
    assert not schema.accepts({})


def test_violations_are_few_and_short() -> None:
    schema = Schema.load({"items": {"type": "integer"}}, "s")
    lines = schema.violations(["long " * 10_000] * 30)
    assert len(lines) == 6
    assert lines[-1] == "and 25 more"
    assert all(len(line) < 200 for line in lines)
    assert lines[0].endswith("… is not of type 'integer'")


def test_a_failed_choice_tells_of_the_branch_that_came_nearest() -> None:
    schema = Schema.load(
        {"properties": {"a": {"anyOf": [{"type": "null"}, {"type": "object", "required": ["b"]}]}}}, "s"
    )
    assert schema.violations({"a": {}}) == ["at $.a: 'b' is a required property"]


def test_drafts_are_told_by_the_schema() -> None:
    tuple_of_two = {"items": [{"type": "integer"}, {"type": "string"}]}
    seven = Schema.load({"$schema": "http://json-schema.org/draft-07/schema#", **tuple_of_two}, "s")
    assert seven.violations([1, 2]) == ["at $[1]: 2 is not of type 'string'"]
    with pytest.raises(ConfigError, match=r"not a valid JSON Schema at \$\.items"):
        Schema.load(tuple_of_two, "s")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"properties": {"a": {"type": "strin"}}}, r"s\.json: not a valid JSON Schema at \$\.properties\.a"),
        ({"required": "a"}, r"at \$\.required"),
        ({"properties": {"a": {"pattern": "(["}}}, r"at \$\.properties\.a\.pattern"),
        ({"$schema": "http://example.com/mine"}, "unknown JSON Schema draft 'http://example.com/mine'"),
        ({"$schema": 7}, "unknown JSON Schema draft"),
        (["not", "an", "object"], "is an object"),
        ({"$ref": "#/$defs/gone"}, r"\$ref '#/\$defs/gone' leads to no schema"),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, "leads to no schema in this file"),
        ({"$ref": "other.json#/a"}, "leads to no schema"),
        ({"$ref": "http://["}, "leads to no schema"),
        ({"$ref": "#/type", "type": "object"}, "leads to no schema"),
        ({"$ref": "#/x/y", "x": {"y": {"$ref": "#/x/z"}}}, r"'#/x/z' leads to no schema"),
        ({"items": {"$dynamicRef": "#gone"}}, r"\$dynamicRef '#gone'"),
        ({"$ref": "#"}, "never ends"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#/$defs/b"}}}, "never ends"),
        ({"items": {"$ref": "#/$defs/b"}, "$defs": {"b": {"anyOf": [{"$ref": "#/$defs/b"}, True]}}}, "never"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "never ends"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "never"),
    ],
)
def test_a_bad_schema_is_found_at_load(document: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Schema.load(document, "s.json")
    assert caught.value.hint


def test_references_inside_the_document_hold_recursive_ones_too() -> None:
    tree = {
        "$id": "https://example.com/tree.json",
        "$defs": {"node": {"properties": {"left": {"$ref": "#/$defs/node"}, "n": {"type": "integer"}}}},
        "$ref": "#/$defs/node",
        "properties": {"$ref": {"type": "string"}, "kind": {"const": {"$ref": "#/nowhere"}}},
    }
    schema = Schema.load(tree, "tree")
    assert schema.violations({"left": {"left": {"n": "x"}}}) == [
        "at $.left.left.n: 'x' is not of type 'integer'"
    ]


def test_a_value_nested_beyond_reason_is_a_violation() -> None:
    schema = Schema.load({"items": {"$ref": "#"}}, "s")
    value: Any = []
    for _ in range(900):
        value = [value]
    assert schema.violations(value) in ([], ["at $: nested too deeply"])


def test_jsonschema_is_imported_with_the_first_schema_only() -> None:
    code = (
        "import sys, batchllm.schema as s; before = 'jsonschema' in sys.modules; s.Schema.load({}, 's'); "
        "sys.exit(before or 'jsonschema' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CLOSED: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        (" \n[1, 2]\n", [1, 2]),
        ("42", 42),
        ('"yes"', "yes"),
        ("null", None),
        ('\ufeff{"a": 1}', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('```\n[{"a": 1}]\n```', [{"a": 1}]),
        ('Sure! Here it is:\n```JSON\n{"a": "```"}\n```\nAnything else?', {"a": "```"}),
        ('The answer is {"a": {"b": "}"}} as asked.', {"a": {"b": "}"}}),
        ('See [1]: {"a": 1} and [2].', {"a": 1}),
        ('First {"a": 1}, no: {"a": 2}', {"a": 2}),
        ('Like {"a": 0}:\n```json\n{"a": 1}\n```\nnot {"a": 2}', {"a": 1}),
        ('A lamp [5" wide] is {"a": 1}', {"a": 1}),
        ('{see} {"a": "\\"{"} :-{', {"a": '"{'}),
        ('1) [ note that {"a": 1}', {"a": 1}),
        ('<think>maybe {"a": 0}</think>{"a": 1}', {"a": 1}),
        ('<think>{"a": 0}</think>\n<think>x</think>\n\n```json\n{"a": 1}\n```', {"a": 1}),
        ("I would say [0]\n</think>\n\nSo: [1]", [1]),
        ('So: {"a": "<think>x</think>"}', {"a": "<think>x</think>"}),
        ('{"a": "<think>x</think>"}', {"a": "<think>x</think>"}),
        ('{"n": 123456789012345678901234567890}', {"n": 123456789012345678901234567890}),
        ('so {"n": 18446744073709551617}', {"n": 18446744073709551617}),
        ('{"n": 0.12345678901234567}', {"n": 0.12345678901234567}),
    ],
)
def test_the_json_in_an_answer_is_found(text: str, value: Any) -> None:
    assert find_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I can't help with that.",
        "the answer is 42",
        "```json\n42\n```",
        '{"a": NaN}',
        "Infinity",
        '{"a": 1e999}',
        '{"a": 1e999, "n": 12345678901234567890}',
        '{"a": "\\ud800"}',
        '{"a": "\ud800"}',
        "{'a': 1}",
        '{"a": 1, "b": {"c": 2},}',
        '{"a": 1, "b": {"c": 2}, "d": "cut {} off',
        '{"a": 1, "b": [{"c": 2}, {"d"',
        '<think>maybe {"a": 0}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 1010 + "123456789012345678901234567890" + "]" * 1010,
    ],
)
def test_no_answer_is_made_up_from_pieces(text: str) -> None:
    with pytest.raises(ValueError):
        find_json(text)


def test_the_message_says_where_broken_json_breaks() -> None:
    with pytest.raises(ValueError, match=r"doesn't parse: .*line 1 column"):
        find_json('Here: {"a": 1,}')
    with pytest.raises(ValueError, match="there is no JSON"):
        find_json("Sorry.")
    for number in ("1" + "0" * 400, "-1e400"):
        with pytest.raises(ValueError, match="a number that is too large"):
            find_json(number)


def test_the_candidate_that_is_accepted_comes_before_others() -> None:
    text = 'Draft {"a": 1}\n```json\n{"b": 2}\n```\nand [3]'
    assert find_json(text) == {"b": 2}
    assert find_json(text, lambda value: "a" in value) == {"a": 1}
    assert find_json(text, lambda value: value == [3]) == [3]
    assert find_json(text, lambda value: False) == {"b": 2}
