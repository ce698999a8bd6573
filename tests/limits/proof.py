"""Long proofs that limits are used to the full and never broken, over real processes and real sockets.

    python -m tests.limits.proof [WORD…] [--seconds 180]

runs the cases whose names hold a word, some side by side, and prints each figure with its limit; exit code 1
where one doesn't hold. The rehearsal server counts; nothing that batchllm says of itself is believed. With
LLMOCK set to the command of llmock, a server that is not ours, the first case runs against it too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.running import command, environment
from tests.serving import Simulated, simulated

SETTLED_S = 30
RPM, TPM = 600, 20_000


@dataclass
class Findings:
    """What was seen, line by line, and whether all of it held."""

    name: str
    lines: list[str] = field(default_factory=list)
    held: bool = True

    def at_least(self, what: str, seen: float, limit: float) -> None:
        self._judge(what, seen, "≥", limit, seen >= limit)

    def at_most(self, what: str, seen: float, limit: float) -> None:
        self._judge(what, seen, "≤", limit, seen <= limit)

    def _judge(self, what: str, seen: float, sign: str, limit: float, held: bool) -> None:
        self.held &= held
        self.lines.append(
            f"   {'holds ' if held else 'FAILED'} {what}: {seen:,.4g}, limit {sign} {limit:,.4g}"
        )


def texts(folder: Path, count: int, size: Callable[[random.Random], int]) -> Path:
    """So many records with a text of `size` characters each."""
    draw = random.Random(11)
    path = folder / "in.jsonl"
    with path.open("w") as file:
        for n in range(count):
            file.write(json.dumps({"id": n, "text": f"{n} ".ljust(size(draw), "x")}) + "\n")
    return path


@contextmanager
def running(folder: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """`batchllm run` in `folder`, killed at the end of the block."""
    with (
        (folder / "err").open("wb") as errors,
        subprocess.Popen(
            command(*args), cwd=folder, env=environment(folder), stderr=errors, stdin=subprocess.DEVNULL
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def watched(server: Simulated, folder: Path, seconds: float, *args: str) -> list[dict[str, float]]:
    """Run for so long, and the server's count of each whole second of it."""
    with running(folder, "in.jsonl", "-m", "openai/any", "--base-url", server.url, "-o", "o.jsonl", *args):
        while not server.stats()["admitted"]:
            time.sleep(0.05)
        time.sleep(seconds)
        counted: list[dict[str, float]] = server.stats(seconds=True)["seconds"]
    return [entry for entry in _from_the_first(counted) if entry["second"] < seconds]


def _from_the_first(counted: list[dict[str, float]]) -> list[dict[str, float]]:
    first = counted[0]["second"]
    return [entry | {"second": entry["second"] - first} for entry in counted]


def used(counted: list[dict[str, float]], unit: str, rate: float, since: int, seconds: float) -> float:
    """The share of a rate a second that was used from `since` on."""
    return sum(entry[unit] for entry in counted if entry["second"] >= since) / (rate * (seconds - since))


def refused(counted: list[dict[str, float]]) -> float:
    """The share of the requests that were refused."""
    all_refused = sum(entry["refused"] for entry in counted)
    return all_refused / (all_refused + sum(entry["admitted"] for entry in counted))


def told(found: Findings, seconds: float) -> None:
    """A limit in requests that the run is told."""
    with tempfile.TemporaryDirectory() as name, simulated("--rpm", str(RPM), "--latency-ms", "100") as server:
        texts(Path(name), 20 * int(seconds), lambda draw: 40)
        counted = watched(server, Path(name), seconds, "--rpm", str(RPM))
    found.at_least("share of 600 a minute used", used(counted, "admitted", RPM / 60, 0, seconds), 0.97)
    found.at_most("refusals", sum(entry["refused"] for entry in counted), 0)


def untold(found: Findings, seconds: float, *server_args: str, concurrency: str = "20") -> None:
    """The same limit, which the run has to find."""
    with (
        tempfile.TemporaryDirectory() as name,
        simulated("--rpm", str(RPM), "--latency-ms", "100", *server_args) as server,
    ):
        texts(Path(name), 20 * int(seconds), lambda draw: 40)
        counted = watched(server, Path(name), seconds, "-c", concurrency)
    share = used(counted, "admitted", RPM / 60, SETTLED_S, seconds)
    found.at_least("share of 600 a minute used after 30 s", share, 0.90)
    found.at_most("share refused", refused(counted), 0.01)


