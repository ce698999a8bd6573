"""A check of a hundredth of the time that stands before jsonschema: it may say "valid", and nothing else.

jsonschema-rs where it is installed, for schemas of which both libraries are known to judge alike. Whatever it
doesn't accept goes to jsonschema, which decides and finds the words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ALIKE = frozenset(
    {
        *("type", "enum", "const", "properties", "required", "additionalProperties", "propertyNames"),
        *("minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength"),
        *("allOf", "anyOf", "oneOf", "not", "$ref", "$defs", "definitions", "$schema", "$comment"),
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    }
)
"""Keywords that mean the same to both libraries. Not among them: patterns and formats, whose dialects differ,
`multipleOf` and `uniqueItems`, whose arithmetic does, and all that gives schemas names of their own."""
_DRAFTS = {
    "https://json-schema.org/draft/2020-12/schema": "Draft202012Validator",
    "http://json-schema.org/draft-07/schema#": "Draft7Validator",
}
_OF_SCHEMAS = ("properties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS = ("additionalProperties", "propertyNames", "items", "not")


def quick_check(document: dict[str, Any], draft: str) -> Callable[[Any], bool] | None:
    """What says of a value that it is surely valid; None where there is no such check for this schema."""
    try:
        if draft not in _DRAFTS or not _judged_alike(document):
            return None
        import jsonschema_rs

        is_valid: Callable[[Any], bool] = getattr(jsonschema_rs, _DRAFTS[draft])(document).is_valid
    except (ImportError, ValueError, RecursionError):
        return None

    def surely_valid(value: Any) -> bool:
        try:
            return is_valid(value)
        except ValueError:  # a number or a text that it can't hold
            return False

    return surely_valid


def _judged_alike(document: dict[str, Any]) -> bool:
    """Whether the schema and all within it use nothing but keywords that both libraries understand alike.

    References that lead back to themselves are not among that: the libraries differ in where a chain ends.
    """
    seen: set[int] = set()

    def alike(schema: Any, above: frozenset[int]) -> bool:
        if isinstance(schema, bool) or id(schema) in seen:
            return True
        if not isinstance(schema, dict) or not schema.keys() <= _ALIKE or id(schema) in above:
            return False
        inner = _inside(schema)
        if "$ref" in schema:
            inner.append(_referred(document, schema["$ref"]))
        if not all(alike(each, above | {id(schema)}) for each in inner):
            return False
        seen.add(id(schema))
        return True

    return alike(document, frozenset())


def _inside(schema: dict[str, Any]) -> list[Any]:
    """The schemas that stand within this one."""
    found: list[Any] = []
    for name in _OF_SCHEMAS:
        found += schema.get(name, {}).values()
    for name in _LISTS:
        found += schema.get(name, [])
    for name in _SCHEMAS:
        if name in schema:
            found += schema[name] if isinstance(schema[name], list) else [schema[name]]
    return found


def _referred(document: dict[str, Any], reference: Any) -> Any:
    """The schema in this document that a reference names, None where that is not plain to see."""
    if not isinstance(reference, str) or not reference.startswith("#/") or set(reference) & set("%~"):
        return None
    place: Any = document
    for name in reference[2:].split("/"):
        if not isinstance(place, dict) or name not in place:
            return None
        place = place[name]
    return place
