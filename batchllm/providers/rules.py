"""The table of verdicts: which answers of which providers mean what, as ordered rows of plain data.

Made from the providers' documents; recorded bodies in tests/data/verdicts.jsonl hold it. It decides nothing
by itself: `verdicts`, its only reader, takes the first row that fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from batchllm.errors import (
    UNKNOWN as UNKNOWN,
)
from batchllm.errors import (
    AuthFailed,
    BatchError,
    Overloaded,
    QuotaGone,
    RateLimited,
    Refused,
    RouteGone,
    TooLarge,
)
from batchllm.fields import frozen

_CREDIT = "add credit or raise the limit at the provider, then run the same command again"
_DAILY = "the same command goes on once the quota is renewed; or raise it at the provider"
_KEY = "check the key and what it may use; --api-key-env names the variable that holds it"
MODEL_HINT = "check the name in --model, and that the key may use that model"
DOUBT_HINT = "others were answered: look at what this one asks for"
"""Marks a refusal that may be the record's or the route's."""
_PATH = "check --base-url: most servers want it to end in /v1"
_ACCOUNT = "the provider has closed this account, key or country: clear it up there, or use another key"
_HTTPS = "the server wants https: write --base-url with https://"
_LONG = "the text is longer than the model takes: shorten it or use a model with a larger context"


@frozen
class Rule:
    """One row: when `pattern` is found at `where` in an answer with one of `statuses`, it means `verdict`.

    `where` is any (always fits), code (one of the body's code words, whole), words (the provider's
    sentence), body (all of it as text), headers (`name: value` lines), form (json, html, text or empty) or
    proven (the route has answered others). Patterns ignore case.
    """

    statuses: range | tuple[int, ...]
    where: str
    pattern: re.Pattern[str] | None
    verdict: type[BatchError]
    cause: str | None = None
    hint: str | None = None


def _rule(
    statuses: range | tuple[int, ...] | int,
    where: str,
    pattern: str,
    verdict: type[BatchError],
    cause: str | None = None,
    hint: str | None = None,
) -> Rule:
    """A row as it is written in the table."""
    compiled = re.compile(pattern, re.IGNORECASE) if pattern else None
    return Rule((statuses,) if isinstance(statuses, int) else statuses, where, compiled, verdict, cause, hint)


_4XX = range(400, 500)

RULES: tuple[Rule, ...] = (
    # money and long quotas: OpenAI, Anthropic, LiteLLM, OpenRouter, DeepSeek, Gemini, Mistral
    _rule(402, "any", "", QuotaGone, hint=_CREDIT),
    _rule(
        _4XX,
        "code",
        "insufficient_quota|credit_balance_exhausted|(organization|project)_spend_limit_exceeded"
        "|organization_usage_limit_exceeded|enforced_spend_limit_reached|billing_error|billing_not_active"
        "|billing_hard_limit_reached|billing_disabled|budget_exceeded|insufficient_(balance|credits|funds)",
        QuotaGone,
        hint=_CREDIT,
    ),
    _rule(
        (400, 403, 429),
        "words",
        r"^you have reached your specified .*api usage limits|^your credit balance is too low"
        r"|budget has been exceeded! |^(litellm\.\w+: )*exceededbudget: |^key limit exceeded"
        r"|^insufficient (credits|balance)|^out of call volume quota|^token quota is exceeded"
        r"|^.{0,20}free tier is not available in your country",
        QuotaGone,
        hint=_CREDIT,
    ),
    # LiteLLM hands on OpenAI's error as words; Gemini says the same sentence of a minute's quota
    _rule(
        429,
        "words",
        r"\binsufficient_quota\b|openaiexception - you exceeded your current quota",
        QuotaGone,
        hint=_CREDIT,
    ),
    _rule(429, "body", r'quotaId[\\" :]+\w*PerDay', QuotaGone, hint=_DAILY),
    _rule(429, "body", r'quotaValue[\\" :]+0\\?"', QuotaGone, hint=_CREDIT),
    _rule(429, "words", r"quota exceeded for metric: \S+, limit: 0\b", QuotaGone, hint=_CREDIT),
    _rule(429, "headers", r"(x-)?ratelimit(bysize)?-limit(-[\w-]+)?: 0", QuotaGone, hint=_CREDIT),
    # Mistral's tokens of a month; the header's name is not verified
    _rule(429, "headers", r"(x-)?ratelimit(bysize)?-remaining-([\w-]+-)?month: 0", QuotaGone, hint=_DAILY),
    # the key
    _rule(401, "any", "", AuthFailed, hint=_KEY),
    _rule(407, "any", "", AuthFailed, hint="the proxy wants a name and a password: put them in its address"),
    _rule(
        400,
        "code",
        "api_key_invalid|invalid_api_key|authentication_error|auth_error|no_db_connection",
        AuthFailed,
        hint=_KEY,
    ),
    _rule(
        400,
        "words",
        r"^(api key (not valid|expired)|incorrect api key|invalid api key)",
        AuthFailed,
        hint=_KEY,
    ),
    _rule(
        (400, 403),
        "code",
        "(account|organization|api_key|project)_(deactivated|suspended|disabled|revoked)|access_terminated_error",
        AuthFailed,
        hint=_ACCOUNT,
    ),
    # anchored under 400, where the words may quote the record's own text
    _rule(
        400,
        "words",
        "^this (organization|account) has been disabled|^user location is not supported",
        AuthFailed,
        hint=_ACCOUNT,
    ),
    _rule(
        403,
        "words",
        r"\b(organization|account|project|consumer|api key)\b.{0,80}\b(has been|is|was)"
        r" (disabled|suspended|deactivated|revoked)\b",
        AuthFailed,
        hint=_ACCOUNT,
    ),
    _rule(
        403,
        "body",
        r"moderation|input was flagged|content[ _-]?(policy|filter)|safety (system|policy|reasons)",
        Refused,
        cause="moderation",
    ),
    _rule(403, "form", "html", Refused, cause="gateway_page"),
    _rule(403, "proven", "", Refused, hint=DOUBT_HINT),
    _rule(403, "any", "", AuthFailed, hint=_KEY),
    # too long, ever
    _rule(
        (413, 429),
        "words",
        r"\brequest too large for\b",
        TooLarge,
        cause="request_too_large",
        hint="raise the tokens a minute or shorten the text",
    ),
    _rule((413, 414, 431), "any", "", TooLarge, hint=_LONG),
    _rule(
        (*_4XX, 500),
        "code",
        "context_length_exceeded|context_window_exceeded|exceed_context_size_error|string_above_max_length"
        "|request_too_large|tokens_limit_reached|contextwindowexceedederror",
        TooLarge,
        hint=_LONG,
    ),
    _rule(
        (400, 422),
        "words",
        r"maximum context length|context length (is|of) only|maximum model length"
        r"|prompt is too long|input is too long"
        r"|exceeds? (the )?(available )?(model.s )?(maximum )?context (limit|length|size|window)"
        r"|input token count .*exceeds|too large for model with|prompt contains \d+ tokens"
        r"|`inputs` (tokens \+|must have less than \d+ tokens)",
        TooLarge,
        cause="context_length_exceeded",
        hint=_LONG,
    ),
    # the address and the model
    _rule(
        400,
        "words",
        "^(400 )?the plain http request was sent to https port"
        "|^client sent an http request to an https server",
        RouteGone,
        hint=_HTTPS,
    ),
    _rule(range(300, 400), "any", "", RouteGone, hint="set --base-url to the address that answers by itself"),
    _rule(
        (400, 404),
        "code",
        "model_not_found|modelnotfound|model_not_found_error|deploymentnotfound|model_decommissioned"
        "|invalid_model|unknown_model|model_not_exist|operationnotsupported",
        RouteGone,
        hint=MODEL_HINT,
    ),
    _rule(
        404,
        "words",
        r"\bmodels?\b.*\b(not found|not exist|not available|not supported)|deprecated|no endpoints found",
        RouteGone,
        hint=MODEL_HINT,
    ),
    _rule(404, "words", r"^model: \S+$", RouteGone, hint=MODEL_HINT),
    _rule(
        400,
        "words",
        r"invalid model name passed|^invalid model\b|^model not exist|is not a valid model id"
        r'|^"?[\w./:-]+"? does not support (chat|generate)$',
        RouteGone,
        hint=MODEL_HINT,
    ),
    _rule(404, "form", "html|text|empty", RouteGone, hint=_PATH),
    _rule(
        404,
        "words",
        r"^(404 )?(page |file |resource |route )?not found\W*$|^(invalid|unknown) (request )?(url|path|route)"
        r"|^no route|^cannot post",
        RouteGone,
        hint=_PATH,
    ),
    _rule(404, "proven", "", Refused, hint=DOUBT_HINT),
    _rule(404, "any", "", RouteGone, hint="check --base-url and the name in --model"),
    _rule((405, 410, 501), "any", "", RouteGone, hint=_PATH),
    # this record
    _rule(
        400,
        "body",
        "ResponsibleAIPolicyViolation|ContentPolicyViolationError|content filtering policy",
        Refused,
        cause="content_filter",
    ),
    # everyone waits; `slow_down` (OpenAI's 503, Anthropic's acceleration limit) asks for a lower rate as well
    _rule(503, "body", r"slow[ _-]?down", RateLimited, cause="slow_down"),
    _rule(429, "words", r"usage increase rate|acceleration limit", RateLimited, cause="slow_down"),
    _rule((429, 498), "any", "", RateLimited),
    # the server's bad moment
    _rule((408, 409, 424, 425, 499, 500, 502, 503, 504, *range(520, 531)), "any", "", Overloaded),
    # the request is wrong, and stays wrong; an unknown 4xx counts as a 400 (RFC 9110, 15)
    _rule((400, 422, 451), "any", "", Refused),
    _rule(_4XX, "any", "", Refused, cause=UNKNOWN),
)

# What no row knows is tried again, a bounded number of times: that loses nothing that could pass.
ANYTHING_ELSE = Rule((), "any", None, Overloaded, UNKNOWN)

# Error words under HTTP 200 and the status that they stand for: OpenAI, Anthropic, Gemini, vLLM, LiteLLM.
STATUS_OF: Mapping[str, int] = {
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "ratelimiterror": 429,
    "throttling_error": 429,
    "insufficient_quota": 429,
    "credit_balance_exhausted": 429,
    "organization_spend_limit_exceeded": 429,
    "project_spend_limit_exceeded": 429,
    "organization_usage_limit_exceeded": 429,
    "billing_not_active": 429,
    "budget_exceeded": 429,
    "resource_exhausted": 429,
    "resource_unavailable": 429,
    "overloaded_error": 529,
    "authentication_error": 401,
    "authenticationerror": 401,
    "invalid_api_key": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "permissiondeniederror": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "not_found": 404,
    "notfounderror": 404,
    "request_too_large": 413,
    "context_length_exceeded": 400,
    "context_window_exceeded": 400,
    "contextwindowexceedederror": 400,
    "content_filter": 400,
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "invalid_argument": 400,
    "failed_precondition": 400,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "internalservererror": 500,
    "internal": 500,
    "unavailable": 503,
    "service_unavailable_error": 503,
    "slow_down": 503,
    "timeout_error": 504,
    "deadline_exceeded": 504,
}
