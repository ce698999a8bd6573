"""Answers made in process, with no network: `fake/echo` repeats what it is told, `fake/script` reads a file.

For tests and for rehearsing a job: latency, faults and a seed are part of the model's name. What goes wrong
here runs through the same verdicts and the same reader as a server's answer would. `wire` connects it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import field
from typing import Any, Protocol
from urllib.parse import unquote

import anyio
import anyio.lowlevel
import orjson

from batchllm.errors import ConfigError, Disconnected, Refused, TimedOut
from batchllm.faults import TALK, FaultMix, refused_feature
from batchllm.fields import frozen
from batchllm.model import Reply, Request, Trail
from batchllm.ports import ProviderSpec
from batchllm.providers import chat
from batchllm.providers.script import Line, load
from batchllm.providers.shaping import Shaping, in_doubt

_WAYS = (
    "write fake/echo, fake/echo?latency_ms=100&jitter=0.1&faults=429:0.04,500:0.03&seed=7 "
    "or fake/script?file=replies.jsonl&by=order (or by=match)"
)
_ECHO = ("latency_ms", "jitter", "faults", "seed", "retry_after_ms", "refuse")
_SCRIPT = ("file", "by", "latency_ms", "jitter", "seed", "refuse")

_PAGE = b"<!doctype html><html><head><title>Bad Gateway</title></head><body>nothing here</body></html>"
_WORDS: dict[str, tuple[int, str, str]] = {
    "400": (400, "invalid_request_error", "the fake refuses a parameter"),
    "401": (401, "invalid_api_key", "the fake refuses the key"),
    "402": (402, "billing_error", "the fake account is unpaid"),
    "quota": (429, "insufficient_quota", "the fake account has spent its quota"),
    "429": (429, "rate_limit_exceeded", "the fake's rate limit is reached"),
    "500": (500, "server_error", "the fake failed"),
    "503": (503, "overloaded_error", "the fake is overloaded"),
}

Wire = tuple[int, dict[str, str], bytes]
"""An answer as a server would send it: status, headers, body."""


@frozen
class Settings:
    """What follows the `?`: times in seconds, `jitter` as a share of the latency, up or down.

    `refuse` names the features that it lacks (`faults.REFUSABLE`), with commas between.
    """

    latency: float = 0.0
    jitter: float = 0.0
    faults: FaultMix = field(default_factory=FaultMix)
    seed: int = 0
    retry_after: float = 0.1
    refuse: tuple[str, ...] = ()


class Answers(Protocol):
    """Where the fake's answers come from."""

    def take(self, asked: Sequence[str]) -> Line:
        """The answer to a call whose user messages are `asked`; may raise Refused."""
        ...


class Echo:
    """Says `echo: ` and the last user message; a message that is a JSON object or array comes back bare."""

    def take(self, asked: Sequence[str]) -> Line:
        """The answer to the last of the user messages `asked`."""
        said = asked[-1] if asked else ""
        return Line(text=said if _is_json(said) else f"echo: {said}")


@asynccontextmanager
async def connect(spec: ProviderSpec) -> AsyncIterator[Fake]:
    """The fake that `spec.model` describes; raises ConfigError with the ways to write one."""
    name, _, query = spec.model.partition("?")
    if name == "echo":
        yield Fake(spec, name, Echo(), _settings(_read(query, _ECHO)))
    elif name == "script":
        given = _read(query, _SCRIPT)
        by = given.get("by", "order")
        if "file" not in given or by not in ("order", "match"):
            raise ConfigError("the fake script needs file=… and by=order or by=match", _WAYS)
        yield Fake(spec, name, load(given["file"], by_match=by == "match"), _settings(given))
    else:
        raise ConfigError(f"there is no fake model {name!r}", _WAYS)


def _read(query: str, known: tuple[str, ...]) -> dict[str, str]:
    """The settings of a query string, as text."""
    given: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}; known: {', '.join(known)}", _WAYS)
        given[name] = unquote(value)
    return given


def _settings(given: dict[str, str]) -> Settings:
    """The settings as numbers; raises ConfigError."""
    seed = _number(given, "seed", 0, math.inf)
    return Settings(
        latency=_number(given, "latency_ms", 0, math.inf) / 1000,
        jitter=_number(given, "jitter", 0, 1),
        faults=FaultMix.parse(given.get("faults", "")),
        seed=int(seed),
        retry_after=_number(given, "retry_after_ms", 100, math.inf) / 1000,
        refuse=tuple(filter(None, given.get("refuse", "").split(","))),
    )


def _number(given: dict[str, str], name: str, default: float, highest: float) -> float:
    """A setting that is a finite number from 0 to `highest`."""
    try:
        number = float(given.get(name, default))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or not 0 <= number <= highest:
        raise ConfigError(f"{name} is {given[name]!r}, not a number it can be", _WAYS)
    return number


