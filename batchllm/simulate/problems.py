"""The refusals of the rehearsal server: what is wrong, and with which status, whatever service it plays.

Pure values. The app sends them, `asks` raises them for bad requests, `bodies` words them as a service does.
"""

from __future__ import annotations

import math

from batchllm.fields import frozen

GATEWAY_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Gateway</title></head>"
    b"<body><h1>The upstream server did not answer</h1></body></html>\n"
)


@frozen
class Problem:
    """One refusal: HTTP status and what OpenAI puts into the body's `error` object.

    `wait` are the seconds after which to try again, None where nothing is said of it; `dimension` and
    `per_minute` the limit that refused, where one did.
    """

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    wait: float | None = None
    dimension: str = "requests"
    per_minute: int | None = None


class Rejected(Exception):
    """This request gets no answer but `problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Rejected:
    """A 400 for a request that can't be answered as it stands."""
    return Rejected(Problem(400, message, "invalid_request_error", code, param))


def rate_limited(wait: float, dimension: str = "requests", per_minute: int | None = None) -> Problem:
    """A 429 of the limit named, which asks for a wait in seconds."""
    what = dimension.replace("-", " ")
    limit = "" if per_minute is None else f" per minute (limit {per_minute})"
    return Problem(
        429,
        f"Rate limit reached for {what}{limit}.",
        "requests" if dimension == "requests" else "tokens",
        "rate_limit_exceeded",
        wait=wait,
        dimension=dimension,
        per_minute=per_minute,
    )


def try_again(problem: Problem) -> str:
    """The sentence that says when to try again; empty where nothing is said of it."""
    return "" if problem.wait is None else f" Please try again in {math.ceil(problem.wait * 1000)}ms."


WRONG_KEY = Problem(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")
SPENT = Problem(429, "The quota of this account is spent.", "insufficient_quota", "insufficient_quota")
TOO_LARGE = Problem(413, "The request body is too large.", "invalid_request_error", "request_too_large")
SLOW_DOWN = Problem(503, "Slow down: too many requests came too fast.", "server_error", "slow_down")
OVERLOADED = Problem(503, "The server is overloaded.", "server_error", "overloaded")


def faulty(fault: str, retry_after: float) -> Problem | None:
    """The refusal that a fault of `batchllm.faults` stands for; None for those that are no JSON refusal."""
    if fault == "429":
        return rate_limited(retry_after)
    return _REFUSALS.get(fault)


_REFUSALS = {
    "400": Problem(400, "Invalid value for a parameter.", "invalid_request_error", "invalid_value"),
    "401": WRONG_KEY,
    "402": Problem(402, "The account has unpaid bills.", "billing_error", "payment_required"),
    "quota": SPENT,
    "500": Problem(500, "The server had an error while processing the request.", "server_error"),
    "503": OVERLOADED,
}
