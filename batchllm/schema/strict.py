"""A schema made fit for OpenAI's strict mode, so that what it gives can be brought back to the original.

What is sent may allow more than the original, never less than what the original needs: every answer is
validated against the original in any case. Pure; `providers/shaping` calls it once a schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from batchllm.fields import frozen
from batchllm.schema.restoring import Restoring

WRAPPED = "answer"
"""The property that holds an answer which is no object."""

# What strict mode is known to take (OpenAI's guide to structured outputs); what only narrows is not sent.
_PLAIN = frozenset(
    {
        *("type", "enum", "const", "$schema", "title", "description", "pattern", "format", "multipleOf"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
    }
)
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_UNFIT_KEYWORDS = frozenset(
    {
        *("patternProperties", "unevaluatedProperties", "unevaluatedItems", "prefixItems", "additionalItems"),
        *("$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor"),
        *("if", "then", "else", "dependentSchemas", "dependencies", "dependentRequired", "maxProperties"),
    }
)
"""Those that could ask for what a closed object can't hold, that count a null as there, or name schemas."""
_OF_ONE_VALUE = _PLAIN | {"minLength", "maxLength"}
"""What says nothing of names: only that may stand where the original is denied or looked for."""
_STRUCTURE = frozenset({"type", "enum", "const", "properties", "items", "anyOf", "oneOf", "allOf"})
_WANT_NAMES = frozenset({"required", "minProperties"})
_REFERENCE = re.compile(r"#(/(\$defs|definitions)/[^/%~]+)?")
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


@frozen
class StrictForm:
    """`document` is what to send; `restore` makes of an answer to it one to the original, None for itself."""

    document: dict[str, Any]
    restore: Callable[[Any], Any] | None = None


class _Unfit(Exception):
    """Strict mode can't be given this schema without forbidding right answers."""


def strict_form(document: dict[str, Any]) -> StrictForm | None:
    """The form of a schema that strict mode takes; None where there is none.

    Objects are closed, their optional properties required and nullable, `oneOf` is `anyOf`, keywords that
    only narrow are left out, and a root that is no object is wrapped into one.
    """
    adapting = _Adapting()
    try:
        root, wrapped = _root(document)
        sent = adapting.adapted(root)
        for name in ("$defs", "definitions"):
            if name in document:
                sent[name] = {key: adapting.adapted(each) for key, each in document[name].items()}
        if wrapped and "#" in adapting.references:
            return None
    except (_Unfit, RecursionError):
        return None
    if not wrapped and not adapting.optional:
        return StrictForm(document if sent == document else sent)
    return StrictForm(sent, Restoring(document, WRAPPED if wrapped else None))


def _wrapped(document: dict[str, Any]) -> dict[str, Any]:
    """A schema whose answer stands in a property of an object; its definitions stay at the root."""
    at_root = ("$defs", "definitions", "$schema")
    inner = {name: value for name, value in document.items() if name not in at_root}
    return {
        "type": "object",
        "properties": {WRAPPED: inner},
        "required": [WRAPPED],
        "additionalProperties": False,
    } | {name: document[name] for name in ("$defs", "definitions") if name in document}


_BESIDE_ROOT = frozenset({"$ref", "$schema", "$defs", "definitions", "title", "description", "$comment"})


