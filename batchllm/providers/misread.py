"""What came under a 2xx status in place of a chat completion, said in one line; `chat` calls it."""

from __future__ import annotations

from collections.abc import Mapping

from batchllm.errors import BatchError
from batchllm.providers.complaints import is_html, page_words, shown
from batchllm.providers.ids import request_id
from batchllm.providers.verdicts import bad_reply

_ARTICLE = "the provider answered"


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


def no_completion(status: int, headers: Mapping[str, str], what: str, secret: str | None) -> BatchError:
    """JSON that is `what` instead of a completion."""
    message = shown(f"{_ARTICLE} {status} with {what}", secret)
    return bad_reply(message, "not_completion", status=status, request_id=request_id(headers))
