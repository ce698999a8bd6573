"""What comes out of a Python function of the user's: what its exception means, and its value as JSON.

Pure, and light to import: worker processes use it as well. It names no library: their exceptions are known
by the names of their classes.
"""

from __future__ import annotations

import json
import socket
from http.client import IncompleteRead
from typing import Any, Never

from batchllm import errors
from batchllm.errors import CallError, Disconnected, FatalError, Internal, RecordError, TimedOut

_TIMEOUTS = frozenset({"httpx.TimeoutException", "requests.Timeout", "urllib3.TimeoutError"})
_BROKEN = frozenset(
    {
        "httpx.TransportError",
        "requests.ConnectionError",
        "requests.ChunkedEncodingError",
        "urllib3.ProtocolError",
        "urllib3.MaxRetryError",
        "urllib3.NewConnectionError",
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
    }
)
"""Exceptions by their package and name that say that a connection failed, not that an answer is wrong."""


Told = RecordError | CallError | FatalError


def meaning(error: BaseException) -> Told:
    """What an exception of the user's code means to its record.

    batchllm's own mean what they say. A connection that failed or took too long is tried again; everything
    else is Internal.
    """
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # of a task group in the function
    if isinstance(error, RecordError | CallError | FatalError):
        return error
    name = type(error).__name__
    words = f"{name}: {error}" if str(error) else name
    reason = getattr(error, "reason", None) if name == "URLError" else None
    for each in (error, reason):
        kind = _kind(each)
        if kind is not None:
            return kind(words, ambiguous=True)
    return Internal(words, cause=name)


def packed(error: Told) -> list[Any]:
    """An error as JSON can carry it out of a worker process."""
    name = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
    plain = {key: value for key, value in vars(error).items() if isinstance(value, str | int | float | None)}
    return [name, error.message, plain]


def unpacked(name: str, message: str, facts: dict[str, Any]) -> Told:
    """The error that was packed."""
    error: Told = getattr(errors, name)(message)
    for key, value in facts.items():
        setattr(error, key, value)
    return error


def _kind(error: object) -> type[TimedOut] | type[Disconnected] | None:
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(error).__mro__}
    if isinstance(error, TimeoutError) or names & _TIMEOUTS:
        return TimedOut
    if isinstance(error, ConnectionError | socket.gaierror | IncompleteRead) or names & _BROKEN:
        return Disconnected
    return None


def as_json(value: Any) -> str:
    """The JSON of what a function returned; raises Internal where JSON can't carry it."""
    try:
        return json.dumps(value, default=_refuse, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Internal(
            f"the function returned what JSON can't carry: {error}", cause=type(error).__name__
        ) from None


def _refuse(thing: object) -> Never:
    raise TypeError(f"a value of type {type(thing).__name__}")