def tokens(found: Findings, seconds: float, *server_args: str, tell: bool) -> None:
    """A limit in tokens, with records from 20 to 4,000 characters: 10 to 2,000 tokens with their answers."""
    sizes = (20, 100, 200, 800, 2000, 4000)
    with (
        tempfile.TemporaryDirectory() as name,
        simulated("--tpm", str(TPM), "--latency-ms", "100", *server_args) as server,
    ):
        texts(Path(name), 10 * int(seconds), lambda draw: draw.choice(sizes))
        counted = watched(server, Path(name), seconds, *(("--tpm", str(TPM)) if tell else ()))
    since = 0 if tell else SETTLED_S
    share = used(counted, "tokens", TPM / 60, since, seconds)
    found.at_least("share of 20,000 tokens a minute used", share, 0.97 if tell else 0.90)
    if tell:
        found.at_most("refusals", sum(entry["refused"] for entry in counted), 0)
    else:
        found.at_most("share refused", refused(counted), 0.01)


def shared(found: Findings, seconds: float) -> None:
    """Four processes on one quota file."""
    args = ("-m", "openai/any", "--rpm", str(RPM), "--quota-file", "../quota")
    with tempfile.TemporaryDirectory() as name, simulated("--latency-ms", "50") as server:
        folders = [Path(name) / f"run{n}" for n in range(4)]
        for folder in folders:
            folder.mkdir()
            texts(folder, 20 * int(seconds), lambda draw: 40)

        def go(folder: Path) -> None:
            with running(folder, "in.jsonl", "--base-url", server.url, "-o", "o.jsonl", *args) as process:
                while not server.stats()["admitted"]:
                    time.sleep(0.05)
                time.sleep(seconds)
                assert process.poll() is None, (folder / "err").read_text()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(go, folders))
        stats = server.stats(seconds=True)
        each = [sum(1 for _ in (folder / "o.jsonl").open()) for folder in folders]
    most = stats["highest_admitted"]["10"]["requests"]
    counted = _from_the_first(stats["seconds"])
    found.at_most("most in any 10 seconds", most, RPM / 6 + RPM / 60)
    found.at_least(
        "share of the limit used",
        used([e for e in counted if e["second"] < seconds], "admitted", RPM / 60, 0, seconds),
        0.93,
    )
    found.at_least("smallest part of one process", min(each) / sum(each), 0.15)


def spent(found: Findings, seconds: float) -> None:
    """The quota is spent halfway, and renewed."""
    with tempfile.TemporaryDirectory() as name, simulated("--quota", "500", "--latency-ms", "50") as server:
        folder = Path(name)
        texts(folder, 1000, lambda draw: 40)
        args = ("in.jsonl", "-m", "openai/any", "--base-url", server.url, "-o", "o.jsonl", "-c", "20")
        with running(folder, *args) as process:
            code = process.wait()
        counts = server.stats()
        found.at_most("|exit code − 3|", abs(code - 3), 0)
        found.at_most("refused requests, 20 in flight", counts["requests"] - counts["ok"], 20)
        found.at_most("dead letters", (folder / "o.dead.jsonl").exists(), 0)
        server.renew(None)
        with running(folder, *args) as process:
            code = process.wait()
        lines = [json.loads(line)["id"] for line in (folder / "o.jsonl").open()]
    found.at_most("exit code of the same command", code, 0)
    found.at_most("records that are not there once, in order", lines != list(range(1000)), 0)


def auto(found: Findings, seconds: float, knee: int | None = 64) -> None:
    """`-c auto` on a server with a knee, beside the fixed settings; without one it reaches the ceiling."""
    latency = ("--knee", str(knee), "--latency-ms", "200") if knee else ("--latency-ms", "1000")
    args = (*latency, "--jitter", "0.1")
    with tempfile.TemporaryDirectory() as name, simulated(*args) as server:
        folder = Path(name)
        texts(folder, (400 if knee else 3000) * int(seconds + 30), lambda draw: 40)
        best: tuple[float, float] | None = None
        fixed = (56, 64, 72, 80) if knee else ()
        for concurrency in fixed:
            rate, p95, _ = _settings(server, folder, 15.0, str(concurrency))
            found.lines.append(f"          -c {concurrency}: {rate:,.0f} records/s, p95 {p95 * 1000:,.0f} ms")
            if best is None or rate > 1.02 * best[0]:
                best = (rate, p95)
        rate, p95, windows = _settings(server, folder, seconds, "auto")
    found.lines.append(
        f"          -c auto: {rate:,.0f} records/s, p95 {p95 * 1000:,.0f} ms, windows {windows}"
    )
    if best is None:
        found.at_least("window reached", max(windows), 512)
        return
    found.at_least("smallest window after 20 s", min(windows), 48)
    found.at_most("largest window after 20 s", max(windows), 96)
    found.at_least("throughput against the best fixed setting", rate / best[0], 0.95)
    found.at_most("p95 latency against it", p95 / best[1], 1.5)


