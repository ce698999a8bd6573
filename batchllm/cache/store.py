"""A cache file as the event loop sees it: look-ups and new answers gathered, a hop to a thread for many.

It never fails a record: where the file can't be read or written any more, that is said once and the run goes
on without. `wire` makes one a run; `work` has to run beside the calls.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import TypeVar

import anyio
from anyio import to_thread

from batchllm.cache.file import CacheFile, Row, open_cache
from batchllm.fields import mutable

LINGER = 0.25
"""Seconds that an answer waits at most to be written with others; a kill loses no more than those."""
_GROUP, _GROUP_BYTES = 200, 1 << 20
"""Answers, and bytes of them, that are written without waiting for more."""
_R = TypeVar("_R")
_log = logging.getLogger("batchllm")


@mutable
class _Lookups:
    """What is looked up together."""

    digests: list[bytes] = field(default_factory=list)
    found: dict[bytes, bytes] = field(default_factory=dict)
    done: anyio.Event = field(default_factory=anyio.Event)


class Store:
    """A `ports.Answers` over a file. `ttl` is for how many seconds an answer is good, None for ever."""

    def __init__(self, file: CacheFile, ttl: float | None, *, now: Callable[[], float] = time.time) -> None:
        self._file = file
        self._ttl = math.inf if ttl is None else ttl
        self._now = now
        self._lookups: _Lookups | None = None
        self._new: dict[bytes, Row] = {}
        self._bytes = 0
        self._due = math.inf
        self._wanted = anyio.Event()
        self._thread = anyio.CapacityLimiter(1)
        self._reads = self._writes = True

    async def find(self, digest: bytes) -> bytes | None:
        """The answer kept under this digest, if there is one that is still good."""
        if (row := self._new.get(digest)) is not None:
            return row[2]
        if not self._reads:
            return None
        lookups = self._lookups
        if lookups is None:
            lookups = self._lookups = _Lookups()
            self._wanted.set()
        lookups.digests.append(digest)
        await lookups.done.wait()
        return lookups.found.get(digest)

    def keep(self, digest: bytes, answer: bytes) -> None:
        """Keep an answer that came just now; it is written soon."""
        if not self._writes:
            return
        self._new[digest] = digest, self._now(), answer
        self._bytes += len(answer)
        if len(self._new) == 1:
            self._due = anyio.current_time() + LINGER
            self._wanted.set()
        elif self._full():
            self._wanted.set()

    async def work(self) -> None:
        """Read and write what is wanted, until it is cancelled."""
        while True:
            with anyio.move_on_after(self._due - anyio.current_time()):
                await self._wanted.wait()
            self._wanted = anyio.Event()
            if self._lookups is not None:
                lookups, self._lookups = self._lookups, None
                lookups.found = await self._hop(partial(self._find, lookups.digests))
                lookups.done.set()
            if self._new and (self._full() or anyio.current_time() >= self._due):
                await self._hop(partial(self._add, self._taken()))

    async def close(self) -> None:
        """Write what is left and close the file."""
        with anyio.CancelScope(shield=True):
            if self._new:
                await self._hop(partial(self._add, self._taken()))
            await self._hop(self._file.close)

    def _full(self) -> bool:
        return len(self._new) >= _GROUP or self._bytes >= _GROUP_BYTES

    def _taken(self) -> list[Row]:
        rows = list(self._new.values())
        self._new, self._bytes, self._due = {}, 0, math.inf
        return rows

    async def _hop(self, call: Callable[[], _R]) -> _R:
        return await to_thread.run_sync(call, limiter=self._thread)

    def _find(self, digests: list[bytes]) -> dict[bytes, bytes]:
        try:
            return self._file.find(digests, self._now() - self._ttl)
        except sqlite3.Error as error:
            self._give_up(f"can't be read: {error}; the run goes on without it")
            self._reads = False
            return {}

    def _add(self, rows: list[Row]) -> None:
        try:
            if self._writes and not self._file.there:
                self._give_up("was moved or removed; new answers are not kept any more")
            if self._writes:
                self._file.add(rows)
        except sqlite3.Error as error:
            self._give_up(f"can't be written: {error}; new answers are not kept any more")

    def _give_up(self, why: str) -> None:
        """Write no more, and say why where that was not said before."""
        if self._writes:
            self._writes = False
            _log.info("the cache %s %s", self._file.path, why)


async def open_store(path: str, ttl: float | None) -> Store:
    """The store over the cache file at `path`, made where there is none; raises ConfigError."""
    return Store(await to_thread.run_sync(open_cache, path), ttl)
