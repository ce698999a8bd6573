"""Opens connections to one origin: resolves its name once, tries its addresses, speaks TLS.

It keeps the address that worked last in front and resolves anew after none did. It never pools and never
tries a request again; `pool` calls it where no idle connection is left.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import math
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

from batchllm.fields import frozen
from batchllm.transport.exchange import Failed
from batchllm.transport.protocol import HTTP2_ONLY, Connection, Owner
from batchllm.transport.tls import no_common_protocol, remember

SHARE = 5.0  # seconds that one of several addresses gets at most before the next one is tried


@frozen
class Origin:
    """Where requests go: `host` is a name or a literal address without brackets."""

    tls: bool
    host: str
    port: int

    @property
    def peer(self) -> str:
        """host:port, for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def system_addresses(host: str, port: int) -> list[str]:
    """What the system's resolver says, in its order; a literal address stands for itself. Raises OSError."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return [host]


class Dialer:
    """Opens connections to one origin.

    `gate` bounds the handshakes at once, `tls` makes the shared context, `resolve` finds the addresses of a
    host and port.
    """

    def __init__(
        self,
        origin: Origin,
        gate: asyncio.Semaphore,
        tls: Callable[[], ssl.SSLContext],
        resolve: Callable[[str, int], Awaitable[list[str]]],
    ) -> None:
        self.origin = origin
        self._gate = gate
        self._tls = tls
        self._resolve = resolve
        self._addresses: list[str] = []
        self._resolving = asyncio.Lock()

    async def dial(self, owner: Owner, seconds: float) -> Connection:
        """A new connection for `owner` within so many seconds, waits for other handshakes included.

        Raises Failed of kind `connect` or `connect_timeout`.
        """
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds), self._gate:
                return await self._first_that_answers(owner, seconds)
        except TimeoutError:
            text = f"no connection to {self.origin.peer} within {seconds:g} s"
            raise Failed("connect_timeout", text) from None

    def settled(self, connection: Connection) -> None:
        """A new connection's first exchange is over: what was learnt from it helps the next dial."""
        if self.origin.tls:
            remember(connection.tls)

    async def _first_that_answers(self, owner: Owner, seconds: float) -> Connection:
        addresses = list(self._addresses or await self._addresses_now())
        failure: Exception | None = None
        for place, address in enumerate(addresses):
            last = place == len(addresses) - 1
            try:
                async with asyncio.timeout(None if last else min(SHARE, seconds / 2)):
                    connection = await self._open(owner, address)
            except OSError as error:  # a share of the time used up is one too
                failure = error
                if isinstance(error, ssl.SSLError):
                    break
                continue
            if place and address in self._addresses:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
            return connection
        self._addresses = []
        http2 = failure is not None and no_common_protocol(failure)
        raise Failed("connect", self._why(failure), http2=http2) from None

    async def _addresses_now(self) -> list[str]:
        async with self._resolving:  # who comes while one asks takes the answer that this one gets
            if not self._addresses:
                host = self.origin.host
                try:
                    self._addresses = await self._resolve(host, self.origin.port)
                except (OSError, UnicodeError) as error:
                    why = (getattr(error, "strerror", None) or "not a host name").lower()
                    raise Failed("connect", f"cannot resolve {host}: {why}") from None
            return self._addresses

    async def _open(self, owner: Owner, address: str) -> Connection:
        loop = asyncio.get_running_loop()
        context = self._tls() if self.origin.tls else None
        transport, connection = await loop.create_connection(
            lambda: Connection(owner),
            address,
            self.origin.port,
            ssl=context,
            server_hostname=self.origin.host if context else None,
        )
        _tcp_keepalive(transport)
        return connection

    def _why(self, error: Exception | None) -> str:
        peer = self.origin.peer
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the certificate of {peer} is not trusted: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            if no_common_protocol(error):
                return f"{peer} {HTTP2_ONLY}"
            return f"no tls with {peer}: {(error.reason or 'handshake failed').lower().replace('_', ' ')}"
        if isinstance(error, OSError):
            if error.errno == errno.ECONNREFUSED:
                return f"connection refused by {peer}"
            if error.errno:
                return f"no connection to {peer}: {os.strerror(error.errno).lower()}"
        return f"no connection to {peer}: {str(error).lower() or 'no answer'}"


def _tcp_keepalive(transport: asyncio.BaseTransport) -> None:
    """Ask for TCP keepalive probes, so that a route lost during a long silent wait is noticed."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):  # reset already; the loop will say so
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
