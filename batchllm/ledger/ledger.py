"""The ledger task: drains outcomes, commits them in groups on one thread, then counts them.

It sits outside whatever is cancelled and ends only when its stream does. A write that fails stops the run;
what comes after it is discarded, uncounted, and runs again on resume.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from batchllm.errors import ConfigError, DeadlinePassed, FatalError, LedgerFailed, OutputClosed, Stopped
from batchllm.ledger.folder import ledger_failed
from batchllm.ledger.group import GroupLines, lines_of
from batchllm.ledger.journal import Journal
from batchllm.ledger.ordering import in_order, order
from batchllm.ledger.passes import Later, clean
from batchllm.ledger.recovery import last_settled
from batchllm.ledger.reorder import Reorder
from batchllm.ledger.settled import WINDOW, Settled
from batchllm.lines import Shape
from batchllm.model import Dead, Done, Note, Outcome, Position, Record
from batchllm.ports import Observer, Sink
from batchllm.stop import Stop
from batchllm.summary import Summary

GROUP = 512
"""Outcomes of a commit at most."""
GROUP_BYTES = 2 << 20
"""Bytes of outcomes from which on a commit waits for no more."""
LINGER = 0.02
"""Seconds from the beginning of a commit to that of the next, unless there is a group's worth before.

A commit takes as long on a busy machine: so a reply is written within 50 ms or so, and at once after a pause.
"""
_TURNS = 3
"""Turns of the loop that an engine needs to hand over what it has gathered."""
LOOK_EVERY = 1.0
"""Seconds between looks whether the files are still there; a call to the system costs the thread its turn."""
SNAPSHOT_EVERY = 1 << 16
"""Units between snapshots."""

Line = tuple[int, bytes]


class Ledger:
    """Commits outcomes to `output` and `dead`; with a journal, so that they survive any end.

    `later` is the pass that this session is for, None for the pass over the input.

    `durability` is none, batch or record. `meaning` is a digest of what is asked of each record, 16 bytes at
    most. `position` tells where the source stands for a unit. With `reorder`, for stdout, lines leave in
    input order. `noted` has where the notes of records in work begin, by their number.
    """

    def __init__(
        self,
        output: Sink,
        dead: Sink,
        shape: Shape,
        summary: Summary,
        settled: Settled,
        stop: Stop,
        *,
        journal: Journal | None,
        later: Later | None = None,
        durability: str,
        meaning: bytes = b"",
        position: Callable[[int], Position],
        observers: Sequence[Observer] = (),
        reorder: Reorder | None = None,
        noted: Mapping[int, int] | None = None,
    ) -> None:
        self.summary = summary
        self.settled = settled
        self.inputs: Callable[[Position], list[dict[str, Any]]] = lambda position: []
        self._output = output
        self._dead = dead
        self._shape = shape
        self._stop = stop
        self._journal = journal
        self.later = later
        self._durability = durability
        self._meaning = meaning
        self._position = position
        self._observers = observers
        self._reorder = reorder
        self._noted = dict(noted or {})
        self._commit_scope: anyio.CancelScope | None = None
        self.writing = False
        self._failed = False
        self._hurried = False
        # What lies between the place to go on reading and what is settled is read again by each session.
        self._since_snapshot = settled.watermark - position(settled.watermark).seq
        self._begun = 0.0
        self._look_at = 0.0
        self._advanced = anyio.Event()

    async def room(self, last: Record | Dead) -> None:
        """Wait until a unit may be read: no more than the window above the oldest unsettled one."""
        number = last.record.number() if isinstance(last, Dead) else last.number()
        while not self._stop and (
            number >= self.settled.watermark + WINDOW
            or (self._reorder is not None and self._reorder.full(number))
        ):
            self._advanced = anyio.Event()
            await self._advanced.wait()

    async def reached(self, count: int) -> Summary:
        """Wait until so many records of this pass are settled; what the last so many came to.

        For the reader, as `room` is. Unlike `summary`, it leaves out what earlier passes settled.
        """
        while self.settled.count < count:
            self._advanced = anyio.Event()
            await self._advanced.wait()
        return last_settled(self._journal, count) if self._journal is not None else self.summary

    @property
    def taken(self) -> int:
        """Bytes of output written so far, in the midst of a group too."""
        return self._output.length

    def abandon(self) -> None:
        """Do only what must be done: no pass into order, and no more for a stdout that nobody reads."""
        self._hurried = True
        if self._journal is None:
            self._failed = True
            if self._commit_scope is not None:
                self._commit_scope.cancel()

    async def drain(self, stream: MemoryObjectReceiveStream[list[Outcome | Note]]) -> None:
        """Commit what comes until the stream ends."""
        async with stream:
            while group := await self._group(stream):
                self._begun = anyio.current_time()
                await self._commit(group)
            if self._reorder is not None:
                await self._commit([], self._reorder.rest())

    async def _group(self, stream: MemoryObjectReceiveStream[list[Outcome | Note]]) -> list[Outcome | Note]:
        """What is committed together: what is there, and gathers until a commit is due; empty at the end.

        Between two commits it sleeps, rather than wake for each item: the engine gathers in the meantime.
        """
        try:
            group = list(await stream.receive())
        except anyio.EndOfStream:
            return []
        wait = self._begun + LINGER - anyio.current_time()
        if wait > 0:
            await anyio.sleep(wait)
        held = sum([item.size() for item in group])
        for _ in range(_TURNS):
            try:
                while len(group) < GROUP and held < GROUP_BYTES:
                    more = stream.receive_nowait()
                    group += more
                    held += sum([item.size() for item in more])
                break
            except anyio.WouldBlock:
                await anyio.lowlevel.checkpoint()
            except anyio.EndOfStream:
                break
        return group

    def begin(self) -> None:
        """The first snapshot of a run: it says what the inputs are. Raises FatalError."""
        if self._journal is not None:
            self._journal.snapshot(self._document(), self._durability != "none")

    async def finish(self, *, complete: bool, ordered: bool, unfinished_line: str | None) -> None:
        """The last snapshot; and when the whole input is settled, the pass into input order."""
        journal = self._journal
        if journal is None or self._failed:
            return
        try:
            now = self._document() | {"unfinished_line": unfinished_line}
            end = now | {"finished": complete}
            if complete and self.later is not None:
                at = self.later.position
                end |= {"watermark": self.later.watermark, "above": "", "later": None}
                end["position"] = [at.file, at.offset, at.line, at.seq]
            await to_thread.run_sync(self._finish, journal, now, end, ordered)
        except FatalError as error:
            self._stop.set(error)
        except ConfigError as error:
            self._stop.set(LedgerFailed(error.message, error.hint))
        except OSError as error:
            self._stop.set(ledger_failed(error))

    def _finish(self, journal: Journal, now: dict[str, Any], end: dict[str, Any], ordered: bool) -> None:
        sync = self._durability != "none"
        journal.check()
        self._output.append([])  # a run without a success leaves an empty file, not none
        journal.snapshot(now, sync)
        if ordered and not in_order(journal):
            try:
                order(journal, self._check_hurry)
            except Stopped:
                return  # everything is settled and stays as it is; the next session puts it in order
        journal.snapshot(end, sync)
        if not journal.sinks["dead"].length:
            Path(journal.sinks["dead"].path).unlink(missing_ok=True)  # there are no letters: no file
        clean(journal, self.later if end["later"] is not None else None)

    def _check_hurry(self) -> None:
        if self._hurried or isinstance(self._stop.reason, signal.Signals | DeadlinePassed):
            raise Stopped

    async def _commit(self, group: list[Outcome | Note], late: Sequence[bytes] = ()) -> None:
        """Write a group, then count it; `late` are lines that waited for their turn to the end."""
        if self._failed:
            return
        self._since_snapshot += len(group)
        lines = self._lines(group)
        if lines.notes and self._journal is not None:
            self._mark(group, lines.notes, self._journal.sinks["notes"].length)
        try:
            self.writing = True
            with anyio.CancelScope() as self._commit_scope:
                await to_thread.run_sync(self._write, lines, late, abandon_on_cancel=self._journal is None)
            self.writing = False
            if self._failed:
                return
            self._count(group)
            if self._since_snapshot >= SNAPSHOT_EVERY and self._journal is not None:
                self._since_snapshot = 0
                await to_thread.run_sync(self._journal.snapshot, self._document(), self._durability != "none")
        except BrokenPipeError:
            self._failed = True
            self._stop.set(OutputClosed("stdout was closed"))
        except FatalError as error:
            self._failed = True
            self._stop.set(error)
        except OSError as error:
            self._failed = True
            self._stop.set(ledger_failed(error))

    def _write(self, lines: GroupLines, late: Sequence[bytes]) -> None:
        """On the ledger's thread: entries, then dead letters, then output."""
        if self._journal is not None:
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + LOOK_EVERY
                self._journal.check()
            self._journal.append(b"".join(lines.entries))
            if lines.notes:
                self._journal.sinks["notes"].append(lines.notes)
        if lines.dead:
            self._dead.append(lines.dead)
        if lines.output or late:
            self._output.append([*lines.output, *late])
        if self._durability == "record":
            if self._journal is not None:
                self._journal.sync()
            else:
                self._dead.sync()
                self._output.sync()

    def _lines(self, group: list[Outcome | Note]) -> GroupLines:
        """What is written for a group; on the loop, since a thread that computes holds everyone up."""
        generation = self._journal.generation if self._journal is not None else 0
        lines = lines_of(group, self._shape, self._meaning, generation)
        if self._reorder is not None:
            coming = iter(lines.output)
            for item in group:
                if not isinstance(item, Note):
                    has_line = isinstance(item, Done) or self._shape.merge_failed
                    self._reorder.put(item.record.number(), next(coming) if has_line else b"")
            lines.output = self._reorder.take()
        return lines

    def _mark(self, group: list[Outcome | Note], lines: list[bytes], place: int) -> None:
        """Keep where the first note of each record in work is going to stand, from byte `place` on."""
        for note, line in zip((item for item in group if isinstance(item, Note)), lines, strict=True):
            if note.kind == "stage":
                self._noted.setdefault(note.body["number"], place)
            place += len(line)

    def _count(self, group: list[Outcome | Note]) -> None:
        outcomes = [item for item in group if not isinstance(item, Note)]
        numbers = [outcome.record.number() for outcome in outcomes]
        self.settled.add_all(numbers)
        self.summary.add_all(outcomes)
        if self._noted:
            for number in numbers:
                self._noted.pop(number, None)
        for observer in self._observers:
            for outcome in outcomes:
                observer.settled(outcome)
        self._advanced.set()

    def _document(self) -> dict[str, Any]:
        position = self._position(self.settled.watermark)
        notes = self._journal.sinks["notes"].length if self._journal is not None else 0
        return {
            "notes_from": min(self._noted.values(), default=notes),
            "watermark": self.settled.watermark,
            "above": self.settled.above(),
            "position": [position.file, position.offset, position.line, position.seq],
            "inputs": self.inputs(position),
            "summary": self.summary.to_dict(),
            "later": self.later.to_dict() if self.later is not None else None,
        }
