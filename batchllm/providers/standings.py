"""How the limits of an account stand, as services tell it: in headers, or in the words of a refusal.

Pure: headers and words in, Standings out. `chat` asks for those of an answer, `verdicts` for those of a
refusal; what they mean for the pace is decided in `limits`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from batchllm.model import DIMENSIONS, Standing
from batchllm.providers.complaints import Complaint, reset_of, seconds_of

_OPENAI = tuple(
    (name, *(f"x-ratelimit-{part}-{name}" for part in ("limit", "remaining", "reset")))
    for name in ("requests", "tokens")
)
_ANTHROPIC = tuple(
    (name, *(f"anthropic-ratelimit-{name}-{part}" for part in ("limit", "remaining", "reset")))
    for name in DIMENSIONS
)
_WHAT = r"(?P<what>requests?|input[ -]tokens|output[ -]tokens|tokens)"
_WORDS = re.compile(
    rf"(?:(?P<before>\d[\d,]*) )?\b{_WHAT}(?: usage)? (?:per|a|/) ?min(?:ute)?s?\b(?: \([RT]PM\))?"
    r"(?:\W{0,4}limit\W{0,3}(?P<after>\d[\d,]*))?",
    re.IGNORECASE,
)
_NAMED = re.compile(rf"\blimit (?:reached|exceeded) (?:for|on) {_WHAT}\b", re.IGNORECASE)
_GEMINI = re.compile(r"quotaId[\\\" :]+(?P<id>\w+)PerMinute")
_GEMINI_VALUE = re.compile(r"quotaValue[\\\" :]+(?P<limit>\d+)")


def told(headers: Mapping[str, str], now: float) -> tuple[Standing, ...]:
    """The limits in an answer's headers, whose names are in lower case; `now` is Unix seconds."""
    if "x-ratelimit-limit-requests" in headers or "x-ratelimit-limit-tokens" in headers:
        rows = _OPENAI
    elif "anthropic-ratelimit-requests-limit" in headers or "anthropic-ratelimit-tokens-limit" in headers:
        rows = _ANTHROPIC
    else:
        return ()
    found = []
    for name, limit_name, left_name, reset_name in rows:
        limit = seconds_of(headers.get(limit_name))
        if limit is None:
            continue
        reset = headers.get(reset_name)
        found.append(
            Standing(name, limit, seconds_of(headers.get(left_name)), reset_of(reset, now) if reset else None)
        )
    return tuple(found)


def refused(headers: Mapping[str, str], complaint: Complaint, now: float) -> tuple[Standing, ...]:
    """The limits that came with a refusal; the one that it names has nothing remaining."""
    standings = {standing.dimension: standing for standing in told(headers, now)}
    name, limit = _in_words(complaint.words) or _in_body(complaint.text) or (None, None)
    if name is not None:
        known = standings.get(name, Standing(name))
        standings[name] = Standing(name, known.per_minute or limit, 0.0, known.reset)
    return tuple(standings.values())


def _in_words(words: str) -> tuple[str, float | None] | None:
    """The dimension and the limit a minute in a sentence, as OpenAI's, Anthropic's and their like word it."""
    found = _WORDS.search(words) or _NAMED.search(words)
    if found is None:
        return None
    name = found["what"].lower().replace(" ", "-")
    number = found.groupdict().get("after") or found.groupdict().get("before")
    return "requests" if name == "request" else name, float(number.replace(",", "")) if number else None


def _in_body(body: str) -> tuple[str, float | None] | None:
    """The same in Gemini's details."""
    found, value = _GEMINI.search(body), _GEMINI_VALUE.search(body)
    if found is None:
        return None
    tokens = "input-tokens" if "input_token" in body else "tokens"
    name = tokens if "Token" in found["id"] else "requests"
    return name, float(value["limit"]) if value is not None else None
