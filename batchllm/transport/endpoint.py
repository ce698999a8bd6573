"""The lower door of the transport, for the hot path: one URL, its request head prepared once as bytes.

It turns whole answers into `Answer` and failures into `TimedOut` and `Disconnected`; it judges no status and
never sends twice. Providers post through it; `stock` has the same interface over httpx's own pool.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence

import httpx

from batchllm.errors import CallError, Disconnected, RouteGone, TimedOut
from batchllm.transport import head
from batchllm.transport.exchange import Failed, RawAnswer, Terms
from batchllm.transport.pool import Pool

HTTP2_HINT = "run it with --http stock, which takes pip install 'httpx[http2]'"
ORDERS = 64  # ways in which a server may order its headers that an endpoint remembers
PLAIN_HTTP2_HINT = "use its address with https:// and --http stock, or one that speaks http/1.1"


class Answer:
    """A whole HTTP answer, the body decoded; `names` are those of its headers, in lower case.

    `headers` joins the values of a name by ", ". They are made of `head`, names and values by turns as they
    came, when they are first asked for: servers of one's own mostly send nothing there that is looked at.
    """

    __slots__ = ("_head", "_headers", "content", "names", "status")

    def __init__(self, status: int, content: bytes, names: Collection[str], head: Sequence[bytes]) -> None:
        self.status = status
        self.content = content
        self.names = names
        self._head = head
        self._headers: Mapping[str, str] | None = None

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], content: bytes) -> Answer:
        """The one with these headers."""
        lines = [text.encode() for pair in headers.items() for text in pair]
        answer = cls(status, content, headers.keys(), lines)
        answer._headers = headers
        return answer

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers by name."""
        if self._headers is None:
            self._headers = _headers(self.names, self._head)
        return self._headers

    def holds(self, text: bytes) -> bool:
        """Whether the body or a header has this in it."""
        return self.content.find(text) >= 0 or b"\n".join(self._head).find(text) >= 0

    def without(self, text: bytes) -> Answer:
        """The same with *** in its place."""
        shown = text.decode()
        headers = {name: value.replace(shown, "***") for name, value in self.headers.items()}
        return Answer.of(self.status, headers, self.content.replace(text, b"***"))


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
        request = b"%bcontent-length: %d\r\n\r\n%b" % (start, size, body)
        # Neither the body nor the request is held while the answer is awaited.
        waiting, request, body = self._pool.exchange(request, size, terms), b"", b""
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
        answer = Answer(status, content, names, lines)
        if content and "content-encoding" in names:
            answer.content = _decoded(content, answer.headers["content-encoding"], self._pool)
        return answer

    def _names(self, order: tuple[bytes, ...]) -> tuple[str, ...]:
        """Header names in lower case; a server sends the same ones each time."""
        names = tuple([name.decode("latin-1").lower() for name in order])
        if len(self._orders) < ORDERS:
            self._orders[order] = names
        return names

    def _start_with(self, headers: Mapping[str, str]) -> bytes:
        start = self._start
        for name, value in headers.items():
            prefix = self._prefixes.get(name)
            if prefix is None or not (value.isascii() and value.isprintable()):
                break
            start = b"%b%b%b\r\n" % (start, prefix, value.encode())
        else:
            return start
        for name, value in headers.items():
            head.check_header(name, value)
        if all(name.lower() not in self._headers for name in headers):
            self._prefixes.update({name: f"{name}: ".encode() for name in headers})
            return self._start + head.lines(headers)
        merged = self._headers | {name.lower(): value for name, value in headers.items()}
        return self._start[: self._start.index(b"\r\n") + 2] + head.lines(merged)


def _headers(names: Collection[str], head: Sequence[bytes]) -> dict[str, str]:
    """The headers of these names, whose values are every second line of `head`."""
    joined = b"\n".join(head[1::2]).decode("latin-1")
    values = joined.split("\n")
    if not (joined[-1:].isspace() or " \n" in joined or "\t\n" in joined):
        headers = dict(zip(names, values, strict=False))
        if len(headers) == len(names) == len(values):
            return headers
    headers = {}
    for name, line in zip(names, head[1::2], strict=True):  # one comes twice, or blanks stand behind a value
        text = line.rstrip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
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
