"""Whether a provider's strict mode takes a schema as it is."""

from __future__ import annotations

from typing import Any

# What OpenAI's strict mode is known to take; whatever else a schema holds is sent without strict.
_STRICT_KEYWORDS = frozenset(
    {
        *("type", "enum", "const", "anyOf", "items", "properties", "required", "additionalProperties"),
        *("$ref", "$defs", "definitions", "$schema", "title", "description", "pattern", "format"),
        *("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
    }
)
_STRICT_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)


def strict_ready(document: dict[str, Any]) -> bool:
    """Whether OpenAI's strict mode takes this schema as it is.

    Every object must forbid further properties and require all of its own, the root must be an object,
    and only known keywords may appear (OpenAI's guide to structured outputs). When in doubt: False.
    """
    if document.get("type") != "object" or "anyOf" in document:
        return False
    left: list[Any] = [document]
    while left:
        schema = left.pop()
        if not isinstance(schema, dict) or not schema.keys() <= _STRICT_KEYWORDS:
            return False
        if schema.get("format", "date") not in _STRICT_FORMATS:
            return False
        properties = schema.get("properties", {})
        if "object" in _types(schema) or properties:
            closed = schema.get("additionalProperties") is False
            if not closed or set(schema.get("required", [])) != set(properties):
                return False
        left += properties.values()
        left += [*schema.get("$defs", {}).values(), *schema.get("definitions", {}).values()]
        left += schema.get("anyOf", [])
        left += [schema["items"]] if "items" in schema else []
    return True


def _types(schema: dict[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]
