"""Which way an endpoint's requests go: our own transport, or stock httpx where a proxy stands between.

It reads the proxy variables of the environment as urllib does and opens one endpoint; it sends nothing.
Providers open theirs here.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from batchllm.errors import ConfigError
from batchllm.transport import head
from batchllm.transport.adapter import Transport
from batchllm.transport.endpoint import Endpoint
from batchllm.transport.exchange import Bounds
from batchllm.transport.stock import StockEndpoint

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_endpoint(
    url: str,
    headers: Mapping[str, str],
    *,
    limit: int,
    http: str = "own",
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Endpoint | StockEndpoint]:
    """An endpoint for POSTs to `url`, at most `limit` of them at once; closed with its connections.

    `http` is `own`, where a proxy of the environment still goes through httpx's client, or `stock`, which
    takes that in any case; so does a `transport` of the caller's, which is closed with it. Raises ConfigError
    for a URL or header that can't be sent.
    """
    if http not in ("own", "stock"):
        raise ConfigError(f"no http client is called {http}", "use own or stock")
    parsed = head.parse_url(url)
    bounds = Bounds(limit=limit)
    proxied = transport is None and is_proxied(parsed)
    if http == "own" and transport is None and not proxied:
        own = Transport(bounds)
        try:
            yield own.endpoint(url, headers)
        finally:
            await own.aclose()
        return
    why = "a proxy is set" if proxied else "as asked"
    log.info("%s: requests go through httpx's own client, which is slow", why)
    async with _client(limit, proxied, transport) as client:
        yield StockEndpoint(client, parsed, headers, bounds)


def is_proxied(url: httpx.URL) -> bool:
    """Whether the environment's proxy variables apply; never to this machine's own addresses."""
    proxies = urllib.request.getproxies()
    if not (proxies.get(url.scheme) or proxies.get("all")) or _is_local(url.host):
        return False
    return not urllib.request.proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host)


def _client(
    limit: int, proxied: bool, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    idle = Bounds().idle
    limits = httpx.Limits(max_connections=limit, max_keepalive_connections=limit, keepalive_expiry=idle)
    http2 = importlib.util.find_spec("h2") is not None
    try:
        if proxied:
            return httpx.AsyncClient(limits=limits, http2=http2)
        # a transport of its own keeps the client from looking for proxies by rules that differ from ours
        return httpx.AsyncClient(transport=transport or httpx.AsyncHTTPTransport(limits=limits, http2=http2))
    except ImportError:
        raise ConfigError("a socks proxy needs one package more", "pip install 'httpx[socks]'") from None


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
