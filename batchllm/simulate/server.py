"""Runs a rehearsal on a port of this machine until SIGINT or SIGTERM.

Owns the socket and the signals, nothing of what is answered; `cli.simulate` calls `run`. It listens on
loopback addresses only.
"""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Callable
from importlib.util import find_spec

import anyio

from batchllm.descriptors import raise_descriptor_limit
from batchllm.errors import ConfigError
from batchllm.simulate.settings import Settings

try:
    from aiohttp import web

    from batchllm.simulate.app import Rehearsal
except ModuleNotFoundError as missing:
    if missing.name != "aiohttp":
        raise
    raise ConfigError(
        "the rehearsal server needs aiohttp", "pip install 'batchllm-cli[simulate]'"
    ) from missing

_CONNECTIONS = 1 << 20
"""More than anybody opens; each takes a descriptor, of which often 1,024 are allowed at first."""
# What still waits when the server is told to stop (a hang, a long latency) is cut off after this long.
_STOP_S = 0.1


def run(settings: Settings, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until a signal; `ready` gets the base URL once connections are accepted.

    Port 0 takes any free one. Raises ConfigError for an address that is not loopback or is in use.
    """
    if not _is_loopback(host):
        raise ConfigError(f"{host} is not an address of this machine alone", "use --host 127.0.0.1")
    raise_descriptor_limit(_CONNECTIONS)
    options = {"use_uvloop": find_spec("uvloop") is not None}
    anyio.run(_serve, settings, host, port, ready, backend_options=options)


async def _serve(settings: Settings, host: str, port: int, ready: Callable[[str], None]) -> None:
    server = web.Server(Rehearsal(settings), handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=_STOP_S)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, host, port, backlog=1024).start()
            except OSError as error:
                hint = "stop what listens there, or use --port 0 for a free one"
                raise ConfigError(f"can't listen on {host}:{port}: {error.strerror}", hint) from error
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{runner.addresses[0][1]}/v1")
            async for _ in signals:
                break
        finally:
            await runner.cleanup()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
