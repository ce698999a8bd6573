"""One rehearsal: each request of a client gets the answer, the refusal or the fault that is its turn.

Owns the state between requests (counts, limits, quota, attempts) on one event loop. What is answered is
made in `answers`, what is refused in `problems`; `server` hands it the requests.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from hashlib import blake2b

import anyio
import orjson
from aiohttp import web

from batchllm.simulate.answers import NO_COMPLETION, answer, completion
from batchllm.simulate.asks import Ask, read
from batchllm.simulate.counts import Counts
from batchllm.simulate.problems import (
    GATEWAY_PAGE,
    SPENT,
    TOO_LARGE,
    WRONG_KEY,
    Problem,
    Rejected,
    faulty,
    rate_limited,
)
from batchllm.simulate.quota import Quota
from batchllm.simulate.settings import Settings

_LARGEST_BODY = 64 * 1024 * 1024
_JSON = "application/json"


class Rehearsal:
    """The request handler of the server; `reset` makes it as new."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seed = str(settings.seed).encode()[:64]
        self.reset()

    def reset(self) -> None:
        """Forget all requests: counts, limits, quota and attempts start anew."""
        self._counts = Counts()
        self._quota = Quota(self._settings.rpm, self._settings.tpm, time.monotonic())
        self._attempts: dict[bytes, int] = {}
        self._promised = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.path.removeprefix("/v1").rstrip("/")
        match request.method, path:
            case "POST", "/chat/completions":
                return await self._chat(request)
            case "GET", "/models":
                model = {"id": "any", "object": "model", "created": 0, "owned_by": "batchllm"}
                return _json(orjson.dumps({"object": "list", "data": [model]}))
            case "GET", "/health":
                return _json(b'{"status":"ok"}')
            case "GET", "/stats":
                ids = request.query.get("ids") in ("1", "true")
                return _json(orjson.dumps(self._counts.as_json(ids=ids)))
            case "POST", "/reset":
                self.reset()
                return _json(b'{"status":"ok"}')
        message = f"Unknown request: {request.method} {request.path}"
        return _refusal(Problem(404, message, "invalid_request_error", "unknown_url"), {})

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        """Count one chat completion from its first to its last moment."""
        counts = self._counts
        number = counts.begin()
        settled = False
        try:
            headers = {"x-request-id": f"req_{number:08x}"}
            try:
                response = await self._answered(request, headers)
            except Rejected as rejected:
                response = _refusal(rejected.problem, headers)
            settled = True
            if response is None:
                return web.Response()  # goes nowhere: the connection is gone
            counts.statuses[response.status] += 1
            return response
        finally:
            counts.in_flight -= 1
            counts.abandoned += not settled

    async def _answered(self, request: web.BaseRequest, headers: dict[str, str]) -> web.StreamResponse | None:
        """The answer or the fault; None when the connection was dropped. Raises Rejected."""
        settings = self._settings
        body = await _body(request)
        key = request.headers.get("x-idempotency") or request.headers.get("Idempotency-Key")
        if key:
            self._counts.asked(key)
        self._check_key(request.headers)
        ask = read(body)
        digest = blake2b(ask.text.encode(errors="replace"), digest_size=8).digest()
        if not key:
            self._counts.asked(digest.hex())
        self._admit(ask, headers)
        fault, wobble = self._turn(digest)
        if fault is None:
            self._promised += 1
        else:
            self._counts.faults[fault] += 1
        wait = settings.latency * (1 + settings.jitter * wobble)
        if fault == "hang":
            wait += settings.hang
        if wait > 0:
            await anyio.sleep(wait)
        return await self._respond(request, ask, fault, digest, headers)

    def _check_key(self, headers: Mapping[str, str]) -> None:
        key = self._settings.key
        given = headers.get("Authorization", "").encode()
        if key is not None and not hmac.compare_digest(given, f"Bearer {key}".encode()):
            raise Rejected(WRONG_KEY)

    def _admit(self, ask: Ask, headers: dict[str, str]) -> None:
        """Count the request against limits and quota, or reject it; adds the limits' headers."""
        refusal = self._quota.ask(ask.reserve, time.monotonic())
        headers.update(self._quota.headers())
        if refusal is not None:
            self._counts.limited += 1
            what = f"{refusal.dimension} per minute (limit {refusal.per_minute})"
            raise Rejected(rate_limited(what, refusal.wait))
        if self._settings.quota is not None and self._promised >= self._settings.quota:
            raise Rejected(SPENT)

    def _turn(self, digest: bytes) -> tuple[str | None, float]:
        """This attempt's fault, and its place in the latency's jitter from -1 to 1.

        Both follow from the seed, the text and how often it was asked, whatever the order of arrival.
        """
        if not self._settings.mix.shares and not self._settings.jitter:
            return None, 0.0
        attempt = self._attempts.get(digest, 0)
        self._attempts[digest] = attempt + 1
        hashed = blake2b(digest + attempt.to_bytes(4, "little"), digest_size=14, key=self._seed).digest()
        fault = self._settings.mix.pick(int.from_bytes(hashed[:7], "little") / 2**56)
        return fault, int.from_bytes(hashed[7:], "little") / 2**55 - 1

    async def _respond(
        self, request: web.BaseRequest, ask: Ask, fault: str | None, digest: bytes, headers: dict[str, str]
    ) -> web.StreamResponse | None:
        if fault is not None:
            problem = faulty(fault, self._settings.retry_after)
            if problem is not None:
                raise Rejected(problem)
            if fault == "drop":
                _cut(request, abort=True)
                return None
            if fault in ("502", "html"):
                status = 502 if fault == "502" else 200
                return web.Response(
                    body=GATEWAY_PAGE,
                    status=status,
                    content_type="text/html",
                    charset="utf-8",
                    headers=headers,
                )
            if fault == "shape":
                return _json(NO_COMPLETION, headers)
        given = answer(ask, fault, digest)
        body = completion(ask, given, headers["x-request-id"], int(time.time()))
        if fault == "truncate":
            return await _truncated(request, body, headers)
        self._counts.ok += fault is None
        self._counts.prompt_tokens += ask.prompt_tokens
        self._counts.completion_tokens += given.completion_tokens
        return _json(body, headers)


async def _body(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > _LARGEST_BODY:
        raise Rejected(TOO_LARGE)
    body = bytearray()
    async for block in request.content.iter_any():
        body += block
        if len(body) > _LARGEST_BODY:
            raise Rejected(TOO_LARGE)
    return bytes(body)


async def _truncated(request: web.BaseRequest, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
    """Send half of a body whose whole length was announced, then close."""
    response = web.StreamResponse(headers={**headers, "Content-Type": _JSON})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    _cut(request, abort=False)
    return response


def _cut(request: web.BaseRequest, *, abort: bool) -> None:
    """Close the connection: at once, or when what was written has left."""
    if request.transport is None:
        return
    if abort:
        request.transport.abort()
    else:
        request.transport.close()


def _json(body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, content_type=_JSON, headers=headers)


def _refusal(problem: Problem, headers: dict[str, str]) -> web.Response:
    return web.Response(
        body=problem.body, status=problem.status, content_type=_JSON, headers={**headers, **problem.headers}
    )
