"""Judges every reply: refused, cut, empty or against the schema, and asks again where that may help.

Always in the stack, with or without a schema; a Provider around a Provider, outermost but for a cache.
It never retries a call that failed: that is the business of the layer below.
"""

from __future__ import annotations

import string
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from batchllm.errors import Invalid, Refused
from batchllm.fields import frozen
from batchllm.model import Reply, Request, Trail
from batchllm.ports import Provider
from batchllm.schema import Schema, find_json
from batchllm.stop import Stop

_ROOM = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_CUT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens", "incomplete"})
_FILTERED = "the provider's content filter withheld the answer"
_REFUSALS = {"refusal": "the model refused to answer"} | dict.fromkeys(
    ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii"), _FILTERED
)
_BLANK = string.whitespace + "\u00a0\u3000\u200b\u200c\u200d\u2060\ufeff"
"""Characters that show nothing."""
_AT_CEILING = "the answer was cut at the token limit, which is --max-tokens-ceiling already"
_MAX_SHOWN = 8 * 1024
_MAX_KEY = 64

Check = Callable[[Any, dict[str, Any] | None], Awaitable[Sequence[str]]]
"""A validator of the user's: a value and its record in, complaints out."""


@frozen
class _Fault:
    """Why a reply won't do: the cause, a line for people, and what to tell the model."""

    cause: str
    message: str
    complaints: tuple[str, ...] = ()
    hint: str | None = None

    def invalid(self, answer: str) -> Invalid:
        """What becomes of the record if nothing better comes."""
        said = self.complaints
        return Invalid(self.message, cause=self.cause, raw=answer, hint=self.hint, violations=said)


class Structured:
    """Passes on replies that are whole and, with a schema, valid; their `value` is then the parsed JSON.

    Without a schema the value is the text as it was sent. `repair` is how many further asks a record may
    cost; `check` has the last word on a value; `ceiling` are the most tokens that a cut answer is given.
    Raises Refused, Invalid once the repairs are used up, and what the check raises.
    """

    def __init__(
        self,
        inner: Provider,
        *,
        schema: Schema | None,
        repair: int,
        stop: Stop,
        check: Check | None = None,
        ceiling: int | None = None,
    ) -> None:
        self._inner = inner
        self._schema = schema
        self._repair = repair
        self._stop = stop
        self._check = check
        self._ceiling = ceiling

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Ask until the reply will do; raises Stopped instead of asking again in a run that stops."""
        ask = request
        repairs = 0
        while True:
            trail.asks += 1
            reply = await self._inner.complete(ask, trail)
            judged = self._judge(reply)
            if isinstance(judged, Reply):
                if self._check is None:
                    return judged
                complaints = tuple(await self._check(judged.value, request.record))
                if not complaints:
                    return judged
                message = f"the check refused the answer: {'; '.join(complaints)}"
                judged = _Fault("check", message, complaints)
            if judged.cause == "truncated" and _at_ceiling(ask.body, self._ceiling):
                judged = _Fault("truncated", _AT_CEILING, hint="raise --max-tokens-ceiling")
            if repairs == self._repair or not _may_help(judged, ask.body, self._ceiling):
                raise judged.invalid(reply.text)
            self._stop.check()
            repairs += 1
            ask = _next_ask(request, ask, repairs, judged, reply.text, self._ceiling)

    def _judge(self, reply: Reply) -> Reply | _Fault:
        if reply.finish in _REFUSALS:
            raise Refused(_REFUSALS[reply.finish], cause=reply.finish, raw=reply.text or None)
        if reply.finish in _CUT:
            return _Fault(
                "truncated",
                "the answer was cut at the token limit",
                hint="give it more room, such as --param max_tokens=2000",
            )
        if not reply.text.strip(_BLANK):
            return _Fault("empty", "the answer was empty")
        if self._schema is None:
            reply.value = reply.text
            return reply
        schema, restore = self._schema, reply.restore
        try:
            if restore is None:
                value = find_json(reply.text, schema.accepts)
            else:
                value = restore(find_json(reply.text, lambda found: schema.accepts(restore(found))))
        except ValueError as error:
            return _Fault("no_json", str(error), (str(error),))
        violations = schema.violations(value)
        if violations:
            return _Fault(
                "schema", f"the answer breaks the schema: {'; '.join(violations)}", tuple(violations)
            )
        reply.value = value
        return reply


def _room(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in _ROOM if name in body}


def _at_ceiling(body: dict[str, Any], ceiling: int | None) -> bool:
    """Whether an answer that was cut has had all the room that it may have."""
    room = [tokens for tokens in _room(body).values() if type(tokens) is int]
    return ceiling is not None and bool(room) and max(room) >= ceiling


def _may_help(fault: _Fault, body: dict[str, Any], ceiling: int | None) -> bool:
    """Whether asking again may help: a cut answer is cut again, and paid for again, without more room."""
    if fault.cause != "truncated":
        return True
    return fault.message is not _AT_CEILING and _more_room(_room(body), ceiling) != _room(body)


def _more_room(room: dict[str, Any], ceiling: int | None) -> dict[str, Any]:
    """Twice the room, the ceiling at most; a request without any is given the ceiling, where there is one."""
    if not room:
        return {} if ceiling is None else {"max_tokens": ceiling}
    return {
        name: min(2 * tokens, ceiling or 2 * tokens) if type(tokens) is int and tokens > 0 else tokens
        for name, tokens in room.items()
    }


def _next_ask(
    first: Request, last: Request, n: int, fault: _Fault, answer: str, ceiling: int | None
) -> Request:
    """Repair `n`: the first request's messages with the last answer and what is wrong with it.

    Built from the first request so that chains don't grow; only the room that was given stays given.
    """
    room = _room(last.body)
    if fault.cause == "truncated":
        room = _more_room(room, ceiling)
    body: dict[str, Any] = {**first.body, **room}
    messages = body.get("messages")
    if fault.complaints and isinstance(messages, list):
        body["messages"] = [
            *messages,
            {"role": "assistant", "content": _shown(answer)},
            {"role": "user", "content": _complaint(fault.complaints, json=first.schema is not None)},
        ]
    suffix = f"-{n}"
    return replace(first, body=body, key=first.key[: _MAX_KEY - len(suffix)] + suffix)


def _shown(answer: str) -> str:
    """The answer's first 8 KiB."""
    return answer.encode(errors="replace")[:_MAX_SHOWN].decode(errors="ignore")


def _complaint(complaints: tuple[str, ...], *, json: bool) -> str:
    listed = "\n".join(f"- {complaint}" for complaint in complaints)
    wanted = "JSON" if json else "answer"
    return f"That answer can't be used:\n{listed}\nAnswer again with the corrected {wanted} only."
