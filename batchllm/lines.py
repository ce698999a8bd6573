"""One outcome → one line of JSON, pure: output lines in their three shapes, and dead letters.

Input bytes are spliced in as they stand, so numbers, key order and duplicates stay what they were. The
ledger calls it; docs/contract.md has the shapes.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from batchllm.fields import frozen
from batchllm.model import Attempt, Dead, Done, Failure, Record, Trail, Usage

if TYPE_CHECKING:
    from batchllm.expected import Expectation

LONGEST_RAW = 64 << 10
"""Characters of a raw answer that a dead letter holds."""

_OWN = frozenset(
    {
        *("variant", "expected", "correct", "stages", "skipped", "cached", "fallback"),
        *("error_kind", "error_message"),
    }
)
"""Names that mean something in a result even where it has none of them."""
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]|[^\s,:\[\]{}"]++')


@frozen
class Shape:
    """How output lines look: `emit` is result, merged or openai-batch; `expect` judges the answers."""

    emit: str = "result"
    keep: tuple[str, ...] = ()
    merge_failed: bool = False
    expect: Expectation | None = None


def output_line(done: Done, shape: Shape, usage: Usage | None = None) -> bytes:
    """The line of a success, with its newline; `usage` is what its calls used, where that is known."""
    if shape.emit == "merged":
        return _merged(done.record, [*_answer_fields(done).items(), *_run_fields(done).items()]) + b"\n"
    if shape.emit == "openai-batch":
        return _batch_line(done)
    reply, record, trail = done.reply, done.record, done.trail
    attempts = trail.attempts
    fields = {
        "id": record.id,
        "seq": record.seq,
        "output": reply.value,
        "model": reply.model,
        "usage": _usage(trail.usage() if usage is None else usage),
        "cost_usd": None,
        "attempts": len(attempts),
        "latency_s": _rounded(attempts[-1].seconds) if attempts else None,
        "finish_reason": reply.finish,
        "finished_at": stamp(done.at),
        "request_id": reply.request_id,
    }
    if record.variant is not None or trail.answers is not None or reply.fallback:
        fields |= _run_fields(done)
    if reply.cached:
        fields["cached"] = True
    if shape.expect is not None:
        fields |= shape.expect.verdict(record.data, reply.value)
    line = dumps(fields)
    if shape.keep and (kept := _kept(record, shape.keep, fields)):
        line = line[:-1] + b"," + kept + b"}"
    return line + b"\n"


def failed_line(dead: Dead, shape: Shape) -> bytes:
    """The output line of a dead record under --merge-failed, with its newline."""
    fields = {"error_kind": dead.error.kind, "error_message": dead.error.message} | _variant(dead.record)
    if shape.emit == "merged" and dead.record.data is not None:
        return _merged(dead.record, fields.items()) + b"\n"
    if shape.emit == "openai-batch":
        error = {"code": dead.error.kind, "message": dead.error.message}
        return dumps(_batch_head(dead.record) | {"response": None, "error": error} | fields) + b"\n"
    fields = {"id": dead.record.id, "seq": dead.record.seq} | fields
    line = dumps(fields)
    if shape.keep and dead.record.data is not None and (kept := _kept(dead.record, shape.keep, fields)):
        line = line[:-1] + b"," + kept + b"}"
    return line + b"\n"


def dead_line(dead: Dead) -> bytes:
    """The dead letter, with its newline; a line that was no record stands in `raw_line`."""
    record, error, trail = dead.record, dead.error, dead.trail
    rest = {
        "error": {
            "kind": error.kind,
            "cause": error.cause,
            "message": error.message,
            "status": error.status,
            "retryable": error.retryable,
            "stage": error.stage,
            **({"violations": error.violations} if error.violations else {}),
        },
        "attempts": [_attempt(attempt) for attempt in trail.attempts],
        "raw": error.raw[:LONGEST_RAW] if error.raw is not None else None,
        "usage": _usage(trail.usage()),
        "cost_usd": None,
        **_variant(record),
        **(_stages(trail) if trail.answers is not None else {}),
        "at": stamp(dead.at),
    }
    head = dumps({"id": record.id, "seq": record.seq})
    body = b'"record":' + record.line if record.data is not None else _raw_line(dead)
    return b"".join((head[:-1], b",", body, b",", dumps(rest)[1:], b"\n"))


def failed_line_of(letter: bytes, shape: Shape) -> bytes:
    """The same line, made from the dead letter's: what recovery writes where a crash came between the two."""
    parts = dict(members(letter))
    error = orjson.loads(parts["error"])
    line = parts.get("record")
    record = Record(
        seq=orjson.loads(parts["seq"]),
        id=json.loads(parts["id"]),
        data=orjson.loads(line) if line is not None else None,
        line=line or b"",
        variant=orjson.loads(parts.get("variant", b"null")),
    )
    failure = Failure(error["kind"], error["cause"], error["message"])
    return failed_line(Dead(record, failure, Trail(), 0.0), shape)


def renumbered(line: bytes, seq: int, emit: str) -> bytes:
    """An output line of shape `emit`, or a dead letter (as result), under another `seq`.

    A line that is not as the run writes it stays as it is.
    """
    if emit == "merged":
        return line
    if emit == "openai-batch":
        return re.sub(rb'^\{"id":"batch_req_\d+"', b'{"id":"batch_req_%d"' % seq, line)
    head = b'{"id":' + next((value for _, value in members(line)), b"") + b',"seq":'
    rest = line.removeprefix(head)
    return line if rest == line else head + re.sub(rb"^\d+", b"%d" % seq, rest)


