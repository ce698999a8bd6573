"""The head of a request: a URL checked, headers checked, both as bytes that are ready to send.

Nothing that could smuggle a second header or request passes here, and no message shows a header's value.
Both kinds of endpoint go through it, so that they refuse the same things.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

import httpx

from batchllm import __version__
from batchllm.errors import ConfigError
from batchllm.transport.dialer import Origin

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch
_VALUE = re.compile(r"[\t\x20-\x7e]*").fullmatch
_OURS = frozenset({"content-length", "transfer-encoding", "connection"})


def parse_url(url: str) -> httpx.URL:
    """An absolute http or https URL; raises ConfigError for anything else."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"not a url: {error}".lower(), "give one like https://host/v1") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError("not an http or https url with a host", "give one like https://host/v1")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise ConfigError(f"no port has the number {parsed.port}", "give one like https://host/v1")
    return parsed


def origin_of(url: httpx.URL) -> Origin:
    """Where a request for this URL goes."""
    tls = url.scheme == "https"
    return Origin(tls, url.raw_host.decode("ascii"), url.port or (443 if tls else 80))


def complete_headers(url: httpx.URL, headers: Mapping[str, str]) -> dict[str, str]:
    """Lower-case names, checked, with what every request needs: host, media types, and the URL's user."""
    complete = {
        "host": url.netloc.decode("ascii"),
        "user-agent": f"batchllm/{__version__}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
    }
    if url.userinfo:
        user = f"{url.username}:{url.password}".encode()
        complete["authorization"] = "Basic " + base64.b64encode(user).decode("ascii")
    for name, value in headers.items():
        check_header(name, value)
        complete[name.lower()] = value
    return complete


def check_header(name: str, value: str) -> None:
    """Raise ConfigError for a header that can't be sent as it is."""
    if not _NAME(name):
        raise ConfigError("a header's name holds a character that http forbids", "use letters, digits and -")
    if name.lower() in _OURS:
        raise ConfigError(f"header {name.lower()} is set by the transport", "leave it out")
    if not _VALUE(value):
        if "\r" in value or "\n" in value:
            raise ConfigError(
                f"header {name.lower()} holds a line break", "look for one at the end of the key"
            )
        raise ConfigError(f"header {name.lower()} holds a character beyond ascii", "check what was pasted")


def lines(headers: Mapping[str, str]) -> bytes:
    """Checked headers as they go over the wire."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")
