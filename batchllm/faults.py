"""The named faults that stand-ins for an LLM endpoint commit on purpose, and mixes of them.

Pure: it says which fault a draw selects, never commits one and never draws. The rehearsal server and the
fake provider call it, so that a mix means the same over a socket and in process.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from batchllm.errors import ConfigError
from batchllm.fields import frozen

FAULTS: Mapping[str, str] = {
    "400": "a rejected parameter: HTTP 400",
    "401": "a wrong key: HTTP 401",
    "402": "an unpaid account: HTTP 402",
    "quota": "a spent quota: HTTP 429 with code insufficient_quota",
    "429": "a rate limit: HTTP 429 with retry-after",
    "500": "a server error: HTTP 500",
    "502": "a gateway's HTML page: HTTP 502",
    "503": "an overloaded server: HTTP 503",
    "drop": "the connection dropped without an answer",
    "truncate": "a body cut short",
    "html": "an HTML page under HTTP 200",
    "hang": "no answer for a long time",
    "empty": "a completion with empty text",
    "shape": "JSON under HTTP 200 that is no chat completion",
    "length": "an answer cut in the middle, finish reason length",
    "filter": "no text, finish reason content_filter",
    "prose": "the right answer wrapped in prose",
    "fenced": "the right answer in a code fence",
    "enum": "an answer with a value that the schema doesn't allow",
    "talk": "prose with no answer in it",
}

REFUSABLE = ("strict", "schema", "tools")
"""Features of a request that a server may not have: strict mode, response_format with a schema, tools."""
TALK = "I looked at it closely and would rather not say."


def refused_feature(body: Mapping[str, Any], features: Collection[str]) -> tuple[str, str] | None:
    """What a server without these features says of a body that wants one, and the parameter it names."""
    wanted, tools = body.get("response_format"), body.get("tools")
    holder = wanted.get("json_schema") if isinstance(wanted, dict) else None
    function = tools[0].get("function") if isinstance(tools, list) and tools else None
    if "schema" in features and holder is not None:
        return "This model takes no response_format of type json_schema.", "response_format"
    if "tools" in features and tools:
        return "This model does not support tools.", "tools"
    strict = [each for each in (holder, function) if isinstance(each, dict) and each.get("strict")]
    if "strict" in features and strict:
        return (
            "Invalid schema 'answer': strict mode does not take it.",
            "response_format" if holder else "tools",
        )
    return None


_PROPORTIONS = {
    "429": 4.0,
    "500": 3.0,
    "503": 2.0,
    "502": 1.0,
    "drop": 1.5,
    "truncate": 1.0,
    "html": 1.0,
    "hang": 0.5,
    "empty": 1.0,
}


@frozen
class FaultMix:
    """Which share of requests meets which fault: `shares` are pairs of a name and a share in [0, 1].

    Build one with `parse`, `spread` or `from_mapping`, which raise ConfigError for unknown names and for
    shares that are below 0 or add up to more than 1. Without shares nothing ever fails.
    """

    shares: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: str) -> FaultMix:
        """Read `429:0.04,500:0.03`; the empty text is the empty mix."""
        pairs: list[tuple[str, object]] = []
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, colon, share = item.partition(":")
            if not colon:
                raise ConfigError(
                    f"fault {item!r} has no share", "write name:share, such as 429:0.04,drop:0.01"
                )
            try:
                pairs.append((name.strip(), float(share)))
            except ValueError:
                pairs.append((name.strip(), share.strip()))
        return cls(_checked(pairs))

    @classmethod
    def spread(cls, rate: float) -> FaultMix:
        """The usual faults of a bad day, with a total share of `rate` in [0, 1].

        Proportions: 4 429, 3 500, 2 503, 1 502, 1.5 drop, 1 truncate, 1 html, 0.5 hang, 1 empty.
        """
        if not 0 <= rate <= 1:
            raise ConfigError(f"error rate {rate} is no share", "give a number from 0 to 1, such as 0.12")
        whole = sum(_PROPORTIONS.values())
        return cls(tuple((name, rate * part / whole) for name, part in _PROPORTIONS.items() if rate))

    @classmethod
    def from_mapping(cls, shares: Mapping[str, object]) -> FaultMix:
        """Take name → share, as a JSON or TOML file holds it."""
        return cls(_checked(shares.items()))

    def pick(self, draw: float) -> str | None:
        """The fault that a draw in [0, 1) selects, or None for none."""
        edge = 0.0
        for name, share in self.shares:
            edge += share
            if draw < edge:
                return name
        return None


def _checked(pairs: Iterable[tuple[str, object]]) -> tuple[tuple[str, float], ...]:
    """Shares added up by name, in the order given, without zeros; or ConfigError."""
    found: dict[str, float] = {}
    for name, share in pairs:
        if name not in FAULTS:
            raise ConfigError(f"unknown fault {name!r}", f"known faults: {', '.join(FAULTS)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ConfigError(
                f"the share of fault {name} is {share!r}", f"give a number from 0 to 1, such as {name}:0.05"
            )
        found[name] = found.get(name, 0.0) + share
    total = math.fsum(found.values())
    if total > 1 + 1e-9:
        raise ConfigError(f"the fault shares add up to {total:g}", "let the shares add up to 1 at most")
    return tuple((name, share) for name, share in found.items() if share > 0)
