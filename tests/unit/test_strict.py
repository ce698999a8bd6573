"""A schema's strict form: what strict mode takes, and answers to it brought back to the original."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from batchllm.schema import Schema, strict_form
from batchllm.simulate.instances import instance

CLOSED: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
NULL = {"type": "null"}
A: dict[str, Any] = {"type": "string"}


def within(inner: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A closed object with one property."""
    return {**CLOSED, "properties": {"a": inner}, **more}


@pytest.mark.parametrize(
    "document",
    [
        CLOSED,
        {**CLOSED, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "t"},
        within({"anyOf": [NULL, CLOSED]}),
        within({"$ref": "#/$defs/x"}, **{"$defs": {"x": CLOSED}}),
        within({"type": "array", "items": CLOSED, "minItems": 1}),
        within({"type": ["integer", "null"], "minimum": 0}),
    ],
)
def test_a_schema_that_strict_mode_takes_goes_as_it_is(document: Any) -> None:
    form = strict_form(document)
    assert form is not None
    assert form.document is document
    assert form.restore is None


@pytest.mark.parametrize(
    ("document", "sent"),
    [
        ({"type": "object", "properties": {"a": A}, "required": ["a"]}, CLOSED),
        ({"properties": {"a": A}, "required": ["a"]}, CLOSED),
        (within({**A, "minLength": 3, "format": "iri", "default": "x", "examples": []}), CLOSED),
        (within({"oneOf": [A, NULL]}), within({"anyOf": [A, NULL]})),
        (within({"enum": ["x", None]}), within({"enum": ["x", None], "type": ["string", "null"]})),
        (within({"const": 3}), within({"const": 3, "type": "integer"})),
        (within({"items": A, "uniqueItems": True}), within({"type": "array", "items": A})),
        (within({"allOf": [{"$ref": "#/$defs/x"}], "description": "d"}, **{"$defs": {"x": A}}),
         within({"$ref": "#/$defs/x"}, **{"$defs": {"x": A}})),
        (within({"$ref": "#/$defs/x", "description": "d"}, **{"$defs": {"x": A}}),
         within({"$ref": "#/$defs/x"}, **{"$defs": {"x": A}})),
        ({**CLOSED, "anyOf": [{"required": ["a"]}, {"title": "t"}]}, CLOSED),
        (within({**A, "not": {"const": "x"}}), CLOSED),
        ({"$ref": "#/$defs/x", "$defs": {"x": CLOSED}}, {**CLOSED, "$defs": {"x": CLOSED}}),
    ],
)  # fmt: skip
def test_what_only_narrows_is_not_sent(document: Any, sent: Any) -> None:
    form = strict_form(document)
    assert form is not None
    assert form.document == sent
    assert form.restore is None


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"type": "object"},
        {**CLOSED, "additionalProperties": True},
        {**CLOSED, "additionalProperties": A},
        {**CLOSED, "required": ["a", "b"]},
        {**CLOSED, "patternProperties": {}},
        {**CLOSED, "anyOf": [CLOSED]},
        {**CLOSED, "allOf": [CLOSED]},
        {**CLOSED, "if": {}, "then": {"required": ["b"]}},
        {**CLOSED, "$defs": {"x": {"type": "object"}}},
        within({"type": ["object", "null"]}),
        within({"type": "array"}),
        within({"type": "array", "items": {"type": "object"}}),
        within({"type": "array", "prefixItems": [A]}),
        within({"allOf": [A, {"minLength": 3}]}),
        within({"$ref": "#/properties/b"}, **{"$defs": {}}),
        {**CLOSED, "properties": {"a": True}},
        {"type": "array", "items": {"$ref": "#"}},
        {**CLOSED, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {**CLOSED, "oneOf": [{"required": ["a"]}, {"title": "t"}]},
        {**CLOSED, "anyOf": [{"required": ["a"]}, {"not": {"required": ["a"]}}]},
        {**CLOSED, "maxProperties": 1},
        {**CLOSED, "minProperties": 2},
        {**CLOSED, "dependentRequired": {"a": []}},
        {**CLOSED, "not": {"required": ["a"]}},
        within({"type": "array", "items": CLOSED, "contains": {"maxProperties": 0}}),
        {"anyOf": [CLOSED, NULL], "required": ["b"]},
        within({"$ref": "#/$defs/x", "required": ["b"]}, **{"$defs": {"x": CLOSED}}),
        {"$ref": "#/$defs/x", "maxProperties": 1, "$defs": {"x": CLOSED}},
    ],
)
def test_what_a_closed_object_could_not_hold_is_sent_without_strict(document: Any) -> None:
    assert strict_form(document) is None


