"""What a server's refusal is about: whether its words speak of the shape that was asked for.

Only imported once a server refuses something, since its patterns take a while to compile.
"""

from __future__ import annotations

import re

from batchllm.errors import BatchError, Refused, RouteGone

_NAMES_IT = re.compile(
    r"response[_ ]?formats?\b|json[_ ]?schema|guided[_ ]json|structured[ _-]?outputs?|json mode"
    r"|\btool[_ -]?(?:choices?|calls?|calling|use)\b|\bfunction[_ -]?call(?:s|ing)?\b|additionalproperties"
    r"|\btools[.\[]|unsupported parameters?\W*$",
    re.IGNORECASE,
)
"""Parameters, and words that have no other meaning; the last of it may mean any parameter."""
_MAY_NAME_IT = re.compile(r"\bschemas?\b|\bgrammars?\b|\btools?\b|\bfunctions?\b|\bstrict\b", re.IGNORECASE)
_OF_REQUESTS = re.compile(
    r"\b(?:un)?support|\binvalid\b|unrecogni[sz]ed|\bunknown\b|unexpected|\bextra\b|not (?:permitted|allowed)"
    r"|\bargument|\bparam|\bfield|implement|\benabled?\b|\bcompil|\bkeywords?\b|\bpropert|\bcomplex",
    re.IGNORECASE,
)
"""What makes a word of those speak of the request, and not of what a record says."""
_LACKS_IT = re.compile(r"\b(?:un)?support|\bimplement|\bhandle the requested param", re.IGNORECASE)
_STATUSES = frozenset({200, 400, 404, 415, 422, 501})
"""200: gateways that put the error into the body."""
_OTHERS = frozenset(
    {"content_filter", "moderation", "model_not_found", "json_validate_failed", "tool_use_failed"}
)
"""Causes that speak of one record or of the model, whatever words they use."""


def about_shape(error: BatchError, status: int) -> bool:
    """Whether a refusal speaks of the schema or of the feature that carries it."""
    said = error.message
    if status not in _STATUSES:
        return False
    if not _NAMES_IT.search(said) and not (_MAY_NAME_IT.search(said) and _OF_REQUESTS.search(said)):
        return False
    if isinstance(error, Refused):
        return error.cause not in _OTHERS
    return isinstance(error, RouteGone) and _LACKS_IT.search(said) is not None
