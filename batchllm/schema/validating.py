"""Check a value against a JSON Schema and say what is wrong with it, by path.

jsonschema is the validator of record, and imported when the first schema is made, because that takes longer
than everything else at start-up. `quick` may stand before it and can only say yes.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from batchllm.errors import ConfigError
from batchllm.schema.quick import quick_check

if TYPE_CHECKING:
    from jsonschema import FormatChecker
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator
    from referencing import Specification

_MAX_VIOLATIONS = 5
_MAX_VALUE = 100
_MAX_MESSAGE = 500


class Schema:
    """A JSON Schema, checked and compiled; made by `Schema.load`.

    `quick` says of a value that it is surely valid, where there is such a check for this schema.
    """

    def __init__(self, document: dict[str, Any], name: str, validator: Validator) -> None:
        self.document = document
        self.name = name
        self._validator = validator

    @cached_property
    def quick(self) -> Callable[[Any], bool] | None:
        """Made when the first answer comes: its library takes a while to import."""
        return quick_check(self.document, self._validator.META_SCHEMA["$schema"])

    @classmethod
    def load(cls, document: dict[str, Any], name: str) -> Schema:
        """Compile `document`; `name` is what messages call it, such as its file.

        The draft is the one that `$schema` names, else 2020-12. Raises ConfigError for a document that is
        no valid schema, and for a reference that leads out of it: nothing is ever fetched.
        """
        from jsonschema.exceptions import SchemaError
        from referencing import Registry
        from referencing.jsonschema import UnknownDialect, specification_with

        if not isinstance(document, dict):
            raise ConfigError(f"{name}: a JSON Schema is an object", hint='begin with {"type": "object", …}')
        uri, chosen = _draft(document)
        try:
            specification = specification_with(uri)
            chosen.check_schema(document)
            formats = _check_inside(document, specification, name)
            validator = chosen(document, registry=Registry(), format_checker=_format_checker(formats, name))
            for text in ("null", "{}", "[]"):
                validator.is_valid(json.loads(text))
        except UnknownDialect as error:
            raise ConfigError(
                f"{name}: unknown JSON Schema draft {uri!r}",
                hint="leave $schema out for draft 2020-12; draft 7 is http://json-schema.org/draft-07/schema#",
            ) from error
        except SchemaError as error:
            raise ConfigError(
                f"{name}: not a valid JSON Schema {_describe(error)}",
                hint="the path is the place in the schema file",
            ) from error
        except RecursionError as error:
            raise ConfigError(
                f"{name}: the schema never ends", hint="look for a $ref that leads back to itself"
            ) from error
        return cls(document, name, validator)

    def accepts(self, value: Any) -> bool:
        """Whether the value satisfies the schema."""
        return not self.violations(value)

    def violations(self, value: Any) -> list[str]:
        """What is wrong with the value, by path, a handful at most; empty for a valid one."""
        if self.quick is not None and self.quick(value):
            return []
        try:
            errors = list(itertools.islice(self._validator.iter_errors(value), 50))
            if not errors:
                return []
            from jsonschema.exceptions import best_match

            # Of an anyOf that failed, the branch that came nearest says more than "none of them".
            lines = sorted({_describe(best_match([error]) or error) for error in errors})
        except RecursionError:
            return ["at $: nested too deeply"]
        if len(lines) <= _MAX_VIOLATIONS:
            return lines
        return [*lines[:_MAX_VIOLATIONS], f"and {len(lines) - _MAX_VIOLATIONS} more"]


def validator_of(document: dict[str, Any]) -> Validator:
    """What says of a value, and says no more, whether a schema that `Schema.load` takes accepts it.

    jsonschema's own collects all that is wrong with each branch of a choice, which takes twice as long with
    each choice that stands within another.
    """
    from jsonschema import validators
    from referencing import Registry

    from batchllm.schema.formats import format_checker

    extend: Any = validators.extend
    quick = extend(_draft(document)[1], {"anyOf": _one_or_more, "oneOf": _just_one})
    validator: Validator = quick(document, registry=Registry(), format_checker=format_checker())
    return validator


def _no(value: Any) -> ValidationError:
    from jsonschema.exceptions import ValidationError

    return ValidationError("no branch, or too many", instance=value)


def _one_or_more(validator: Any, branches: Any, value: Any, _schema: Any) -> Iterator[ValidationError]:
    if not any(validator.evolve(schema=branch).is_valid(value) for branch in branches):
        yield _no(value)


def _just_one(validator: Any, branches: Any, value: Any, _schema: Any) -> Iterator[ValidationError]:
    fitting = (branch for branch in branches if validator.evolve(schema=branch).is_valid(value))
    if next(fitting, None) is None or next(fitting, None) is not None:
        yield _no(value)


def _draft(document: dict[str, Any]) -> tuple[str, Any]:
    """The draft that a schema is of, by its name, and the class of its validators."""
    from jsonschema.validators import Draft202012Validator, validator_for

    uri = str(document.get("$schema", Draft202012Validator.META_SCHEMA["$schema"]))
    return uri, validator_for({"$schema": uri}, default=Draft202012Validator)


def _check_inside(document: dict[str, Any], specification: Specification[Any], name: str) -> set[str]:
    """The formats that this document's schemas ask for.

    Raises ConfigError for a reference that it doesn't answer itself, RecursionError for one that leads back
    to itself without going deeper into the value.
    """
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    registry: Registry[Any] = Registry()
    root = specification.create_resource(document)
    left = [(root, registry.resolver_with_root(root))]
    formats: set[str] = set()
    same: dict[int, list[Any]] = {}  # for each schema those that judge the same value
    while left:
        resource, resolver = left.pop()
        schema = resource.contents
        if id(schema) in same:
            continue
        same[id(schema)] = []
        left += [(inner, resolver.in_subresource(inner)) for inner in resource.subresources()]
        if not isinstance(schema, dict):
            continue
        if isinstance(schema.get("format"), str):
            formats.add(schema["format"])
        same[id(schema)] += [each for key in _SAME_VALUE for each in _listed(schema.get(key))]
        for keyword in ("$ref", "$dynamicRef"):
            reference = schema.get(keyword)
            if not isinstance(reference, str):
                continue
            try:
                found = resolver.lookup(reference)
            except (Unresolvable, ValueError) as error:
                raise _leads_nowhere(name, keyword, reference) from error
            if not isinstance(found.contents, dict | bool):
                raise _leads_nowhere(name, keyword, reference)
            left.append((specification.create_resource(found.contents), found.resolver))
            if keyword == "$ref":
                same[id(schema)].append(found.contents)
    _check_ends(same)
    return formats


_SAME_VALUE = ("allOf", "anyOf", "oneOf", "not", "if")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_ends(same: dict[int, list[Any]]) -> None:
    """Raise RecursionError where a schema, asked about a value, asks itself about the same value."""
    ended: set[int] = set()

    def follow(schema: int, above: frozenset[int]) -> None:
        if schema in above:
            raise RecursionError
        if schema not in ended:
            for each in same.get(schema, []):
                follow(id(each), above | {schema})
            ended.add(schema)

    for schema in same:
        follow(schema, frozenset())


def _format_checker(formats: set[str], name: str) -> FormatChecker | None:
    """What knows the formats of a schema; warns of those that nothing is held to."""
    if not formats:
        return None
    from batchllm.schema.formats import CHECKED, format_checker

    for each in sorted(formats - CHECKED - _MERE_WORDS):
        logging.getLogger("batchllm").warning(
            "%s: nobody checks the format %r; a pattern would be checked", name, each
        )
    return format_checker()


_MERE_WORDS = frozenset({"int32", "int64", "float", "double", "password", "binary", "byte"})
"""Formats of OpenAPI that say how a value is stored or shown."""


def _leads_nowhere(name: str, keyword: str, reference: str) -> ConfigError:
    return ConfigError(
        f"{name}: {keyword} {reference!r} leads to no schema in this file",
        hint="put what it refers to under $defs; nothing is fetched",
    )


def _describe(error: Any) -> str:
    """One line for a violation: its path and its message, long values cut."""
    message = error.message
    if len(message) > _MAX_VALUE:
        value = repr(error.instance)
        if len(value) > _MAX_VALUE:
            message = message.replace(value, f"{value[:_MAX_VALUE]}…")
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}…"
    return f"at {_path(error.absolute_path)}: {message}"


def _path(steps: Any) -> str:
    path = "$"
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if step.isidentifier() else f"[{json.dumps(step, ensure_ascii=False)}]"
    return path
