"""The provider's own name for a request, for whoever has to ask its support about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADERS = ("x-request-id", "request-id", "apim-request-id")
"""Where services put it: OpenAI and most, Anthropic, Azure; the first that is there counts."""


def request_id(headers: Mapping[str, str], document: Any = None) -> str | None:
    """The provider's id of the request, from the headers, else from an error body; at most 200 characters."""
    for name in HEADERS:
        if told := headers.get(name):
            return told[:200]
    value = document.get("request_id") if isinstance(document, dict) else None
    return value[:200] if isinstance(value, str) and value else None
