"""The real command line in child processes that kill themselves at the n-th thing they do to a file.

Run as a script it imports batchllm once and then forks: one JSON order a line on stdin, one answer when the
child is there and one when it has ended. What the product calls to change files is counted here, by wrapping
`os` and `io.open` before the product is imported; the product itself has no hooks. `Launcher` is the side of
those who give orders.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COUNTED = ("ftruncate", "rename", "replace", "unlink", "mkdir", "rmdir", "fsync", "fdatasync", "pwrite")
READY = (
    "batchllm.cli.session",
    "batchllm.wire.build",
    "batchllm.providers.fake",
    "anyio._backends._asyncio",
    "uvloop",
    "typer._adapters",
)
"""What a run imports late, or not at all in another version: every fork has it."""
SMALL = {
    "batchllm.ledger.ledger": {"GROUP": 8, "LINGER": 0.004, "SNAPSHOT_EVERY": 16},
    "batchllm.ledger.ordering": {"RUN": 16},
}
"""Constants that are set so small that a job of some dozen records has many groups, snapshots and runs."""


class Steps:
    """Counts the steps of this process, which dies before the `last`-th, or within it where it is a write."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._last = 0
        self._random = random.Random()
        self.armed = False
        self.taken = 0

    def arm(self, last: int, seed: int) -> None:
        """Count from now on; with `last` 0 nothing dies."""
        self._last, self._random, self.armed = last, random.Random(seed), True

    def take(self, write: Callable[[int], Any] | None = None, size: int = 0) -> None:
        """One step; `write(n)` writes the first n of its `size` bytes."""
        if not self.armed:
            return
        self.taken = next(self._numbers)
        if self.taken != self._last:
            return
        if write is not None and size:
            write(self._random.randrange(size + 1))
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # never reached but where the kill comes a moment later: no further step may be taken


STEPS = Steps()


def _counted(name: str) -> None:
    """Make the function of `os` with this name a step."""
    real = getattr(os, name)

    def step(*args: Any, **kwargs: Any) -> Any:
        STEPS.take()
        return real(*args, **kwargs)

    setattr(os, name, step)


def wrap() -> None:
    """Count what changes files, in this process and its forks. Once, before the product is imported."""
    for name in COUNTED:
        _counted(name)
    real_write, real_os_open, real_open = os.write, os.open, io.open

    def write(fd: int, data: Any) -> int:
        if STEPS.armed and fd > 2 and stat.S_ISREG(os.fstat(fd).st_mode):
            view = memoryview(data)
            STEPS.take(lambda count: real_write(fd, view[:count]), len(view))
        return real_write(fd, data)

    def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            STEPS.take()
        return real_os_open(path, flags, *args, **kwargs)

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            return write(self.fileno(), data)

    def open_(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        if not STEPS.armed or mode not in ("wb", "ab") or args or kwargs.get("opener") is not None:
            return real_open(file, mode, buffering, *args, **kwargs)
        STEPS.take()
        return io.BufferedWriter(Raw(file, mode), buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)

    os.write, os.open, io.open = write, os_open, open_  # type: ignore[assignment]


def _child(order: dict[str, Any], report: int) -> None:
    """Be `batchllm ARGS` in the order's folder; never returns."""
    folder = order["folder"]
    errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, fd in ((0, nothing), (1, errors), (2, errors)):
        os.dup2(fd, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update({"HOME": folder, "PATH": os.defpath, "LANG": "C.UTF-8"})
    if order["small"]:
        for module, constants in SMALL.items():
            for name, value in constants.items():
                setattr(sys.modules[module], name, value)
    if order["largest"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"], order["largest"]))
    sys.argv = ["batchllm", *order["args"]]
    from batchllm.cli import main

    code: Any = 0
    STEPS.arm(order["kill_at"], order["seed"])
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 99
    STEPS.armed = False
    os.write(report, str(STEPS.taken).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def serve() -> None:
    """Fork a child for each order until stdin closes."""
    wrap()
    for module in READY:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        mine, its = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(mine)
                _child(order, its)
            finally:
                os._exit(128 + signal.SIGINT)  # it came before the command line was there to hear of it
        os.close(its)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        with os.fdopen(mine, "rb") as report:
            steps = int(report.read() or order["kill_at"])
        print(json.dumps([os.waitstatus_to_exitcode(status), steps]), flush=True)


@dataclass(frozen=True)
class End:
    """How a child ended: its exit code (143 for SIGTERM as shells say it), the steps it took, its stderr."""

    code: int
    steps: int
    errors: str

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == 128 + signal.SIGKILL


class Launcher:
    """Gives the orders; one child at a time."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process = process
        self._errors = errors
        self.kills = 0

    def run(
        self,
        folder: Path,
        args: tuple[str, ...],
        *,
        kill_at: int = 0,
        seed: int = 0,
        after: Callable[[int], None] | None = None,
        small: bool = True,
        largest: int = 0,
    ) -> End:
        """`batchllm ARGS` in `folder` to its end.

        It dies before its `kill_at`-th step. `after` is called with its process id once it is there.
        `largest` is the size in bytes beyond which no file may grow. No run may show a traceback.
        """
        self._errors.write_bytes(b"")
        order = {
            "args": args,
            "folder": str(folder),
            "errors": str(self._errors),
            "kill_at": kill_at,
            "seed": seed,
            "small": small,
            "largest": largest,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        child = int(self._process.stdout.readline())
        try:
            if after is not None:
                after(child)
        except ProcessLookupError:
            pass  # it had ended by itself
        code, steps = json.loads(self._process.stdout.readline())
        end = End(128 - code if code < 0 else code, steps, self._errors.read_text())
        self.kills += end.killed
        assert "Traceback" not in end.errors, end.errors
        assert end.code != 70, end.errors
        return end


@contextlib.contextmanager
def launcher() -> Iterator[Launcher]:
    """A launcher with a process of its own, which ends with the block."""
    command = [sys.executable, str(Path(__file__).resolve())]
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=around
        ) as process,
    ):
        try:
            yield Launcher(process, Path(folder) / "stderr")
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def kill_after(seconds: float) -> Callable[[int], None]:
    """For `after`: SIGKILL once so much time has passed."""

    def kill(child: int) -> None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)

    return kill


if __name__ == "__main__":
    serve()
