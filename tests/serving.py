"""The rehearsal server as a child process, for tests that want a real endpoint over real sockets.

`with simulated("--rpm", "600") as server:` gives its address and its counts; the process ends with the block.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_STOP_S = 10.0


@dataclass(frozen=True)
class Simulated:
    """A running rehearsal server; `url` ends with /v1."""

    url: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self.process.pid

    def stats(self, *, ids: bool = False, seconds: bool = False) -> dict[str, Any]:
        """What the server has counted; also how often each id was asked, and what came in each second."""
        query = f"ids={ids:d}&seconds={seconds:d}"
        with urllib.request.urlopen(f"{self.url}/stats?{query}", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def reset(self) -> None:
        """Make the server forget all requests."""
        urllib.request.urlopen(f"{self.url}/reset", data=b"", timeout=30).close()

    def renew(self, requests: int | None) -> None:
        """Give the account so many good answers from now on; None for as many as it likes."""
        body = json.dumps({"requests": requests}).encode()
        urllib.request.urlopen(f"{self.url}/quota", data=body, timeout=30).close()

    def stop(self) -> int:
        """Send SIGTERM and wait for the end; the exit code."""
        self.process.terminate()
        return self.process.wait(_STOP_S)


@contextlib.contextmanager
def simulated(*args: str, env: Mapping[str, str] | None = None) -> Iterator[Simulated]:
    """`batchllm simulate` on a free port with these options; `env` is added to the environment.

    One without options serves this process's tests one after the other: it is reset in between. Raises
    RuntimeError with its stderr if it ends before it listens.
    """
    if args or env:
        with _started(args, env or {}) as server:
            yield server
        return
    server = _IDLE.pop() if _IDLE else _TO_THE_END.enter_context(_started((), {}))
    try:
        yield server
    finally:
        server.reset()
        _IDLE.append(server)


_IDLE: list[Simulated] = []
_TO_THE_END = contextlib.ExitStack()
atexit.register(_TO_THE_END.close)


@contextlib.contextmanager
def _started(args: tuple[str, ...], env: Mapping[str, str]) -> Iterator[Simulated]:
    command = [sys.executable, "-m", "batchllm", "simulate", "--port", "0", *args]
    around = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=around) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                process.wait(_STOP_S)
                errors.seek(0)
                raise RuntimeError(f"the rehearsal server did not start: {line}{errors.read()}")
            yield Simulated(line.split()[-1], process)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
