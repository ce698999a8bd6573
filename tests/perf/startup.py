"""The start-up phase: what `batchllm --help` and the way to the first request cost, against bare imports.

Both sides of a comparison are started alternately, and medians of their CPU compared.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from statistics import median

from tests.perf.findings import Findings
from tests.perf.process import Failed, environment
from tests.perf.tools import BATCHLLM, Bench
from tests.perf.workload import SCHEMA, write_input

TIMES = 10
"""How often each side is started."""
HELP_TIMES, FIRST_TIMES = 2.0, 1.4
LONGEST_S = 30.0
HELP = [sys.executable, "-m", "batchllm", "--help"]
TYPER = [sys.executable, "-c", "import typer"]
LIBRARIES = [sys.executable, "-c", "import typer, httpx, jsonschema, jinja2"]


def started(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command, its output thrown away."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def cpu_ms(process: subprocess.Popen[bytes]) -> float:
    """Milliseconds of CPU that it has spent when it has ended."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return (usage.ru_utime + usage.ru_stime) * 1000


def whole(command: list[str], folder: Path) -> float:
    """Milliseconds of CPU of a command that succeeds."""
    process = started(command, folder)
    spent = cpu_ms(process)
    if process.returncode:
        raise Failed(f"{' '.join(command)}: exit {process.returncode}")
    return spent


def until_first_request(folder: Path, number: int) -> float:
    """Milliseconds of CPU of a run up to its first request: it is killed when that comes in."""
    place = folder / str(number)
    place.mkdir()
    (place / "schema.json").write_text(json.dumps(SCHEMA))
    write_input(place / "in.jsonl", 10)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LONGEST_S)
        process = started(BATCHLLM.command(f"http://127.0.0.1:{server.getsockname()[1]}/v1", 200), place)
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(LONGEST_S)
                if not connection.recv(4096).startswith(b"POST /v1/chat/completions "):
                    raise Failed("the first request was no chat completion")
        finally:
            process.kill()
            spent = cpu_ms(process)
    return spent


def startup(bench: Bench, findings: Findings) -> None:
    """`--help` against importing typer, the first request against importing the libraries it needs."""
    findings.title(f"startup: CPU, medians of {TIMES} alternate starts")
    spent: dict[str, list[float]] = {"--help": [], "typer": [], "first": [], "libraries": []}
    for path in bench.folder.iterdir():
        if path.is_file():
            path.unlink()
    for command in (HELP, LIBRARIES):
        whole(command, bench.folder)
    for number in range(TIMES):
        spent["--help"].append(whole(HELP, bench.folder))
        spent["typer"].append(whole(TYPER, bench.folder))
        spent["first"].append(until_first_request(bench.folder, number))
        spent["libraries"].append(whole(LIBRARIES, bench.folder))
    ms = {name: median(times) for name, times in spent.items()}
    findings.say(f"batchllm --help {ms['--help']:.0f} ms, import typer {ms['typer']:.0f} ms")
    findings.say(f"first request {ms['first']:.0f} ms, import its libraries {ms['libraries']:.0f} ms")
    findings.at_most("--help against import typer", ms["--help"] / ms["typer"], HELP_TIMES, " ×")
    what = "first request against import typer, httpx, jsonschema, jinja2"
    findings.at_most(what, ms["first"] / ms["libraries"], FIRST_TIMES, " ×")
