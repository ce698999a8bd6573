"""How a server is told what shape an answer has to have: natively, by a forced tool, or in words.

A `Ladder` belongs to one schema on one connection: it begins with the way that was asked for and goes down to
a looser one when the server refuses it, once a run and never up again. It sends nothing; `openai` and `fake`
ask it for each request.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from batchllm.errors import BatchError, RateLimited, Refused, RouteGone
from batchllm.model import Request, frozen
from batchllm.schema import StrictForm, strict_form

NAME = "answer"
"""What the format and the tool are called."""

_NAMES_IT = re.compile(
    r"response_?format|json_?schema|\bschemas?\b|guided_json|\bgrammars?\b|structured[ _-]outputs?|json mode"
    r"|\btools?\b|tool_choice|function[ _-]?call|\bfunctions?\b|\bstrict\b|additionalproperties",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(r"\bsupport", re.IGNORECASE)
_STATUSES = frozenset({200, 400, 404, 415, 422})
"""200: gateways that put the error into the body."""
_OTHERS = frozenset(
    {"content_filter", "moderation", "model_not_found", "json_validate_failed", "tool_use_failed"}
)
"""Causes that speak of one record or of the model, whatever words they use."""


@frozen
class Way:
    """One way to tell it: `fields` of the body, or `words` of the system message.

    `tool` says that the answer comes as a tool's arguments, `restore` makes of it one to the schema itself.
    """

    name: str
    fields: dict[str, Any]
    words: str | None = None
    tool: bool = False
    restore: Callable[[Any], Any] | None = None


class Ladder:
    """The ways for one schema, from the one asked for downwards; `held` once the server has answered one."""

    def __init__(self, schema: dict[str, Any], mode: str) -> None:
        self.schema = schema
        self.way, *self._looser = _ways(schema, mode)
        self.held = False

    def answered(self, way: Way) -> None:
        """An answer came to a request of this way: refusals from now on are about their records."""
        self.held = self.held or way is self.way

    def refused(self, way: Way, error: BatchError, status: int) -> bool:
        """Whether a refusal is about the way, so that the record is to be asked again in a looser one."""
        if way.words is not None or not _is_about_it(error, status):
            return False
        if way is not self.way:
            return True  # sent before another call was refused alike
        if self.held or not self._looser:
            return False
        self.way = self._looser.pop(0)
        logging.getLogger("batchllm").warning(
            "the server refuses the schema as %s (%s); from now on it is sent as %s, and every answer is "
            "checked against all of it as before",
            way.name,
            error.message,
            self.way.name,
        )
        return True


class Shaping:
    """The ladders of one connection, one a schema; `mode` is native, tool or prompt."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._ladders: dict[int, Ladder] = {}

    def ladder(self, request: Request) -> Ladder | None:
        """The ladder for a request; None where nothing is to be added to it.

        That is without a schema, for a raw body, and where the user's own parameters tell a shape.
        """
        schema = request.schema
        if schema is None or request.raw:
            return None
        ladder = self._ladders.get(id(schema))
        if ladder is None:
            ladder = self._ladders[id(schema)] = Ladder(schema, self._mode)
        return ladder if ladder.way.fields.keys().isdisjoint(request.body) else None


def in_doubt(error: BatchError, status: int) -> RateLimited:
    """A refusal after which the gate asks again at once: it counts as no failure."""
    again = RateLimited(error.message, status=status)
    again.cause = "in_doubt"
    return again


def spoken(messages: Any, words: str) -> Any:
    """The messages with `words` in the system message, which is added where there is none."""
    if not isinstance(messages, list):
        return messages
    first = messages[0] if messages else None
    if not isinstance(first, dict) or first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": words}, *messages]
    content = first.get("content")
    if isinstance(content, list):
        content = [*content, {"type": "text", "text": words}]
    else:
        content = f"{content}\n\n{words}" if content else words
    return [{**first, "content": content}, *messages[1:]]


def response_format(schema: dict[str, Any], strict: bool) -> dict[str, Any]:
    """The parameter that holds the answer to a schema."""
    named: dict[str, Any] = {"name": NAME, "schema": schema}
    if strict:
        named["strict"] = True
    return {"type": "json_schema", "json_schema": named}


def _ways(schema: dict[str, Any], mode: str) -> list[Way]:
    """The ways from `mode` downwards; the last is always the prompt."""
    prompt = Way("words in the prompt", {}, words=_words(schema))
    if mode == "prompt":
        return [prompt]
    strict = strict_form(schema)
    if mode == "tool":
        return [*_tools(schema, strict), prompt]
    ways = []
    if strict is not None:
        fields = {"response_format": response_format(strict.document, True)}
        ways.append(Way("a response_format in strict mode", fields, restore=strict.restore))
    loose = Way("a response_format without strict", {"response_format": response_format(schema, False)})
    return [*ways, loose, prompt]


def _tools(schema: dict[str, Any], strict: StrictForm | None) -> list[Way]:
    """A tool strict and not; what can't be an object's schema is wrapped, or can't be a tool."""
    ways = []
    if strict is not None:
        fields = _tool(strict.document, True)
        ways.append(Way("a tool in strict mode", fields, tool=True, restore=strict.restore))
    if schema.get("type") == "object":
        ways.append(Way("a tool without strict", _tool(schema, False), tool=True))
    return ways


def _tool(parameters: dict[str, Any], strict: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": NAME, "description": "Gives the answer.", "parameters": parameters}
    if strict:
        function["strict"] = True
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": NAME}},
    }


def _words(schema: dict[str, Any]) -> str:
    return (
        "Answer with one JSON value that satisfies the JSON Schema below, and with nothing else: no "
        f"explanation, no code fence.\n\n{json.dumps(schema, ensure_ascii=False)}"
    )


def _is_about_it(error: BatchError, status: int) -> bool:
    """Whether a refusal speaks of the schema or of the feature that carries it."""
    if status not in _STATUSES or not _NAMES_IT.search(error.message):
        return False
    if isinstance(error, Refused):
        return error.cause not in _OTHERS
    return isinstance(error, RouteGone) and _UNSUPPORTED.search(error.message) is not None
