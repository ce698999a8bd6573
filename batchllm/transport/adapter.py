"""Our transport as httpx knows it: an `httpx.AsyncBaseTransport` over the pools, one an origin.

It owns the pools, the one sweeper and the one TLS context of a run, and makes the endpoints of the lower
door. It never looks at proxies; `doors` sends what needs one through stock httpx.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from batchllm.transport import head
from batchllm.transport.dialer import Dialer, Origin, system_addresses
from batchllm.transport.endpoint import Endpoint
from batchllm.transport.exchange import Bounds, Failed, FailureKind, Phases, Terms
from batchllm.transport.outgoing import Outgoing
from batchllm.transport.pool import Pool
from batchllm.transport.sweeper import Sweeper
from batchllm.transport.tls import client_context

HANDSHAKES = 50  # at once; each takes 1.1-1.3 ms of CPU over TLS

_ERRORS: dict[FailureKind, type[httpx.TransportError]] = {
    "pool_timeout": httpx.PoolTimeout,
    "connect": httpx.ConnectError,
    "connect_timeout": httpx.ConnectTimeout,
    "write_timeout": httpx.WriteTimeout,
    "read_timeout": httpx.ReadTimeout,
    "read": httpx.ReadError,
    "protocol": httpx.RemoteProtocolError,
}


class Transport(httpx.AsyncBaseTransport):
    """HTTP/1.1 for one event loop. `bounds.limit` holds for each origin by itself.

    `tls` is the context to use instead of one that trusts SSL_CERT_FILE, SSL_CERT_DIR or certifi's list.
    """

    def __init__(self, bounds: Bounds | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._tls = tls
        self._gate = asyncio.Semaphore(HANDSHAKES)
        self._sweeper = Sweeper()
        self._outgoing = Outgoing()
        self._pools: dict[Origin, Pool] = {}

    def endpoint(self, url: str, headers: Mapping[str, str]) -> Endpoint:
        """Prepare POSTs to one URL with these headers; raises ConfigError for what can't be sent."""
        parsed = head.parse_url(url)
        if parsed.scheme == "https":
            self._context()
        return Endpoint(parsed, headers, self.pool(head.origin_of(parsed)))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send httpx's request, whole, and return its answer, whole; the body's coding is left to httpx.

        httpx's timeouts are held as httpx means them, each wait by itself. Raises httpx.TransportError.
        """
        if request.url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"no http or https url: {request.url.scheme}:", request=request)
        body = await request.aread()
        terms = Terms(
            phases=_phases(request.extensions.get("timeout")),
            bodiless=request.method == "HEAD",
        )
        try:
            pool, whole = self.pool(head.origin_of(request.url)), _whole_request(request, body)
            raw = await pool.exchange(whole, len(body), terms)
        except Failed as failed:
            raise _ERRORS[failed.kind](failed.message, request=request) from None
        return httpx.Response(raw.status, headers=raw.headers, stream=httpx.ByteStream(raw.content))

    def pool(self, origin: Origin) -> Pool:
        """The connections to one origin."""
        pool = self._pools.get(origin)
        if pool is None:
            dialer = Dialer(origin, self._gate, self._context, system_addresses)
            pool = self._pools[origin] = Pool(dialer, self._sweeper, self._outgoing, self._bounds)
        return pool

    async def aclose(self) -> None:
        """End every connection and return once the sockets are closed; who waits for an answer is told."""
        pools = list(self._pools.values())
        self._pools.clear()
        for pool in pools:
            pool.close()
        self._sweeper.stop()
        for pool in pools:
            await pool.closed()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = client_context()
        return self._tls


def _whole_request(request: httpx.Request, body: bytes) -> bytes:
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)]
    has_length = False
    for name, value in request.headers.raw:
        lowered = name.lower()
        if lowered == b"transfer-encoding":  # the body is all here, so its length is known
            continue
        if b"\r" in name + value or b"\n" in name + value:
            raise httpx.LocalProtocolError("a header holds a line break", request=request)
        has_length = has_length or lowered == b"content-length"
        lines.append(b"%b: %b\r\n" % (name, value))
    if body and not has_length:
        lines.append(b"content-length: %d\r\n" % len(body))
    return b"".join([*lines, b"\r\n", body])


def _phases(timeout: Any) -> Phases:
    """httpx's timeout extension: seconds or None by phase, or nothing at all."""
    known = {phase: seconds for phase, seconds in (timeout or {}).items() if seconds is not None}
    return Phases(
        **{phase: float(known.get(phase, math.inf)) for phase in ("pool", "connect", "write", "read")}
    )
