"""The same endpoint over httpx's own client, for environment proxies and for who asks for it.

Slow (its pool scans every connection on each request) but with everything that httpx can do. It raises what
`Endpoint` raises; `doors` chooses between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from batchllm.errors import Disconnected, RouteGone, TimedOut
from batchllm.transport import head
from batchllm.transport.endpoint import Answer
from batchllm.transport.exchange import Bounds
from batchllm.transport.protocol import HTTP2_ONLY
from batchllm.transport.tls import no_common_protocol


class StockEndpoint:
    """One URL to POST to through an `httpx.AsyncClient` that the caller opens and closes."""

    def __init__(
        self, client: httpx.AsyncClient, url: httpx.URL, headers: Mapping[str, str], bounds: Bounds
    ) -> None:
        self._client = client
        self._url = url
        self._headers = head.complete_headers(url, headers)
        self._bounds = bounds
        self._peer = head.origin_of(url).peer
        self._free = asyncio.Semaphore(bounds.limit)

    async def post(self, body: bytes, *, headers: Mapping[str, str] | None = None, timeout: float) -> Answer:
        """As `Endpoint.post`: the whole answer whatever its status, and the same errors."""
        for name, value in (headers or {}).items():
            head.check_header(name, value)
        merged = self._headers | {name.lower(): value for name, value in (headers or {}).items()}
        steps: set[str] = set()

        async def trace(step: str, _: Any) -> None:
            steps.add(step)

        request = self._client.build_request(
            "POST", self._url, content=body, headers=merged, timeout=timeout, extensions={"trace": trace}
        )
        try:
            async with self._free, asyncio.timeout(timeout):
                return await self._whole(request)
        except (httpx.TimeoutException, TimeoutError) as error:
            ambiguous = _may_have_left(steps, error)
            raise TimedOut(self._late(error, steps, timeout), ambiguous=ambiguous) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            if no_common_protocol(error):
                raise RouteGone(f"{self._peer} {HTTP2_ONLY}", "pip install 'httpx[http2]'") from None
            touched = _any(steps, "receive_response_headers.complete")
            fresh = "connection.connect_tcp.started" in steps
            text = f"no whole answer from {self._peer}: {str(error).lower() or 'the connection broke'}"
            stale = _left(steps) and not touched and not fresh
            raise Disconnected(text, stale=stale, ambiguous=_may_have_left(steps, error)) from None

    async def _whole(self, request: httpx.Request) -> Answer:
        response = await self._client.send(request, stream=True)
        try:
            parts, size = [], 0
            async for part in response.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > self._bounds.body:
                    raise httpx.RemoteProtocolError("the answer is too large")
        finally:
            await response.aclose()
        return Answer.of(response.status_code, dict(response.headers), b"".join(parts))

    def _late(self, error: Exception, steps: set[str], seconds: float) -> str:
        if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout) or not _left(steps):
            return f"no connection to {self._peer} within {seconds:g} s"
        if not _any(steps, "send_request_body.complete"):
            return f"sending to {self._peer} not done after {seconds:g} s"
        if not _any(steps, "receive_response_headers.complete"):
            return f"no answer from {self._peer} within {seconds:g} s"
        return f"answer from {self._peer} not whole after {seconds:g} s"


def _left(steps: set[str]) -> bool:
    return _any(steps, "send_request_body.started")


def _may_have_left(steps: set[str], error: Exception) -> bool:
    """Whether bytes of the body may have left; a transport of the user's may tell no steps at all."""
    if steps:
        return _left(steps)
    return not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def _any(steps: set[str], step: str) -> bool:
    return f"http11.{step}" in steps or f"http2.{step}" in steps
