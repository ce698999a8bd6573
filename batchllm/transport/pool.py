"""The connections to one origin: who may use one, which are idle, and how one exchange goes through.

Newest first, a few dictionary operations a request, no task and no timer a request. It never sends anything
twice: an exchange that fails is reported as it went, and what to do about it is its caller's business.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from time import monotonic

from batchllm.transport.dialer import Dialer
from batchllm.transport.exchange import Bounds, Failed, RawAnswer, Terms
from batchllm.transport.outgoing import Outgoing
from batchllm.transport.protocol import HTTP2_ONLY, Connection
from batchllm.transport.sweeper import Sweeper

CLOSING = 1.0  # seconds that closed sockets get to say so


class Pool:
    """At most `bounds.limit` exchanges with one origin at once; more wait in the order they came."""

    def __init__(self, dialer: Dialer, sweeper: Sweeper, outgoing: Outgoing, bounds: Bounds) -> None:
        self.peer = dialer.origin.peer
        self.bounds = bounds
        self.sweeper = sweeper
        self.outgoing = outgoing
        self._dialer = dialer
        self._free = bounds.limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: dict[Connection, float] = {}
        self._open: set[Connection] = set()
        self._closed = False
        self._trusted = True
        self._all_lost: asyncio.Future[None] | None = None
        sweeper.idlers.append(self._close_idle)

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def free(self) -> int:
        """Exchanges that could start now without waiting."""
        return self._free

    async def exchange(self, request: bytes, body: int, terms: Terms) -> RawAnswer:
        """Send one request, whose last `body` bytes are its body; its whole answer, whatever its status.

        The request's time starts when it has a place among the `limit`. Raises Failed.
        """
        if self._free:
            self._free -= 1
        else:
            await self._place(terms)
        try:
            start = monotonic()
            connection = self._newest(start) if self._idle else None
            reused = connection is not None
            if connection is None:
                connection = await self._dial(terms)
            future = connection.send(request, body, terms, start, reused)
            del request
            try:
                outcome = await future
            finally:
                if connection.waiting is future:
                    connection.abandon()
            if not reused:
                self._dialer.settled(connection)
        finally:
            if self._waiting:
                self._next_please()
            else:
                self._free += 1
        if isinstance(outcome, Failed):
            try:
                raise outcome
            finally:
                del outcome, future  # the error holds this frame, which would hold it: a cycle
        return outcome

    def close(self) -> None:
        """End every connection, whatever goes on there; who waits for an answer is told."""
        self._closed = True
        self.sweeper.idlers.remove(self._close_idle)
        self._idle.clear()
        for connection in tuple(self._open):
            connection.abort()

    async def closed(self) -> None:
        """Return once the sockets are closed, which takes the loop a turn or two."""
        if self._open:
            self._all_lost = asyncio.get_running_loop().create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await self._all_lost

    # -- the connections' side

    def keep(self, connection: Connection) -> None:
        """The exchange is over and the connection as good as new."""
        if not self._trusted:
            connection.abort()
            return
        now = monotonic()
        self._idle[connection] = now
        due = now + self.bounds.idle
        if due < self.sweeper.due:
            self.sweeper.wake_by(due)

    def distrust(self) -> None:
        """The origin answered what nobody asked: a late answer could be taken for another request's.

        From now on each request has a connection of its own.
        """
        self._trusted = False
        while self._idle:
            self._idle.popitem()[0].abort()

    def lost(self, connection: Connection) -> None:
        """The socket is closed."""
        self._idle.pop(connection, None)
        self._open.discard(connection)
        if self._all_lost is not None and not self._open and not self._all_lost.done():
            self._all_lost.set_result(None)

    # -- parts of an exchange

    def _newest(self, now: float) -> Connection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if connection.alive() and now - since < self.bounds.idle:
                return connection
            connection.abort()
        return None

    async def _dial(self, terms: Terms) -> Connection:
        self._check_open()
        seconds = terms.timeout if terms.phases is None else terms.phases.connect
        connection = await self._dialer.dial(self, seconds)
        if connection.http2:
            raise Failed("protocol", f"{self.peer} {HTTP2_ONLY}", http2=True)
        if not connection.alive():
            raise Failed("connect", f"{self.peer} closed the connection at once")
        if self._closed:
            connection.abort()
            self._check_open()
        # Not in connection_made: uvloop ends a cancelled dial's socket without calling connection_lost.
        self._open.add(connection)
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise Failed("connect", f"no connection to {self.peer}: the transport is closed")

    async def _place(self, terms: Terms) -> None:
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        seconds = math.inf if terms.phases is None else terms.phases.pool
        taken = False
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await place
            taken = True
        except TimeoutError:
            text = f"no free connection to {self.peer} within {seconds:g} s"
            raise Failed("pool_timeout", text) from None
        finally:
            if not taken and place.done() and not place.cancelled():
                self._next_please()  # it was given to us while we were being cancelled: pass it on

    def _next_please(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _close_idle(self, now: float) -> float:
        """Close what idled too long; the monotonic time at which the next one will have."""
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            if since + self.bounds.idle > now:
                return since + self.bounds.idle
            del self._idle[connection]
            connection.abort()
        return math.inf
