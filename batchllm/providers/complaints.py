"""What a provider says when it does not answer: its words, its codes, how long it asks to wait.

Reads the error bodies of many servers into one `Complaint` and makes lines of it that are fit to be shown:
short, without control characters, without keys. It judges nothing; `verdicts` does, and calls this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from batchllm.fields import frozen

LONGEST = 300
_READ = 4096  # so much of a body is searched for words: patterns must not run over megabytes

_CONTROL = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_KEYS = (
    (re.compile(r"\b(sk|pk|rk|gsk|xai|hf|pplx|nvapi|csk|fw|r8|tgp|sess)([-_])[\w*.-]{6,}"), r"\1\2***"),
    (re.compile(r"\bAIza[\w*-]{8,}|\bAKIA[0-9A-Z]{12,}|\beyJ[\w-]{10,}\.[\w.-]+"), "***"),
    (re.compile(r"(?i)\b(bearer\s+)(?=\S*[\d*])\S{8,}"), r"\1***"),
    (re.compile(r"(?i)\b(api[-_ ]?key(?: provided)?\s*[:=]\s*|password\s*[:=]\s*)[^\s,;]{4,}"), r"\1***"),
    (re.compile(r"\b(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}\b"), "***"),
)
_TAGS = re.compile(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>|<!--.*?-->")
_TITLE = re.compile(r"(?is)<title[^>]*>(.*?)</title>")
_WORD = re.compile(r"[A-Za-z][\w.:-]{0,63}")
_WAIT = re.compile(
    r"(?i)(?:try again|retry|wait|resets?)(?: in| after| for)?(?: about)?[: ]+"
    r"((?:\d+(?:\.\d+)?\s*(?:milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)\b ?|"
    r"\d+(?:\.\d+)?(?:ms|s|m|h|d)(?=\d))+)"
)
_RETRY_INFO = re.compile(r"retryDelay[\\\"': ]+(\d+(?:\.\d+)?s)\b")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)")
_SECONDS = {"ms": 0.001, "milliseconds": 0.001, "seconds": 1.0, "secs": 1.0, "minutes": 60.0, "mins": 60.0}
_SECONDS |= {"s": 1.0, "m": 60.0, "h": 3600.0, "hours": 3600.0, "d": 86400.0, "days": 86400.0}
_UNITS = _SECONDS | {name[:-1]: seconds for name, seconds in _SECONDS.items() if len(name) > 2}


@frozen
class Complaint:
    """An error body, read.

    `form` is json, html, text or empty. `words` are the provider's own, one line; `codes` its code
    words, the most telling first, without bare numbers; `text` the body as text, its first 64 KiB.
    `number` is a status that the body itself names. `document` is the body parsed, or None.
    """

    form: str
    words: str
    codes: tuple[str, ...] = ()
    text: str = ""
    number: int | None = None
    document: Any = None


def read(content: bytes, content_type: str = "") -> Complaint:
    """Read an error body of whatever shape; never fails."""
    document = _parsed(content)
    if isinstance(document, dict | list):
        return of_document(document, content)
    text = content[:65536].decode("utf-8", "replace")
    if is_html(content, content_type):
        return Complaint("html", page_words(text[:_READ]), text=text)
    return Complaint("text" if text.strip() else "empty", plain(text[:_READ]), text=text)


def of_document(document: Any, content: bytes = b"", *, nested: bool = False) -> Complaint:
    """Read an error that is parsed already; `content` is what it was parsed from."""
    whole = document
    if isinstance(document, list):
        document = next((item for item in document if isinstance(item, dict)), {})
    error = _inner(document)
    said = _words(error) or _words(document)
    words = said or plain(content[:_READ].decode("utf-8", "replace"))
    codes = list(dict.fromkeys(_codes(error)))
    number = _number(error) or _number(document)
    if not nested and said.startswith("{"):  # Gemini and gateways: a whole error body as another's message
        inner = _parsed(said.encode("utf-8", "replace"))
        if isinstance(inner, dict):
            below = of_document(inner, nested=True)
            words, codes, number = below.words or words, [*codes, *below.codes], number or below.number
    param = error.get("param")
    if isinstance(param, str) and param and param not in words:
        words = f"{words} (param: {param})"
    text = content[:65536].decode("utf-8", "replace")
    return Complaint("json", words[:_READ], tuple(codes), text, number, whole)


def _parsed(content: bytes) -> Any:
    """A body parsed, or None where it is no JSON."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None


def _inner(document: dict[str, Any]) -> dict[str, Any]:
    """The object that holds the error's fields."""
    for name in ("error", "detail"):
        inner = document.get(name)
        if isinstance(inner, dict):
            nested = inner.get("error")
            return nested if isinstance(nested, dict) else inner
    return document


def _words(error: dict[str, Any]) -> str:
    """The sentence in an error object, whichever field holds it."""
    for name in ("message", "error", "detail", "errors", "msg", "error_description", "title"):
        value = error.get(name)
        if isinstance(value, dict):  # Mistral: {"message": {"detail": [...]}}
            value = value.get("detail") or value.get("message")
        if isinstance(value, str) and value.strip():
            words = plain(value)
            upstream = error.get("metadata")
            raw = upstream.get("raw") if isinstance(upstream, dict) else None
            return f"{words}: {plain(raw)}" if isinstance(raw, str) and raw else words
        if isinstance(value, list):
            listed = "; ".join(filter(None, map(_validation, value)))
            if listed:
                return plain(listed)
    return ""


