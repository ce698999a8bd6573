"""What a connection's bytes and its end say of the peer: pure, over what came."""

from __future__ import annotations

import os
import ssl

from batchllm.transport.exchange import in_pairs

_TIRED = (b"HTTP/1.1 408", b"HTTP/1.0 408")


def is_tired(data: bytes) -> bool:
    """Whether a server ends a connection that idles, as some do, in so many words."""
    return data.startswith(_TIRED)


def opens_http2(data: bytes) -> bool:
    """Whether a server's first bytes are SETTINGS or GOAWAY, which open HTTP/2 (RFC 9113, 3.4 and 4.1)."""
    return len(data) >= 9 and data[0] == 0 and data[3] in (4, 7) and data[5:9] == bytes(4)


def ends_with_the_connection(head: list[bytes]) -> bool:
    """Neither a length nor chunks say where the body ends (RFC 9112, 6.3); names and values by turns."""
    for name, value in in_pairs(head):
        name = name.lower()
        if name == b"content-length":
            return False
        if name == b"transfer-encoding" and value.lower().rstrip().endswith(b"chunked"):
            return False
    return True


def how_far(touched: bool, head_done: bool) -> str:
    """Where an answer ended that is not whole, in words."""
    if not touched:
        return "before answering"
    return f"in the middle of the {'answer' if head_done else 'headers'}"


def reason(exc: Exception) -> str:
    """Why a connection broke, in words."""
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or "tls error").lower().replace("_", " ")
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno).lower()
    return str(exc).lower() or type(exc).__name__
