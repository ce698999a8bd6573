"""JSON dug out of what stands around it in a model's answer: fences, reasoning, prose.

Pure, linear in the text, and only imported for an answer that isn't JSON as a whole. `finding` calls it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from batchllm.schema.finding import parse

# Bounds on the work for hostile text, far beyond what a real answer needs.
_MAX_ACCEPTS = 50
_MAX_UNCLOSED = 4
_MAX_DEPTH = 1000

_OPENING = re.compile(r"[{\[]")
_MARK = re.compile(r'["{}\[\]]')
_STRING_BODY = re.compile(r'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+')
_FENCE = re.compile(r"```[ \t]*(json\w*)?\s*", re.IGNORECASE)
# No JSON string holds a raw line break, so a tag at the start of a line is never part of a value.
_THINK = re.compile(r"(?:^[ \t]*|(?<=</think>)\s*)<think>", re.MULTILINE)
_THINK_END = "</think>"
_LONE_THINK_END = re.compile(r"^[ \t]*</think>[ \t]*$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d++(?:\.\d++)?(?:[eE][+-]?\d++)?", re.ASCII)
_DECODER = json.JSONDecoder()


def dug_out(whole: str, accept: Callable[[Any], bool] | None) -> Any:
    """What `find_json` finds in a text that doesn't parse as a whole; raises ValueError."""
    answer = _without_reasoning(whole).strip() if "think>" in whole else whole
    if answer != whole:
        try:
            return parse(answer)
        except ValueError:
            pass
    found = sorted(_candidates(answer), key=lambda candidate: candidate[:3], reverse=True)
    if not found:
        raise ValueError(_why_none(answer))
    if accept is not None and len(found) > 1:
        for *_, value in found[:_MAX_ACCEPTS]:
            if accept(value):
                return value
    return found[0][3]


def _candidates(text: str) -> Iterator[tuple[bool, bool, int, Any]]:
    """What parses: whether it opens a fence, whether it is an object, where it starts, the value."""
    fenced = {fence.end() for n, fence in enumerate(_FENCE.finditer(text)) if fence[1] or n % 2 == 0}
    for start, end in _regions(text):
        try:
            value = parse(text[start:end])
        except ValueError:
            continue
        yield start in fenced, isinstance(value, dict), start, value


def _why_none(answer: str) -> str:
    opening = _OPENING.search(answer)
    if opening is None:
        if _NUMBER.fullmatch(answer):
            return "the answer is a number that is too large to be read"
        return "there is no JSON in the answer"
    try:
        parse(answer[opening.start() :])
    except ValueError as error:
        return f"the JSON in the answer doesn't parse: {error}"
    return "there is no JSON in the answer"


def _without_reasoning(text: str) -> str:
    """The text less its `<think>…</think>` blocks; one that never ends takes the rest with it."""
    kept: list[str] = []
    at = 0
    while block := _THINK.search(text, at):
        kept.append(text[at : block.start()])
        end = text.find(_THINK_END, block.end())
        at = len(text) if end < 0 else end + len(_THINK_END)
    kept.append(text[at:])
    answer = "".join(kept)
    # Where the server's chat template has opened the block itself, only its end is in the answer.
    lone = _LONE_THINK_END.search(answer)
    return answer[lone.end() :] if lone else answer


def _regions(text: str) -> Iterator[tuple[int, int]]:
    """The outermost balanced `{…}` and `[…]`, left to right; they never overlap."""
    at = unclosed = 0
    while unclosed < _MAX_UNCLOSED and (opening := _OPENING.search(text, at)):
        start = opening.start()
        end = _closing(text, start)
        if end is None:
            unclosed += 1
            at = _breaks_off(text, start)
        else:
            yield start, end
            at = end


def _closing(text: str, start: int) -> int | None:
    """Where the bracket at `start` is closed again, strings skipped; None where it never is."""
    depth = 0
    at = start
    while mark := _MARK.search(text, at):
        at = mark.end()
        if mark[0] == '"':
            string = _STRING_BODY.match(text, at)
            at = string.end() + text.startswith('"', string.end()) if string else at
        elif mark[0] in "{[":
            depth += 1
            if depth > _MAX_DEPTH:
                return None
        else:
            depth -= 1
            if depth == 0:
                return at
    return None


def _breaks_off(text: str, start: int) -> int:
    """Up to where the unclosed bracket at `start` reads as JSON: what follows may be something else."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        return len(text) if error.msg.startswith("Unterminated string") else max(error.pos, start + 1)
    except (RecursionError, ValueError):
        return len(text)
