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

from batchllm.fields import frozen
from batchllm.simulate.answers import NO_COMPLETION, Answer, answer, completion, message
from batchllm.simulate.asks import Ask, read, read_message
from batchllm.simulate.bodies import body as worded
from batchllm.simulate.bodies import status
from batchllm.simulate.counts import Counts
from batchllm.simulate.headers import limit_headers, wait_headers
from batchllm.simulate.history import History
from batchllm.simulate.load import Line, overloaded
from batchllm.simulate.problems import (
    GATEWAY_PAGE,
    OVERLOADED,
    SLOW_DOWN,
    SPENT,
    TOO_LARGE,
    WRONG_KEY,
    Problem,
    Rejected,
    bad_request,
    faulty,
    rate_limited,
)
from batchllm.simulate.quota import Quota
from batchllm.simulate.settings import Settings

_LARGEST_BODY = 64 * 1024 * 1024
_JSON = "application/json"
_NO_ANSWER = {"400", "401", "402", "quota", "429", "500", "502", "503", "drop", "html", "shape"}
_HEADERS_OF = {"openai": "openai", "anthropic": "anthropic", "gemini": "none", "azure": "none"}


@frozen
class Call:
    """One request to answer: its id, the service to play, and whether it came to Anthropic's endpoint."""

    id: str
    service: str
    anthropic: bool


