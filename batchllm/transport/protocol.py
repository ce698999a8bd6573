"""One HTTP/1.1 connection that carries one exchange at a time: a request out, one answer or one failure in.

It parses with httptools, holds the caps on what a server may send, and says how each exchange ended. It
never opens a connection, sends anything twice or sets a timer; `pool` owns it, `sweeper` ends it in time.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol, cast

import httptools

from batchllm.transport.exchange import Bounds, Failed, FailureKind, RawAnswer, Terms
from batchllm.transport.outgoing import Outgoing
from batchllm.transport.signs import ends_with_the_connection, how_far, is_tired, opens_http2, reason
from batchllm.transport.sweeper import Sweeper

PIECE = 64 * 1024  # bytes a write: TLS transports show a backlog only between writes
HTTP2_ONLY = "speaks http/2 only"
UNASKED = "sent what nobody had asked for"


class Owner(Protocol):
    """What a connection needs of the pool it belongs to; `peer` is host:port for messages."""

    peer: str
    bounds: Bounds
    sweeper: Sweeper
    outgoing: Outgoing

    def keep(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...
    def distrust(self) -> None: ...


class Refused(Exception):
    """Raised in a parser callback: the server sends what we don't take."""


class Connection(asyncio.Protocol):
    """A socket and its parser.

    `deadline` is a monotonic time in seconds, moved by each exchange; `waiting` the future of the exchange
    that is going on; `http2` says that the peer's first bytes were HTTP/2.
    """

    __slots__ = (
        "_active_at",
        "_body",
        "_bounds",
        "_head",
        "_head_done",
        "_held",
        "_keep",
        "_loop",
        "_outgoing",
        "_owner",
        "_parser",
        "_parts",
        "_raw",
        "_refusal",
        "_reused",
        "_sent_at",
        "_size",
        "_status",
        "_sweeper",
        "_terms",
        "_touched",
        "_transport",
        "_whole",
        "deadline",
        "http2",
        "waiting",
    )

    _transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._bounds = owner.bounds
        self._sweeper = owner.sweeper
        self._outgoing = owner.outgoing
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self.waiting: asyncio.Future[RawAnswer | Failed] | None = None
        self._held = b""  # a request that is about to be written
        self._reused = False
        self.http2 = False
        self._head: list[bytes] = []
        self._parts: list[bytes] = []

    # -- the pool's side

    def send(
        self, request: bytes, body: int, terms: Terms, start: float, reused: bool
    ) -> asyncio.Future[RawAnswer | Failed]:
        """Send a request; the future gets the answer or the failure, never an exception.

        `body` is how many of its last bytes are the body, `start` the monotonic time at which the exchange
        began. A request of one piece is held until the loop's next turn, but for httpx, whose phases begin
        with the first byte; no longer: with many in flight that would be megabytes.
        """
        self._body = body
        self._terms = terms
        self._reused = reused
        self._status = 0
        self._size = self._raw = 0
        self._head_done = self._whole = self._keep = self._touched = False
        self._refusal = ""
        phases = terms.phases
        if phases is None:
            self.deadline = start + terms.timeout
        else:
            self._sent_at = self._active_at = monotonic()
            self.deadline = self._sent_at + min(phases.write, phases.read)
        future = self.waiting = self._loop.create_future()
        sweeper = self._sweeper
        sweeper.watched.add(self)
        if self.deadline < sweeper.due:
            sweeper.wake_by(self.deadline)
        if len(request) <= PIECE and phases is None:
            self._held = request
            self._outgoing.add(self, start)
        else:
            view = memoryview(request)
            for at in range(0, len(request), PIECE):
                if not self._transport.is_closing():  # else it is going to say why
                    self._transport.write(view[at : at + PIECE])
        return future

    def write(self) -> None:
        """Write the request that is held, unless the exchange is over already; what fails is its own."""
        request = self._held
        if not request or self._transport.is_closing():
            return
        self._held = b""
        try:
            self._transport.write(request)
        except Exception as error:
            self._fail("read", f"the connection to {self._owner.peer} broke: {reason(error)}")

    def abandon(self) -> None:
        """Nobody waits for the exchange any more that still goes on: end the connection."""
        self.waiting, self._held = None, b""
        self._sweeper.watched.discard(self)
        self._transport.abort()

    def abort(self) -> None:
        """End the connection, whatever goes on; who waits for an answer is told."""
        if self.waiting is not None:
            self._fail("read", f"the connection to {self._owner.peer} was closed on this side")
        else:
            self._transport.abort()

    @property
    def tls(self) -> object:
        """Its TLS object, None without TLS."""
        return self._transport.get_extra_info("ssl_object")

    def alive(self) -> bool:
        """Whether a request may be sent on it."""
        return not self._transport.is_closing()

    # -- the sweeper's side

    def expire(self, now: float) -> None:
        """Fail the exchange with the timeout of the phase it is in, unless httpx's phases allow it longer."""
        sending = self._unsent() > 0
        terms, peer = self._terms, self._owner.peer
        seconds = terms.timeout
        if terms.phases is not None:
            seconds = terms.phases.write if sending else terms.phases.read
            due = (self._sent_at if sending else self._active_at) + seconds
            if due > now:
                if sending:
                    self._active_at = now  # the answer is waited for from when everything was sent
                self.deadline = min(due, self._active_at + terms.phases.read)
                return
        if sending:
            self._fail("write_timeout", f"sending to {peer} not done after {seconds:g} s")
        elif not self._touched:
            self._fail("read_timeout", f"no answer from {peer} within {seconds:g} s")
        else:
            self._fail("read_timeout", f"answer from {peer} not whole after {seconds:g} s")

    # -- the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, that of TLS where there is TLS."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and settle the exchange once the answer is whole or wrong."""
        if self.waiting is None or (self._held and self._reused):
            self._unasked(data)
            return
        size = self._size
        self._touched = True
        self._raw += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._whole:
                self.http2 = self._raw == len(data) and opens_http2(data)
                self._fail("protocol", f"{self._owner.peer} {self._what_is_wrong(error)}")
                return
            self._keep = False
            if self._refusal and not is_tired(data[max(data.rfind(b"HTTP/"), 0) :]):
                self._owner.distrust()
        if self._whole:
            self._finish()
            return
        if self._size > size:
            self._raw = 0
        elif self._raw > self._bounds.head:  # head, chunk extensions or trailers without end
            self._fail("protocol", f"{self._owner.peer} sent {self._too_long()}")
        phases = self._terms.phases
        if phases is not None:
            self._active_at = monotonic()
            self.deadline = self._active_at + phases.read

    def _unasked(self, data: bytes) -> None:
        """Bytes that nobody asked for: what follows could not be trusted."""
        if opens_http2(data):
            self.http2 = not self._reused  # else it has spoken HTTP/1.1 before
        elif not is_tired(data):
            self._owner.distrust()
        if self.waiting is not None:
            self._fail("protocol", f"{self._owner.peer} {UNASKED}")
        else:
            self._transport.abort()

    def eof_received(self) -> None:
        """The peer sends no more: settle at once, even where our own bytes are still waiting to go."""
        self._end(None)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone; let go of the parser, which refers back to this object."""
        self._end(exc)
        self._owner.lost(self)
        del self._parser

    # -- the parser's side

    def on_message_begin(self) -> None:
        """Of a second answer to one request nothing is taken, and the connection is not kept."""
        if self._whole:
            self._refuse(UNASKED)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are dropped."""
        if not self._head_done:
            self._head += name, value

    def on_headers_complete(self) -> None:
        """Take the status, and hold the cap on the size of the head.

        A new connection may be refused before the request has left; it can't be granted.
        """
        cap = self._bounds.head
        if self._raw > cap and sum(map(len, self._head)) + 2 * len(self._head) > cap:
            self._refuse(f"sent {self._too_long()}")
        self._status = self._parser.get_status_code()
        if self._held and self._status < 400:
            self._refuse(UNASKED)
        self._head_done = True
        if self._terms.bodiless and self._status >= 200:
            self._whole = True  # the parser now waits for a body: this connection can't go on

    def on_body(self, body: bytes) -> None:
        """Collect a part of the body, up to the cap."""
        self._parts.append(body)
        self._size += len(body)
        if self._size > self._bounds.body:
            self._refuse(f"sent more than {_mebibytes(self._owner.bounds.body)} of answer")

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was an interim one (1xx)."""
        if self._terms.bodiless and self._whole:
            return
        if self._status >= 200:
            self._whole = True
            self._keep = self._parser.should_keep_alive()
        else:
            self._head = []
            self._head_done = False

    # -- endings

    def _refuse(self, what: str) -> None:
        self._refusal = what
        raise Refused

    def _what_is_wrong(self, error: Exception) -> str:
        if self.http2:
            return HTTP2_ONLY
        return self._refusal or f"sent what is not http/1.1: {str(error).lower() or 'an upgrade'}"

    def _too_long(self) -> str:
        return f"more than {self._owner.bounds.head // 1024} KiB of headers"

    def _finish(self) -> None:
        future, self.waiting = self.waiting, None
        assert future is not None
        self._sweeper.watched.discard(self)
        parts, head = self._parts, self._head
        content = b"" if self._terms.bodiless else parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts, self._head = [], []  # an idle connection holds no bodies
        if self._keep and not (self._held or self._transport.get_write_buffer_size()):
            self._owner.keep(self)
        else:  # closing, or answered before the whole request was sent
            self._held = b""
            self._transport.abort()
        if not future.done():
            # what the class does itself, but for a call of Python
            future.set_result(tuple.__new__(RawAnswer, (self._status, head, content)))

    def _fail(self, kind: FailureKind, message: str) -> None:
        future, self.waiting = self.waiting, None
        assert future is not None
        self._sweeper.watched.discard(self)
        unsent = self._unsent()
        self._held = b""
        stale = self._reused and not self._touched and kind in ("read", "protocol")
        ambiguous = unsent == 0 or unsent < self._body
        self._transport.abort()
        if not future.done():
            future.set_result(Failed(kind, message, stale=stale, ambiguous=ambiguous, http2=self.http2))

    def _unsent(self) -> int:
        """Bytes of the request that have not left."""
        return len(self._held) or self._transport.get_write_buffer_size()

    def _end(self, exc: Exception | None) -> None:
        if self.waiting is None:
            return
        peer = self._owner.peer
        if exc is not None:
            self._fail("read", f"the connection to {peer} broke: {reason(exc)}")
        elif self._head_done and ends_with_the_connection(self._head):
            self._finish()
        else:
            self._fail("protocol", f"{peer} closed the connection {how_far(self._touched, self._head_done)}")


def _mebibytes(size: int) -> str:
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size} bytes"
