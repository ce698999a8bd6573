"""One record through its stages to one Outcome; errors become data here and nowhere else.

The engine calls it for each record. It renders the request of each stage, awaits the stage's stack, and turns
every RecordError into a Dead; fatal errors and a stop pass through, since they are not about the record.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import anyio

from batchllm.errors import BatchError, FatalError, Invalid, RecordError, Stopped
from batchllm.fields import frozen
from batchllm.model import Dead, Done, Failure, Note, Outcome, Record, Reply, Request, Trail, Usage
from batchllm.ports import Provider

Answers = dict[str, Any]
"""What stages answered, by their names."""
Body = dict[str, Any]
Render = Callable[[dict[str, Any], Answers | None], Body | Awaitable[Body]]


@frozen
class Stage:
    """One ask of each record.

    `render` makes a request body of a record's data and the answers of the stages before it, raising
    BadInput; `raw` says that the body is the provider's own. `when` says whether the stage is for this
    record. `step`: it is a function with effects of its own, whose key is the same in all passes. `name` is
    None where there is one stage, which nobody has named. `with_record` hands the record's object on to the
    stack.
    """

    stack: Provider
    render: Render
    model: str
    schema: dict[str, Any] | None = None
    raw: bool = False
    name: str | None = None
    when: Callable[[dict[str, Any], Answers], bool] | None = None
    step: bool = False
    with_record: bool = False


class Pipeline:
    """A Process of the stages of each variant; `plans` has them by the variant's name, None without variants.

    `answered` holds, by unit, the notes of stages that earlier sessions got answered. `record_timeout` is in
    seconds, pauses not counted. `by_id` says that records are known again by their id, wherever they stand.
    """

    def __init__(
        self,
        plans: Mapping[str | None, Sequence[Stage]],
        *,
        run_id: str,
        generation: int,
        record_timeout: float | None,
        answered: Mapping[int, Sequence[dict[str, Any]]] | None = None,
        by_id: bool = False,
    ) -> None:
        self._plans = {name: tuple(stages) for name, stages in plans.items()}
        self._keys = f"{run_id}-{generation}-%d"
        self._run_id = run_id
        self._record_timeout = record_timeout
        self._answered = dict(answered or {})
        self._by_id = by_id

    async def __call__(self, record: Record, emit: Callable[[Note], None]) -> Outcome:
        """Settle one record; raises FatalError and Stopped only.

        A record that is cut short after calls of it were answered leaves notes of the stages that are done
        and of what was spent beside.
        """
        trail = Trail()
        if self._record_timeout is not None:
            trail.deadline = time.monotonic() + self._record_timeout
        stages = self._plans[record.variant]
        stage = stages[0]
        outcome: Outcome | None = None
        try:
            if stage.name is None:
                body = stage.render(record.data or {}, None)
                if type(body) is not dict:
                    body = await _awaited(body)
                request = Request(stage.model, body, self._keys % record.unit(), stage.schema, stage.raw)
                if stage.with_record:
                    request = replace(request, record=record.data)
                reply = await stage.stack.complete(request, trail)
                outcome = Done(record, reply, trail, time.time())
            else:
                outcome = await self._through(stages, record, trail, emit)
        except (FatalError, Stopped):
            raise
        except Exception as error:
            outcome = Dead(record, _failure(error), trail, time.time())
        except anyio.get_cancelled_exc_class():
            if _cancelled_by_us():
                raise
            outcome = Dead(record, _CANCELLED, trail, time.time())
        finally:
            if outcome is None and (spent := trail.spent(record.seq)) is not None:
                emit(spent)
        return outcome

    async def _through(
        self, stages: Sequence[Stage], record: Record, trail: Trail, emit: Callable[[Note], None]
    ) -> Outcome:
        """Stage after stage, but for those that were answered before and those that `when` leaves out."""
        reply: Reply | None = None
        stood_in = False
        answers = trail.answers = dict(record.answers or {})
        for told in self._answered.pop(record.unit(), ()):
            trail.recall(told)
            reply = Reply("", told["value"], Usage(), told["finish"], told["model"])
            stood_in = stood_in or bool(told.get("fallback"))
        answers = trail.answers
        skipped: list[str] = []
        trail.skipped = skipped
        data = record.data or {}
        for number, stage in enumerate(stages):
            name = stage.name or ""
            if name in answers:
                continue
            try:
                if stage.when is not None and not stage.when(data, answers):
                    skipped.append(name)
                    continue
                body = stage.render(data, answers)
                if type(body) is not dict:
                    body = await _awaited(body)
                key = self._key(stage, number, record)
                seen = data if stage.with_record else None
                request = Request(stage.model, body, key, stage.schema, stage.raw, seen)
                reply = await stage.stack.complete(request, trail)
            except (FatalError, Stopped):
                raise
            except Exception as error:
                return Dead(record, _failure(error, name), trail, time.time())
            except anyio.get_cancelled_exc_class():
                if _cancelled_by_us():
                    raise
                return Dead(record, replace(_CANCELLED, stage=name), trail, time.time())
            stood_in = stood_in or reply.fallback
            note = trail.answered(record, name, reply)
            answers = trail.answers
            if stage is not stages[-1]:
                emit(note)
        if reply is None:
            reply = Reply("", next(reversed(answers.values()), None), Usage(), None, "")
        if stood_in and not reply.fallback:
            reply = replace(reply, fallback=True)  # an earlier answer was not of the model that was asked
        return Done(record, reply, trail, time.time())

    def _key(self, stage: Stage, number: int, record: Record) -> str:
        """The key of a record's ask in a stage; that of a step outlives the pass, as long as the record."""
        if stage.step:
            place = f"{crc32(repr(record.id).encode()):08x}" if self._by_id else record.unit()
            return f"{self._run_id}-{place}-s{number}-{crc32(record.line):08x}"
        return f"{self._keys % record.unit()}-s{number}"


async def _awaited(body: Body | Awaitable[Body]) -> Body:
    return await body if inspect.isawaitable(body) else body


def _failure(error: Exception, stage: str | None = None) -> Failure:
    name = type(error).__name__
    if not isinstance(error, RecordError):
        message = error.message if isinstance(error, BatchError) else f"{name}: {error}"
        return Failure("internal", name, message, stage=stage)
    return Failure(
        kind=error.kind,
        cause=error.cause,
        message=error.message,
        status=error.status,
        retryable=error.retryable,
        stage=stage,
        raw=error.raw,
        violations=error.violations if isinstance(error, Invalid) else (),
    )


_CANCELLED = Failure("internal", "CancelledError", "the call was cancelled by itself")
"""What becomes of a record whose function awaited something that was cancelled."""


def _cancelled_by_us() -> bool:
    """Whether a cancellation is the run's own, and not one that came out of a function of the user's."""
    return anyio.current_effective_deadline() == -math.inf