class Rehearsal:
    """The request handler of the server; `reset` makes it as new."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seed = str(settings.seed).encode()[:64]
        self.reset()

    def reset(self) -> None:
        """Forget all requests: counts, limits, quota, line and attempts start anew."""
        settings = self._settings
        now = time.monotonic()
        self._counts = Counts()
        self._history = History(now)
        self._quota = Quota(settings.limits, now, settings.window, settings.slack)
        self._line = Line(settings.knee, settings.queue_max) if settings.knee else None
        self._first: float | None = None
        self._left = settings.quota
        self._attempts: dict[bytes, int] = {}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.path.removeprefix("/v1").rstrip("/")
        match request.method, path:
            case "POST", "/chat/completions" | "/messages":
                return await self._counted(request, anthropic=path == "/messages")
            case "GET", "/models":
                model = {"id": "any", "object": "model", "created": 0, "owned_by": "batchllm"}
                return _json(orjson.dumps({"object": "list", "data": [model]}))
            case "GET", "/health":
                return _json(b'{"status":"ok"}')
            case "GET", "/stats":
                return self._stats(request.query)
            case "POST", "/quota":
                return await self._renew(request)
            case "POST", "/reset":
                self.reset()
                return _json(b'{"status":"ok"}')
        text = f"Unknown request: {request.method} {request.path}"
        problem = Problem(404, text, "invalid_request_error", "unknown_url")
        return _json(worded(problem, self._settings.service or "openai"), status=404)

    def _stats(self, query: Mapping[str, str]) -> web.Response:
        found = self._counts.as_json(ids=query.get("ids") in ("1", "true"))
        found |= self._history.as_json()
        found |= {"highest_queued": self._line.highest if self._line else 0, "quota_left": self._left}
        if query.get("seconds") in ("1", "true"):
            found["seconds"] = self._history.seconds(time.monotonic())
        return _json(orjson.dumps(found))

    async def _renew(self, request: web.BaseRequest) -> web.Response:
        """Give the account so many good answers from now on, or with null as many as it likes."""
        try:
            left = orjson.loads(await request.read())["requests"]
            if left is not None and (isinstance(left, bool) or not isinstance(left, int) or left < 0):
                raise ValueError(left)
        except (ValueError, TypeError, KeyError):
            problem = bad_request('The body must be {"requests": N}, or null for no end.', "requests").problem
            return _json(worded(problem, "openai"), status=400)
        self._left = left
        return _json(orjson.dumps({"quota_left": left}))

    async def _counted(self, request: web.BaseRequest, *, anthropic: bool) -> web.StreamResponse:
        """Count one request from its first to its last moment."""
        counts = self._counts
        service = self._settings.service or ("anthropic" if anthropic else "openai")
        call = Call(f"req_{counts.begin():08x}", service, anthropic)
        settled = False
        try:
            try:
                response = await self._answered(request, call)
            except Rejected as rejected:
                response = self._refusal(rejected.problem, call)
            settled = True
            if response is None:
                return web.Response()  # goes nowhere: the connection is gone
            counts.statuses[response.status] += 1
            return response
        finally:
            counts.in_flight -= 1
            counts.abandoned += not settled

    async def _answered(self, request: web.BaseRequest, call: Call) -> web.StreamResponse | None:
        """The answer or the fault; None when the connection was dropped. Raises Rejected."""
        settings = self._settings
        body = await _body(request)
        key = request.headers.get("x-idempotency") or request.headers.get("Idempotency-Key")
        if key:
            self._counts.asked(key)
        self._check_key(request.headers)
        ask = read_message(body) if call.anthropic else read(body, settings.refuse)
        digest = blake2b(ask.text.encode(errors="replace"), digest_size=8).digest()
        if not key:
            self._counts.asked(digest.hex())
        quota, now, needs = self._quota, time.monotonic(), ask.needs
        self._admit(needs, now)
        talk = digest if not ask.talk else blake2b(ask.talk.encode(errors="replace"), digest_size=8).digest()
        fault, wobble = self._turn(talk)
        wait = self._enter(settings.latency * (1 + settings.jitter * wobble), now)
        self._history.admit(needs["tokens"], now)
        if fault is not None:
            self._counts.faults[fault] += 1
        elif self._left is not None:
            self._left -= 1
        if fault == "hang":
            wait += settings.hang
        if wait > 0:
            await anyio.sleep(wait)
        given = None if fault in _NO_ANSWER else answer(ask, fault, digest)
        if given is not None and call.service == "anthropic":  # the others count what was asked for
            used = {"tokens": ask.prompt_tokens + given.completion_tokens}
            used["output-tokens"] = given.completion_tokens
            quota.settle(needs, used, time.monotonic(), now)
        if given is None:
            return self._fault(request, call, fault or "")
        encoded = _encoded(ask, given, call)
        if fault == "truncate":
            return await _truncated(request, encoded, self._headers(call))
        self._counts.ok += fault is None
        self._counts.prompt_tokens += ask.prompt_tokens
        self._counts.completion_tokens += given.completion_tokens
        return _json(encoded, self._headers(call))

    def _check_key(self, headers: Mapping[str, str]) -> None:
        key = self._settings.key
        given = headers.get("Authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
        if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
            raise Rejected(WRONG_KEY)

    def _admit(self, needs: Mapping[str, int], now: float) -> None:
        """Count the request against limits and quota, or reject it."""
        if self._first is None:
            self._first = now
        if self._settings.overload and overloaded(*self._settings.overload, now - self._first):
            self._history.refuse("overload", now)
            raise Rejected(SLOW_DOWN)
        refusal = self._quota.ask(needs, now)
        if refusal is not None:
            self._counts.limited += 1
            self._history.refuse(refusal.dimension, now)
            raise Rejected(rate_limited(refusal.wait, refusal.dimension, refusal.per_minute))
        if self._left is not None and self._left <= 0:
            self._history.refuse("quota", now)
            raise Rejected(SPENT)

    def _enter(self, work: float, now: float) -> float:
        """Seconds until the answer, those in line included; rejects it where the line is full."""
        wait = self._line.enter(work, now) if self._line else work
        if wait is None:
            self._history.refuse("queue", now)
            raise Rejected(OVERLOADED)
        return wait

    def _headers(self, call: Call) -> dict[str, str]:
        """The request's id and the limits as they stand at this moment, in the service's names."""
        found = {"request-id" if call.service == "anthropic" else "x-request-id": call.id}
        standings = self._quota.standings(time.monotonic())
        if standings:
            style = self._settings.headers or _HEADERS_OF[call.service]
            found.update(limit_headers(style, standings, time.time()))
        return found

    def _refusal(self, problem: Problem, call: Call) -> web.Response:
        told = self._settings.told
        headers = self._headers(call)
        if problem.wait is not None and told == "yes":
            headers.update(wait_headers(call.service, problem.wait))
        body = worded(problem, call.service, told=told, request_id=call.id)
        return _json(body, headers, status(problem, call.service))

    def _fault(self, request: web.BaseRequest, call: Call, fault: str) -> web.Response | None:
        """A fault that has no answer in it; None when the connection was dropped."""
        problem = faulty(fault, self._settings.retry_after)
        if problem is not None:
            return self._refusal(problem, call)
        if fault == "drop":
            _cut(request, abort=True)
            return None
        if fault == "shape":
            return _json(NO_COMPLETION, self._headers(call))
        return web.Response(
            body=GATEWAY_PAGE,
            status=502 if fault == "502" else 200,
            content_type="text/html",
            charset="utf-8",
            headers=self._headers(call),
        )

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


def _encoded(ask: Ask, given: Answer, call: Call) -> bytes:
    if call.anthropic:
        return message(ask, given, call.id)
    return completion(ask, given, call.id, int(time.time()))


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


def _json(body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type=_JSON, headers=headers)
