"""Chat completions in OpenAI's shape: a Request made into a body, an answer's bytes made into a Reply.

Pure: it opens no connection and reads no clock. `openai` calls it for what comes over the wire, `fake` for
what it makes up, so that both are judged alike. What is only needed for answers that are none is imported
then: its many patterns take longer to compile than the rest of the room to import.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from batchllm.errors import TimedOut
from batchllm.model import Reply, Request, Standing, Usage
from batchllm.providers.ids import HEADERS, request_id
from batchllm.providers.shaping import Way, spoken

_MODERN = re.compile(r"(?:[\w.-]+[/:])*(?:o[1-9]\d?|gpt-(?:[5-9]|[12]\d)(?:\.\d+)?)(?![\w.]).*")


def wants_max_completion_tokens(model: str) -> bool:
    """Whether a model refuses `max_tokens`: o1, o3, o4-mini, gpt-5 and later, with any vendor before it."""
    return _MODERN.fullmatch(model) is not None


def build(request: Request, model: str, way: Way | None = None) -> dict[str, Any]:
    """The body to send: a raw one as it stands, else messages and parameters for this model.

    A model that the body names itself wins. `way` is how the server is told the answer's schema; None where
    it isn't.
    """
    if request.raw:
        return request.body
    body = {"model": model, **request.body}
    model = body["model"]
    if way is not None:
        body |= way.fields
        if way.words is not None:
            body["messages"] = spoken(body.get("messages"), way.words)
    if "max_tokens" in body and "max_completion_tokens" not in body and wants_max_completion_tokens(model):
        body["max_completion_tokens"] = body.pop("max_tokens")
    return body


def encode(body: dict[str, Any]) -> bytes:
    """The body's bytes; the slow way where it holds integers beyond 64 bits or half a surrogate pair."""
    try:
        return orjson.dumps(body)
    except TypeError:
        ready = {name: value for name, value in body.items() if isinstance(value, orjson.Fragment)}
        rest = {name: value for name, value in body.items() if name not in ready}
        slow = json.dumps(rest, separators=(",", ":")).encode()
        return slow[:-1] + b"," + orjson.dumps(ready)[1:] if ready else slow


_TELLING = frozenset(
    {
        "x-ratelimit-limit-requests",
        "x-ratelimit-limit-tokens",
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-tokens-limit",
    }
)
"""Headers of which one is there where an answer tells how the account's limits stand."""
HEEDED = _TELLING.union(HEADERS)
"""Headers that an answer is read for; servers of one's own mostly send none of them."""


def _limits(headers: Mapping[str, str], now: float) -> tuple[Standing, ...]:
    if _TELLING.isdisjoint(headers):
        return ()
    from batchllm.providers.standings import told

    return told(headers, now)


_TOOLS = frozenset({"tool_calls", "function_call"})
_BROKEN = frozenset(
    {"error", "abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource"}
)
_TEXTS = frozenset({"text", "output_text"})


def time_left(timeout: float, deadline: float | None, now: float) -> float:
    """Seconds that one call may take; raises TimedOut where the record's time is over.

    `deadline` and `now` are monotonic seconds.
    """
    if deadline is None:
        return timeout
    left = deadline - now
    if left <= 0:
        raise TimedOut("the record's time was over before the call")
    return min(timeout, left)


def read_answer(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    model: str,
    now: float,
    proven: bool = False,
    secret: str | None = None,
    whole: bool = True,
    tool: bool = False,
) -> Reply:
    """Read an HTTP answer into a Reply, or raise what it means instead; see `at_a_glance` for usual ones.

    `model` is named in the Reply where the body names none; `whole` says whether the Reply is to hold the
    body, too; `tool` whether a tool's arguments are the answer; the rest is as in `verdicts.verdict`.
    """
    if not 200 <= status < 300:
        from batchllm.providers.verdicts import verdict

        raise verdict(status, headers, content, proven=proven, now=now, secret=secret)
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as broken:
        if content.startswith(codecs.BOM_UTF8):
            rest = content.removeprefix(codecs.BOM_UTF8)
            again = partial(read_answer, status, headers, rest, model=model, now=now, proven=proven)
            return again(secret=secret, whole=whole, tool=tool)
        from batchllm.providers.misread import leniently, no_json

        document = leniently(content)
        if document is None:
            raise no_json(status, headers, content, broken, secret) from None
    complaint = _complaint(document)
    if complaint is not None:
        from batchllm.providers.verdicts import under_ok

        raise under_ok(complaint, headers, status=status, proven=proven, now=now, secret=secret)
    read = _with_arguments(document) if tool else document
    raw = document if whole else None
    found = _completion(read, model, request_id(headers), _limits(headers, now), raw)
    if isinstance(found, str):
        from batchllm.providers.misread import blocked, no_completion

        raise blocked(status, document, secret) or no_completion(status, headers, found, secret)
    return found


