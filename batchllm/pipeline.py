"""One record through the stack of its stage to one Outcome; errors become data here and nowhere else.

The engine calls it for each record. It renders the request, awaits the stack, and turns every RecordError
into a Dead; fatal errors and a stop pass through, since they are not about the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from batchllm.errors import BatchError, FatalError, Invalid, RecordError, Stopped
from batchllm.model import Dead, Done, Failure, Note, Outcome, Record, Request, Trail
from batchllm.ports import Provider

Render = Callable[[dict[str, Any]], dict[str, Any]]


class Pipeline:
    """A Process of one stage.

    `render` makes a request body from a record's data, raising BadInput; `raw` says that the body is the
    provider's own. `record_timeout` is in seconds, pauses not counted. `with_record` hands the record's
    object on to the stack.
    """

    def __init__(
        self,
        stack: Provider,
        render: Render,
        *,
        model: str,
        schema: dict[str, Any] | None,
        raw: bool,
        run_id: str,
        generation: int,
        record_timeout: float | None,
        with_record: bool = False,
    ) -> None:
        self._stack = stack
        self._render = render
        self._model = model
        self._schema = schema
        self._raw = raw
        self._name = f"{run_id}-{generation}-"
        self._record_timeout = record_timeout
        self._with_record = with_record

    async def __call__(self, record: Record, emit: Callable[[Note], None]) -> Outcome:
        """Settle one record; raises FatalError and Stopped only.

        A record that is cut short after calls of it were answered leaves a note of what they used.
        """
        trail = Trail()
        if self._record_timeout is not None:
            trail.deadline = time.monotonic() + self._record_timeout
        outcome: Outcome | None = None
        try:
            reply = await self._stack.complete(self._request(record), trail)
            outcome = Done(record, reply, trail, time.time())
        except (FatalError, Stopped):
            raise
        except Exception as error:
            outcome = Dead(record, _failure(error), trail, time.time())
        finally:
            if outcome is None and trail.attempts:
                emit(trail.spent(record.seq))
        return outcome

    def _request(self, record: Record) -> Request:
        assert record.data is not None  # a Record without data is inside a Dead and never comes here
        key = f"{self._name}{record.unit}"
        seen = record.data if self._with_record else None
        return Request(self._model, self._render(record.data), key, self._schema, self._raw, seen)


def _failure(error: Exception) -> Failure:
    name = type(error).__name__
    if not isinstance(error, RecordError):
        return Failure(
            "internal", name, error.message if isinstance(error, BatchError) else f"{name}: {error}"
        )
    return Failure(
        kind=error.kind,
        cause=error.cause,
        message=error.message,
        status=error.status,
        retryable=error.retryable,
        raw=error.raw,
        violations=error.violations if isinstance(error, Invalid) else (),
    )
