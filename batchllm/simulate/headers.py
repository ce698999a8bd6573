"""What the rehearsal server tells about its limits in headers, in the names and forms of each service.

Pure: standings and waits in, headers out. `quota` knows how the limits stand, the app sends what is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from batchllm.simulate.quota import Standing

HEADERS = ("openai", "anthropic", "none")
_OPENAI = ("requests", "tokens")  # it has no headers for input and output tokens


def limit_headers(style: str, standings: Sequence[Standing], wall: float) -> dict[str, str]:
    """The headers of every limit in this style, one of HEADERS; `wall` is Unix seconds."""
    found: dict[str, str] = {}
    for standing in standings:
        if style == "openai" and standing.dimension in _OPENAI:
            found[f"x-ratelimit-limit-{standing.dimension}"] = str(standing.per_minute)
            found[f"x-ratelimit-remaining-{standing.dimension}"] = str(standing.remaining)
            found[f"x-ratelimit-reset-{standing.dimension}"] = duration(standing.reset)
        elif style == "anthropic":
            start = f"anthropic-ratelimit-{standing.dimension}"
            found[f"{start}-limit"] = str(standing.per_minute)
            found[f"{start}-remaining"] = str(standing.remaining)
            found[f"{start}-reset"] = moment(wall + standing.reset)
    return found


def wait_headers(service: str, wait: float) -> dict[str, str]:
    """How a service asks in headers for a wait in seconds; Gemini says it in the body alone."""
    if service == "gemini":
        return {}
    seconds = {"retry-after": str(math.ceil(wait))}
    return seconds if service == "anthropic" else {"retry-after-ms": str(math.ceil(wait * 1000)), **seconds}


def duration(seconds: float) -> str:
    """Seconds in the form of OpenAI's reset headers: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


def moment(wall: float) -> str:
    """Unix seconds as Anthropic writes them (RFC 3339), rounded up to whole seconds."""
    return datetime.fromtimestamp(math.ceil(wall), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
