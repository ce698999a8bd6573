"""Records that a program hands over, as the pipe of lines that they would be.

`Handed` takes them from an iterable when they are wanted and no earlier, so that an endless one works;
`HandedSource` reads it as `JsonlSource` reads a pipe, and goes on behind as many records as are settled.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from batchllm.errors import ConfigError
from batchllm.lines import dumps
from batchllm.model import Position, Record
from batchllm.sources import BEGINNING, JsonlSource
from batchllm.sources.blocks import PIPE_BYTES, Broken, Pipe, too_short
from batchllm.sources.shapes import BadLine
from batchllm.sources.splitting import Line

AT_ONCE = 16
"""Records that are taken for one reading at most."""
_SLICE_S = 0.005
"""Seconds after which an iterable that takes its time lets others run."""
_NAME = "the iterable"
_KEYS = str | int | float | bool | None
_NOT_CARRIED = b"not carried: "
"""Stands before the reason in a line for what JSON can't carry."""


class Handed(Pipe):
    """The lines of `records`; `pull` has to run beside whoever reads.

    A sync iterable is iterated on the event loop, an async generator closed in any case. `line` makes the
    JSON of a record; what JSON can't carry becomes a bad line. `failure` is what the iterable raised.
    """

    seekable = True

    def __init__(
        self, records: Iterable[Any] | AsyncIterable[Any], line: Callable[[Any], bytes] | None = None
    ) -> None:
        self.head = b""
        self.failure: BaseException | None = None
        self._records = records
        self._line = line or line_of
        self._ready: list[bytes] = []
        self._over = self._wanted = False
        self._there = self._turn = anyio.Event()
        self._since = 0.0

    async def pull(self) -> None:
        """Take records as they are wanted, until there is none; raises nothing of the iterable's."""
        cancelled = anyio.get_cancelled_exc_class()
        try:
            if isinstance(self._records, AsyncIterable):
                async with _closing(self._records) as records:
                    await self._wait_for_turn()
                    async for record in records:
                        self._put(record)
                        await self._wait_for_turn()
            else:
                await self._wait_for_turn()
                for record in self._records:
                    self._put(record)
                    await self._wait_for_turn()
        except Exception as error:
            self.failure = error
        except cancelled as error:
            if anyio.current_effective_deadline() == -math.inf:
                raise
            self.failure = error  # not ours: of something that the iterable waited for
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
            if self._handed.failure is not None:
                raise self._failed(broken) from broken
            raise ConfigError(
                f"the iterable ends before record {self._start.seq + 1:,}, where the earlier run left off",
                "give the same records again to go on, another output, or fresh=True to start over",
            ) from broken
        await self._compare(self._handed)

    def _record(self, line: Line, content: bytes) -> Record:
        try:
            return super()._record(line, content)
        except BadLine as bad:
            if bad.cause == "not_json" and content.startswith(_NOT_CARRIED):
                raise BadLine(bad.cause, content.removeprefix(_NOT_CARRIED).decode()) from None
            raise


@asynccontextmanager
async def _closing(records: AsyncIterable[Any]) -> AsyncIterator[AsyncIterator[Any]]:
    """Iterate, and close a generator in the end, whatever it does for that."""
    iterator = aiter(records)
    try:
        yield iterator
    finally:
        if (close := getattr(iterator, "aclose", None)) is not None:
            with anyio.CancelScope(shield=True):
                await close()


def line_of(record: Any) -> bytes:
    """A record as JSON on one line; for what JSON can't carry a line that is none and says why.

    Any mapping is an object. The same record is the same line each time: an iterable is known again by its
    first lines.
    """
    try:
        return dumps(record)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return dumps(_plain(record, ""))
    except RecursionError:
        refused = "holds itself, or is nested too deep for JSON"
    except (TypeError, ValueError) as error:
        refused = str(error)
    return _NOT_CARRIED + ascii(refused)[1:-1].encode()


def _plain(value: Any, field: str) -> Any:
    """The value with dicts for mappings; TypeError names the field and the type of what JSON can't carry."""
    if isinstance(value, Mapping):
        if odd := [type(key).__name__ for key in value if not isinstance(key, _KEYS)]:
            within = f" in {field}" if field else ""
            raise TypeError(f"has a key of type {odd[0]}{within}, which JSON can't carry")
        return {key: _plain(item, f"{field}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{field}[{number}]") for number, item in enumerate(value)]
    try:
        dumps(value)
    except (TypeError, ValueError) as error:
        kind = f"of type {type(value).__name__}"
        what = f"has a value {kind} in {field}" if field else f"is {kind}"
        raise TypeError(f"{what}, which JSON can't carry") from error
    return value
