"""Our verdicts are jsonschema's, and those of the public test suite, with and without the quick check.

tests/data/json-schema-test-suite holds the required cases of drafts 7 and 2020-12 as they were published.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema.validators import Draft7Validator, Draft202012Validator

from batchllm.errors import ConfigError
from batchllm.schema import Schema
from batchllm.schema.quick import quick_check

SUITE = Path(__file__).parents[1] / "data" / "json-schema-test-suite"
VALIDATORS = {"draft7": Draft7Validator, "draft2020-12": Draft202012Validator}


def groups(draft: str) -> list[tuple[str, dict[str, Any]]]:
    """Each schema of the suite with its tests, by file."""
    files = json.loads((SUITE / f"{draft}.json").read_text())
    return [(name, group) for name, found in files.items() for group in found]


@pytest.mark.parametrize("draft", VALIDATORS)
def test_verdicts_equal_the_suite_s_and_jsonschema_s(draft: str) -> None:
    validator = VALIDATORS[draft]
    wrong, told = [], Counter[str]()
    for name, group in groups(draft):
        document = group["schema"]
        if isinstance(document, bool):
            continue
        document = {"$schema": validator.META_SCHEMA["$schema"], **document}
        try:
            schema = Schema.load(document, "suite")
        except ConfigError as error:
            told["refused"] += 1
            outside = (
                "leads to no schema in this file" in error.message or "unknown JSON Schema" in error.message
            )
            if not outside:
                wrong.append((name, group["description"], error.message, False))
            continue
        peer = validator(document, format_checker=validator.FORMAT_CHECKER)
        for test in group["tests"]:  # those of formats say that they are no more than words
            verdict = schema.accepts(test["data"])
            told["judged"] += 1
            told["quickly"] += schema.quick is not None and schema.quick(test["data"])
            if name != "format" and {peer.is_valid(test["data"]), test["valid"]} != {verdict}:
                wrong.append((name, group["description"], test["description"], verdict))
    assert not wrong
    assert told["judged"] > 800
    assert told["quickly"] > 200
    assert told["refused"] < 60


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.sampled_from([0.0, 1.0, -0.0, 1.5, 2.0, 1e300, 1e-300, 9007199254740993.0, 10**400])
    | st.text(max_size=3)
    | st.sampled_from(["", "a", "ä", "é", "🦊", "\ud83d", "a\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 1e300, 9007199254740993])
SMALL = st.integers(0, 3)
SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.deferred(
    lambda: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"]),
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "const": VALUES,
            "minimum": NUMBERS,
            "exclusiveMaximum": NUMBERS,
            "minLength": SMALL,
            "maxLength": SMALL,
            "minItems": SMALL,
            "uniqueItems": st.booleans(),
            "items": SCHEMAS,
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "properties": st.dictionaries(st.sampled_from("abc"), SCHEMAS, max_size=2),
            "additionalProperties": st.booleans() | SCHEMAS,
            "propertyNames": SCHEMAS,
            "maxProperties": SMALL,
            "anyOf": st.lists(SCHEMAS, min_size=1, max_size=2),
            "oneOf": st.lists(SCHEMAS, min_size=1, max_size=2),
            "not": SCHEMAS,
        },
    )
)


@settings(max_examples=50, deadline=None)
@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=4))
def test_the_quick_check_accepts_nothing_that_jsonschema_refuses(
    schema: dict[str, Any], values: list[Any]
) -> None:
    peer = Draft202012Validator(schema)
    quick = quick_check(schema, Draft202012Validator.META_SCHEMA["$schema"])
    if quick is not None:
        assert [value for value in values if quick(value) and not peer.is_valid(value)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}]}}},
        {"properties": {"a": {"pattern": "^\\d$"}}},
        {"items": {"format": "email"}},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#anchor"},
    ],
)
def test_what_the_libraries_may_judge_differently_is_left_to_jsonschema(schema: dict[str, Any]) -> None:
    assert quick_check(schema, Draft202012Validator.META_SCHEMA["$schema"]) is None
