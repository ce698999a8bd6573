"""From the ledger to whoever iterates: outcomes in a queue, in order if wanted, and how far is read ahead.

`Handing` is an Observer that the ledger tells of what it has committed, and stands before the source: no
record is read while as many are on their way as are allowed. It runs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio

from batchllm.errors import InputFailed
from batchllm.model import Attempt, Dead, Outcome, Position, Record, Request
from batchllm.ports import Source
from batchllm.sources.handed import Handed


class Handing:
    """At most `most` records between the source and the consumer, beyond the chunk that fills it up."""

    def __init__(self, most: int, *, ordered: bool) -> None:
        self._most = most
        self._ordered = ordered
        self._open: dict[int, Outcome | None] = {}
        self._ready: deque[Outcome] = deque()
        self._there = self._room = anyio.Event()
        self._ended = False

    def opened(self, chunk: list[Record | Dead]) -> None:
        """These records are on their way."""
        for item in chunk:
            self._open[item.record.unit() if isinstance(item, Dead) else item.unit()] = None

    async def room(self) -> None:
        """Wait until more records may be read."""
        while len(self._open) + len(self._ready) >= self._most:
            self._room = anyio.Event()
            await self._room.wait()

    def settled(self, outcome: Outcome) -> None:
        """Told by the ledger: an outcome is committed."""
        unit = outcome.record.unit()
        if self._ordered:
            self._open[unit] = outcome
            self._move_those_in_turn()
        else:
            self._open.pop(unit, None)
            self._ready.append(outcome)
        self._there.set()

    def _move_those_in_turn(self) -> None:
        while self._open:
            unit = next(iter(self._open))
            outcome = self._open[unit]
            if outcome is None:
                return
            del self._open[unit]
            self._ready.append(outcome)

    def end(self) -> None:
        """Nothing more is settled; what waited for its turn leaves without those that are missing."""
        self._ended = True
        self._ready.extend(outcome for outcome in self._open.values() if outcome is not None)
        self._open.clear()
        self._there.set()

    async def next(self) -> Outcome | None:
        """The next outcome, None at the end."""
        while not self._ready:
            if self._ended:
                return None
            self._there = anyio.Event()
            await self._there.wait()
        outcome = self._ready.popleft()
        self._room.set()
        return outcome

    def run_started(self, facts: dict[str, Any]) -> None:
        """Nothing to do."""

    def attempt(self, request: Request, attempt: Attempt) -> None:
        """Nothing to do."""

    def pause(self, seconds: float, reason: str) -> None:
        """Nothing to do."""

    def run_stopped(self, facts: dict[str, Any]) -> None:
        """Nothing to do."""


class HeldBack:
    """A Source that is not read on while there is no room behind it.

    What the iterable raises is its end here: whatever it gave before is still answered.
    """

    def __init__(self, source: Source, handing: Handing, handed: Handed) -> None:
        self._source = source
        self._handing = handing
        self._handed = handed

    async def chunks(self) -> AsyncGenerator[list[Record | Dead], None]:
        """Those of the source."""
        async with aclosing(self._source.chunks()) as chunks:
            while True:
                await self._handing.room()
                try:
                    chunk = await anext(chunks, None)
                except InputFailed:
                    if self._handed.failure is None:
                        raise
                    return
                if chunk is None:
                    return
                self._handing.opened(chunk)
                yield chunk

    def position(self, seq: int) -> Position:
        """That of the source."""
        return self._source.position(seq)
