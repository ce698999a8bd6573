"""What a program gets for each record: an `Outcome`, made of the run's own Done or Dead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

from batchllm import errors, model
from batchllm.fields import frozen
from batchllm.model import Attempt, Failure, Reply, Usage

Item = TypeVar("Item")
Value = TypeVar("Value")

_RAISED = {kind.kind: kind for kind in errors.RecordError.__subclasses__()}


@frozen
class Outcome(Generic[Item, Value]):
    """How one record ended: with an `output`, or with an `error`.

    `seq` is its place among the records, from 0, and `id` the value of its id field, else `line-<n>`.
    `record` is the record, or the item of `map`; None where it was no JSON object. `output` is the answer:
    parsed JSON under a schema, else text; what the function returned, with `map`. `error` says why there is
    none: kind, cause, message, HTTP status, `raw` answer. `attempts` are all calls, refused ones too, and
    `usage` their tokens. `reply` is the provider's answer whole, with finish reason and model. `exception` is
    the error as an exception: what the function raised, with `map`. `variant` names the variant under which
    it was asked, `stages` has what each stage answered, by its name; None where there are none.
    """

    seq: int
    id: Any
    record: Item
    output: Value | None
    error: Failure | None
    usage: Usage
    attempts: tuple[Attempt, ...]
    reply: Reply | None = None
    exception: Exception | None = None
    variant: str | None = None
    stages: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether there is an output."""
        return self.error is None

    def result(self) -> Value:
        """The output; where there is none, raises `exception`."""
        if self.exception is not None:
            raise self.exception
        return cast(Value, self.output)


def outcome_of(settled: model.Outcome) -> Outcome[Any, Any]:
    """The outcome of a record that was settled."""
    record, trail = settled.record, settled.trail
    reply = settled.reply if isinstance(settled, model.Done) else None
    return Outcome(
        seq=record.seq,
        id=record.id,
        record=record.data,
        output=reply.value if reply is not None else None,
        error=settled.error if isinstance(settled, model.Dead) else None,
        usage=trail.usage(),
        attempts=tuple(trail.attempts),
        reply=reply,
        exception=_exception(settled) if isinstance(settled, model.Dead) else None,
        variant=record.variant,
        stages=trail.answers,
    )


def _exception(dead: model.Dead) -> Exception:
    if isinstance(dead.trail.kept, Exception):
        return dead.trail.kept
    error = dead.error
    kind = _RAISED.get(error.kind, errors.Internal)
    return kind(error.message, cause=error.cause, status=error.status, raw=error.raw)