def at_a_glance(status: int, content: bytes, whole: bool) -> Reply | None:
    """The Reply in an answer of the usual form, at a third of the cost; None asks for a closer look.

    Where any of the headers in HEEDED is there, `heed_headers` is to be told of them.
    """
    if status != 200:
        return None
    try:
        document = orjson.loads(content)
        choice = document["choices"][0]
        message = choice["message"]
        text, named, identity = message["content"], document["model"], document.get("id")
        if (
            type(text) is not str
            or not text
            or choice["finish_reason"] != "stop"
            or document["object"] != "chat.completion"
            or type(named) is not str
            or not named
            or "error" in document
            or "error" in choice
            or message.get("tool_calls")
            or message.get("refusal")
            or type(identity) is not str
        ):
            return None
    except (KeyError, IndexError, TypeError, AttributeError, orjson.JSONDecodeError):
        return None
    usage = _usage(document.get("usage"))
    return Reply(text, text, usage, "stop", named, identity, document if whole else None)


def heed_headers(reply: Reply, headers: Mapping[str, str], now: float) -> None:
    """Put into a Reply what an answer's headers tell: the request's id, and how the limits stand."""
    reply.request_id = request_id(headers) or reply.request_id
    reply.limits = _limits(headers, now)


def _complaint(document: Any) -> Any:
    """The error object in a body under 2xx, or None; OpenRouter puts one into the choice that broke off."""
    first = document[0] if isinstance(document, list) and document else document  # Gemini sends a list
    if not isinstance(first, dict):
        return None
    if first.get("error") or first.get("object") == "error":
        return document
    choices = first.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) and isinstance(choice.get("error"), dict) else None


def _with_arguments(document: Any) -> Any:
    """A completion with the arguments of its first tool call as its text, where that makes a whole answer."""
    try:
        choice = document["choices"][0]
        message = choice["message"]
        if _refusal(message):
            return document
        calls = message.get("tool_calls") or [{"function": message["function_call"]}]
        given = calls[0]["function"]["arguments"]
        finish = finish_of(choice.get("finish_reason"))
    except (KeyError, IndexError, TypeError, AttributeError):
        return document
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    ended = {"message": {"content": text}, "finish_reason": "stop" if finish in _TOOLS else finish}
    return {**document, "choices": [{**choice, **ended}]}


def _completion(
    document: Any, model: str, from_header: str | None, limits: tuple[Standing, ...], raw: Any
) -> Reply | str:
    """The Reply in a chat completion, or what the body is instead."""
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return f"no chat completion: {_glimpse(document)}"
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        return f"no chat completion, its choice has no message: {_glimpse(document)}"
    text, finish = text_of(message.get("content")), finish_of(choice.get("finish_reason"))
    if refusal := _refusal(message):
        text, finish = refusal, "refusal"
    if text is None:
        return "a message whose content is no text"
    if finish in _BROKEN:
        return f"an answer that broke off: {finish}"
    if finish != "refusal" and (message.get("tool_calls") or finish in _TOOLS):
        return "a tool call in place of a text"
    named, identity = document.get("model"), from_header or document.get("id")
    return Reply(
        text=text,
        value=text,
        usage=_usage(document.get("usage")),
        finish=finish,
        model=named if isinstance(named, str) and named else model,
        request_id=identity if isinstance(identity, str) else None,
        raw=raw,
        limits=limits,
    )


def text_of(content: Any) -> str | None:
    """The text of a message's content: itself, or its text parts joined; "" for null, None for no text."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        return None
    parts = [part for part in content if isinstance(part, dict) and part.get("type", "text") in _TEXTS]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def finish_of(reason: Any) -> str | None:
    """A finish reason in one spelling: `MAX_TOKENS`, `content-filter: SAFETY` → max_tokens, content_filter.

    What is neither text nor null says nothing good of the answer and counts as broken off.
    """
    if reason is None:
        return None
    if reason == "stop":
        return "stop"
    if not isinstance(reason, str):
        return "error"
    return reason.lower().replace("-", "_").partition(":")[0].strip()


def _refusal(message: dict[str, Any]) -> str | None:
    """What the model said instead of answering, whichever field holds it."""
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return str(message["refusal"])
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    said = [part.get("refusal") for part in parts if isinstance(part, dict) and part.get("type") == "refusal"]
    return next((words for words in said if isinstance(words, str)), None)


def _usage(usage: Any) -> Usage:
    """Tokens as told; what is not told, or is no number, counts as 0."""
    if not isinstance(usage, dict):
        return Usage()
    sent, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    if type(sent) is type(made) is type(cached) is int and not (sent | made | cached) >> _MOST_BITS:
        return Usage(sent, made, cached)  # none of them is negative or too large
    return Usage(_count(sent), _count(made), _count(cached))


_MOST_BITS = 32
"""With more, a number of tokens is none, and would burst what adds them up."""


def _count(value: Any) -> int:
    """A number of tokens."""
    return value if type(value) is int and 0 < value < 1 << _MOST_BITS else 0


def _glimpse(document: Any) -> str:
    """The first of a body, to see what it is."""
    try:
        return json.dumps(document, ensure_ascii=False)[:120]
    except RecursionError:
        return "JSON nested too deeply"
