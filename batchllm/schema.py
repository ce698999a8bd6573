"""Structured answers: find the JSON in a text, check it against a JSON Schema, say what is wrong.

The only room that knows jsonschema, and it imports it when the first schema is made, because that takes
longer than everything else at start-up. It asks nobody and fetches nothing; `wire` loads the schema,
`layers/structured` judges answers with it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import orjson

from batchllm.errors import ConfigError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
    from referencing import Specification

_MAX_VIOLATIONS = 5
_MAX_VALUE = 100
_MAX_MESSAGE = 500


class Schema:
    """A JSON Schema, checked and compiled; made by `Schema.load`."""

    def __init__(self, document: dict[str, Any], name: str, validator: Validator) -> None:
        self.document = document
        self.name = name
        self._validator = validator

    @classmethod
    def load(cls, document: dict[str, Any], name: str) -> Schema:
        """Compile `document`; `name` is what messages call it, such as its file.

        The draft is the one that `$schema` names, else 2020-12. Raises ConfigError for a document that is
        no valid schema, and for a reference that leads out of it: nothing is ever fetched.
        """
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
        from referencing.jsonschema import UnknownDialect, specification_with

        if not isinstance(document, dict):
            raise ConfigError(f"{name}: a JSON Schema is an object", hint='begin with {"type": "object", …}')
        uri = str(document.get("$schema", Draft202012Validator.META_SCHEMA["$schema"]))
        chosen = validator_for({"$schema": uri}, default=Draft202012Validator)
        try:
            specification = specification_with(uri)
            chosen.check_schema(document)
            _check_references(document, specification, name)
            validator = chosen(document, registry=Registry(), format_checker=chosen.FORMAT_CHECKER)
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


def _check_references(document: dict[str, Any], specification: Specification[Any], name: str) -> None:
    """Raise ConfigError for a reference that this document doesn't answer itself."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    registry: Registry[Any] = Registry()
    root = specification.create_resource(document)
    left = [(root, registry.resolver_with_root(root))]
    seen: set[int] = set()
    while left:
        resource, resolver = left.pop()
        if id(resource.contents) in seen:
            continue
        seen.add(id(resource.contents))
        left += [(inner, resolver.in_subresource(inner)) for inner in resource.subresources()]
        if not isinstance(resource.contents, dict):
            continue
        for keyword in ("$ref", "$dynamicRef"):
            reference = resource.contents.get(keyword)
            if not isinstance(reference, str):
                continue
            try:
                found = resolver.lookup(reference)
            except (Unresolvable, ValueError) as error:
                raise _leads_nowhere(name, keyword, reference) from error
            if not isinstance(found.contents, dict | bool):
                raise _leads_nowhere(name, keyword, reference)
            left.append((specification.create_resource(found.contents), found.resolver))


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


# Bounds on the work for hostile text, far beyond what a real answer needs.
_MAX_ACCEPTS = 50
_MAX_UNCLOSED = 4
_MAX_DEPTH = 1000

_OPENING = re.compile(r"[{\[]")
_MARK = re.compile(r'["{}\[\]]')
_STRING_BODY = re.compile(r'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+')
_FENCE = re.compile(r"```[ \t]*(json\w*)?\s*", re.IGNORECASE)
# No JSON string holds a raw line break, so a tag at the start of a line is never part of a value.
_THINK = re.compile(r"(?:^[ \t]*|(?<=</think>)\s*)<think>", re.MULTILINE)
_THINK_END = "</think>"
_LONE_THINK_END = re.compile(r"^[ \t]*</think>[ \t]*$", re.MULTILINE)
_DECODER = json.JSONDecoder()


