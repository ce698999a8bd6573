"""The lower door of the transport, for the hot path: one URL, its request head prepared once as bytes.

It turns whole answers into `Answer` and failures into `TimedOut` and `Disconnected`; it judges no status and
never sends twice. Providers post through it; `stock` has the same interface over httpx's own pool.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import httpx

from batchllm.errors import CallError, Disconnected, RouteGone, TimedOut
from batchllm.fields import frozen
from batchllm.transport import head
from batchllm.transport.exchange import Failed, RawAnswer, Terms
from batchllm.transport.pool import Pool

HTTP2_HINT = "run it with --http stock, which takes pip install 'httpx[http2]'"
ORDERS = 64  # ways in which a server may order its headers that an endpoint remembers
PLAIN_HTTP2_HINT = "use its address with https:// and --http stock, or one that speaks http/1.1"


@frozen
class Answer:
    """A whole HTTP answer: header names in lower case, several values joined by ", ", the body decoded."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Endpoint:
    """One URL to POST to; made by `Transport.endpoint`, good as long as its transport is open."""

    __slots__ = ("_headers", "_orders", "_pool", "_prefixes", "_start", "_terms", "_tls")

    def __init__(self, url: httpx.URL, headers: Mapping[str, str], pool: Pool) -> None:
        self._pool = pool
        self._tls = url.scheme == "https"
        self._headers = head.complete_headers(url, headers)
        self._orders: dict[tuple[bytes, ...], tuple[str, ...]] = {}
        self._prefixes: dict[str, bytes] = {}
        self._terms = Terms()
        self._start = b"POST %b HTTP/1.1\r\n" % url.raw_path + head.lines(self._headers)

    async def post(self, body: bytes, *, headers: Mapping[str, str] | None = None, timeout: float) -> Answer:
        """POST `body` and return the whole answer, whatever its status.

        `headers` go with this request beside the endpoint's own, or instead of those of the same name.
        `timeout` is in seconds, from the dial or the first byte sent to the last byte read. Raises TimedOut
        and Disconnected, ambiguous where bytes of the body had left, RouteGone where the server speaks
        HTTP/2 only, and ConfigError for a header that can't be sent.
        """
        start = self._start if headers is None else self._start_with(headers)
        terms, size = self._terms, len(body)
        if terms.timeout != timeout:
            terms = self._terms = Terms(timeout)
        top = b"%bcontent-length: %d\r\n\r\n" % (start, size)
        # Neither the body nor the request is held while the answer is awaited.
        waiting, body = self._pool.exchange(top + body, size, terms), b""
        try:
            return self._answer(await waiting)
        except Failed as failed:
            raise self._error(failed) from None

    def _error(self, failed: Failed) -> CallError | RouteGone:
        if failed.http2:
            return RouteGone(failed.message, HTTP2_HINT if self._tls else PLAIN_HTTP2_HINT)
        if failed.kind.endswith("timeout"):
            return TimedOut(failed.message, ambiguous=failed.ambiguous)
        return Disconnected(failed.message, stale=failed.stale, ambiguous=failed.ambiguous)

    def _answer(self, raw: RawAnswer) -> Answer:
        status, lines, content = raw
        order = tuple(lines[::2])
        names = self._orders.get(order)
        if names is None:
            names = self._names(order)
        joined = b"\n".join(lines[1::2]).decode("latin-1")
        values = joined.split("\n")
        if len(values) != len(names) or joined[-1:].isspace() or " \n" in joined or "\t\n" in joined:
            headers = _one_by_one(raw)
        else:
            headers = dict(zip(names, values, strict=True))
        if content and "content-encoding" in headers:
            content = _decoded(content, headers["content-encoding"], self._pool)
        return Answer(status, headers, content)

    def _names(self, order: tuple[bytes, ...]) -> tuple[str, ...]:
        """Header names in lower case, none where one comes twice; a server sends the same ones each time."""
        names = tuple([name.decode("latin-1").lower() for name in order])
        if len(set(names)) < len(names):
            names = ()
        if len(self._orders) < ORDERS:
            self._orders[order] = names
        return names

    def _start_with(self, headers: Mapping[str, str]) -> bytes:
        start = self._start
        for name, value in headers.items():
            prefix = self._prefixes.get(name)
            if prefix is None or not (value.isascii() and value.isprintable()):
                break
            start += prefix + value.encode() + b"\r\n"
        else:
            return start
        for name, value in headers.items():
            head.check_header(name, value)
        if all(name.lower() not in self._headers for name in headers):
            self._prefixes.update({name: f"{name}: ".encode() for name in headers})
            return self._start + head.lines(headers)
        merged = self._headers | {name.lower(): value for name, value in headers.items()}
        return self._start[: self._start.index(b"\r\n") + 2] + head.lines(merged)


def _one_by_one(raw: RawAnswer) -> dict[str, str]:
    """The headers of an answer in which a name comes twice, or blanks stand behind a value."""
    headers: dict[str, str] = {}
    for name, value in raw.headers:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _decoded(content: bytes, codings: str, pool: Pool) -> bytes:
    """Undo gzip and deflate, last applied first; a coding that we never asked for is left as it is."""
    cap = pool.bounds.body
    for coding in reversed([name.strip() for name in codings.lower().split(",")]):
        if coding in ("gzip", "x-gzip"):
            window = zlib.MAX_WBITS | 16
        elif coding == "deflate":  # zlib-wrapped by the standard, bare from some servers
            window = zlib.MAX_WBITS if content[0] & 0x0F == 8 else -zlib.MAX_WBITS
        else:
            break
        inflater = zlib.decompressobj(window)
        try:
            content = inflater.decompress(content, cap)
        except zlib.error:
            raise Failed("protocol", f"{pool.peer} sent a body that is no {coding}", ambiguous=True) from None
        if inflater.unconsumed_tail or not inflater.eof:
            what = "too large" if inflater.unconsumed_tail else "cut short"
            raise Failed("protocol", f"{pool.peer} sent a {coding} body that is {what}", ambiguous=True)
    return content