def _validation(item: Any) -> str:
    """One item of a FastAPI validation error: where, and what is wrong there (never the input itself)."""
    if isinstance(item, str):
        return item
    if not isinstance(item, dict):
        return ""
    place = item.get("loc")
    said = str(item.get("msg") or item.get("message") or "")
    where = ".".join(str(part) for part in place) if isinstance(place, list) else ""
    return f"{where}: {said}" if where and said else said


def _codes(error: dict[str, Any]) -> Iterator[str]:
    """Code words, the most telling first; numbers say no more than the status does."""
    candidates = [error.get(name) for name in ("code", "type", "status", "error_code")]
    inner = error.get("innererror") or error.get("inner_error")
    details = error.get("details")
    for extra in (inner, *(details if isinstance(details, list) else [details])):
        if isinstance(extra, dict):
            candidates += [extra.get(name) for name in ("code", "error_code", "reason")]
    for value in candidates:
        if isinstance(value, str) and value != "error" and _WORD.fullmatch(value):
            yield value


def _number(error: dict[str, Any]) -> int | None:
    """A status between 400 and 599 that the body names, as a number or as text."""
    for name in ("code", "status", "status_code", "statusCode"):
        value = error.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return value
    return None


def is_html(content: bytes, content_type: str = "") -> bool:
    """Whether a body is a web page, by its type or its first bytes."""
    start = content[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return True
    return "text/html" in content_type.lower() and start.startswith(b"<")


def page_words(text: str) -> str:
    """The title of a web page, else the first of its text."""
    title = _TITLE.search(text)
    return plain(title.group(1)) if title and title.group(1).strip() else plain(_TAGS.sub(" ", text))


def plain(text: str) -> str:
    """The text on one line, without control and direction characters."""
    return _CONTROL.sub(" ", text).strip()


def shown(text: str, secret: str | None = None, longest: int = LONGEST) -> str:
    """The text as a line to show: at most `longest` characters; the secret and what looks like one masked."""
    line = plain(text)
    if secret and len(secret) >= 4:
        line = line.replace(secret, "***")
    for pattern, mask in _KEYS:
        line = pattern.sub(mask, line)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def retry_after(headers: Mapping[str, str], complaint: Complaint, now: float) -> float | None:
    """Seconds that the provider asks to wait, or None where it does not say.

    The order of the official SDKs: `retry-after-ms`, `retry-after` in seconds, then as an HTTP date; then
    the same headers of the service behind a LiteLLM proxy (`llm_provider-…`), Gemini's RetryInfo wherever
    the body holds it, and texts such as "Please try again in 6m0s". `now` is Unix seconds.
    """
    for prefix in ("", "llm_provider-"):
        milliseconds = seconds_of(headers.get(f"{prefix}retry-after-ms"))
        if milliseconds is not None:
            return milliseconds / 1000
        value = headers.get(f"{prefix}retry-after")
        seconds = seconds_of(value)
        if seconds is None and value:
            seconds = _until(value, now)
        if seconds is not None:
            return seconds
    info = _RETRY_INFO.search(complaint.text)
    if info:
        return _duration(info.group(1))
    said = _WAIT.search(complaint.words)
    return _duration(said.group(1)) if said else None


def reset_after(headers: Mapping[str, str], complaint: Complaint, now: float) -> float | None:
    """Seconds until the bucket that refused has refilled, by its reset header, or None where none tells.

    Reads `x-ratelimit-reset-requests`, `anthropic-ratelimit-tokens-reset` and their like, those of OpenRouter
    from the body. The longest of the empty buckets; one with something `remaining` says nothing; of those
    that tell no rest the shortest, since any may be the one. `now` is Unix seconds.
    """
    told = {**_carried(complaint.document), **headers}
    empty: list[float] = []
    untold: list[float] = []
    for name, value in told.items():
        if "ratelimit" not in name or "-reset" not in name:
            continue
        wait = reset_of(value, now)
        if not wait:
            continue
        left = told.get(name.replace("-reset", "-remaining"))
        if left is None:
            untold.append(wait)
        elif seconds_of(left) == 0:
            empty.append(wait)
    return max(empty) if empty else min(untold, default=None)


def _carried(document: Any) -> dict[str, str]:
    """Headers of the service behind OpenRouter, which it puts into the error's metadata."""
    error = document.get("error") if isinstance(document, dict) else None
    metadata = error.get("metadata") if isinstance(error, dict) else None
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    if not isinstance(headers, dict):
        return {}
    return {name.lower(): value for name, value in headers.items() if isinstance(value, str)}


def reset_of(value: str, now: float) -> float | None:
    """Seconds until a reset told in seconds, as Unix seconds or milliseconds, as a date or a duration."""
    number = seconds_of(value)
    if number is None:
        return _until(value, now)
    if number < 1e9:
        return number
    return max(0.0, (number / 1000 if number > 1e11 else number) - now)


def seconds_of(value: str | None) -> float | None:
    """A number of seconds (or milliseconds) that is finite; one below 0 is 0."""
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _until(value: str, now: float) -> float | None:
    """Seconds from now until an HTTP date or an RFC 3339 time, or of a duration such as `30s`."""
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = parse(value)
        except (ValueError, TypeError, OverflowError):
            continue
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    return _duration(value)


def _duration(text: str) -> float | None:
    """Seconds of `599ms`, `1.5s`, `6m0s`, `2 minutes`; None for anything else."""
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip() or any(unit.lower() not in _UNITS for _, unit in parts):
        return None
    seconds = sum(float(number) * _UNITS[unit.lower()] for number, unit in parts)
    return seconds if math.isfinite(seconds) else None
