"""Replies and errors from a JSONL file, for the fake provider: by order, or by a text that the message holds.

It reads the file once, whole, and hands out its lines; what a line comes to is `fake`'s business, its only
caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from batchllm.errors import ConfigError, Refused
from batchllm.fields import frozen

_FIELDS = ("id", "match", "text", "finish", "usage", "latency_ms", "error")
_ERROR_FIELDS = ("status", "message", "headers", "code", "type", "param", "body")
_ERROR_NAMES = ("timeout", "disconnect", "bad_reply")
_EXAMPLE = 'a line is {"text": "…"} or {"error": {"status": 429, "message": "…"}} or {"error": "timeout"}'


@frozen
class Line:
    """One answer: a text with its finish reason, or an error in its place; `latency` in seconds or None.

    `error` is a name (timeout, disconnect, bad_reply) or an object with a `status`, as the file has it.
    `usage` holds `input_tokens`, `output_tokens` and `cached_tokens`, each optional.
    """

    text: str = ""
    finish: str | None = "stop"
    usage: dict[str, int] | None = None
    latency: float | None = None
    error: str | dict[str, Any] | None = None
    match: str | None = None


class Script:
    """The lines of a file, handed out one a call.

    By order, call n gets line n and there is an end. By match, a call gets the next line of the first
    `match` text that its last user message holds (or one before it: a repair asks in words of its own), and
    the last line of a match repeats.
    """

    def __init__(self, lines: Sequence[Line], *, by_match: bool = False) -> None:
        self._lines = lines
        self._calls = 0
        self._matches: dict[str, list[Line]] | None = None
        if by_match:
            self._matches = {}
            for line in reversed(lines):
                self._matches.setdefault(line.match or "", []).append(line)
            self._matches = {line.match or "": self._matches[line.match or ""] for line in lines}

    def take(self, asked: Sequence[str]) -> Line:
        """The line for a call whose user messages are `asked`; Refused where the script has none."""
        if self._matches is not None:
            return self._matching(asked)
        if self._calls >= len(self._lines):
            raise Refused("the script has no more replies", cause="script_ended")
        self._calls += 1
        return self._lines[self._calls - 1]

    def _matching(self, asked: Sequence[str]) -> Line:
        for message in reversed(asked):
            for match, waiting in (self._matches or {}).items():
                if match in message:
                    return waiting.pop() if len(waiting) > 1 else waiting[0]
        raise Refused("no line of the script matches the message", cause="script_no_match")


def load(path: str, *, by_match: bool) -> Script:
    """Read a script; raises ConfigError that names the file and the line."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the script {path} can't be read: {error.strerror}", "check file=… in --model"
        ) from None
    lines = []
    for number, raw in enumerate(content.splitlines(), 1):
        if not raw.strip():
            continue
        try:
            lines.append(_line(orjson.loads(raw), by_match))
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}", _EXAMPLE) from None
    if not lines:
        raise ConfigError(f"the script {path} is empty", _EXAMPLE)
    return Script(lines, by_match=by_match)


def _line(value: Any, by_match: bool) -> Line:
    """One line checked; ValueError says what is wrong with it."""
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    _only(value, _FIELDS, "field")
    if ("text" in value) == ("error" in value):
        raise ValueError("needs either text or error")
    if by_match and not (isinstance(value.get("match"), str) and value["match"]):
        raise ValueError("needs a match text, since the script goes by=match")
    latency = value.get("latency_ms")
    if latency is not None and (
        isinstance(latency, bool) or not isinstance(latency, int | float) or latency < 0
    ):
        raise ValueError(f"latency_ms is {latency!r}, not a number of milliseconds")
    finish, usage = value.get("finish", "stop"), value.get("usage")
    if finish is not None and not isinstance(finish, str):
        raise ValueError("finish is no text")
    if not isinstance(value.get("text", ""), str):
        raise ValueError("text is no text")
    return Line(
        text=value.get("text", ""),
        finish=finish,
        usage=None if usage is None else _usage(usage),
        latency=None if latency is None else latency / 1000,
        error=_error(value["error"]) if "error" in value else None,
        match=value.get("match"),
    )


def _usage(usage: Any) -> dict[str, int]:
    if not isinstance(usage, dict) or not all(type(count) is int for count in usage.values()):
        raise ValueError("usage is no object of numbers of tokens")
    _only(usage, ("input_tokens", "output_tokens", "cached_tokens"), "usage field")
    return usage


def _error(error: Any) -> str | dict[str, Any]:
    if isinstance(error, str) and error in _ERROR_NAMES:
        return error
    if not isinstance(error, dict):
        raise ValueError(f"error is neither an object nor one of {', '.join(_ERROR_NAMES)}")
    _only(error, _ERROR_FIELDS, "error field")
    status = error.get("status")
    if type(status) is not int or not 100 <= status <= 599:
        raise ValueError("error has no status from 100 to 599")
    if not isinstance(error.get("headers", {}), dict):
        raise ValueError("the error's headers are no object")
    return error


def _only(value: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in value:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