def stamp(at: float) -> str:
    """RFC 3339 in UTC with milliseconds, from Unix seconds."""
    return _millisecond(int(at * 1000 + 0.5))


@lru_cache(maxsize=64)
def _millisecond(at: int) -> str:
    """The stamp of a millisecond since 1970; in each of them a fast run settles a dozen records."""
    seconds, millis = divmod(at, 1000)
    return f"{_second(seconds)}.{millis:03d}Z"


@lru_cache(maxsize=64)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def _rounded(seconds: float) -> float:
    """Seconds to a tenth of a millisecond; `round` to digits goes by way of a text."""
    return int(seconds * 10_000 + 0.5) / 10_000


def dumps(value: Any) -> bytes:
    """JSON bytes; integers of any size, and U+FFFD for half a surrogate pair: strict readers take none."""
    try:
        return orjson.dumps(value)
    except TypeError:
        pass
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return b"".join(_pieces(value))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _pieces(value: Any) -> Iterator[bytes]:
    """JSON of a value nested deeper than the encoders go; bytes among `left` are JSON already."""
    left = [value]
    while left:
        part = left.pop()
        inside: list[Any] = []
        if isinstance(part, dict):
            for name, item in part.items():
                inside += [b"," if inside else b"{", dumps(name), b":", item]
            left += reversed([*(inside or [b"{"]), b"}"])
        elif isinstance(part, list):
            for item in part:
                inside += [b"," if inside else b"[", item]
            left += reversed([*(inside or [b"["]), b"]"])
        else:
            yield part if isinstance(part, bytes) else dumps(part)


def members(line: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of a JSON object's line as they stand: name and the bytes of the value, in order.

    The line must be valid JSON; costs tens of microseconds, so only for who needs the bytes.
    """
    text = line.decode()
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        end = _end(text, at)
        name = json.loads(text[at:end])
        start = _skip(text, _skip(text, end) + 1)
        at = _end(text, start)
        yield name, text[start:at].encode()
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _end(text: str, at: int) -> int:
    """Where the JSON value at `at` ends, however deep it goes."""
    depth = 0
    while token := _TOKEN.search(text, at):
        at = token.end()
        depth += (token[0] in "[{") - (token[0] in "]}")
        if not depth:
            break
    return at


def _kept(record: Record, keep: tuple[str, ...], taken: dict[str, Any]) -> bytes:
    """The members to carry over; one whose name the result has already is called `input_<name>`."""
    wanted = set(keep)
    parts = {
        (f"input_{name}" if name in taken or name in _OWN else name): value
        for name, value in members(record.line)
        if name in wanted
    }
    return b",".join(dumps(name) + b":" + value for name, value in parts.items())


def _answer_fields(done: Done) -> dict[str, Any]:
    value = done.reply.value
    return value if isinstance(value, dict) else {"output": value}


def _run_fields(done: Done) -> dict[str, Any]:
    """What a run with variants, stages or models that stand by tells beside the answer."""
    fields = _variant(done.record) | (_stages(done.trail) if done.trail.answers is not None else {})
    return fields | ({"fallback": True} if done.reply.fallback else {})


def _variant(record: Record) -> dict[str, Any]:
    return {} if record.variant is None else {"variant": record.variant}


def _stages(trail: Trail) -> dict[str, Any]:
    """What each stage answered, and the names of those that were left out, where there are any."""
    return {"stages": trail.answers} | ({"skipped": trail.skipped} if trail.skipped else {})


def _merged(record: Record, fields: Iterable[tuple[str, Any]]) -> bytes:
    """The input's bytes with fields added; a taken name becomes `output_<name>`."""
    data = record.data or {}
    added: dict[str, Any] = {}
    for name, value in fields:
        shown = name
        while shown in data or shown in added:
            shown = f"output_{shown}"
        added[shown] = value
    if not added:
        return record.line
    start = record.line.rstrip()[:-1]
    return start + (b"," if data else b"") + dumps(added)[1:]


def _batch_line(done: Done) -> bytes:
    """OpenAI's batch output line; `body` is the provider's answer as it came."""
    reply = done.reply
    response = {"status_code": 200, "request_id": reply.request_id, "body": reply.raw}
    line = _batch_head(done.record) | {"response": response, "error": None}
    return dumps(line | {"fallback": True} if reply.fallback else line) + b"\n"


def _batch_head(record: Record) -> dict[str, Any]:
    custom_id = record.id if isinstance(record.id, str) else dumps(record.id).decode()
    return {"id": f"batch_req_{record.seq}", "custom_id": custom_id}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": stamp(attempt.at),
        "seconds": _rounded(attempt.seconds),
        "status": attempt.status,
        "error": attempt.error,
        **({} if attempt.stage is None else {"stage": attempt.stage}),
        "usage": _usage(attempt.usage) if attempt.usage is not None else None,
        "request_id": attempt.request_id,
    }


def _raw_line(dead: Dead) -> bytes:
    """A bad line as text, else in base64; of one that is too long the source hands over the beginning."""
    line, whole = dead.record.line, dead.error.cause != "line_too_long"
    try:
        return b'"raw_line":' + dumps(codecs.getincrementaldecoder("utf-8")().decode(line, final=whole))
    except UnicodeDecodeError:
        return b'"raw_line_base64":' + dumps(base64.b64encode(line).decode())