OPTIONAL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "string"},
        "b": {"type": "integer"},
        "c": {"type": ["string", "null"]},
        "d": {"$ref": "#/$defs/part"},
        "e": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        "f": {"oneOf": [{"$ref": "#/$defs/part"}, {"$ref": "#/$defs/other"}]},
    },
    "required": ["a"],
    "$defs": {
        "part": {
            "type": "object",
            "properties": {"kind": {"const": "part"}, "x": {"type": "integer"}},
            "required": ["kind"],
        },
        "other": {
            "type": "object",
            "properties": {"kind": {"const": "other"}, "x": {"type": ["integer", "null"]}},
            "required": ["kind"],
        },
    },
}


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        ({"a": "x", "b": None, "c": None, "d": None, "e": None, "f": None}, {"a": "x", "c": None}),
        ({"a": None, "b": 1}, {"a": None, "b": 1}),
        ({"a": "x", "d": {"kind": "part", "x": None}}, {"a": "x", "d": {"kind": "part"}}),
        ({"a": "x", "e": [{"kind": "part", "x": None}, 3]}, {"a": "x", "e": [{"kind": "part"}, 3]}),
        ({"a": "x", "f": {"kind": "part", "x": None}}, {"a": "x", "f": {"kind": "part"}}),
        (
            {"a": "x", "f": {"kind": "other", "x": None}},
            {"a": "x", "f": {"kind": "other", "x": None}},
        ),
        ({"a": "x", "g": None}, {"a": "x", "g": None}),
        ("no object", "no object"),
    ],
)
def test_nulls_for_what_is_left_out_go_and_nulls_that_are_meant_stay(answer: Any, meant: Any) -> None:
    form = strict_form(OPTIONAL)
    assert form is not None
    assert form.restore is not None
    before = repr(answer)
    assert form.restore(answer) == meant
    assert repr(answer) == before


def record(required: list[str], **properties: Any) -> dict[str, Any]:
    """An open object."""
    return {"type": "object", "properties": properties, "required": required}


MAYBE: dict[str, Any] = {"type": ["string", "null"]}
KINDS = {
    "x": record(["k"], k={"$ref": "#/$defs/a"}, c=A),
    "y": record(["k", "c"], k={"$ref": "#/$defs/b"}, c=MAYBE),
}
CHOICES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "kinds told by references": (
        record(["r"], r={"anyOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]})
        | {"$defs": {"a": {"const": "a"}, "b": {"const": "b"}, **KINDS}},
        {"r": {"k": "b", "c": None}},
        {"r": {"k": "b", "c": None}},
    ),
    "kinds told by patterns": (
        record(
            ["r"],
            r={"anyOf": [record(["k"], k={**A, "pattern": p}, c=c) for p, c in (("^a", A), ("^b", MAYBE))]},
        ),
        {"r": {"k": "a", "c": None}},
        {"r": {"k": "a"}},
    ),
    "arrays": (
        {"anyOf": [{"type": "array", "items": record([n], b=A, c=A, a=A)} for n in "ac"]},
        {"answer": [{"a": None, "b": None, "c": "x"}, {"a": None, "b": "y", "c": "z"}]},
        [{"c": "x"}, {"b": "y", "c": "z"}],
    ),
    "the same names": (
        record(["r"], r={"oneOf": [record(["a"], a=A, b=A), record(["b"], a=A, b=A)]}),
        {"r": {"a": None, "b": "x"}},
        {"r": {"b": "x"}},
    ),
    "what is not to be null": (record([], a={**MAYBE, "not": NULL}), {"a": None}, {}),
    "a property called as the wrapping": (
        {"anyOf": [record(["answer"], answer=A), NULL]},
        {"answer": "x"},
        {"answer": "x"},
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_where_the_schema_leaves_a_choice_what_it_takes_is_chosen(name: str) -> None:
    document, answer, meant = CHOICES[name]
    form = strict_form(document)
    assert form is not None
    assert form.restore is not None
    assert form.restore(answer) == meant
    assert Schema.load(document, "s").accepts(meant)


def test_choices_within_choices_take_no_time_that_grows_beyond_reason() -> None:
    other, node = {"$ref": "#/$defs/y"}, {"$ref": "#/$defs/x"}
    either = {"anyOf": [node, other]}
    document = record(["r"], r=either) | {
        "$defs": {
            "x": record(["k", "n"], k={"const": 1}, c=A, n={"anyOf": [*either["anyOf"], NULL]}),
            "y": record(
                ["k", "n"], k={"type": "integer", "minimum": 2}, c=A, n={"anyOf": [other, node, NULL]}
            ),
        }
    }
    form = strict_form(document)
    assert form is not None
    assert form.restore is not None
    answer, meant = None, None
    for depth in range(12):
        answer = {"k": 1 + depth % 2, "c": None, "n": answer}
        meant = {"k": 1 + depth % 2, "n": meant}
    assert form.restore({"r": answer}) == {"r": meant}


def test_an_answer_that_is_no_object_is_wrapped_for_the_server_and_unwrapped_here() -> None:
    document = {"type": "array", "items": {"$ref": "#/$defs/x"}, "$defs": {"x": CLOSED}}
    form = strict_form(document)
    assert form is not None
    assert form.restore is not None
    assert form.document["type"] == "object"
    assert form.document["$defs"] == {"x": CLOSED}
    assert form.restore({"answer": [{"a": "x"}]}) == [{"a": "x"}]
    assert form.restore([{"a": "x"}]) == [{"a": "x"}]
    assert form.restore({"answer": [], "more": 1}) == {"answer": [], "more": 1}


def test_an_endless_or_hostile_value_passes_through() -> None:
    document = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"type": "integer"}}}
    form = strict_form(document)
    assert form is not None
    assert form.restore is not None
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert form.restore(deep) is deep


@pytest.mark.parametrize(
    "document", [OPTIONAL, CLOSED, {"type": "array", "items": OPTIONAL["$defs"]["part"]}]
)
def test_right_answers_to_the_strict_form_are_right_answers_to_the_original(document: Any) -> None:
    from random import Random

    form = strict_form(document)
    assert form is not None
    sent, original = Schema.load(form.document, "sent"), Schema.load(document, "original")
    Draft202012Validator.check_schema(form.document)
    for seed in range(50):
        value = instance(form.document, "some words", Random(seed))
        assert sent.accepts(value), value
        assert original.accepts(form.restore(value) if form.restore else value), value
