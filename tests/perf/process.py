"""One command as a whole process: what it spent, with its CPU scaled by calibrations before and after.

The command is started by a small process of its own (this module run as a script), because a child's peak
memory is never reported as less than what its parent held when it was started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.perf.calibrate import REFERENCE_S, calibrate

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 1_800.0
"""Seconds after which a command hangs and is killed; a million records take a fraction of it."""
SHOWN = 2_000
"""Characters of a failed command's stderr that are shown."""


@dataclass(frozen=True)
class Spent:
    """CPU and wall-clock seconds, the peak of resident memory in MB (10⁶ bytes), and the speed's factor."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    factor: float

    @property
    def scaled_s(self) -> float:
        """Seconds of CPU at the reference speed."""
        return self.cpu_s * self.factor


class Failed(Exception):
    """A command that should have succeeded has not."""


def environment(folder: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a login shell would give, with the home in `folder`, and this checkout to import from."""
    home = {"HOME": str(folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    return home | dict(more or {})


def spend(command: list[str], folder: Path, more: Mapping[str, str] | None = None) -> Spent:
    """Run `command` in `folder` to its end. Raises `Failed` unless it ends with 0."""
    runner = [sys.executable, "-m", "tests.perf.process", *command]
    ran = subprocess.run(runner, cwd=folder, env=environment(folder, more), stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise Failed(f"{' '.join(command)}: exit {ran.returncode}\n{_last_words(folder)}")
    return Spent(**json.loads(ran.stdout))


def _last_words(folder: Path) -> str:
    return (folder / "stderr.txt").read_text(errors="replace")[-SHOWN:]


def _peak_mb(usage_maxrss: int) -> float:
    """Linux counts in KiB, macOS in bytes."""
    return usage_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> int:
    """Run the command given as arguments, print what it spent, and end as it ended."""
    with Path("stdout.txt").open("wb") as stdout, Path("stderr.txt").open("wb") as stderr:
        before = calibrate()
        start = time.perf_counter()
        process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        guard = threading.Timer(LONGEST_S, process.kill)
        guard.daemon = True
        guard.start()
        _, status, usage = os.wait4(process.pid, 0)
        guard.cancel()
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        factor = REFERENCE_S / ((before + calibrate()) / 2)
    spent = {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": wall,
        "peak_mb": _peak_mb(usage.ru_maxrss),
        "factor": factor,
    }
    print(json.dumps(spent))
    return 1 if process.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
