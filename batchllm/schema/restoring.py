"""Brings an answer to a schema's strict form back to the original: nulls that stand for what is left out go.

Guided by the original schema alone: where it leaves a choice, its validator says which way is right. What
can't be placed stays as it is. Pure; `strict` hands it out, `layers/structured` calls it for each answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MOST_STEPS = 50
"""References followed in a row before a chain counts as endless."""
_MOST_TRIES = 5000
"""Times that one answer is held to a part of the schema; after those a choice is made by its names alone."""


class Restoring:
    """Makes of an answer one that `document` means; `wrapped` names the property that holds it all.

    A null is taken out where its property is optional and the original does not allow null. The value given
    is not changed.
    """

    def __init__(self, document: dict[str, Any], wrapped: str | None) -> None:
        self._document = document
        self._wrapped = wrapped
        self._validator: Any = None
        self._has_one_like_it = any(
            wrapped in each.get("properties", ()) for each in _plain(document, document)
        )

    def __call__(self, value: Any) -> Any:
        """The value as the original schema means it."""
        wrapped = self._wrapped
        try:
            if wrapped is None or not isinstance(value, dict) or value.keys() != {wrapped}:
                return _Pass(self).restored(value, self._document)
            inner = _Pass(self).restored(value[wrapped], self._document)
            # a server that isn't strict may have answered to the original, which has such a property, too
            as_it_is = self._has_one_like_it and not self.accepts(inner) and self.accepts(value)
            return value if as_it_is else inner
        except RecursionError:
            return value  # the validator says so, too

    @property
    def document(self) -> dict[str, Any]:
        """The original schema."""
        return self._document

    def accepts(self, value: Any, schema: Any = None) -> bool:
        """Whether the original, or a schema within it, takes a value."""
        if self._validator is None:
            from batchllm.schema.validating import validator_of

            self._validator = validator_of(self._document)
        validator = self._validator if schema is None else self._validator.evolve(schema=schema)
        return bool(validator.is_valid(value))


class _Pass:
    """One answer on its way."""

    def __init__(self, whole: Restoring) -> None:
        self._whole = whole
        self._document = whole.document
        self._tries = 0
        self._made: dict[tuple[int, int], Any] = {}

    def restored(self, value: Any, schema: Any) -> Any:
        """A value that stands where `schema` does."""
        if not isinstance(value, dict | list):
            return value
        holds = "items" if isinstance(value, list) else "properties"
        found = [each for each in _plain(schema, self._document) if isinstance(each.get(holds), dict)]
        if len(found) == 1:
            return self._by(value, found[0])
        if not found:
            return value
        place = (id(value), id(schema))
        if place not in self._made:
            self._made[place] = self._chosen(value, schema, found)
        return self._made[place]

    def _chosen(self, value: Any, schema: Any, found: list[dict[str, Any]]) -> Any:
        """The value as it is where that will do, else by the first branch that makes of it what will."""
        likely = [each for each in found if isinstance(value, list) or _describes(each, value)]
        if self._accepts(value, schema):
            return value
        for each in [*likely, *(other for other in found if other not in likely)]:
            made = self._by(value, each)
            if self._accepts(made, schema):
                return made
        return self._by(value, likely[0]) if likely else value

    def _accepts(self, value: Any, schema: Any) -> bool:
        self._tries += 1
        return self._tries <= _MOST_TRIES and self._whole.accepts(value, schema)

    def _by(self, value: Any, schema: dict[str, Any]) -> Any:
        """The value as a schema without choice means it."""
        if isinstance(value, list):
            return [self.restored(item, schema["items"]) for item in value]
        properties, required = schema["properties"], schema.get("required", [])
        kept = {}
        for name, item in value.items():
            inner = properties.get(name, True)
            if item is None and name not in required and not allows_null(inner, self._document):
                continue
            kept[name] = self.restored(item, inner)
        return kept


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
    if "not" in schema and allows_null(schema["not"], document, steps + 1):
        return False
    if "$ref" in schema and not allows_null(_referred(schema, document), document, steps + 1):
        return False
    for name in ("anyOf", "oneOf"):
        if name in schema and not any(allows_null(each, document, steps + 1) for each in schema[name]):
            return False
    return all(allows_null(each, document, steps + 1) for each in schema.get("allOf", []))


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
