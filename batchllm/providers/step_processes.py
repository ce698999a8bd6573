"""The worker processes of a step with `process = true`, started when they are needed and used again.

A worker whose call is given up is killed, and so is every other when the step closes. `step` holds how many
work at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from batchllm.errors import Internal
from batchllm.fields import frozen
from batchllm.providers.raised import unpacked

_PROGRAM = Path(__file__).with_name("step_worker.py")
_STARTING_S = 60.0
"""Seconds that a worker has to import the function."""


@frozen
class Worker:
    """A child process and what it answers."""

    process: Process
    answers: BufferedByteReceiveStream


class Workers:
    """Worker processes that all call one function."""

    def __init__(self, function: str, folder: Path | None) -> None:
        self._begin = {"function": function, "folder": str(folder) if folder is not None else None}
        self._idle: list[Worker] = []
        self._living: dict[int, Worker] = {}

    async def take(self) -> Worker:
        """A worker that waits for a call; raises Internal where none can be started."""
        while self._idle:
            worker = self._idle.pop()
            if worker.process.returncode is None:
                return worker
            await self._end(worker)
        process = await anyio.open_process(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            start_new_session=True,  # Ctrl-C is the run's to hear
        )
        assert process.stdout is not None
        worker = Worker(process, BufferedByteReceiveStream(process.stdout))
        self._living[process.pid] = worker
        ready: dict[str, Any] = {"refused": f"it was not imported within {_STARTING_S:g} s"}
        async with self._ended_unless_answered(worker):
            with anyio.move_on_after(_STARTING_S):
                ready = await _exchange(worker, self._begin | {"path": sys.path})
        if "refused" in ready:
            await self._end(worker)
            raise Internal(f"in a worker process: {ready['refused']}", cause="worker")
        return worker

    async def ask(self, worker: Worker, places: list[Any], names: dict[str, Any]) -> str:
        """The JSON of what the function returns; raises what its exception means.

        The worker is killed where the caller is cancelled, else it is free again.
        """
        async with self._ended_unless_answered(worker):
            answer = await _exchange(worker, {"places": places, "names": names})
        self._idle.append(worker)
        if "error" in answer:
            raise unpacked(*answer["error"])
        text: str = answer["json"]
        return text

    async def close(self) -> None:
        """Kill all workers."""
        for worker in list(self._living.values()):
            await self._end(worker)

    @asynccontextmanager
    async def _ended_unless_answered(self, worker: Worker) -> AsyncIterator[None]:
        answered = False
        try:
            yield
            answered = True
        except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError):
            with anyio.move_on_after(1.0):
                await worker.process.wait()
            code = worker.process.returncode
            how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
            raise Internal(f"its worker process {how}", cause="worker") from None
        finally:
            if not answered:
                await self._end(worker)

    async def _end(self, worker: Worker) -> None:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                worker.process.kill()
            await worker.process.aclose()
        self._living.pop(worker.process.pid, None)


async def _exchange(worker: Worker, frame: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(frame).encode()
    assert worker.process.stdin is not None
    await worker.process.stdin.send(len(data).to_bytes(8, "big") + data)
    length = int.from_bytes(await worker.answers.receive_exactly(8), "big")
    answer: dict[str, Any] = json.loads(await worker.answers.receive_exactly(length))
    return answer
