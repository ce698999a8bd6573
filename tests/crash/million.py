"""A long job killed at random: a million records against the rehearsal server, 20 SIGKILLs, then compared.

Run by `make crash-million`; every process is the command line as people start it. Input and files are read
side by side, so the comparison needs no memory. The server's own counts say how many calls were made twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchllm.ledger.index import SIZE
from tests.running import command, environment
from tests.serving import Simulated, simulated

BAD_EVERY = 997
"""Each so many lines one is no JSON, and a dead letter without a call."""
LINGER_S = 0.05
"""How long a reply may wait for others before it is written."""
OUT, DEAD, RUN = "out.jsonl", "out.dead.jsonl", "out.jsonl.run"


@dataclass(frozen=True)
class Session:
    """One process: its exit code, seconds, what it settled, its peak memory in MiB and CPU seconds.

    `asking` are the seconds from the first record that it settled on.
    """

    code: int
    seconds: float
    asking: float
    settled: int
    memory: float
    cpu: float

    @property
    def may_repeat(self) -> float:
        """Records that its kill may have cost, beside those in flight: what came in the last 50 ms."""
        return LINGER_S * self.settled / max(self.asking, LINGER_S)


def write_input(path: Path, count: int) -> int:
    """So many records; how many are to be asked."""
    with path.open("w") as file:
        for n in range(count):
            file.write(
                "no json\n" if n % BAD_EVERY == 7 else f'{{"id":"r{n}","text":"record {n} of many"}}\n'
            )
    return count - len(range(7, count, BAD_EVERY))


def session(folder: Path, args: tuple[str, ...], kill_at: int | None, wait: float) -> Session:
    """Run the command; SIGKILL `wait` seconds after so many records are settled, as the index tells.

    The wait is there since the index grows at the beginning of a commit, and any moment is to be hit.
    """
    index, before = folder / RUN / "index", entries(folder)
    began = first = time.monotonic()
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            command(*args), cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stderr=errors
        )
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        size = index.stat().st_size if index.exists() else 0
        if size <= before * SIZE:
            first = time.monotonic()
        if kill_at is not None and size >= kill_at * SIZE:
            time.sleep(wait)
            os.kill(process.pid, signal.SIGKILL)
            kill_at = None
        time.sleep(0.002)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, asking = time.monotonic() - began, time.monotonic() - first
    cpu = used.ru_utime + used.ru_stime
    return Session(process.returncode, seconds, asking, entries(folder) - before, used.ru_maxrss / 1024, cpu)


def entries(folder: Path) -> int:
    """Records that the index holds."""
    index = folder / RUN / "index"
    return index.stat().st_size // SIZE if index.exists() else 0


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, one by one, each of which must be whole."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                assert line.endswith(b"\n"), path
                yield json.loads(line)


def compare(folder: Path, count: int) -> tuple[int, int]:
    """Input against output and dead letters, side by side: each record once, in order; how many of each."""
    output, dead = lines(folder / OUT), lines(folder / DEAD)
    told, letters = next(output, None), next(dead, None)
    found = [0, 0]
    for n in range(count):
        if n % BAD_EVERY == 7:
            assert letters is not None, f"record {n} is missing"
            assert [letters["seq"], letters["raw_line"]] == [n, "no json"], letters
            letters = next(dead, None)
            found[1] += 1
        else:
            assert told is not None, f"record {n} is missing"
            assert [told["seq"], told["id"]] == [n, f"r{n}"], (n, told)
            assert f"record {n} of many" in told["output"], told
            told = next(output, None)
            found[0] += 1
    assert told is None, told
    assert letters is None, letters
    return found[0], found[1]


def settled_down(server: Simulated) -> dict[str, Any]:
    """The server's counts once nothing is in flight there."""
    while (stats := server.stats())["in_flight"]:
        time.sleep(0.05)
    return stats


@contextlib.contextmanager
def endpoint(fake: bool) -> Iterator[tuple[Simulated | None, tuple[str, ...]]]:
    """The server and the options that name it; with `fake` answers come from inside the process."""
    if fake:
        yield None, ("-m", "fake/echo")
    else:
        with simulated() as server:
            yield server, ("-m", "openai/any", "--base-url", server.url)


def main() -> None:
    """Kill, compare, print the figures."""
    parser = argparse.ArgumentParser(description="kill a long job at random and compare its files")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--fake", action="store_true", help="answers from inside the process: quick")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="batchllm-million-"))
    asked = write_input(folder / "in.jsonl", given.records)
    rng = random.Random(given.seed)
    kills = sorted(rng.randrange(1, given.records) for _ in range(given.kills))
    print(f"seed {given.seed}, {given.records:,} records, {given.kills} kills, files in {folder}")
    sessions: list[Session] = []
    with endpoint(given.fake) as (server, model):
        args = ("in.jsonl", *model, "-o", OUT, "-c", str(given.concurrency), "-q")
        for kill_at in [*kills, None]:
            ended = session(folder, args, kill_at, rng.uniform(0, 0.1))
            sessions.append(ended)
            print(
                f"exit {ended.code:3}  {ended.settled:9,} settled in {ended.seconds:6.1f} s  "
                f"{entries(folder):9,} in all  {ended.memory:5.0f} MiB  {ended.cpu:6.1f} s of CPU",
                flush=True,
            )
            assert ended.code in (0, 1, -signal.SIGKILL), (folder / "stderr").read_text()
        assert sessions[-1].code == 1
        output, dead = compare(folder, given.records)
        print(f"{output:,} lines and {dead:,} dead letters: every record once, whole, in order")
        if server is not None:
            stats = settled_down(server)
            died = [each for each in sessions if each.code < 0]
            allowed = sum(given.concurrency + each.may_repeat for each in died)
            repeated = stats["requests"] - asked
            print(f"{stats['requests']:,} calls for {asked:,} records: {repeated:,} repeated", end="; ")
            print(f"allowed are {allowed:,.0f} in {len(died)} kills")
            assert repeated <= allowed
        print(f"highest memory {max(each.memory for each in sessions):.0f} MiB")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
