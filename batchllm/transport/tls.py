"""The one TLS context of a transport: whom it trusts, what it offers, and sessions that are resumed.

asyncio and uvloop pass no session on, but both make TLS objects of the class that the context names, and
ours brings along the session of an earlier connection. It opens nothing; `adapter` and `dialer` call it.
"""

from __future__ import annotations

import ssl

import httpx

from batchllm.errors import ConfigError


class Resuming(ssl.SSLObject):
    """The TLS of one connection; offers the session of an earlier one to the same host (RFC 8446, 2.2).

    A server that doesn't take it goes through the whole handshake, as without it.
    """

    sessions: dict[str | None, ssl.SSLSession]
    _offered = False

    def do_handshake(self) -> None:
        """Begin or go on with the handshake."""
        if not self._offered:
            self._offered = True
            session = self.sessions.get(self.server_hostname)
            if session is not None:
                self.session = session
        super().do_handshake()

    def remember(self) -> None:
        """Keep its session for later; under TLS 1.3 tickets come with the first answer, not before."""
        session = self.session
        if session is not None and (session.has_ticket or session.id):
            self.sessions[self.server_hostname] = session


def client_context() -> ssl.SSLContext:
    """Trusts SSL_CERT_FILE, SSL_CERT_DIR or certifi's list; raises ConfigError where they can't be read."""
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        text = f"can't read the trusted certificates: {error.strerror or error}".lower()
        raise ConfigError(text, "look at SSL_CERT_FILE and SSL_CERT_DIR") from None
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = type("Resuming", (Resuming,), {"sessions": {}})
    return context


def no_common_protocol(error: Exception) -> bool:
    """Whether the server ended the handshake because it doesn't speak HTTP/1.1 (RFC 7301, 3.2)."""
    return "no application protocol" in str(error).lower().replace("_", " ")


def remember(tls: object) -> None:
    """A connection's first answer is there; `tls` is its TLS object, or whatever stands for none."""
    if isinstance(tls, Resuming):
        tls.remember()
