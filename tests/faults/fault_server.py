"""A server that misbehaves on purpose: a script says, for each connection, what comes back byte by byte.

It runs in threads on real sockets of 127.0.0.1, so that what it does depends on no event loop.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Self

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Gone(Exception):
    """The client closed the connection."""


class Peer:
    """One accepted connection; `number` counts them from 0."""

    def __init__(self, sock: socket.socket, number: int, server: FaultServer) -> None:
        self.sock = sock
        self.number = number
        self._server = server
        self._buffer = b""

    def head(self) -> bytes:
        """Read up to the end of the next request's headers."""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self.read()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head

    def request(self) -> bytes:
        """Read one whole request; kept in the server's list and counted."""
        head = self.head()
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(self._buffer) < length:
            self._buffer += self.read()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        whole = head + b"\r\n\r\n" + body
        self._server.requests.append(whole)
        self._server.arrived.release()
        return whole

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, data: bytes = OK) -> None:
        """Read one request and send these bytes."""
        self.request()
        self.send(data)

    def hold(self) -> None:
        """Neither read nor write until the server ends."""
        self._server.ending.wait()

    def until_gone(self) -> None:
        """Wait until the client has closed the connection."""
        with suppress(Gone):
            while True:
                self.read()

    def reset(self) -> None:
        """Close so that the client gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def read(self) -> bytes:
        """Whatever comes next; raises Gone at the end."""
        data = self.sock.recv(65536)
        if not data:
            raise Gone
        return data


def keep_answering(peer: Peer) -> None:
    """The script of a server that is well."""
    while True:
        peer.answer()


class FaultServer:
    """Runs `script` for each connection, in a thread of its own, and closes the connection after it."""

    def __init__(
        self, script: Callable[[Peer], None] = keep_answering, tls: ssl.SSLContext | None = None
    ) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.arrived = threading.Semaphore(0)
        self.ending = threading.Event()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1/x"

    @property
    def connections(self) -> int:
        return len(self._sockets)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self.ending.set()
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                number = len(self._sockets)
                self._sockets.append(sock)
                if self.ending.is_set():
                    return
                self._start(partial(self._serve, sock, number))

    def _serve(self, sock: socket.socket, number: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(Gone, OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._sockets[number] = sock
            self._script(Peer(sock, number, self))
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.close()
