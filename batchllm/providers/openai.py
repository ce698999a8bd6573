"""Any server that speaks OpenAI's chat completions: OpenAI, Azure, vLLM, Ollama, LiteLLM, gateways.

It owns the address, the headers and whether the route has answered before. It never retries, waits or
judges an answer's content: layers do, through which `pipeline` calls it; `wire` connects it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from batchllm import __version__
from batchllm.errors import BatchError, ConfigError, Refused, RouteGone
from batchllm.model import Reply, Request, Trail
from batchllm.ports import ProviderSpec
from batchllm.providers import chat
from batchllm.providers.shaping import Shaping, in_doubt
from batchllm.transport import open_endpoint

DEFAULT_BASE_URL = "https://api.openai.com/v1"
_PATH = "/chat/completions"
SHORTEST_KEY = 8
"""Characters below which a key is too common a word to be masked wherever it stands."""


class Answer(Protocol):
    """An HTTP answer, read to its last byte; header names are in lower case."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content(self) -> bytes: ...
    @property
    def names(self) -> Collection[str]:
        """The headers' names."""
        ...

    def holds(self, text: bytes) -> bool:
        """Whether the body or a header has this in it."""
        ...

    def without(self, text: bytes) -> Answer:
        """The same with *** in its place."""
        ...


class Endpoint(Protocol):
    """One address to post to; the transport's Endpoint is one."""

    async def post(self, body: bytes, *, headers: Mapping[str, str] | None = None, timeout: float) -> Answer:
        """Send and read whole within `timeout` seconds, or raise TimedOut or Disconnected."""
        ...


@asynccontextmanager
async def connect(spec: ProviderSpec) -> AsyncIterator[OpenAI]:
    """Open the connections for `spec`; raises ConfigError for an address or a key that can't be used."""
    url, headers = address(spec.base_url), headers_for(spec.key)
    async with open_endpoint(url, headers, limit=spec.concurrency, http=spec.http) as endpoint:
        yield OpenAI(endpoint, spec)


def address(base_url: str | None) -> str:
    """The URL to post to, from a base URL with or without a last slash, the path or a query."""
    try:
        parts = urlsplit(base_url or DEFAULT_BASE_URL)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            "the base url is no address with http:// or https:// and a host",
            "write it like --base-url http://127.0.0.1:8000/v1",
        )
    path = parts.path.rstrip("/")
    path = path if path.endswith(_PATH) else path + _PATH
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def headers_for(key: str | None) -> dict[str, str]:
    """The headers that all requests share."""
    headers = {"content-type": "application/json", "user-agent": f"batchllm/{__version__}"}
    key = (key or "").strip()
    if key:
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                "the key holds characters that no header can carry", "set its variable to the key alone"
            )
        headers["authorization"] = f"Bearer {key}"
    return headers


class OpenAI:
    """A Provider over one endpoint. `proven` turns true with the first answer, for the verdicts.

    A 403 or 404 that names nothing, on a proven route, may be about its record or about the key. Its record
    pays for the first; from then on the route is in doubt, and whatever was sent after that decides: an
    answer ends the doubt, another such refusal the run. Calls that were out already are asked again.
    """

    def __init__(self, endpoint: Endpoint, spec: ProviderSpec) -> None:
        self._endpoint = endpoint
        self._spec = spec
        self._secret = (spec.key or "").strip() or None
        secret = self._secret or ""
        self._masked = secret.encode() if len(secret) >= SHORTEST_KEY else b""
        self._shaping = Shaping(spec.schema_mode, encoded=True)
        self._doubt: object | None = None
        self.proven = False

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Ask once; raises what `verdicts` says, or TimedOut or Disconnected from the transport."""
        spec = self._spec
        ladder, way = self._shaping.way(request)
        timeout = spec.timeout
        if trail.deadline is not None:
            timeout = chat.time_left(timeout, trail.deadline, time.monotonic())
        doubt = self._doubt
        answer = await self._endpoint.post(
            chat.encode(chat.build(request, spec.model, way)),
            headers={"idempotency-key": request.key},
            timeout=timeout,
        )
        if self._masked and answer.holds(self._masked):
            answer = answer.without(self._masked)  # a server echoes it: neither file nor log may hold it
        reply = chat.at_a_glance(answer.status, answer.content, spec.whole)
        if reply is None:
            try:
                reply = chat.read_answer(
                    answer.status,
                    answer.headers,
                    answer.content,
                    model=str(request.body.get("model") or spec.model),
                    now=time.time(),
                    proven=self.proven and (doubt is None or doubt is not self._doubt),
                    secret=self._secret,
                    whole=spec.whole,
                    tool=way is not None and way.tool,
                )
            except (Refused, RouteGone) as error:
                if ladder and way and ladder.refused(way, error, answer.status, request.key):
                    raise in_doubt(error, answer.status) from None
                raise self._whose(error, request, answer.status) from None
        elif not chat.HEEDED.isdisjoint(answer.names):
            chat.heed_headers(reply, answer.headers, time.time())
        self.proven = True
        if way is not None and ladder is not None:
            if not ladder.settled or ladder.doubtful:
                ladder.answered(way, request.key)
            if way.restore is not None:
                reply = replace(reply, restore=way.restore)
        if doubt is not None and doubt is self._doubt:
            self._doubt = None
        return reply

    def _whose(self, error: Refused | RouteGone, request: Request, status: int) -> BatchError:
        """What a refusal means for this route: it is the record's, the route's, or to be asked again."""
        from batchllm.providers.rules import DOUBT_HINT, MODEL_HINT

        own = request.raw or "model" in request.body
        if isinstance(error, RouteGone) and own and self.proven and error.hint == MODEL_HINT:
            # a wrong model that the body names itself is that record's, not the route's
            return Refused(error.message, cause="model_not_found", status=status, hint=error.hint)
        if error.hint != DOUBT_HINT:
            return error
        if self._doubt is None:
            self._doubt = object()
            return error
        return in_doubt(error, status)