def _settings(
    server: Simulated, folder: Path, seconds: float, concurrency: str
) -> tuple[float, float, list[int]]:
    """Records/s and p95 latency after 20 s (5 s for a fixed setting), and the windows seen from then on."""
    settle = 20.0 if concurrency == "auto" else 5.0
    output = folder / f"o{concurrency}.jsonl"
    args = ("in.jsonl", "-m", "openai/any", "--base-url", server.url, "-o", output.name, "-c", concurrency)
    windows = []
    with running(folder, *args, "--durability", "none"):
        while not output.exists() or not output.stat().st_size:
            time.sleep(0.05)
        began = time.time()
        while (now := time.time() - began) < settle + seconds:
            time.sleep(0.5)
            if concurrency == "auto" and now >= settle:
                windows.append(_window(folder, output.name))
        ended = time.time()
    lines = output.read_bytes().split(b"\n")[:-1]
    rows = [row for row in map(json.loads, lines) if began + settle <= _at(row["finished_at"]) < ended]
    latencies = sorted(row["latency_s"] for row in rows)
    return len(rows) / (ended - began - settle), latencies[int(0.95 * len(latencies))], windows


def _window(folder: Path, output: str) -> int:
    """The window of a running run, as ctl tells it."""
    asked = subprocess.run(
        command(output, "status", "--json", verb="ctl"),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        check=True,
    )
    return int(json.loads(asked.stdout)["concurrency"])


def _at(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def llmock(found: Findings, seconds: float) -> None:
    """The first case against a server that is not ours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = ["serve", "--host", "127.0.0.1", "--port", str(port), "--latency-ms", "100", "--rpm", str(RPM)]
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(
            [*shlex.split(os.environ["LLMOCK"]), *serve], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server,
    ):
        folder, url = Path(name), f"http://127.0.0.1:{port}/v1"
        texts(folder, 20 * int(seconds), lambda draw: 40)
        try:
            _until_it_answers(url)
            args = ("in.jsonl", "-m", "openai/gpt-4o-mini", "--base-url", url, "-o", "o.jsonl", "-vv")
            with running(folder, *args, "--rpm", str(RPM), "--progress", "none") as process:
                time.sleep(seconds)
                process.terminate()
                process.wait()
        finally:
            server.terminate()
        events = [json.loads(line) for line in (folder / "err").open() if line.startswith("{")]
    attempts = [event for event in events if event.get("event") == "attempt"]
    answered = sum(1 for event in attempts if event.get("status") == 200)
    found.at_least("share of 600 a minute used", answered / (RPM / 60 * (seconds - 1)), 0.97)
    found.at_most("refusals", sum(1 for event in attempts if event.get("status") == 429), 0)


def _until_it_answers(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{url}/models", timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"nothing answers at {url}")


TOGETHER: dict[str, Callable[[Findings, float], None]] = {
    "told": told,
    "untold": untold,
    "untold, no headers": lambda found, s: untold(found, s, "--headers", "none"),
    "untold, no headers, -c 100": lambda found, s: untold(found, s, "--headers", "none", concurrency="100"),
    "tokens told": lambda found, s: tokens(found, s, tell=True),
    "tokens untold": lambda found, s: tokens(found, s, tell=False),
    "tokens untold, in words": lambda found, s: tokens(found, s, "--headers", "none", tell=False),
    "shared by four processes": shared,
}
"""Cases that need little of the machine."""
ALONE: dict[str, Callable[[Findings, float], None]] = {
    "quota spent": spent,
    "auto, knee at 64": lambda found, s: auto(found, s / 3),
    "auto, no knee": lambda found, s: auto(found, s / 9, None),
}


def main() -> int:
    """The exit code: 0 where everything held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--seconds", type=float, default=180.0)
    args = parser.parse_args()
    together, alone = dict(TOGETHER), dict(ALONE)
    if os.environ.get("LLMOCK"):
        together["told, llmock"] = llmock
    held = True

    def one(item: tuple[str, Callable[[Findings, float], None]]) -> bool:
        found = Findings(item[0])
        item[1](found, args.seconds)
        print("\n".join([item[0], *found.lines]), flush=True)
        return found.held

    wanted = [
        {name: case for name, case in cases.items() if not args.words or any(w in name for w in args.words)}
        for cases in (together, alone)
    ]
    with ThreadPoolExecutor(5) as pool:
        held &= all(list(pool.map(one, wanted[0].items())))
    for item in wanted[1].items():
        held &= one(item)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
