"""What flows through a run: records in, requests and replies between, outcomes out.

Frozen values without behaviour; every room may import this one, and it imports none. Mutable are `Trail`, one
record's account of its calls, which belongs to the worker that runs the record, and a Reply's `value`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import field, fields
from typing import Any
from zlib import crc32

from batchllm.fields import frozen, mutable


@frozen
class Record:
    """One JSON object from the input.

    `seq` is its place among the non-blank lines of all inputs, from 0. `id` is the value of the id field,
    any JSON value but null, or `line-<n>`. `data` is the object parsed; `line` its bytes without line end
    or byte-order mark, which pass to the output by splicing and are never serialised anew. A line that is
    no JSON object has `data = None` and appears in a `Dead` only. `turn` is its place among the records of
    a later pass over some of them, None in the pass over the input itself. `variant` is the name of the
    variant under which it is asked, and `place` then the number of the two together; `answers` holds what
    stages answered in an earlier pass, by their names.
    """

    seq: int
    id: Any
    data: dict[str, Any] | None
    line: bytes
    turn: int | None = None
    variant: str | None = None
    place: int | None = None
    answers: dict[str, Any] | None = None

    # Methods: a property is called through C, which costs more than all that these do.

    def number(self) -> int:
        """Its place among the units of this pass, by which progress is kept."""
        return self.unit() if self.turn is None else self.turn

    def unit(self) -> int:
        """The number under which the ledger settles this record, or this variant of it."""
        return self.seq if self.place is None else self.place


@frozen
class Position:
    """A place in the inputs: the next record there has number `seq`.

    `file` counts the inputs from 0, `offset` is in bytes of the (decompressed) content, `line` is the
    number of physical lines before it in that file.
    """

    file: int = 0
    offset: int = 0
    line: int = 0
    seq: int = 0


@frozen
class Usage:
    """Tokens of one call, or of several added up; `cached_tokens` are part of `input_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def to_dict(self) -> dict[str, int]:
        """A form that JSON can carry."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
        )


DIMENSIONS = ("requests", "tokens", "input-tokens", "output-tokens")
"""What services limit a minute; amounts and rates stand in this order."""


@frozen
class Standing:
    """How one limit of an account stands, as its service told; None where that was not told.

    `dimension` is one of DIMENSIONS, `per_minute` the limit, `remaining` what may still go of it, in units,
    and `reset` the seconds until all of it may again.
    """

    dimension: str
    per_minute: float | None = None
    remaining: float | None = None
    reset: float | None = None


@frozen
class Request:
    """One ask of a provider.

    `body` is the neutral form that every provider translates: `messages` (chat roles and contents) and
    request parameters beside them; `raw` says that the body is the provider's own and goes as it stands.
    `schema` is the JSON Schema that the answer has to satisfy, for providers that can be told so.
    `key` identifies the ask across transport retries: at most 64 characters of `[A-Za-z0-9_-]`. `record` is
    the record's object, for a check that wants to see it.
    """

    model: str
    body: dict[str, Any]
    key: str
    schema: dict[str, Any] | None = None
    raw: bool = False
    record: dict[str, Any] | None = None


@mutable
class Reply:
    """A provider's answer, whole but not yet judged.

    `text` is the answer as sent; `value` what counts as the output: the text, or the parsed JSON, which the
    layer that judges puts there once a schema has accepted it. `finish` is the provider's finish reason
    (`stop`, `length`, `content_filter`, `refusal`, …). `raw` is the provider's response body parsed.
    `limits` are those of the account that came with the answer. `cached`: the answer to the same request,
    asked before or by another.
    `restore` makes of a parsed answer one to the schema itself, where the server was told another; `fallback`
    says that it stands in for the model that was asked.
    """

    text: str
    value: Any
    usage: Usage
    finish: str | None
    model: str
    request_id: str | None = None
    raw: Any = None
    limits: tuple[Standing, ...] = ()
    cached: bool = False
    restore: Callable[[Any], Any] | None = None
    fallback: bool = False


@frozen
class Attempt:
    """One call as it went: `at` in Unix seconds when it was sent, `seconds` until its last byte.

    `error` is None for a call that brought a reply, else one line that says what came instead, and `cause`
    the word for it where there is one.
    """

    at: float
    seconds: float
    usage: Usage | None = None
    status: int | None = None
    request_id: str | None = None
    error: str | None = None
    stage: str | None = None
    cause: str | None = None


NO_USAGE = Usage()


def told_attempts(
    calls: int, at: float, seconds: float, usage: Usage, stages: Iterable[str] = ()
) -> list[Attempt]:
    """So many calls, of which a line tells the last alone: of more than `stages` some were tried again."""
    names: list[str | None] = [*stages] or [None]
    attempts = [Attempt(at, 0.0, stage=name) for name in (names + names[-1:] * calls)[:calls]]
    if attempts:
        attempts[-1] = Attempt(at, seconds, usage, stage=attempts[-1].stage)
    return attempts


def _used(calls: Iterable[Attempt]) -> Usage:
    """The tokens of these calls, where they were told."""
    return sum((call.usage for call in calls if call.usage is not None), NO_USAGE)


@mutable
class Trail:
    """One record's calls, its deadline and what it has used; touched by its worker alone.

    `deadline` is a monotonic time in seconds, or None; the gate moves it by the length of each pause. Where
    a record goes through stages, `answers` has what each has answered, by name, and `skipped` who was left
    out; else they are None. The first `noted` attempts are kept in notes already; `held` is the characters
    of those answers. `kept` is what a function of the program's returned or raised last, as it is.
    """

    deadline: float | None = None
    asks: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    answers: dict[str, Any] | None = None
    skipped: list[str] | None = None
    noted: int = 0
    held: int = 0
    kept: Any = None

    def usage(self) -> Usage:
        """Tokens of every call of this record, failed ones included where they were told."""
        if len(self.attempts) == 1:
            return self.attempts[0].usage or NO_USAGE
        return _used(self.attempts)

    def spent(self, seq: int) -> Note | None:
        """The note that record `seq` leaves where it ends without an outcome after calls of it; else None."""
        calls = self.attempts[self.noted :]
        if not calls:
            return None
        return Note("spent", {"seq": seq, "calls": len(calls), "usage": _used(calls).to_dict()})

    def answered(self, record: Record, stage: str, reply: Reply) -> Note:
        """The note that keeps what a stage answered, so that it is never asked again."""
        calls, self.noted = self.attempts[self.noted :], len(self.attempts)
        self.answers = (self.answers or {}) | {stage: reply.value}
        self.held += len(reply.text)
        return Note(
            "stage",
            {
                "unit": record.unit(),
                "number": record.number(),
                "id": record.id,
                "line": crc32(record.line),
                "stage": stage,
                "value": reply.value,
                "model": reply.model,
                **({"fallback": True} if reply.fallback else {}),
                "finish": reply.finish,
                "calls": len(calls),
                "usage": _used(calls).to_dict(),
                "at": calls[-1].at if calls else 0.0,
                "seconds": calls[-1].seconds if calls else 0.0,
            },
            len(reply.text),
        )

    def recall(self, told: dict[str, Any]) -> None:
        """Take over what an earlier session's note says of a stage."""
        at, seconds, stage = told["at"], told["seconds"], told["stage"]
        blank = [Attempt(at, 0.0, stage=stage)] * (told["calls"] - 1)
        last = [Attempt(at, seconds, Usage(**told["usage"]), stage=stage)] if told["calls"] else []
        self.attempts += [*blank, *last]
        self.noted = len(self.attempts)
        self.answers = (self.answers or {}) | {stage: told["value"]}


@frozen
class Failure:
    """Why a record is dead: the `error` object of a dead letter.

    `kind` is one of bad_input, too_large, refused, invalid, exhausted, internal; `cause` names the last
    failure, `raw` holds the model's last answer where there was one, `violations` what is wrong with that.
    """

    kind: str
    cause: str
    message: str
    status: int | None = None
    retryable: bool = False
    stage: str | None = None
    raw: str | None = None
    violations: tuple[str, ...] = ()


@frozen
class Done:
    """A record with an answer that is whole and valid; `at` is when it was settled, Unix seconds."""

    record: Record
    reply: Reply
    trail: Trail
    at: float

    def size(self) -> int:
        """Characters of text that it holds, near enough for a bound on memory."""
        return len(self.record.line) + len(self.reply.text) + self.trail.held


@frozen
class Dead:
    """A record that ends as a dead letter; `at` is when it was settled, Unix seconds."""

    record: Record
    error: Failure
    trail: Trail
    at: float

    def size(self) -> int:
        """Characters of text that it holds, near enough for a bound on memory."""
        return len(self.record.line) + len(self.error.raw or "")


@frozen
class Note:
    """A durable side fact that is no outcome, such as tokens spent by a record that a stop cut short.

    `text` is how many characters of text it holds.
    """

    kind: str
    body: dict[str, Any]
    text: int = 0

    def size(self) -> int:
        """Characters of text that it holds, near enough for a bound on memory."""
        return self.text


Outcome = Done | Dead
