"""Makes up a value that satisfies a JSON Schema, the same one for the same schema, text and draw.

Pure, and no validator: it knows the keywords that structured output uses (type, enum, const, properties,
required, items, prefixItems, anyOf, oneOf, allOf, local $ref, lengths, bounds, multipleOf, usual formats)
and ignores the others, `pattern` among them. The answers of the rehearsal server come from here.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

_DEEP = 5  # from here on recursive schemas get the shortest instance
_TOO_DEEP = 64
_NULL, _NULLS = {"type": "null"}, 0.25
_FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class Unanswerable(ValueError):
    """The schema has no instance that could be made up; the message says why."""


def instance(schema: Any, echo: str, draw: Random, *, wrong: bool = False) -> Any:
    """A valid instance; the first free string in it is `echo`, as far as its maxLength allows.

    With `wrong` every enum and const gets a value that it doesn't allow, and a schema without one gets a
    value of another type. Raises Unanswerable for a schema that can't end or refers to nowhere.
    """
    maker = _Maker(schema, echo, draw, wrong)
    value = maker.make(schema, 0)
    if wrong and not maker.spoiled:
        return "no such value" if isinstance(value, dict | list) else ["no such value"]
    return value


class _Maker:
    """One instance in the making: the echo is used up once, and a spoiled enum is remembered."""

    def __init__(self, root: Any, echo: str, draw: Random, wrong: bool) -> None:
        self._root = root
        self._echo: str | None = echo
        self._draw = draw
        self._wrong = wrong
        self.spoiled = False

    def make(self, schema: Any, depth: int) -> Any:
        schema = self._plain(schema, depth)
        if "const" in schema:
            return self._allowed([schema["const"]])
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._allowed(schema["enum"])
        kind = _kind(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        if kind == "boolean":
            return self._draw.random() < 0.5
        return None if kind == "null" else self._string(schema)

    def _plain(self, schema: Any, depth: int) -> dict[str, Any]:
        """The schema with references followed, alternatives chosen and allOf merged."""
        for _ in range(_TOO_DEEP - depth):
            if isinstance(schema, bool):
                return {}
            if not isinstance(schema, dict):
                raise Unanswerable(f"a schema must be an object, not {schema!r}")
            alternatives = schema.get("anyOf") or schema.get("oneOf")
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = _merged([self._target(schema["$ref"]), rest])
            elif schema.get("allOf"):
                rest = {key: value for key, value in schema.items() if key != "allOf"}
                schema = _merged([*(self._plain(part, depth + 1) for part in schema["allOf"]), rest])
            elif alternatives:
                rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
                schema = _merged([rest, self._alternative(alternatives, depth)])
            else:
                return schema
        raise Unanswerable("the schema refers to itself without an end")

    def _alternative(self, alternatives: list[Any], depth: int) -> Any:
        """The first or now and then null, or deep down one that doesn't go deeper."""
        if depth >= _DEEP:
            for option in alternatives:
                if isinstance(option, dict) and not {"$ref", "properties", "items"} & option.keys():
                    return option
        if _NULL in alternatives and self._draw.random() < _NULLS:
            return _NULL
        return alternatives[0]

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise Unanswerable(f"the reference {reference!r} leaves the schema")
        found = self._root
        for step in filter(None, reference[1:].split("/")):
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise Unanswerable(f"the reference {reference!r} leads nowhere")
            found = found[name]
        return found

    def _allowed(self, values: list[Any]) -> Any:
        if self._wrong:
            self.spoiled = True
            return "no such value"
        return values[self._draw.randrange(len(values))]

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        made = {
            name: self.make(part, depth + 1)
            for name, part in properties.items()
            if depth < _DEEP or name in required
        }
        for name in required:
            if name not in made:
                made[name] = self.make(schema.get("additionalProperties", True), depth + 1)
        return made

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        least = int(schema.get("minItems", 0))
        wanted = min(max(least, 1 if depth < _DEEP else 0), int(schema.get("maxItems", least + 1)))
        first = schema.get("prefixItems", [])
        made = [self.make(part, depth + 1) for part in first]
        item = schema.get("items", True)
        if item is False:
            return made
        tries = 50 * wanted
        while len(made) < wanted and tries:
            value = self.make(item, depth + 1)
            tries -= 1
            if not schema.get("uniqueItems") or value not in made:
                made.append(value)
        return made

    def _number(self, schema: dict[str, Any], *, whole: bool) -> int | float:
        """A multiple of the step between the bounds, not far above the lower one."""
        step: int | float = schema.get("multipleOf", 1 if whole else 0.01)
        low: int | float | None = schema.get("minimum", schema.get("exclusiveMinimum"))
        high: int | float | None = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None:
            low = 0 if high is None else min(0, high - 100 * step)
        if high is None:
            high = low + 100 * step
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        first += "exclusiveMinimum" in schema and first * step <= schema["exclusiveMinimum"]
        last -= "exclusiveMaximum" in schema and last * step >= schema["exclusiveMaximum"]
        if first > last:
            return low if whole else (low + high) / 2
        value = (first + self._draw.randrange(min(last - first, 100) + 1)) * step
        return int(value) if whole else min(max(round(value, 10), low), high)

    def _string(self, schema: dict[str, Any]) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        if self._echo is not None and "pattern" not in schema:
            text, self._echo = self._echo, None
        else:
            text = f"text {self._draw.randrange(10_000)}"
        return text.ljust(int(schema.get("minLength", 0)), ".")[: schema.get("maxLength")]


def _kind(schema: dict[str, Any]) -> str:
    """The type to make: as told (the first that is not null), else what the keywords suggest."""
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if isinstance(kind, str):
        return kind
    hints = {"properties": "object", "required": "object", "items": "array", "prefixItems": "array"}
    hints |= {"minimum": "number", "maximum": "number", "multipleOf": "number"}
    return next((kind for key, kind in hints.items() if key in schema), "string")


def _merged(parts: list[Any]) -> dict[str, Any]:
    """Schemas that all hold, as one: properties and required joined, of other keywords the last wins."""
    merged: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            if key == "properties" and key in merged:
                value = {**merged[key], **value}
            elif key == "required" and key in merged:
                value = [*merged[key], *value]
            merged[key] = value
    return merged
