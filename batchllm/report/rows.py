"""Lines as a run writes them with --emit result: reading one, and checking what the report adds up.

Pure, save that it opens the file. A value that no run writes is refused by its name, so that no figure is
made of it; `comparing` calls it and names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from batchllm import exact
from batchllm.lines import members
from batchllm.model import Usage

MOST_CALLS = 1_000_000
"""More calls than any record makes."""
_BEGINNING = b'{"id":'


class Unfit(ValueError):
    """A line holds what no run writes; the message goes behind its place."""


def lines(path: str) -> Iterator[bytes]:
    """The lines of a file as they stand; none where there is no file."""
    try:
        file = Path(path).open("rb", buffering=1 << 20)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        yield from file


def unended(line: bytes, first: bool) -> dict[str, Any] | None:
    """The object on a line without a newline; None where it is torn. Raises ValueError.

    Of the `first` line, a run leaves a beginning of its own: no line before it tells whose file this is.
    """
    try:
        orjson.loads(line)
    except ValueError:
        if first and line[: len(_BEGINNING)] != _BEGINNING[: len(line)]:
            raise Unfit("it is not as a run writes it") from None
        return None
    return parsed(line)


def parsed(line: bytes) -> dict[str, Any]:
    """The object on a line, integers exact; a value nested too deep stays bytes. Raises ValueError."""
    try:
        found = exact.loads(line)
    except ValueError:
        found = {name: _value(part) for name, part in members(line)}
    if not isinstance(found, dict):
        raise Unfit("it is no object")
    return found


def _value(part: bytes) -> Any:
    try:
        return json.loads(part)
    except RecursionError:
        return part


def whole(row: dict[str, Any], name: str, most: int | None = None) -> int:
    """A number that counts something."""
    value = row[name]
    if type(value) is not int or value < 0 or (most is not None and value > most):
        raise _unfit(name)
    return value


def number(row: dict[str, Any], name: str) -> float:
    """Seconds or dollars."""
    value = row[name]
    if type(value) not in (int, float) or not 0 <= value < 1e15:
        raise _unfit(name)
    return float(value)


def text(row: dict[str, Any], name: str) -> str:
    """A word of the run's, or a name."""
    value = row[name]
    if not isinstance(value, str):
        raise _unfit(name)
    return value


def judgement(row: dict[str, Any]) -> bool:
    """Whether the answer was right."""
    value = row["correct"]
    if not isinstance(value, bool):
        raise _unfit("correct")
    return value


def variant(row: dict[str, Any]) -> str | None:
    """The name of the variant; None where the run has none."""
    return text(row, "variant") if "variant" in row else None


def cost(row: dict[str, Any]) -> float | None:
    """US dollars, or None: not known."""
    return None if row["cost_usd"] is None else number(row, "cost_usd")


def usage(row: dict[str, Any]) -> Usage:
    """The tokens of a line, or of a call."""
    told = row["usage"]
    if not isinstance(told, dict):
        raise _unfit("usage")
    return Usage(*(whole(told, name) for name in ("input_tokens", "output_tokens", "cached_tokens")))


def seconds(row: dict[str, Any], name: str) -> float:
    """A time with its zone, in Unix seconds."""
    try:
        at = datetime.fromisoformat(text(row, name))
    except ValueError:
        raise _unfit(name) from None
    if at.tzinfo is None:
        raise _unfit(name)
    return at.timestamp()


def _unfit(name: str) -> Unfit:
    return Unfit(f"its {name} is none that a run writes")
