"""Brings an answer to a schema's strict form back to the original: nulls that stand for what is left out go.

Guided by the original schema alone; it judges nothing, and what it can't place it leaves as it is. Pure;
`strict` hands it out, `layers/structured` calls it for each answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MOST_STEPS = 50
"""References followed in a row before a chain counts as endless."""


def restored(value: Any, *, document: dict[str, Any], wrapped: str | None) -> Any:
    """The value as the original schema `document` means it; `wrapped` names the property that holds it all.

    A null is taken out where its property is optional and the original does not allow null. The value given
    is not changed.
    """
    if wrapped is not None and isinstance(value, dict) and value.keys() == {wrapped}:
        value = value[wrapped]
    try:
        return _without_nulls(value, document, document)
    except RecursionError:
        return value  # the validator says so, too


def allows_null(schema: Any, document: dict[str, Any], steps: int = 0) -> bool:
    """Whether null may satisfy a schema within `document`; True where that is not plain to see."""
    if not isinstance(schema, dict) or steps > _MOST_STEPS:
        return schema is not False
    types = schema.get("type", "null")
    if "null" not in (types if isinstance(types, list) else [types]):
        return False
    if "enum" in schema and None not in schema["enum"]:
        return False
    if "const" in schema and schema["const"] is not None:
        return False
    if "$ref" in schema and not allows_null(_referred(schema, document), document, steps + 1):
        return False
    for name in ("anyOf", "oneOf"):
        if name in schema and not any(allows_null(each, document, steps + 1) for each in schema[name]):
            return False
    return all(allows_null(each, document, steps + 1) for each in schema.get("allOf", []))


def _without_nulls(value: Any, schema: Any, document: dict[str, Any]) -> Any:
    if not isinstance(value, dict | list):
        return value
    holds = "items" if isinstance(value, list) else "properties"
    found = [each for each in _plain(schema, document) if isinstance(each.get(holds), dict)]
    if isinstance(value, list):
        return [_without_nulls(item, found[0]["items"], document) for item in value] if found else value
    chosen = found if len(found) == 1 else [each for each in found if _describes(each, value)]
    return _object(value, chosen[0], document) if chosen else value


def _object(value: dict[str, Any], schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    properties, required = schema["properties"], schema.get("required", [])
    kept = {}
    for name, item in value.items():
        inner = properties.get(name, True)
        if item is None and name not in required and not allows_null(inner, document):
            continue
        kept[name] = _without_nulls(item, inner, document)
    return kept


def _plain(schema: Any, document: dict[str, Any], steps: int = 0) -> Iterator[dict[str, Any]]:
    """The schemas without choice that a schema leads to, by its references and branches."""
    if not isinstance(schema, dict) or steps > _MOST_STEPS:
        return
    if "properties" in schema or "items" in schema:
        yield schema
        return
    if "$ref" in schema:
        yield from _plain(_referred(schema, document), document, steps + 1)
    for name in ("allOf", "anyOf", "oneOf"):
        for branch in schema.get(name, ()):
            yield from _plain(branch, document, steps + 1)


def _describes(schema: dict[str, Any], value: dict[str, Any]) -> bool:
    """Whether an object is of this schema, by its names (strict mode gives all) and its constants."""
    properties = schema["properties"]
    if properties.keys() != value.keys():
        return False
    for name, inner in properties.items():
        if isinstance(inner, dict) and "const" in inner and value[name] not in (inner["const"], None):
            return False
        if isinstance(inner, dict) and "enum" in inner and value[name] not in (*inner["enum"], None):
            return False
    return True


def _referred(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """The schema that a reference `#` or `#/$defs/name` names; True, which says nothing, for any other."""
    place: Any = document
    for name in schema["$ref"].split("/")[1:]:
        if not isinstance(place, dict) or name not in place:
            return True
        place = place[name]
    return place
