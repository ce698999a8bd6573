"""How a server is told what shape an answer has to have: natively, by a forced tool, or in words.

A `Ladder` belongs to one schema and model on one connection: it begins with the way that was asked for. When
the server refuses that and answers the same record in a looser way, it goes down to it, once a run and never
up again. It sends nothing; `openai` and `fake` ask it for each request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from batchllm.errors import BatchError, RateLimited
from batchllm.fields import frozen
from batchllm.model import Request
from batchllm.schema import StrictForm, strict_form

NAME = "answer"
"""What the format and the tool are called."""

_OWN = frozenset(
    {
        *("response_format", "tools", "tool_choice", "functions", "function_call", "structured_outputs"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar", "json_schema"),
    }
)
"""Parameters by which users tell a shape themselves."""


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
    """The ways for one schema and model, from the one asked for downwards; `way` is the one that holds.

    `settled` once the server has answered one. Until then a refusal is its record's or the way's: the record
    is asked again in the next way, and only its answer takes the others along. `doubtful` holds the ways of
    such records by their requests' keys.
    """

    def __init__(
        self, schema: dict[str, Any], mode: str, model: str | None = None, *, encoded: bool = False
    ) -> None:
        self.schema = schema
        self.settled = False
        self.doubtful: dict[str, Way] = {}
        ways = _ways(schema, mode)
        self._ways = [replace(way, fields=_encoded(way.fields)) for way in ways] if encoded else ways
        self._model = model
        self._said = ""
        self.way = self._ways[0]

    def answered(self, way: Way, key: str) -> None:
        """An answer came to a request of this way: from now on refusals are about their records."""
        self.doubtful.pop(key, None)
        if self.settled:
            return
        self.settled = True
        if way is not self.way:
            logging.getLogger("batchllm").warning(
                "the server refuses the schema as %s%s (%s); from now on it is sent as %s, and every answer "
                "is checked against all of it as before",
                self.way.name,
                f" for {self._model}" if self._model else "",
                self._said,
                way.name,
            )
            self.way = way

    def refused(self, way: Way, error: BatchError, status: int, key: str) -> bool:
        """Whether a refusal may be about the way, so that the record is to be asked again in a looser one."""
        self.doubtful.pop(key, None)
        from batchllm.providers.refusals import about_shape  # its patterns take a while to compile

        if way.words is not None or not about_shape(error, status):
            return False
        if self.settled:
            return self._place(way) < self._place(self.way)  # sent before others were refused alike
        self.doubtful[key] = self._ways[self._place(way) + 1]
        self._said = error.message
        return True

    def _place(self, way: Way) -> int:
        return next(place for place, each in enumerate(self._ways) if each is way)


class Shaping:
    """The ladders of one connection, one a schema and model; `mode` is native, tool or prompt.

    With `encoded` the fields of ways are JSON already, which saves encoding a schema anew with each request.
    """

    def __init__(self, mode: str, *, encoded: bool = False) -> None:
        self._mode = mode
        self._encoded = encoded
        self._ladders: dict[tuple[int, str | None], Ladder] = {}
        self._latest: Ladder | None = None  # of a body that names no model

    def way(self, request: Request) -> tuple[Ladder | None, Way | None]:
        """How a request is to be told its schema, and by which ladder; None where nothing is to be added.

        That is without a schema, for a raw body, and where the user's own parameters tell a shape.
        """
        schema, body = request.schema, request.body
        if schema is None or request.raw or not _OWN.isdisjoint(body):
            return None, None
        ladder = self._latest if "model" not in body else self._ladder(schema, str(body["model"]))
        if ladder is None or ladder.schema is not schema:
            ladder = self._latest = self._ladder(schema, None)
        if ladder.doubtful:
            return ladder, ladder.doubtful.get(request.key, ladder.way)
        return ladder, ladder.way

    def _ladder(self, schema: dict[str, Any], model: str | None) -> Ladder:
        """The one of a schema, and of the model where the body names its own."""
        place = id(schema), model
        ladder = self._ladders.get(place)
        if ladder is None:
            ladder = self._ladders[place] = Ladder(schema, self._mode, model, encoded=self._encoded)
        return ladder


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


def _encoded(fields: dict[str, Any]) -> dict[str, Any]:
    """The same with values that are JSON already, where orjson can write them."""
    try:
        return {name: orjson.Fragment(orjson.dumps(value)) for name, value in fields.items()}
    except TypeError:
        return fields


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
