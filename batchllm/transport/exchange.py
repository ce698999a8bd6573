"""What one HTTP exchange is made of: the request as bytes, the answer as bytes, and how it can fail.

Values only, without sockets and without httpx. `protocol` and `pool` speak in these; the doors (`endpoint`,
`adapter`) turn them into the errors that their callers know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from batchllm.fields import frozen

FailureKind = Literal[
    "pool_timeout", "connect", "connect_timeout", "write_timeout", "read_timeout", "read", "protocol"
]


@frozen
class Bounds:
    """What a pool keeps within: connections in use, bytes of headers and body, seconds of idling.

    Servers close idle connections after 5 s (uvicorn, Node), so ours end a little earlier.
    """

    limit: int = 100
    head: int = 64 * 1024
    body: int = 64 * 1024 * 1024
    idle: float = 4.0


@frozen
class Phases:
    """httpx's four timeouts in seconds, each wait by itself; `read` starts anew with every byte."""

    pool: float = math.inf
    connect: float = math.inf
    write: float = math.inf
    read: float = math.inf


@frozen
class Terms:
    """What an exchange is held to; those of an endpoint's requests are mostly the same ones.

    `timeout` is in seconds from the dial or the first byte sent to the last byte read; `phases`, where
    given, are held instead. `bodiless` says that the answer has no body whatever its headers say (HEAD).
    """

    timeout: float = math.inf
    phases: Phases | None = None
    bodiless: bool = False


class RawAnswer(NamedTuple):
    """A whole answer as it came, the body not decoded.

    `head` has names and values by turns, names in the server's case, blanks behind values still there.
    """

    status: int
    head: list[bytes]
    content: bytes

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers in their order, pair by pair."""
        return [(name, value.rstrip(b" \t")) for name, value in in_pairs(self.head)]


def in_pairs(head: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Names and values that stand by turns, together."""
    return zip(head[::2], head[1::2], strict=True)


class Failed(Exception):
    """An exchange that brought no whole answer; `message` names the peer and what happened, nothing secret.

    `stale`: a reused connection died before a byte of the answer came. `ambiguous`: bytes of the request's
    body had left, so the call may have been executed. `http2`: the peer speaks nothing but HTTP/2.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        stale: bool = False,
        ambiguous: bool = False,
        http2: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.stale = stale
        self.ambiguous = ambiguous
        self.http2 = http2
