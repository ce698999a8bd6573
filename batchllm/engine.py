"""N long-lived workers in this process: records in, outcomes out, in batches.

The feeder unpacks the inbox into one deque, workers pull single records from it, and a flusher sends what
they have settled once a loop turn. Nothing is created per record. It neither reads inputs nor writes files.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from batchllm.errors import DeadlinePassed, FatalError, LedgerFailed, OutputClosed, Stopped
from batchllm.model import Dead, Note, Outcome, Record
from batchllm.ports import Process
from batchllm.stop import Stop
from batchllm.watch import FailureWatch

Item = Record | Dead
_OUT_LEAST, _OUT_MOST, _OUT_BYTES = 512, 1024, 2 << 20
"""Outcomes that wait to be sent, and about how many bytes of them, before workers wait too.

They are as many as the workers within these bounds: a disk that is slow for a moment empties no slot. Three
times as many may be on their way, with those in the stream and at the ledger.
"""
_PENDING_MOST, _PENDING_BYTES = 1024, 2 << 20
"""Records that wait for a worker, and bytes of them, before the inbox has to wait."""
_RUNNING_BYTES = 8 << 20
"""Bytes of records with which more than half of the workers may be busy."""


class Engine:
    """Runs `process` on each record with at most `workers` at a time.

    `grace` is how long a signal or a deadline waits for what is in flight, seconds. `watch` judges outcomes.
    `room` tells how many more calls could go out now: only so many workers take up records, so that nobody
    queues for a slot; `rouse` is to be called when there is more of it than those who use it will take.
    `spare` workers more may be busy where some of them wait without a slot, see `instead`. `beside` runs for
    as long as the workers do.
    """

    def __init__(
        self,
        process: Process,
        workers: int,
        stop: Stop,
        watch: FailureWatch,
        grace: float,
        room: Callable[[], float] = lambda: math.inf,
        beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
        spare: int = 0,
    ) -> None:
        self._process = process.__call__  # which Python calls more directly than an object
        self.resize(workers)
        self._spare = spare
        self._stop = stop
        self._watch = watch
        self._grace = grace
        self._free = room
        self._beside = beside
        self._tasks: TaskGroup | None = None
        self._pending: deque[Record] = deque()
        self._pending_bytes = 0
        self._idle: list[anyio.Event] = []
        self._called = 0  # workers that are about to look for a record
        self._workers = 0
        self._running = 0
        self._running_bytes = 0
        self._fed = False
        self._hungry = anyio.Event()
        self._sated = False  # the feeder waits until the workers are hungry
        self._out: list[Outcome | Note] = []
        self._out_bytes = 0
        self._settled = anyio.Event()
        self._room = anyio.Event()
        self._closed = False
        self._scope = anyio.CancelScope()
        self._lingering = set[anyio.CancelScope]()
        self.dropped = 0
        self.cancelled = 0

    async def run(
        self,
        inbox: MemoryObjectReceiveStream[list[Item]],
        outbox: MemoryObjectSendStream[list[Outcome | Note]],
    ) -> None:
        """Until the inbox ends and everything is settled, or the run is stopped; closes the outbox."""
        async with outbox, anyio.create_task_group() as flushing:
            flushing.start_soon(self._flush, outbox)
            try:
                with self._scope:
                    async with anyio.create_task_group() as watching:
                        watching.start_soon(self._heed_stop)
                        if self._beside is not None:
                            watching.start_soon(self._beside)
                        async with anyio.create_task_group() as self._tasks:
                            await self._feed(inbox)
                        self._tasks = None
                        watching.cancel_scope.cancel()
            finally:
                self._drop_pending()
                self.cancelled = self._running
                self._closed = True
                self._settled.set()

    def abort(self) -> None:
        """Give up what is in flight now: a second signal, or nowhere to write to."""
        self._scope.cancel()

    @contextmanager
    def lingering(self) -> Iterator[anyio.CancelScope]:
        """Around the wait of a record in work that takes up no worker's place.

        The scope is cancelled once the input is over and everything else is settled.
        """
        with anyio.CancelScope() as scope:
            self._lingering.add(scope)
            self._end_lingering()
            self.rouse()
            try:
                yield scope
            finally:
                self._lingering.remove(scope)

    def _end_lingering(self) -> None:
        """Give up those that linger if nothing else is left; a run that stops gives them its grace."""
        if not self._stop and self._fed and not self._pending and self._running == len(self._lingering):
            for scope in self._lingering:
                scope.cancel()

    async def _heed_stop(self) -> None:
        await self._stop.wait()
        self._drop_pending()
        self._end_of_feed()
        reason = self._stop.reason
        if isinstance(reason, signal.Signals | DeadlinePassed):
            await anyio.sleep(self._grace)
            self.abort()
        elif isinstance(reason, LedgerFailed | OutputClosed):
            self.abort()  # there is nowhere to write an answer to
        else:
            await anyio.sleep(self._grace)
            for scope in self._lingering:
                scope.cancel()

    def _drop_pending(self) -> None:
        self.dropped += len(self._pending)
        self._pending.clear()
        self._pending_bytes = 0

    async def _feed(self, inbox: MemoryObjectReceiveStream[list[Item]]) -> None:
        async with inbox:
            try:
                async for items in inbox:
                    await self._unpack(items)
            finally:
                with suppress(anyio.WouldBlock, anyio.EndOfStream):
                    while True:
                        self.dropped += len(inbox.receive_nowait())
        self._end_of_feed()

    async def _unpack(self, items: list[Item]) -> None:
        """Hand a chunk to the workers; returns once they need another."""
        if self._stop:
            self.dropped += len(items)
            return
        for item in items:
            if isinstance(item, Dead):
                self._settle(item)
                await self._outbox_room()
            else:
                self._pending.append(item)
                self._pending_bytes += len(item.line)
        self.rouse()
        while self._full() and not self._stop:
            self._hungry = anyio.Event()
            self._sated = True
            await self._hungry.wait()

    def _full(self) -> bool:
        """Whether workers have enough to go on with."""
        return len(self._pending) > min(self._most, _PENDING_MOST) or self._pending_bytes > _PENDING_BYTES

    def _crowded(self) -> bool:
        """Whether so much is in work that no further worker should take up a record and fill memory."""
        return (
            self._running_bytes > _RUNNING_BYTES and 2 * (self._running - len(self._lingering)) >= self._most
        )

    def _end_of_feed(self) -> None:
        self._fed = True
        self._hungry.set()
        self._wake_all()
        self._end_lingering()

    def _wake_all(self) -> None:
        while self._idle:
            self._wake()

    def _wake(self) -> None:
        self._idle.pop().set()
        self._called += 1

    def _start(self, tasks: TaskGroup) -> None:
        self._workers += 1
        self._called += 1
        tasks.start_soon(self._work)

    def resize(self, workers: int) -> None:
        """Work with so many workers from now on; those that are too many are not taken away."""
        self._most = workers
        self._out_most = min(max(_OUT_LEAST, workers), _OUT_MOST)

    def rouse(self) -> None:
        """Wake or start as many workers as there are records and room for them.

        Those that were called before and have not come yet are among them, and those that only wait for the
        ledger: no room is offered twice.
        """
        wanted = min(len(self._pending), self._free()) - self._called
        while wanted > 0 and self._idle:
            self._wake()
            wanted -= 1
        while wanted > 0 and self._workers - len(self._lingering) < self._most and self._tasks is not None:
            self._start(self._tasks)
            wanted -= 1

    def instead(self) -> None:
        """A worker waits for something that needs no slot: let another one take up a record."""
        if self._pending and not self._crowded() and self._free() > 0:
            if self._idle:
                self._wake()
            elif self._workers - len(self._lingering) < self._most + self._spare and self._tasks is not None:
                self._start(self._tasks)

    async def _work(self) -> None:
        process, emit, free = self._process, self._emit, self._free
        stop, pending = self._stop, self._pending
        self._called -= 1
        while stop.reason is None:
            if not pending and self._fed:
                self._wake_all()
                return
            if not pending or self._crowded() or free() <= 0:
                event = anyio.Event()
                self._idle.append(event)
                await event.wait()
                self._called -= 1
                continue
            record = self._take()
            outcome = None
            try:
                outcome = await process(record, emit)
            except Stopped:
                pass
            except FatalError as error:
                stop.set(error)
            self._running -= 1  # not where it was cancelled: those are counted as given up
            self._running_bytes -= len(record.line)
            if self._lingering:
                self._end_lingering()
            if outcome is None:
                self.dropped += 1
                continue
            self._settle(outcome)
            if len(self._out) >= self._out_most or self._out_bytes >= _OUT_BYTES:
                self._called += 1  # it comes back as soon as there is room
                await self._outbox_room()
                self._called -= 1

    def _take(self) -> Record:
        """The next record, into work; wakes whom that gives something to do."""
        record = self._pending.popleft()
        size = len(record.line)
        self._pending_bytes -= size
        self._running += 1
        self._running_bytes += size
        if self._sated and not self._full():
            self._sated = False
            self._hungry.set()
        if self._idle and self._pending and not self._crowded() and self._free() > 1 + self._called:
            self._wake()
        return record

    def _emit(self, item: Outcome | Note) -> None:
        if not self._out:
            self._settled.set()
        self._out.append(item)
        self._out_bytes += item.size()

    def _settle(self, outcome: Outcome) -> None:
        keep, verdict = self._watch.judge(outcome)
        if keep:
            self._emit(outcome)
        else:
            self.dropped += 1
            if (spent := outcome.trail.spent(outcome.record.seq)) is not None:
                self._emit(spent)
        if verdict is not None:
            self._stop.set(verdict)

    async def _outbox_room(self) -> None:
        while len(self._out) >= self._out_most or self._out_bytes >= _OUT_BYTES:
            await self._room.wait()

    async def _flush(self, outbox: MemoryObjectSendStream[list[Outcome | Note]]) -> None:
        """Send what was settled, once a loop turn; goes on until everything is sent, or nobody receives."""
        with anyio.CancelScope(shield=True):
            while True:
                await self._settled.wait()
                self._settled = anyio.Event()
                if self._out:
                    batch, self._out, self._out_bytes = self._out, [], 0
                    try:
                        await outbox.send(batch)
                    except anyio.BrokenResourceError:
                        self.abort()  # whoever broke it says why
                        return
                    self._room.set()
                    self._room = anyio.Event()
                if self._closed and not self._out:
                    return
                if self._closed:
                    self._settled.set()


def workers_for(window: float) -> int:
    """Workers for a window of so many calls: enough that waiting records don't idle it."""
    return 2 * math.ceil(window) + 16
