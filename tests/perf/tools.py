"""What is compared: batchllm with every feature on, and the yardsticks, each run as a whole process.

A tool's figures a record are those of a run of many records less those of a run of one, so that start-up is
off. Every run's output is counted: a tool that leaves a record out has no figure.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.perf.process import Failed, Spent, spend
from tests.perf.workload import PROMPT, SCHEMA, write_input

YARDSTICKS = Path(__file__).parent / "yardsticks"
FAR_RPM = 10_000_000
"""Requests a minute that are never reached, so that the gate counts every request and holds none."""


@dataclass(frozen=True)
class Tool:
    """A tool by name; `script` is a yardstick's file, `needs` the module without which it can't run."""

    name: str
    script: str | None = None
    needs: str | None = None

    @property
    def installed(self) -> bool:
        """Whether it can run here."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None

    def command(self, url: str, concurrency: int) -> list[str]:
        """The command line, to be run in a bench's folder."""
        if self.script:
            return [
                sys.executable,
                str(YARDSTICKS / self.script),
                "in.jsonl",
                "out.jsonl",
                url,
                str(concurrency),
            ]
        asked = ["--base-url", url, "-m", "openai/bench", "--schema", "schema.json", "-p", PROMPT]
        shown = ["--progress", "log", "--progress-interval", "1"]
        limits = ["-c", str(concurrency), "--rpm", str(FAR_RPM), "--max-retries", "3"]
        return [
            sys.executable,
            "-m",
            "batchllm",
            "run",
            "in.jsonl",
            "-o",
            "out.jsonl",
            *asked,
            *shown,
            *limits,
        ]


BATCHLLM = Tool("batchllm")
LIMIT = Tool("limit (bare loop)", "limit.py")
SDK = Tool("openai SDK", "openai_sdk.py", "openai")
COOKBOOK = Tool("cookbook's way", "cookbook.py", "aiohttp")
FLEXLLM = Tool("flexllm", "flexllm_batch.py", "flexllm")
PEERS = (SDK, COOKBOOK, FLEXLLM)


@dataclass(frozen=True)
class Net:
    """A run of `count` records and one of a single record, of one tool, one after the other."""

    count: int
    one: Spent
    many: Spent
    latency_s: float = 0.0
    """What the endpoint waits before it answers; it is part of the run of one, not of its start-up."""

    @property
    def seconds(self) -> float:
        """Wall clock without start-up."""
        return max(self.many.wall_s - self.one.wall_s + self.latency_s, 1e-3)

    @property
    def rate(self) -> float:
        """Records a second."""
        return (self.count if self.latency_s else self.count - 1) / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU a record at the reference speed."""
        return (self.many.scaled_s - self.one.scaled_s) * 1e6 / (self.count - 1)


class Bench:
    """A folder in which tools run; each run starts with nothing but its input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, tool: Tool, count: int, url: str, concurrency: int, certificate: str | None = None
    ) -> Spent:
        """`tool` over so many records. Raises `Failed` unless each has its line."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "schema.json").write_text(json.dumps(SCHEMA))
        write_input(self.folder / "in.jsonl", count)
        more = {"SSL_CERT_FILE": certificate} if certificate else None
        spent = spend(tool.command(url, concurrency), self.folder, more)
        with (self.folder / "out.jsonl").open("rb") as lines:
            found = sum(1 for _ in lines)
        if found != count:
            raise Failed(f"{tool.name}: {found} lines for {count} records")
        return spent

    def net(
        self,
        tool: Tool,
        count: int,
        url: str,
        concurrency: int,
        *,
        latency_s: float = 0.0,
        certificate: str | None = None,
    ) -> Net:
        """`tool` with start-up off."""
        one = self.run(tool, 1, url, concurrency, certificate)
        return Net(count, one, self.run(tool, count, url, concurrency, certificate), latency_s)

    def enough(self, tool: Tool, url: str, concurrency: int, seconds: float) -> int:
        """How many records keep `tool` busy for about so many seconds, by trying with more and more."""
        count = 500
        one = self.run(tool, 1, url, concurrency)
        while True:
            net = Net(count, one, self.run(tool, count, url, concurrency))
            if net.seconds >= seconds / 4:
                return max(500, round(net.rate * seconds))
            count *= 4


@contextmanager
def bench() -> Iterator[Bench]:
    """A Bench in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="batchllm-bench-") as folder:
        yield Bench(Path(folder))
