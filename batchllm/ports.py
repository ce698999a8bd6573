"""The Protocols at which rooms meet. Concretions are chosen in `wire`; nobody else names them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import field
from typing import Any, Protocol

from batchllm.fields import frozen
from batchllm.model import Attempt, Dead, Note, Outcome, Position, Record, Reply, Request, Trail


class Provider(Protocol):
    """Whatever answers a request: a service, a fake, or a layer around another Provider."""

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Answer, or raise a RecordError, a CallError, a FatalError or Stopped."""
        ...


class Source(Protocol):
    """Where records come from, in order of `seq`; lists of at most 1,024 records and 8 MiB."""

    def chunks(self) -> AsyncGenerator[list[Record | Dead], None]:
        """Yield records as soon as they are there; a bad line is a `Dead` in its place. Its reader closes it.

        Raises InputFailed where an input breaks off.
        """
        ...

    def position(self, seq: int) -> Position:
        """A known position at or before record `seq`; `seq` never goes down from call to call."""
        ...


class Sink(Protocol):
    """Where finished lines go; synchronous, called on the ledger's thread only."""

    @property
    def length(self) -> int:
        """Bytes written so far; may be asked from any thread."""
        ...

    def append(self, lines: list[bytes]) -> int:
        """Write whole lines (each with its newline); the new length in bytes."""
        ...

    def sync(self) -> None:
        """Return once what was appended would survive a power loss."""
        ...

    def truncate(self, length: int) -> None:
        """Cut back to `length` bytes."""
        ...


class Process(Protocol):
    """What the engine runs for each record; `pipeline` is one."""

    async def __call__(self, record: Record, emit: Callable[[Note], None]) -> Outcome:
        """Settle one record, or raise a FatalError or Stopped."""
        ...


class Allowance(Protocol):
    """Limits that admissions are taken from; amounts stand in the order of `model.DIMENSIONS`, in units."""

    def take(self, need: Sequence[float], now: float) -> float:
        """0.0 and taken, or nothing taken and the seconds to wait before asking again; `now` is monotonic."""
        ...

    def settle(self, reserved: Sequence[float], used: Sequence[float]) -> None:
        """Correct an admission: what was reserved comes back, what was used goes."""
        ...


class Answers(Protocol):
    """Answers by digest of their request, kept from run to run; neither method ever fails a record."""

    async def find(self, digest: bytes) -> bytes | None:
        """The answer kept under `digest`, or None."""
        ...

    def keep(self, digest: bytes, answer: bytes) -> None:
        """Keep an answer that came just now; quick, it is written later."""
        ...


class Observer(Protocol):
    """Told of what happens while it happens; passive, quick, never raises."""

    def run_started(self, facts: dict[str, Any]) -> None: ...
    def attempt(self, request: Request, attempt: Attempt) -> None: ...
    def settled(self, outcome: Outcome) -> None: ...
    def pause(self, seconds: float, reason: str) -> None: ...
    def run_stopped(self, facts: dict[str, Any]) -> None: ...


@frozen
class ProviderSpec:
    """What a provider needs to connect: all of it plain data, none of it logged.

    `model` is the name after `PROVIDER/`; `key` the secret itself; `timeout` in seconds from send to last
    byte; `whole` whether answers are wanted whole, as `Reply.raw`, which takes memory;
    `concurrency` the most calls that will be in flight; `http` which client carries them: `own`, or
    `stock` for httpx's; `schema_mode` how it is told a schema: native, tool or prompt.
    """

    model: str
    base_url: str | None = None
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    concurrency: int = 20
    http: str = "own"
    whole: bool = True
    schema_mode: str = "native"


class Connect(Protocol):
    """A provider's file offers one of these, named `connect`: `async with connect(spec) as provider`.

    The provider may have an attribute `ceiling`: the most calls it takes in flight, whatever was asked.
    """

    def __call__(self, spec: ProviderSpec) -> AbstractAsyncContextManager[Provider]: ...
