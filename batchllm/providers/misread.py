"""What came under a 2xx status in place of a chat completion, said in one line; `chat` calls it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from batchllm.errors import BatchError, Refused
from batchllm.lines import dumps
from batchllm.providers.complaints import is_html, page_words, shown
from batchllm.providers.ids import request_id
from batchllm.providers.verdicts import bad_reply

_ARTICLE = "the provider answered"


def leniently(content: bytes) -> Any:
    """A body that Python reads and orjson doesn't; None where neither does.

    It holds half a surrogate pair, which becomes U+FFFD, or NaN, which becomes null.
    """
    try:
        return orjson.loads(dumps(json.loads(content)))
    except (ValueError, RecursionError):
        return None


def no_json(
    status: int, headers: Mapping[str, str], content: bytes, broken: ValueError, secret: str | None
) -> BatchError:
    """What a body under 2xx that is no JSON was, with its first words."""
    cause, said = "not_json", f"no JSON ({broken})"
    start = content[:4096].decode("utf-8", "replace")
    if is_html(content, headers.get("content-type", "")):
        cause, said, start = "html", "an HTML page", page_words(start)
    elif not start.strip():
        cause, said = "empty_body", "an empty body"
    elif start.startswith(("data:", "event:")):
        cause, said = "event_stream", "a stream of events (is `stream` set?)"
    elif start.lstrip().startswith(("{", "[")):
        cause, said = "truncated", "JSON that is cut off or broken"
    first = f": {shown(start, secret, 80)}" if start.strip() else ""
    message = shown(f"{_ARTICLE} {status} with {said}{first}", secret)
    return bad_reply(message, cause, status=status, request_id=request_id(headers))


def blocked(status: int, document: Any, secret: str | None) -> Refused | None:
    """The refusal in a body without an answer whose question was blocked; None where nothing says so.

    Gemini says so in `promptFeedback`, Azure in `prompt_filter_results`.
    """
    if not isinstance(document, dict) or document.get("choices"):
        return None
    feedback = document.get("promptFeedback")
    reason = feedback.get("blockReason") if isinstance(feedback, dict) else None
    if not isinstance(reason, str) or not reason:
        reason = ", ".join(_filtered(document.get("prompt_filter_results")))
    if not reason:
        return None
    message = shown(f"{_ARTICLE} {status} and blocked the question: {reason}", secret)
    return Refused(message, cause="content_filter", status=status)


def _filtered(results: Any) -> list[str]:
    """The names of the filters that took offence."""
    found: list[str] = []
    for result in results if isinstance(results, list) else ():
        filters = result.get("content_filter_results") if isinstance(result, dict) else None
        for name, told in filters.items() if isinstance(filters, dict) else ():
            if isinstance(told, dict) and told.get("filtered") is True:
                found.append(name)
    return found


def no_completion(status: int, headers: Mapping[str, str], what: str, secret: str | None) -> BatchError:
    """JSON that is `what` instead of a completion."""
    message = shown(f"{_ARTICLE} {status} with {what}", secret)
    return bad_reply(message, "not_completion", status=status, request_id=request_id(headers))
