"""A refusal in the words of a service: status and JSON body as OpenAI, Anthropic, Gemini and Azure send them.

Pure: a `Problem` in, what to send out. Shapes and codes follow the services' documents, the sentences don't.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from batchllm.simulate.problems import SPENT, Problem, try_again

SERVICES = ("openai", "anthropic", "gemini", "azure")
_ANTHROPIC = {
    401: "authentication_error",
    402: "billing_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
_GEMINI = {
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
_GOOGLE = "type.googleapis.com/google.rpc"


def status(problem: Problem, service: str) -> int:
    """The HTTP status; Anthropic's for overload is 529."""
    return 529 if service == "anthropic" and problem.status == 503 else problem.status


def body(problem: Problem, service: str, *, told: str = "yes", request_id: str | None = None) -> bytes:
    """The JSON body in a service's form; `told` is yes, text or no, as for --retry-after."""
    text = problem.message + ("" if told == "no" else try_again(problem))
    match service:
        case "anthropic":
            return orjson.dumps(_anthropic(problem, text, request_id))
        case "gemini":
            return orjson.dumps({"error": _gemini(problem, text, told)})
        case "azure":
            return orjson.dumps({"error": _azure(problem, told)})
    error = {"message": text, "type": problem.type, "param": problem.param, "code": problem.code}
    return orjson.dumps({"error": error})


def _anthropic(problem: Problem, text: str, request_id: str | None) -> dict[str, Any]:
    error: dict[str, Any] = {
        "type": _ANTHROPIC.get(status(problem, "anthropic"), "invalid_request_error"),
        "message": text,
    }
    if problem == SPENT:
        error["details"] = {"error_code": "enforced_spend_limit_reached"}
    return {"type": "error", "error": error, "request_id": request_id}


def _gemini(problem: Problem, text: str, told: str) -> dict[str, Any]:
    error: dict[str, Any] = {
        "code": problem.status,
        "message": text,
        "status": _GEMINI.get(problem.status, "INVALID_ARGUMENT"),
    }
    if problem.status == 429:
        tokens = "" if problem.dimension == "requests" else "Tokens"
        span = "PerDay" if problem == SPENT else "PerMinute"
        unit = "requests" if problem.dimension == "requests" else "input_token_count"
        violation = {
            "quotaMetric": f"generativelanguage.googleapis.com/generate_content_{unit}",
            "quotaId": f"GenerateContent{tokens or 'Requests'}{span}PerProjectPerModel",
        }
        if problem.per_minute is not None:
            violation["quotaValue"] = str(problem.per_minute)
        error["details"] = [{"@type": f"{_GOOGLE}.QuotaFailure", "violations": [violation]}]
        if problem.wait is not None and told == "yes":
            delay = f"{math.ceil(problem.wait * 1000) / 1000:g}s"
            error["details"].append({"@type": f"{_GOOGLE}.RetryInfo", "retryDelay": delay})
    return error


def _azure(problem: Problem, told: str) -> dict[str, Any]:
    text = problem.message
    if problem.wait is not None and told != "no":
        text += f" Please retry after {math.ceil(problem.wait)} seconds."
    code = problem.code
    if code in (None, "rate_limit_exceeded", "overloaded", "invalid_api_key"):
        code = str(problem.status)
    return {"code": code, "message": text}
