"""The one room that knows httpx and asyncio: requests go out here, whole answers or plain failures come back.

    open_endpoint ─ Endpoint ──┐
    httpx client ── Transport ─┴ Pool ─ Dialer (names, addresses, TLS)
                                  └──── Connection (one exchange at a time) ─ Sweeper (deadlines)
                                                                            └ Outgoing (written together)
    open_endpoint ─ StockEndpoint ─ httpx.AsyncClient (proxies, or on request)

It never sends anything twice and judges no status; retrying and pacing live in `layers`.
"""

from batchllm.transport.adapter import Transport
from batchllm.transport.doors import open_endpoint
from batchllm.transport.endpoint import Answer, Endpoint
from batchllm.transport.exchange import Bounds
from batchllm.transport.loop import expect_dials_given_up
from batchllm.transport.stock import StockEndpoint

__all__ = [
    "Answer",
    "Bounds",
    "Endpoint",
    "StockEndpoint",
    "Transport",
    "expect_dials_given_up",
    "open_endpoint",
]
