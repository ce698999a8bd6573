"""What the event loop complains of is passed on, but for what a dial that was given up leaves behind."""

from __future__ import annotations

import asyncio
from typing import Any


def expect_dials_given_up() -> None:
    """In a loop of our own, say nothing where TLS goes on after the connection was closed.

    uvloop logs a traceback where a handshake is cancelled and the server's part of it comes in the same
    turn. Whoever cancelled it says why there is no connection.
    """
    asyncio.get_running_loop().set_exception_handler(_pass_on)


def _pass_on(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error, protocol = context.get("exception"), type(context.get("protocol")).__name__
    if protocol == "SSLProtocol" and isinstance(error, RuntimeError) and "closed=True" in str(error):
        return
    loop.default_exception_handler(context)
