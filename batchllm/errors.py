"""What can go wrong, by who is at fault. The branch is the policy.

    BatchError
    ├── ConfigError                    before the start: exit 2, nothing called
    ├── InUse                          another run holds the output: exit 4
    ├── NoAnswer                       no run is there to be steered: exit 3
    ├── FinishFailed                   all is settled, and `[finish]` went wrong: exit 1
    ├── RecordError                    the record's fault: a dead letter, no retry
    │   ├── BadInput                   the line is no JSON object, or lacks a field
    │   ├── TooLarge                   it will never fit
    │   ├── Refused                    the provider or the model won't answer it
    │   ├── Invalid                    the answer stayed empty, cut or against the schema
    │   ├── Exhausted                  transient failures outlasted the retries
    │   └── Internal                   code of ours or the user's raised
    ├── CallError                      the call's fault: retried
    │   ├── RateLimited                everyone on the quota waits; costs no retry
    │   ├── Overloaded                 a 5xx, 408, 409, 529
    │   ├── TimedOut                   no whole answer within --timeout
    │   ├── Disconnected               no connection, or it broke
    │   └── BadReply                   a 200 that is no answer: HTML, truncated, another shape
    ├── FatalError                     the account's or the run's: stop, exit 3, resumable
    │   ├── AuthFailed, QuotaGone, RouteGone
    │   ├── TooManyFailures, SameFailure, PilotFailed, Stalled, DeadlinePassed, Drained
    │   └── LedgerFailed, InputFailed, OutputClosed
    ├── StillRunning                   the call outlasted its time: wait for it without a slot
    └── Stopped                        the run is stopping: drop this record without an outcome

Messages are for people: lower case, what happened; `hint` says what to do. No message ever holds a key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

UNKNOWN = "unknown"
"""The cause of an answer that no rule knows: an odd status, or an error under 2xx that names nothing."""


class BatchError(Exception):
    """The root: `message` is one line, `hint` one line of what to do, or None.

    `whose` names the model or function that failed, in a run that asks several; its text begins with it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.whose: str | None = None

    def __str__(self) -> str:
        return self.message if self.whose is None else f"{self.whose}: {self.message}"


class ConfigError(BatchError):
    """Bad usage or configuration, found before anything is called."""


class InUse(BatchError):
    """Another run holds this output."""


class NoAnswer(BatchError):
    """Nothing is running on an output, or it doesn't answer who wants to steer it."""


class FinishFailed(BatchError):
    """What is done with the finished files raised, failed or took too long; they are whole."""


class RecordError(BatchError):
    """This record can't be answered as it is; ends as a dead letter of kind `kind`."""

    kind = "internal"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        cause: str | None = None,
        status: int | None = None,
        raw: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.cause = cause or self.kind
        self.status = status
        self.raw = raw


class BadInput(RecordError):
    """The input line is no record, or a template field is missing from it."""

    kind = "bad_input"


class TooLarge(RecordError):
    """The request is larger than the model or the server takes."""

    kind = "too_large"


class Refused(RecordError):
    """The provider rejected the request, or the model declined to answer."""

    kind = "refused"


class Invalid(RecordError):
    """The answer was empty, cut or against the schema, repairs included; `violations` say what is wrong."""

    kind = "invalid"
    retryable = True

    def __init__(self, message: str, *, violations: tuple[str, ...] = (), **more: Any) -> None:
        super().__init__(message, **more)
        self.violations = violations or (message,)


class Exhausted(RecordError):
    """Transient failures outlasted the retries or the record's time."""

    kind = "exhausted"
    retryable = True


class Internal(RecordError):
    """Code of ours or of the user's raised an exception."""

    kind = "internal"


class CallError(BatchError):
    """One call failed in a way that another try may not.

    `status` is the HTTP status where there was one, `request_id` the provider's. `ambiguous` says that the
    body had been sent, so the call may have been executed and billed. `retry_after` is in seconds. `limits`
    are the Standings of the account as the answer told them; one that refused has nothing `remaining`.
    """

    cause = "call_failed"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        ambiguous: bool = False,
        raw: str | None = None,
        limits: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(message)
        self.limits: tuple[Any, ...] = limits
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.ambiguous = ambiguous
        self.raw = raw


class RateLimited(CallError):
    """The quota is used up for now."""

    cause = "rate_limited"


class Overloaded(CallError):
    """The server failed or is overloaded."""

    cause = "server_error"


class TimedOut(CallError):
    """No whole answer within the time for one attempt."""

    cause = "timeout"


class Disconnected(CallError):
    """No connection could be made, or it broke.

    `stale`: a reused connection died before a byte of the answer came; worth one try at once.
    """

    cause = "disconnected"

    def __init__(self, message: str, *, stale: bool = False, ambiguous: bool = False) -> None:
        super().__init__(message, ambiguous=ambiguous)
        self.stale = stale


class BadReply(CallError):
    """HTTP 200 with something that is no answer: an HTML page, a truncated body, another shape."""

    cause = "bad_reply"


class FatalError(BatchError):
    """The account, the route or the run itself: stop, exit 3; the same command resumes."""


class AuthFailed(FatalError):
    """The key is wrong, or may not use this model or address."""


class QuotaGone(FatalError):
    """The account is out of money or of its long-term quota."""


class RouteGone(FatalError):
    """The address or the model does not exist."""


class TooManyFailures(FatalError):
    """More dead letters than --max-failures allows."""


class SameFailure(FatalError):
    """The provider answers everything with one and the same error."""


class PilotFailed(FatalError):
    """Too many of the first records failed, or whoever was asked said no."""


class Stalled(FatalError):
    """Nothing has succeeded for --max-stall, or a wait that long is asked."""


class DeadlinePassed(FatalError):
    """The time for the whole run, --deadline, is over."""


class Drained(FatalError):
    """Somebody asked the run to finish what is in flight and stop."""


class LedgerFailed(FatalError):
    """The run's files can't be written."""


class InputFailed(FatalError):
    """An input broke off in the middle: a truncated archive, a read error."""


class OutputClosed(FatalError):
    """Whoever read our stdout has gone: exit 141, silent."""


class StillRunning(BatchError):
    """A call outlasted its time and goes on: `outcome` waits for its reply or raises its error.

    It is given up where that wait is cancelled.
    """

    cause = "still_running"

    def __init__(self, message: str, outcome: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(message)
        self.outcome = outcome


class Stopped(BatchError):
    """The run is stopping; whoever waits drops its record without an outcome."""

    def __init__(self) -> None:
        super().__init__("the run is stopping")
