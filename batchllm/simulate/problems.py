"""The refusals of the rehearsal server, as an endpoint of OpenAI's kind words and encodes them.

Pure values: a status, headers and a body. The app sends them, `asks` raises them for bad requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import orjson

GATEWAY_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Gateway</title></head>"
    b"<body><h1>The upstream server did not answer</h1></body></html>\n"
)


@dataclass(frozen=True)
class Problem:
    """One refusal: HTTP status and what goes into the body's `error` object."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The JSON body."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})


class Rejected(Exception):
    """This request gets no answer but `problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Rejected:
    """A 400 for a request that can't be answered as it stands."""
    return Rejected(Problem(400, message, "invalid_request_error", code, param))


def rate_limited(what: str, wait: float) -> Problem:
    """A 429 that names the limit `what` and asks for a wait in seconds."""
    millis = math.ceil(wait * 1000)
    return Problem(
        429,
        f"Rate limit reached for {what}. Please try again in {millis}ms.",
        "requests" if what.startswith("requests") else "tokens",
        "rate_limit_exceeded",
        headers={"retry-after-ms": str(millis), "retry-after": str(math.ceil(wait))},
    )


WRONG_KEY = Problem(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")
SPENT = Problem(429, "The quota of this account is spent.", "insufficient_quota", "insufficient_quota")
TOO_LARGE = Problem(413, "The request body is too large.", "invalid_request_error", "request_too_large")


def faulty(fault: str, retry_after: float) -> Problem | None:
    """The refusal that a fault of `batchllm.faults` stands for; None for those that are no JSON refusal."""
    if fault == "429":
        return rate_limited("requests", retry_after)
    return _REFUSALS.get(fault)


_REFUSALS = {
    "400": Problem(400, "Invalid value for a parameter.", "invalid_request_error", "invalid_value"),
    "401": WRONG_KEY,
    "402": Problem(402, "The account has unpaid bills.", "billing_error", "payment_required"),
    "quota": SPENT,
    "500": Problem(500, "The server had an error while processing the request.", "server_error"),
    "503": Problem(503, "The server is overloaded.", "server_error", "overloaded"),
}
