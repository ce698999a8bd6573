"""Records out of JSONL files, packed files and pipes, in order, as soon as their lines are whole.

`JsonlSource` reads blocks, splits them and says where it is; a line that is no record becomes a `Dead` in its
place. It never writes and never calls anyone; the run's reader drains it.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anyio

from batchllm.errors import ConfigError, InputFailed
from batchllm.model import Dead, Position, Record
from batchllm.sources.blocks import BLOCK_BYTES, Blocks, Broken, Pipe, open_blocks, stored_bytes, too_short
from batchllm.sources.checks import called, line_id, refusal
from batchllm.sources.identity import prints, same_beginning
from batchllm.sources.marks import Marks
from batchllm.sources.shapes import FORMATS, RECORDS, BadLine, of_later_pass, parse, record_of, shape_of
from batchllm.sources.splitting import Line, Lines
from batchllm.sources.stretch import Stretches

BEGINNING = Position()
CHUNK_RECORDS, CHUNK_BYTES = 1024, 8 * 2**20
MARK_RECORDS = 1024
UNFINISHED = ("not_json", "not_utf8", "line_too_long")


class JsonlSource:
    """Reads `paths` in order; `-` is stdin. Implements `ports.Source`.

    `start` is a position that an earlier run reached; `settled(unit)` says which records are left out;
    `limit` ends the input before the record of that number. `max_line` is in bytes, line end not counted.
    `later`: the lines are letters of an earlier pass, whose records keep their `seq`; the variants' names.
    `known` is what identified the inputs when the run began, by which a pipe is known again.
    `clock` gives Unix seconds, for the letters of bad lines. Files are read `block_bytes` at a time; a place
    that `position` can name is kept every `mark_records` records or MiB.

    `format` is the shape of the records, told by the first one unless `input_format` forces it.
    `records` is the number of the next record, `ended` says that all was read, `total_bytes` is the size of
    the inputs as stored, or None with a pipe among them. `unfinished` is path and physical line of an
    unterminated last line that doesn't parse: the source ends there and makes no letter of it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        id_field: str = "id",
        max_line: int = 16 * 2**20,
        input_format: str = "auto",
        start: Position = BEGINNING,
        limit: int | None = None,
        settled: Callable[[int], bool] | None = None,
        later: Sequence[str] | None = None,
        known: Sequence[dict[str, Any]] = (),
        clock: Callable[[], float] = time.time,
        block_bytes: int = BLOCK_BYTES,
        mark_records: int = MARK_RECORDS,
    ) -> None:
        if input_format not in FORMATS:
            raise ConfigError(f"no input format is called {input_format}", f"one of: {', '.join(FORMATS)}")
        sizes = [stored_bytes(path) for path in paths]
        stored = [size for size in sizes if size is not None]
        self.format: str | None = None if input_format == "auto" else input_format
        self.records = start.seq
        self.ended = False
        self.unfinished: tuple[str, int] | None = None
        self.total_bytes: int | None = sum(stored) if len(stored) == len(sizes) else None
        self._paths = list(paths)
        self._id_field = id_field
        self._max_line = max_line
        self._limit = sys.maxsize if limit is None else limit
        self._settled = settled
        self._later = later
        self._prints = known
        self._pipes: dict[int, Pipe] = {}
        self._clock = clock
        self._block_bytes = block_bytes
        self._start = start
        self._file = start.file
        self._bytes_before = sum(size or 0 for size in sizes[: start.file])
        self._blocks: Blocks | None = None
        self._lines = Lines(max_line, start.offset, start.line)
        self._skip_to = 0
        self._unjudged = False
        self._tail: Position | None = None
        self._marks = Marks(start, mark_records)
        self._mark_records = mark_records
        self._stretches = Stretches(id_field, settled)
        self._ahead: deque[list[Record | Dead]] = deque()
        self._failure: InputFailed | None = None

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs, as stored, of which the records have been seen."""
        here = self._blocks.taken(self._lines.offset) if self._blocks is not None else 0
        return self._bytes_before + here

    async def chunks(self) -> AsyncGenerator[list[Record | Dead], None]:
        """Yield lists of at most 1,024 items and 8 MiB of lines, a longer line alone.

        Raises InputFailed where an input breaks off, after what came before; ConfigError where a pipe turns
        out to hold no JSONL at all.
        """
        try:
            while batch := self._ahead.popleft() if self._ahead else await self._next():
                yield batch
        finally:
            self.close()

    async def peek(
        self, enough: Callable[[list[Record]], bool], records: int = 100, seconds: float = 1.0
    ) -> list[Record]:
        """Read ahead until `enough(records so far)`, or so many lines, or so long after the first record.

        Waits for the first record as long as it takes. `chunks` yields what was read, and raises what broke.
        """
        found: list[Record] = []
        seen = 0
        with anyio.CancelScope() as scope:
            while seen < records:
                try:
                    batch = await self._next()
                except InputFailed as failure:
                    self._failure = failure
                    break
                if not batch:
                    break
                self._ahead.append(batch)
                seen += len(batch)
                found = (found + [item for item in batch if isinstance(item, Record)])[:records]
                if enough(found):
                    break
                if found and scope.deadline == math.inf:
                    scope.deadline = anyio.current_time() + seconds
        return found

    def position(self, seq: int) -> Position:
        """The last known place at or before record `seq`; `seq` never goes down from call to call."""
        return self._marks.at(seq)

    def prints(self, position: Position) -> list[dict[str, Any]]:
        """What identifies each input when the run stands at `position`."""
        heads = {number: pipe.head for number, pipe in self._pipes.items()}
        return prints(self._paths, heads, self._prints, position)

    def close(self) -> None:
        """Close what is open; also done when `chunks` ends."""
        if self._blocks is not None:
            self._bytes_before = self.read_bytes
            self._blocks.close()
            self._blocks = None

    async def _next(self) -> list[Record | Dead]:
        """The next chunk, empty at the end. What was read stays here when this is cancelled."""
        if self._failure is not None:
            raise self._failure
        while True:
            batch = self._take()
            if batch or self.ended:
                return batch
            await self._fill()

    def _take(self) -> list[Record | Dead]:
        """Records of the lines that are there."""
        batch: list[Record | Dead] = []
        room = CHUNK_BYTES
        while len(batch) < CHUNK_RECORDS and not self.ended:
            if self.records >= self._limit:
                self._finish()
                break
            if taken := self._stretch(batch, room):
                room -= taken
                continue
            line = self._lines.next()
            if line is None:
                break
            if batch and len(line.data) > room:
                self._lines.push_back(line)
                break
            item = self._read(line)
            if item is not None:
                batch.append(item)
                room -= len(line.data)
                if isinstance(item, Record):
                    self._stretches.widen()
        return batch

    def _stretch(self, batch: list[Record | Dead], room: int) -> int:
        """Take the plain lines that come next into `batch`, where that may be done; their bytes."""
        behind = self._lines.offset >= self._skip_to and not self._unjudged
        if self.format != RECORDS or self._later is not None or not behind:
            return 0
        most = min(CHUNK_RECORDS - len(batch), self._mark_records, self._limit - self.records)
        offset, before = self._lines.offset, self._lines.number
        records, count, size = self._stretches.take(self._lines, self.records, most, room, self._name)
        if count:
            self._marks.note(self._file, offset, before, self.records)
            self.records += count
            batch += records
        return size

    async def _fill(self) -> None:
        """Read one block, or go on to the next input, or end."""
        if self._blocks is None:
            if self._file >= len(self._paths):
                self._finish()
            else:
                await self._open()
        elif self._lines.over:
            if self._lines.offset < self._skip_to:
                raise self._failed(too_short())
            self._advance()
        else:
            try:
                block = await self._blocks.read()
            except Broken as broken:
                raise self._failed(broken) from broken
            if block:
                self._lines.feed(block)
            else:
                self._lines.finish()

    async def _open(self) -> None:
        path, start = self._paths[self._file], self._start
        offset = start.offset if self._file == start.file else 0
        if self.format is None and start.seq > 0:
            await self._tell_format()
        try:
            self._blocks = open_blocks(path, offset, self._block_bytes)
        except OSError as error:
            raise self._failed(Broken(f"can't be read: {(error.strerror or str(error)).lower()}")) from error
        except Broken as broken:
            raise self._failed(broken) from broken
        if offset and not self._blocks.seekable:
            self._skip_to = offset
            self._lines = Lines(self._max_line)
        self._unjudged = isinstance(self._blocks, Pipe) and not offset
        if isinstance(self._blocks, Pipe):
            await self._compare(self._blocks)

    async def _compare(self, pipe: Pipe) -> None:
        """Read as much of a pipe as is known of it, and refuse another stream than the run began with."""
        self._pipes[self._file] = pipe
        known = self._prints[self._file]["head"] if self._file < len(self._prints) else None
        self._lines.feed(await same_beginning(pipe, known, called(self._paths[self._file])))

    async def _tell_format(self) -> None:
        """Find the shape that the very first record told, for a start in the middle of files."""
        files = [path for path in self._paths if stored_bytes(path) is not None]
        first = JsonlSource(files, max_line=self._max_line)
        try:
            await first.peek(lambda _: first.format is not None, records=1)
        finally:
            first.close()
        self.format = first.format

    def _advance(self) -> None:
        """Go on to the next input, or end after the last."""
        if self._file + 1 == len(self._paths):
            self._finish()
            return
        self.close()
        self._file += 1
        self._skip_to = 0
        self._tail = None
        self._lines = Lines(self._max_line)

    def _finish(self) -> None:
        """End here; a last line without its end is read again by whoever starts from this place."""
        self._marks.end(self._tail or self._place(self._lines.offset, self._lines.number))
        self.ended = True
        self.close()

    def _read(self, line: Line) -> Record | Dead | None:
        """The record of one line; None for a blank line, a settled record and one not wanted."""
        content = line.data.strip()
        if line.end <= self._skip_to:
            if self.format is None and content:
                with suppress(BadLine):  # a line that is skipped tells the format, too
                    self.format = shape_of(parse(content))
            return None
        if not line.whole:
            self._tail = self._place(line.start, line.number - 1)
        if not content and not line.too_long:
            return None
        if self._unjudged:
            self._judge(line)
        seq = self.records
        item: Record | Dead | None = None
        if self._settled is None or not self._settled(seq):
            try:
                item = self._record(line, content)
            except BadLine as bad:
                if not line.whole and bad.cause in UNFINISHED:
                    self.unfinished = (self._paths[self._file], line.number)
                    self._finish()
                    return None
                item = self._dead(line, bad)
            if self._later is not None:
                item = of_later_pass(item, content, seq, self._later)
        self._marks.note(self._file, line.start, line.number - 1, seq)
        self.records = seq + 1
        return item

    def _record(self, line: Line, content: bytes) -> Record:
        if line.too_long:
            raise BadLine("line_too_long", f"is longer than --max-line, {self._max_line:,} bytes")
        data = parse(content)
        if self.format is None:
            self.format = shape_of(data)
        fallback = partial(self._name, line.number)
        return record_of(content, data, self.format, self.records, self._id_field, fallback)

    def _name(self, number: int) -> str:
        """The id of a record of line `number` that has none."""
        return line_id(self._paths, self._file, number)

    def _dead(self, line: Line, bad: BadLine) -> Dead:
        place = f"line {line.number} of {called(self._paths[self._file])}"
        return bad.letter(self.records, self._name(line.number), line.data, place, self._clock())

    def _judge(self, line: Line) -> None:
        """Refuse a pipe whose first line says that it holds something else."""
        self._unjudged = False
        start = b"\n" if line.start else b""  # behind which no byte-order mark is taken for one
        head = start + line.data + b"\n" + self._lines.ahead()
        refused = refusal(self._paths[self._file], head, piped=True)
        if refused is not None:
            raise refused if self.records == self._start.seq else InputFailed(refused.message, refused.hint)

    def _place(self, offset: int, line: int) -> Position:
        return Position(self._file, offset, line, self.records)

    def _failed(self, broken: Broken) -> InputFailed:
        name = called(self._paths[self._file])
        return InputFailed(f"{name} {broken.what} after line {self._lines.number}", broken.hint)
