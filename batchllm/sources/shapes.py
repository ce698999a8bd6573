"""What a line means: JSON or not, and which of the three shapes of record it is.

Pure functions from bytes to a Record; nothing is serialised anew, a record inside a dead letter is cut out
of its line. `JsonlSource` calls them and makes a `Dead` of every BadLine.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from batchllm import exact
from batchllm.lines import members
from batchllm.model import Dead, Failure, Record, Trail

RECORDS, LETTERS, OPENAI_BATCH = "records", "dead", "openai-batch"
FORMATS = ("auto", RECORDS, LETTERS, OPENAI_BATCH)

BATCH_KEYS = frozenset({"custom_id", "method", "url", "body"})
LETTER_NEEDS = frozenset({"id", "seq", "error", "attempts"})
LETTER_INSIDES = frozenset({"record", "raw_line", "raw_line_base64"})
LETTER_MAY = frozenset({"raw", "usage", "cost_usd", "variant", "stages", "skipped", "fallback", "at"})


class BadLine(Exception):
    """The line is no record: `message` goes behind its place, `id` and `raw` replace its own."""

    def __init__(self, cause: str, message: str, *, id: Any = None, raw: bytes | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.id = id
        self.raw = raw

    def letter(self, seq: int, id: str, line: bytes, place: str, at: float) -> Dead:
        """The dead letter of record `seq`, whose line at `place` this is."""
        failure = Failure(kind="bad_input", cause=self.cause, message=f"{place} {self.message}")
        record = Record(seq, id if self.id is None else self.id, None, line if self.raw is None else self.raw)
        return Dead(record, failure, Trail(), at)


def parse(line: bytes) -> dict[str, Any]:
    """The JSON object on a line, integers of any length exact. Raises BadLine."""
    try:
        value = orjson.loads(line)
        if exact.holds_long_number(line):
            value = json.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            byte = line[wrong.start]
            raise BadLine("not_utf8", f"is not UTF-8: byte 0x{byte:02x} at byte {wrong.start + 1}") from error
        raise BadLine("not_json", f"is not JSON: {error.msg} at character {error.pos + 1}") from error
    except (RecursionError, ValueError) as error:
        raise BadLine("not_json", f"is not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise BadLine("not_an_object", f"is {_kind(value)}, not a JSON object")
    return value


def shape_of(data: dict[str, Any]) -> str:
    """The shape that a first record's exact keys tell: records, dead or openai-batch."""
    keys = data.keys()
    if keys == BATCH_KEYS:
        return OPENAI_BATCH
    if keys >= LETTER_NEEDS and keys & LETTER_INSIDES and keys <= LETTER_NEEDS | LETTER_INSIDES | LETTER_MAY:
        return LETTERS
    return RECORDS


def record_of(
    line: bytes, data: dict[str, Any], shape: str, seq: int, id_field: str, fallback: Callable[[], str]
) -> Record:
    """The record that a line holds; `fallback` makes its id where it has none. Raises BadLine."""
    if shape == RECORDS:
        id = data.get(id_field)
        return Record(seq, fallback() if id is None else id, data, line)
    if shape == OPENAI_BATCH:
        if not isinstance(data.get("body"), dict):
            raise BadLine("not_a_batch_line", "is no line of an OpenAI batch file: it has no object `body`")
        id = data.get("custom_id")
        return Record(seq, fallback() if id is None else id, data, line)
    return _inside_letter(line, data, seq, id_field, fallback)


def of_later_pass(
    item: Record | Dead, letter: bytes, turn: int, variants: Sequence[str] = ()
) -> Record | Dead:
    """The item under the `seq` that its letter tells; its place in this pass is its turn.

    So is its variant, one of `variants` where the run has some, and what stages had answered.
    """
    told = exact.loads(letter)
    changes: dict[str, Any] = {"seq": told["seq"], "turn": turn, "answers": told.get("stages")}
    if variants:
        name = told["variant"]
        changes |= {"variant": name, "place": told["seq"] * len(variants) + variants.index(name)}
    if isinstance(item, Dead):
        return replace(item, record=replace(item.record, **changes))
    return replace(item, **changes)


def _inside_letter(
    line: bytes, letter: dict[str, Any], seq: int, id_field: str, fallback: Callable[[], str]
) -> Record:
    id = letter.get("id")
    if id is None:
        id = fallback()
    if isinstance(letter.get("record"), dict):
        inner = _cut(line, "record")
        data = parse(inner)
        own = data.get(id_field)
        return Record(seq, id if own is None else own, data, inner)
    raw = _raw_line(letter)
    if raw is None:
        raise BadLine("not_a_dead_letter", "is no dead letter of batchllm: it holds no `record`", id=id)
    error = letter.get("error")
    told = error if isinstance(error, dict) else {}
    cause, message = told.get("cause"), told.get("message")
    raise BadLine(
        cause if isinstance(cause, str) else "not_json",
        f"holds a line that was no record: {message if isinstance(message, str) else 'not JSON'}",
        id=id,
        raw=raw,
    )


def _raw_line(letter: dict[str, Any]) -> bytes | None:
    """The bytes of a line that was no record, as its dead letter keeps them."""
    text, packed = letter.get("raw_line"), letter.get("raw_line_base64")
    if isinstance(text, str):
        return text.encode()
    if isinstance(packed, str):
        try:
            return base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError):
            return None
    return None


def _cut(line: bytes, key: str) -> bytes:
    """The bytes of the value of a top-level key, the last one where it is there twice."""
    try:
        return dict(members(line))[key]
    except RecursionError as error:
        raise BadLine("not_json", f"is not JSON that can be read: {error}") from error


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "a number"
