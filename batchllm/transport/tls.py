"""The one TLS context of a transport: whom it trusts, what it offers, and sessions that are resumed.

asyncio and uvloop pass no session on, but both make TLS objects of the class that the context names, and
ours brings along the session of an earlier connection. It opens nothing; `adapter` and `dialer` call it.
"""

from __future__ import annotations

import ssl
import sys
from typing import Any

import httpx

from batchllm.errors import ConfigError

_RECORD = 16 * 1024
"""Bytes that a TLS record holds at most (RFC 8446, 5.1), and so a read of OpenSSL's."""
_LARGE = 128 * 1024
"""Bytes from which glibc maps a block by itself, until it has freed one (mallopt(3), M_MMAP_THRESHOLD)."""
_M_MMAP_THRESHOLD = -3


class Resuming(ssl.SSLObject):
    """The TLS of one connection; offers the session of an earlier one to the same host (RFC 8446, 2.2).

    A server that doesn't take it goes through the whole handshake, as without it.
    """

    sessions: dict[str | None, ssl.SSLSession | None]
    """By host name; None where a server's can't be resumed. One context's, so of one and the same trust."""
    _begun = False
    _offered: ssl.SSLSession | None = None

    def do_handshake(self) -> None:
        """Begin or go on with the handshake."""
        if not self._begun:
            self._begun = True
            self._offered = self.sessions.get(self.server_hostname)
            if self._offered is not None:
                self.session = self._offered
        super().do_handshake()

    def read(self, len: int = 1024, buffer: Any = None) -> bytes:
        """As ssl.SSLObject's; the loops ask for 256 KiB, which would be allocated for each answer."""
        return super().read(min(len, _RECORD), buffer)

    def remember(self) -> None:
        """Keep its session where there is none yet, or the one that was offered is no longer taken.

        Each look at a session copies it for some 0.3 ms, so what was resumed is offered again as it is.
        Under TLS 1.3 tickets come with the first answer, not before.
        """
        host = self.server_hostname
        if self.session_reused:
            return
        if host in self.sessions and (self._offered is None or self.sessions[host] is not self._offered):
            return
        session = self.session
        resumable = session is not None and (session.has_ticket or session.id)
        self.sessions[host] = session if resumable else None


def client_context() -> ssl.SSLContext:
    """Trusts SSL_CERT_FILE, SSL_CERT_DIR or certifi's list; raises ConfigError where they can't be read."""
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        text = f"can't read the trusted certificates: {error.strerror or error}".lower()
        raise ConfigError(text, "look at SSL_CERT_FILE and SSL_CERT_DIR") from None
    _keep_large_blocks_apart()
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = type("Resuming", (Resuming,), {"sessions": {}})
    return context


def _keep_large_blocks_apart() -> None:
    """Let large blocks stay out of the process's heap, as they do until glibc has freed the first of them.

    Either loop has a read buffer of 256 KiB for each connection, of which it touches a page or two. In the
    heap such buffers come to lie where other things were, and all of those pages stay.
    """
    if sys.platform == "linux":
        import ctypes  # some 3 ms, which only TLS is to pay

        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGE)


def no_common_protocol(error: Exception) -> bool:
    """Whether the server ended the handshake because it doesn't speak HTTP/1.1 (RFC 7301, 3.2)."""
    return "no application protocol" in str(error).lower().replace("_", " ")


def remember(tls: object) -> None:
    """A connection's first answer is there; `tls` is its TLS object, or whatever stands for none."""
    if isinstance(tls, Resuming):
        tls.remember()
