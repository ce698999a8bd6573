"""Records that a program hands over, as the pipe of lines that they would be.

`Handed` takes them from an iterable when they are wanted and no earlier, so that an endless one works;
`HandedSource` reads it as `JsonlSource` reads a pipe, and goes on behind as many records as are settled.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Any

import anyio
import anyio.lowlevel

from batchllm.lines import dumps
from batchllm.model import Position
from batchllm.sources import BEGINNING, JsonlSource
from batchllm.sources.blocks import PIPE_BYTES, Broken, Pipe, too_short

AT_ONCE = 16
"""Records that are taken for one reading at most."""
_SLICE_S = 0.005
"""Seconds after which an iterable that takes its time lets others run."""
_NAME = "the iterable"


class Handed(Pipe):
    """The lines of `records`; `pull` has to run beside whoever reads.

    A sync iterable is iterated on the event loop. `line` makes the JSON of a record; what JSON can't carry
    becomes a bad line. `failure` is what the iterable raised.
    """

    seekable = True

    def __init__(
        self, records: Iterable[Any] | AsyncIterable[Any], line: Callable[[Any], bytes] | None = None
    ) -> None:
        self.head = b""
        self.failure: Exception | None = None
        self._records = records
        self._line = line or line_of
        self._ready: list[bytes] = []
        self._over = self._wanted = False
        self._there = self._turn = anyio.Event()
        self._since = 0.0

    async def pull(self) -> None:
        """Take records as they are wanted, until there is none; raises nothing of the iterable's."""
        try:
            await self._wait_for_turn()
            if isinstance(self._records, AsyncIterable):
                async for record in self._records:
                    self._put(record)
                    await self._wait_for_turn()
            else:
                for record in self._records:
                    self._put(record)
                    await self._wait_for_turn()
        except Exception as error:
            self.failure = error
        finally:
            self._over = True
            self._there.set()

    def _put(self, record: Any) -> None:
        line = self._line(record) + b"\n"
        if len(self.head) < PIPE_BYTES:
            self.head += line[: PIPE_BYTES - len(self.head)]
        self._ready.append(line)
        self._there.set()

    async def _wait_for_turn(self) -> None:
        """Return once another record is wanted; let others run now and then."""
        if time.monotonic() - self._since > _SLICE_S:
            await anyio.lowlevel.checkpoint()
            self._since = time.monotonic()
        while not self._wanted or len(self._ready) >= AT_ONCE:
            self._turn = anyio.Event()
            await self._turn.wait()
            self._since = time.monotonic()

    async def _lines(self) -> list[bytes]:
        """The lines that are there, at least one unless there are no more; raises Broken."""
        while not self._ready and not self._over:
            self._wanted = True
            self._turn.set()
            self._there = anyio.Event()
            await self._there.wait()
        self._wanted = False
        if not self._ready and self.failure is not None:
            error = self.failure
            raise Broken(f"broke off: {type(error).__name__}: {error}") from error
        return self._ready

    async def skip(self, count: int) -> None:
        """Leave out so many records; raises Broken where there are fewer."""
        while count:
            lines = await self._lines()
            if not lines:
                raise too_short()
            skipped = min(count, len(lines))
            del lines[:skipped]
            count -= skipped

    async def read(self) -> bytes:
        """The next lines, or none at the end. Cancelling it loses nothing. Raises Broken."""
        lines = await self._lines()
        block = b"".join(lines)
        lines.clear()
        return block

    def close(self) -> None:
        """Take nothing more."""
        self._over = True


class HandedSource(JsonlSource):
    """A JsonlSource over what a program hands over; places in it are counted in records."""

    def __init__(
        self,
        handed: Handed,
        *,
        id_field: str,
        max_line: int,
        input_format: str,
        start: Position = BEGINNING,
        limit: int | None = None,
        settled: Callable[[int], bool] | None = None,
        known: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(
            [_NAME],
            id_field=id_field,
            max_line=max_line,
            input_format="records" if input_format == "auto" else input_format,
            start=start,
            limit=limit,
            settled=settled,
            known=known,
        )
        self.total_bytes = None
        self._handed = handed

    async def _open(self) -> None:
        self._blocks = self._handed
        try:
            await self._handed.skip(self._start.seq)
        except Broken as broken:
            raise self._failed(broken) from broken
        await self._compare(self._handed)


def line_of(record: Any) -> bytes:
    """A record as JSON on one line; for what JSON can't carry a line that is none and says why.

    The same record is the same line each time: an iterable is known again by its first lines.
    """
    try:
        return dumps(record)
    except (TypeError, ValueError, RecursionError) as error:
        return ascii(f"{type(record).__name__}: {error}")[1:-1].encode()
