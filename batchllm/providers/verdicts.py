"""What a provider's answer means: the first row of `rules` that fits, made into the exception to raise.

The exception's branch is what the run does. Providers call `verdict` for an HTTP answer and `under_ok` for
an error object that came with status 200. It sends nothing and keeps nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from batchllm.errors import BadReply, BatchError, CallError, RateLimited, RecordError
from batchllm.fields import frozen
from batchllm.providers.complaints import (
    Complaint,
    of_document,
    plain,
    read,
    reset_after,
    retry_after,
    shown,
)
from batchllm.providers.ids import request_id
from batchllm.providers.rules import ANYTHING_ELSE, RULES, STATUS_OF, UNKNOWN, Rule
from batchllm.providers.standings import refused


def verdict(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    proven: bool = False,
    now: float,
    secret: str | None = None,
) -> BatchError:
    """The exception that an HTTP answer means which is no 2xx.

    `headers` have lower-case names. `proven` says that this route has answered others, so that a 403, or a
    404 that names neither model nor path, is the record's. `now` is Unix seconds, for HTTP dates. `secret`
    is the key in use: it is masked, as is all that looks like a key, should the body echo it.
    """
    complaint = read(content, headers.get("content-type", ""))
    return _judge(Case(status, status, headers, complaint, proven, now, secret))


def under_ok(
    document: Any,
    headers: Mapping[str, str],
    *,
    status: int = 200,
    proven: bool = False,
    now: float,
    secret: str | None = None,
) -> BatchError:
    """The exception that an error object under a 2xx `status` means: what its own code or type says.

    One that names nothing known is a BadReply of cause `unknown`, which is tried again.
    """
    complaint = of_document(document, _bytes_of(document))
    named = (STATUS_OF.get(code.lower()) for code in complaint.codes)
    meant = complaint.number or next(filter(None, named), None)
    if meant is None:
        said = shown(f"the provider answered {status} with an error: {complaint.words}", secret)
        return bad_reply(said, UNKNOWN, status=status, request_id=request_id(headers, document))
    return _judge(Case(status, meant, headers, complaint, proven, now, secret))


def _bytes_of(document: Any) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:  # nested deeper than orjson writes
        return b""


def bad_reply(
    message: str, cause: str, *, status: int | None = None, request_id: str | None = None
) -> BadReply:
    """A BadReply that names what came instead of an answer."""
    error = BadReply(message, status=status, request_id=request_id)
    error.cause = cause
    return error


@frozen
class Case:
    """All that a row may look at; `status` came over the wire, `meant` is what it stands for."""

    status: int
    meant: int
    headers: Mapping[str, str]
    complaint: Complaint
    proven: bool
    now: float
    secret: str | None


def row(case: Case) -> Rule:
    """The first row that fits; where none does, the server is at fault."""
    return next((rule for rule in RULES if _fits(rule, case)), ANYTHING_ELSE)


def _judge(case: Case) -> BatchError:
    """The case's row made into its exception."""
    rule = row(case)
    message = _message(case)
    if issubclass(rule.verdict, RecordError):
        named = case.complaint.codes[0] if case.complaint.codes else f"http_{case.meant}"
        return rule.verdict(message, cause=rule.cause or named, status=case.status, hint=rule.hint)
    if not issubclass(rule.verdict, CallError):
        return rule.verdict(message, rule.hint)
    error = rule.verdict(
        message,
        status=case.status,
        request_id=request_id(case.headers, case.complaint.document),
        retry_after=_wait(rule, case),
        limits=refused(case.headers, case.complaint, case.now),
    )
    if rule.cause:
        error.cause = rule.cause
    return error


def _wait(rule: Rule, case: Case) -> float | None:
    """Seconds that the answer asks to wait; a rate limit that names none waits for its bucket to refill."""
    wait = retry_after(case.headers, case.complaint, case.now)
    if wait is None and issubclass(rule.verdict, RateLimited):
        return reset_after(case.headers, case.complaint, case.now)
    return wait


_FIND: Mapping[str, Callable[[re.Pattern[str], Case], bool]] = {
    "code": lambda pattern, case: any(pattern.fullmatch(code) for code in case.complaint.codes),
    "words": lambda pattern, case: pattern.search(case.complaint.words) is not None,
    "body": lambda pattern, case: pattern.search(case.complaint.text) is not None,
    "form": lambda pattern, case: pattern.fullmatch(case.complaint.form) is not None,
    "headers": lambda pattern, case: any(
        pattern.fullmatch(f"{name}: {value}") for name, value in case.headers.items()
    ),
}


def _fits(rule: Rule, case: Case) -> bool:
    """Whether a row speaks of this answer."""
    if case.meant not in rule.statuses:
        return False
    if rule.pattern is None:
        return rule.where == "any" or case.proven
    return _FIND[rule.where](rule.pattern, case)


def _message(case: Case) -> str:
    """One line: the status and the provider's own words."""
    words, form = case.complaint.words, case.complaint.form
    said = f"the provider answered {case.status}"
    if 300 <= case.status < 400:
        said = f"{said} with a redirect to {_origin(case.headers.get('location', ''))}"
    elif form == "html":
        said = f"{said} with an HTML page: {words}" if words else f"{said} with an HTML page"
    elif case.status < 300:
        said = f"{said} with an error: {words}"
    else:
        said = f"{said}: {words}" if words else f"{said} with an empty body"
    return shown(said, case.secret)


def _origin(location: str) -> str:
    """Scheme, host and port of an address, never its user, path or query."""
    try:
        parts = urlsplit(plain(location))
        host, port = parts.hostname, parts.port
    except ValueError:
        return "an address that makes no sense"
    if not host:
        return "another path of the same address" if location else "nowhere"
    return f"{parts.scheme or 'https'}://{host}" + (f":{port}" if port else "")
