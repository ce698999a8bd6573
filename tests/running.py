"""batchllm as people run it: a process of its own, in a folder of its own, with a clean environment.

`run(folder, "a.jsonl", …)` gives its exit code and what it wrote; `started` is for a run that a test talks
to while it goes on. Every run is checked for tracebacks: none may ever show one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from batchllm.cli import application
from batchllm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
ECHO = ("-m", "fake/echo")
LONGEST_S = 60.0
"""Seconds after which a run hangs and the test fails; no run here takes a tenth of it."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Ran:
    """A run that has ended: `code` as shells give it (143 where SIGTERM killed it)."""

    folder: Path
    code: int
    stdout: bytes
    stderr: str

    def rows(self, name: str) -> Rows:
        """The lines of a JSONL file in the run's folder."""
        return rows(self.folder / name)

    @property
    def hint(self) -> str:
        """The text of the last hint on stderr."""
        hints = [line for line in self.stderr.splitlines() if line.startswith("hint: ")]
        return hints[-1].removeprefix("hint: ") if hints else ""

    @property
    def error(self) -> str:
        """The text of the error on stderr."""
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.stderr
        return errors[0].removeprefix("error: ")


def run(
    folder: Path,
    *args: str | Path,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    before: tuple[str, ...] = (),
    verb: str = "run",
) -> Ran:
    """`batchllm run ARGS` in `folder` to its end; without `stdin` there is none, as under cron.

    `before` is a command that starts it, `verb` another command of batchllm's.
    """
    ran = subprocess.run(
        [*before, *command(*args, verb=verb)],
        cwd=folder,
        env=environment(folder, env),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=LONGEST_S,
    )
    return checked(folder, ran.returncode, ran.stdout, ran.stderr)


def refusal(folder: Path, *args: str | Path, env: Mapping[str, str] | None = None, verb: str = "run") -> Ran:
    """What `batchllm run ARGS` says where it is refused before anything is called.

    It runs in this process, since loading the program again for each of many such would take most of a
    test's time; modules of the user's stay loaded. It fails where the command is not refused.
    """
    log = logging.getLogger("batchllm")
    handlers, level = log.handlers[:], log.level
    try:
        with (
            contextlib.chdir(folder),
            mock.patch.dict(os.environ, environment(folder, env), clear=True),
            pytest.raises(ConfigError) as refused,
        ):
            application(verb)([verb, *map(str, args)], prog_name="batchllm", standalone_mode=False)
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)
    return Ran(folder, 2, b"", f"error: {refused.value.message}\nhint: {refused.value.hint}\n")


@contextlib.contextmanager
def started(
    folder: Path, *args: str | Path, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """`batchllm run ARGS` with pipes to it; killed where the block leaves it running."""
    with subprocess.Popen(
        command(*args),
        cwd=folder,
        env=environment(folder, env),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(folder: Path, process: subprocess.Popen[bytes]) -> Ran:
    """Wait for the end of what `started` gave."""
    stdout, stderr = process.communicate(timeout=LONGEST_S)
    return checked(folder, process.returncode, stdout, stderr)


def wait_for_settled(process: subprocess.Popen[bytes], count: int) -> list[dict[str, Any]]:
    """Read the -vv events of a run until so many records are settled; the events of those."""
    settled: list[dict[str, Any]] = []
    assert process.stderr is not None
    while len(settled) < count:
        line = process.stderr.readline()
        assert line, f"the run ended with {len(settled)} settled"
        event = json.loads(line) if line.startswith(b"{") else {}
        if event.get("event") == "settled":
            settled.append(event)
    return settled


def command(*args: str | Path, verb: str = "run") -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "batchllm", verb, *map(str, args)]


def environment(folder: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a login shell would give and nothing of ours: no keys, no BATCHLLM_…, no proxies."""
    home = {"HOME": str(folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    return home | dict(more or {})


def checked(folder: Path, code: int, stdout: bytes, stderr: bytes) -> Ran:
    """The end of a run, which shows no traceback and blames no bug."""
    text = stderr.decode()
    assert "Traceback" not in text, text
    assert code != 70, text
    return Ran(folder, 128 - code if code < 0 else code, stdout, text)


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Records as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def tickets(count: int, start: int = 0) -> Rows:
    """So many records with an id and a text of their own."""
    return [{"id": f"t-{n:05}", "text": f"ticket {n:05} ok"} for n in range(start, start + count)]


def rows(path: Path) -> Rows:
    """The lines of a JSONL file, each of which must be whole."""
    content = path.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def names(folder: Path) -> set[str]:
    """What lies in a folder, but for what Python compiled there."""
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


def together(*calls: Callable[[], Ran]) -> list[Ran]:
    """Independent runs at the same time, two by two; their ends in order."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
