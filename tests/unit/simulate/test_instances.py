"""A made-up instance satisfies its schema, carries the echo, and is the same each time."""

from __future__ import annotations

from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.simulate.instances import Unanswerable, instance

TRIAGE = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "bug", "other"]},
        "reason": {"type": "string", "minLength": 1},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["category", "reason", "confidence"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name", "next", "children"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: list[Any] = [
    True,
    {},
    TRIAGE,
    TREE,
    {"const": {"a": 1}},
    {"type": ["null", "integer"], "minimum": -5, "maximum": -2},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "integer", "minimum": 7, "multipleOf": 5},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    {"type": "number", "maximum": -100.5},
    {"type": "string", "minLength": 40, "maxLength": 41},
    {"type": "string", "maxLength": 3},
    {"type": "string", "format": "date-time"},
    {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "uniqueItems": True},
    {"type": "array", "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False},
    {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    {"oneOf": [{"type": "boolean"}, {"type": "string"}]},
    {"allOf": [{"properties": {"a": {"type": "string"}}}, {"type": "object", "required": ["a", "b"]}]},
    {"properties": {"a/b": {"type": "integer"}, "c": {"$ref": "#/properties/a~1b"}}, "required": ["c"]},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_an_instance_satisfies_its_schema(schema: Any) -> None:
    for seed in range(20):
        jsonschema.validate(instance(schema, "echo: hello", Random(seed)), schema)


@settings(deadline=None, max_examples=40)
@given(st.text(), st.integers())
def test_the_echo_is_in_the_first_free_string_of_an_object(echo: str, seed: int) -> None:
    made = instance(TRIAGE, echo, Random(seed))
    assert made["reason"] == (echo or ".")
    assert made["category"] in ("billing", "bug", "other")


def test_the_same_draw_makes_the_same_instance() -> None:
    assert instance(TREE, "x", Random(7)) == instance(TREE, "x", Random(7))


@pytest.mark.parametrize(
    "schema", [TRIAGE, TREE, {"type": "string"}, {"type": "integer"}, {"const": 1}], ids=str
)
def test_a_wrong_instance_breaks_its_schema(schema: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(instance(schema, "echo", Random(1), wrong=True), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.com/schema"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
    ids=str,
)
def test_a_schema_without_an_end_or_with_a_dead_reference_is_refused(schema: Any) -> None:
    with pytest.raises(Unanswerable):
        instance(schema, "echo", Random(1))