def find_json(text: str, accept: Callable[[Any], bool] | None = None) -> Any:
    """The JSON value in a model's answer.

    The whole text, if it parses. Else, with `<think>` blocks taken out, the outermost balanced `{…}` and
    `[…]` that parse: one that `accept` accepts before others, then one at the start of a code fence
    before prose, an object before an array, a later one before an earlier. Pieces of broken JSON are
    never taken for an answer, nor is a scalar that isn't all there is. Integers are exact at any size;
    NaN and infinities are refused. Work grows linearly with the text. Raises ValueError, and nothing else.
    """
    whole = text.strip().removeprefix("\ufeff")
    try:
        return _parse(whole)
    except ValueError:
        pass
    answer = _without_reasoning(whole).strip() if "think>" in whole else whole
    if answer != whole:
        try:
            return _parse(answer)
        except ValueError:
            pass
    found = sorted(_candidates(answer), key=lambda candidate: candidate[:3], reverse=True)
    if not found:
        raise ValueError(_why_none(answer))
    if accept is not None and len(found) > 1:
        for *_, value in found[:_MAX_ACCEPTS]:
            if accept(value):
                return value
    return found[0][3]


def _candidates(text: str) -> Iterator[tuple[bool, bool, int, Any]]:
    """What parses: whether it opens a fence, whether it is an object, where it starts, the value."""
    fenced = {fence.end() for n, fence in enumerate(_FENCE.finditer(text)) if fence[1] or n % 2 == 0}
    for start, end in _regions(text):
        try:
            value = _parse(text[start:end])
        except ValueError:
            continue
        yield start in fenced, isinstance(value, dict), start, value


def _parse(text: str) -> Any:
    value = orjson.loads(text)
    if not _may_have_lost_digits(value):
        return value
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _may_have_lost_digits(value: Any) -> bool:
    """Whether a number in it may be an integer beyond 64 bits, of which orjson makes a float."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)
        elif isinstance(part, float) and abs(part) >= 2**63:
            return True
    return False


def _why_none(answer: str) -> str:
    opening = _OPENING.search(answer)
    if opening is None:
        return "there is no JSON in the answer"
    try:
        _parse(answer[opening.start() :])
    except ValueError as error:
        return f"the JSON in the answer doesn't parse: {error}"
    return "there is no JSON in the answer"


def _without_reasoning(text: str) -> str:
    """The text less its `<think>…</think>` blocks; one that never ends takes the rest with it."""
    kept: list[str] = []
    at = 0
    while block := _THINK.search(text, at):
        kept.append(text[at : block.start()])
        end = text.find(_THINK_END, block.end())
        at = len(text) if end < 0 else end + len(_THINK_END)
    kept.append(text[at:])
    answer = "".join(kept)
    # Where the server's chat template has opened the block itself, only its end is in the answer.
    lone = _LONE_THINK_END.search(answer)
    return answer[lone.end() :] if lone else answer


def _regions(text: str) -> Iterator[tuple[int, int]]:
    """The outermost balanced `{…}` and `[…]`, left to right; they never overlap."""
    at = unclosed = 0
    while unclosed < _MAX_UNCLOSED and (opening := _OPENING.search(text, at)):
        start = opening.start()
        end = _closing(text, start)
        if end is None:
            unclosed += 1
            at = _breaks_off(text, start)
        else:
            yield start, end
            at = end


def _closing(text: str, start: int) -> int | None:
    """Where the bracket at `start` is closed again, strings skipped; None where it never is."""
    depth = 0
    at = start
    while mark := _MARK.search(text, at):
        at = mark.end()
        if mark[0] == '"':
            string = _STRING_BODY.match(text, at)
            at = string.end() + text.startswith('"', string.end()) if string else at
        elif mark[0] in "{[":
            depth += 1
            if depth > _MAX_DEPTH:
                return None
        else:
            depth -= 1
            if depth == 0:
                return at
    return None


def _breaks_off(text: str, start: int) -> int:
    """Up to where the unclosed bracket at `start` reads as JSON: what follows may be something else."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        return len(text) if error.msg.startswith("Unterminated string") else max(error.pos, start + 1)
    except (RecursionError, ValueError):
        return len(text)