class Fake:
    """A Provider that answers by itself: the same seed and the same order of calls, the same answers."""

    def __init__(self, spec: ProviderSpec, name: str, answers: Answers, settings: Settings) -> None:
        self._spec = spec
        self._name = name
        self._answers = answers
        self._settings = settings
        self._random = random.Random(settings.seed)
        self._calls = 0
        self._shaping = Shaping(spec.schema_mode)
        self.proven = False

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Answer after the latency, or raise what a server's answer would mean."""
        settings, self._calls = self._settings, self._calls + 1
        if settings.refuse:
            self._refuse(request)
        fault = settings.faults.pick(self._random.random())
        sway = 1 + settings.jitter * (2 * self._random.random() - 1)
        identity = f"fake-{self._calls}"
        asked = _user_texts(request.body)
        line = self._answers.take(asked)
        latency = settings.latency * sway if line.latency is None else line.latency
        await self._wait(math.inf if fault == "hang" else latency, trail)
        if fault == "drop" or line.error == "disconnect":
            raise Disconnected("the fake dropped the connection", ambiguous=True)
        if line.error == "timeout":
            raise TimedOut("the fake gave no answer in time", ambiguous=True)
        if line.error is not None:
            status, headers, content = _scripted(line.error)
        else:
            status, headers, content = self._sent(fault, line, asked, identity, request)
        reply = chat.read_answer(
            status, headers, content, model=self._name, now=time.time(), proven=self.proven
        )
        self.proven = True
        return reply

    def _refuse(self, request: Request) -> None:
        """Refuse a request that wants a feature which this fake lacks, as a server would."""
        ladder, way = self._shaping.way(request)
        if ladder is None or way is None:
            return
        refused = refused_feature(chat.build(request, self._name, way), self._settings.refuse)
        if refused is None:
            ladder.answered(way, request.key)
            return
        error = Refused(f"the provider answered 400: {refused[0]}", cause="http_400", status=400)
        raise in_doubt(error, 400) if ladder.refused(way, error, 400, request.key) else error

    async def _wait(self, latency: float, trail: Trail) -> None:
        """Sleep for the latency in seconds; TimedOut where the time for one call is over first."""
        timeout = chat.time_left(self._spec.timeout, trail.deadline, time.monotonic())
        if latency >= timeout:
            await anyio.sleep(timeout)
            raise TimedOut(f"no answer from the fake within {timeout:.3g} s", ambiguous=True)
        if latency > 0:
            await anyio.sleep(latency)
        else:
            await anyio.lowlevel.checkpoint()

    def _sent(
        self, fault: str | None, line: Line, asked: Sequence[str], identity: str, request: Request
    ) -> Wire:
        """A line as a server would send it, with the fault that was drawn."""
        if fault in _WORDS:
            status, code, words = _WORDS[fault]
            headers = {"x-request-id": identity}
            if fault == "429":
                headers["retry-after-ms"] = f"{self._settings.retry_after * 1000:g}"
            return status, headers, orjson.dumps({"error": {"message": words, "type": code, "code": code}})
        if fault in ("502", "html"):
            return 502 if fault == "502" else 200, {"content-type": "text/html"}, _PAGE
        if fault == "shape":
            return 200, {}, b'{"ok": true}'
        text, finish = _spoilt(fault, line)
        usage = line.usage or {}
        told = {
            "prompt_tokens": usage.get("input_tokens", 1 + sum(map(len, asked)) // 4),
            "completion_tokens": usage.get("output_tokens", 1 + len(text) // 4),
            "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
        }
        message = {"role": "assistant", "content": text}
        content = orjson.dumps(
            {
                "id": identity,
                "object": "chat.completion",
                "model": request.body.get("model") or self._name,
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": told,
            }
        )
        return 200, {}, content[: len(content) // 2] if fault == "truncate" else content


def _spoilt(fault: str | None, line: Line) -> tuple[str, str | None]:
    """Text and finish reason of a line under a fault that shows in the answer itself."""
    text = line.text
    if fault == "empty":
        return "", "stop"
    if fault == "length":
        return text[: len(text) // 2], "length"
    if fault == "filter":
        return "", "content_filter"
    if fault == "prose":
        return f"Sure, here is the answer: {text} Let me know if it helps.", line.finish
    if fault == "talk":
        return TALK, line.finish
    if fault == "fenced":
        return f"```json\n{text}\n```", line.finish
    if fault == "enum" and _is_json(text):
        value = orjson.loads(text)
        if isinstance(value, dict):
            value = {name: "no-such-value" if isinstance(at, str) else at for name, at in value.items()}
        return orjson.dumps(value).decode(), line.finish
    return text, line.finish


def _scripted(error: str | dict[str, Any]) -> Wire:
    """An error line of a script as a server would send it."""
    if isinstance(error, str):
        return 200, {"content-type": "text/html"}, _PAGE
    headers = {str(name).lower(): str(value) for name, value in (error.get("headers") or {}).items()}
    body = error.get("body")
    if isinstance(body, str):
        return error["status"], headers, body.encode()
    if body is None:
        body = {"error": {name: error.get(name) for name in ("message", "type", "code", "param")}}
    return error["status"], headers, orjson.dumps(body)


def _user_texts(body: dict[str, Any]) -> list[str]:
    """The texts of the user messages, in order."""
    messages = body.get("messages")
    texts = []
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("role") == "user":
            texts.append(chat.text_of(message.get("content")) or "")
    return texts


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object or array, whole."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True