def _root(document: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The schema to adapt as the root, which has to be a plain object, and whether it was wrapped."""
    root = document
    reference = root.get("$ref")
    alone = document.keys() <= _BESIDE_ROOT
    if alone and isinstance(reference, str) and _REFERENCE.fullmatch(reference) and reference != "#":
        _, holder, name = reference.split("/")
        root = document.get(holder, {}).get(name)
    if isinstance(root, dict) and root.get("type", "object") == "object" and "properties" in root:
        return root, False
    return _wrapped(document), True


class _Adapting:
    """One schema on its way; `optional` says that nulls were let in, `references` which it holds."""

    def __init__(self) -> None:
        self.optional = False
        self.references: set[str] = set()

    def adapted(self, schema: Any) -> dict[str, Any]:
        """The schema and all within it in strict form; raises _Unfit."""
        if not isinstance(schema, dict) or not _UNFIT_KEYWORDS.isdisjoint(schema):
            raise _Unfit
        if not all(_speaks_of_one_value(schema[name]) for name in ("not", "contains") if name in schema):
            raise _Unfit
        if "properties" not in schema and not _WANT_NAMES.isdisjoint(schema):
            raise _Unfit  # it may want names that its branches, once closed, don't have
        if "$ref" in schema:
            return self._reference(schema)
        if "allOf" in schema:
            return self._all_of(schema)
        kept = {name: value for name, value in schema.items() if name in _PLAIN}
        if schema.get("format", "date") not in _FORMATS:
            del kept["format"]
        if "anyOf" in schema or "oneOf" in schema:
            if _STRUCTURE.isdisjoint(schema.keys() - {"anyOf", "oneOf"}):
                return kept | {"anyOf": self._branches(schema)}
            _only_narrows(schema)
        if "type" not in kept:
            kept["type"] = _told_type(schema)
        types = kept["type"] if isinstance(kept["type"], list) else [kept["type"]]
        if "object" in types:
            kept |= self._object(schema)
        if "array" in types:
            kept["items"] = self.adapted(schema.get("items"))
        return kept

    def _reference(self, schema: dict[str, Any]) -> dict[str, Any]:
        reference = schema["$ref"]
        if not _REFERENCE.fullmatch(reference) or not _STRUCTURE.isdisjoint(schema):
            raise _Unfit
        self.references.add(reference)
        return {"$ref": reference}

    def _all_of(self, schema: dict[str, Any]) -> dict[str, Any]:
        """One schema in `allOf` is that schema; several can't be closed one by one."""
        if len(schema["allOf"]) != 1 or not _STRUCTURE.isdisjoint(schema.keys() - {"allOf"}):
            raise _Unfit
        return self.adapted(schema["allOf"][0])

    def _branches(self, schema: dict[str, Any]) -> list[dict[str, Any]]:
        if "anyOf" in schema and "oneOf" in schema:
            raise _Unfit
        return [self.adapted(branch) for branch in schema.get("anyOf") or schema["oneOf"]]

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        closed = schema.get("additionalProperties")
        if closed not in (None, False) or (not properties and closed is None):
            raise _Unfit  # its names are the model's to choose
        if not set(required) <= set(properties) or schema.get("minProperties", 0) > len(properties):
            raise _Unfit
        adapted = {
            name: self.adapted(each) if name in required else self._optional(each)
            for name, each in properties.items()
        }
        names = required if set(required) == set(properties) else list(properties)
        return {"properties": adapted, "required": names, "additionalProperties": False}

    def _optional(self, schema: Any) -> dict[str, Any]:
        self.optional = True
        return {"anyOf": [self.adapted(schema), {"type": "null"}]}


def _only_narrows(schema: dict[str, Any]) -> None:
    """Branches beside a structure may be left out where each asks for properties, and any one will do.

    Where just one may hold, or where one must not, an optional property that is null would count as there.
    """
    for branch in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
        if "oneOf" in schema or not isinstance(branch, dict) or not branch.keys() <= _ASKS:
            raise _Unfit
        if not set(branch.get("required", [])) <= set(schema.get("properties", {})):
            raise _Unfit


_ASKS = frozenset({"required", "title", "description"})


def _speaks_of_one_value(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.keys() <= _OF_ONE_VALUE


def _told_type(schema: dict[str, Any]) -> Any:
    """The type that a schema has without saying so: strict mode wants to be told."""
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        types = list(dict.fromkeys(_TYPES.get(type(value)) for value in values))
        if None in types:
            raise _Unfit
        return types[0] if len(types) == 1 else types
    if "properties" in schema:
        return "object"
    if "items" in schema:
        return "array"
    raise _Unfit
