"""The phases that run whole jobs: hot, wide, sweep, tls and memory; each prints its figures and limits.

Tools take turns within a round, so that the machine's changes of speed meet all of them; figures are medians
over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median

from tests.perf.findings import Findings
from tests.perf.serving import serving
from tests.perf.tools import BATCHLLM, LIMIT, PEERS, SDK, Bench, Net

MOST_US, MOST_MB, MOST_WIDE_MB = 80.0, 80.0, 130.0
SDK_TIMES, PEER_TIMES = 40.0, 8.0
WIDE_SHARE, SWEEP_TIMES = 0.85, 5.0
TLS_CPU_TIMES, TLS_MEMORY_TIMES = 1.5, 1.4
WIDE_LATENCY_MS = 100
IDEAL_WIDE = 10_000.0
"""Records/s of 1,000 in flight on an endpoint that answers after 100 ms."""


@dataclass(frozen=True)
class Plan:
    """How much is run: rounds, seconds a run, and the records of the long run of `memory`."""

    rounds: int = 5
    seconds: float = 3.0
    many: int = 1_000_000


Runs = dict[str, list[Net]]


def rate(runs: Iterable[Net]) -> float:
    """Records a second, the median."""
    return median(run.rate for run in runs)


def cpu_us(runs: Iterable[Net]) -> float:
    """Scaled microseconds of CPU a record, the median."""
    return median(run.cpu_us for run in runs)


def peak_mb(runs: Iterable[Net]) -> float:
    """Peak memory, the median."""
    return median(run.many.peak_mb for run in runs)


def by_turns(rounds: int, runs: dict[str, Callable[[], Net]]) -> Runs:
    """Every run once a round."""
    found: Runs = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return found


def table(found: Runs, findings: Findings) -> None:
    """One line a tool."""
    findings.say(f"{'':20}{'records':>9}{'records/s':>11}{'CPU µs/record':>15}{'peak MB':>9}{'start s':>9}")
    for name, runs in found.items():
        start = median(run.one.wall_s for run in runs)
        findings.say(
            f"{name:20}{runs[0].count:>9,}{rate(runs):>11,.0f}{cpu_us(runs):>15,.1f}"
            f"{peak_mb(runs):>9.1f}{start:>9.2f}"
        )


def hot(bench: Bench, plan: Plan, findings: Findings) -> None:
    """200 in flight, an endpoint that answers at once, everything on, beside the yardsticks."""
    findings.title("hot: 200 in flight, immediate endpoint, schema, retries, gate, ledger, progress")
    with serving() as url:
        runs: dict[str, Callable[[], Net]] = {}
        for tool in (BATCHLLM, LIMIT, *PEERS):
            if not tool.installed:
                findings.say(f"{tool.name}: not installed, left out")
                continue
            count = bench.enough(tool, url, 200, plan.seconds)
            runs[tool.name] = partial(bench.net, tool, count, url, 200)
        found = by_turns(plan.rounds, runs)
    table(found, findings)
    ours = found[BATCHLLM.name]
    for name, theirs in found.items():
        if name != BATCHLLM.name:
            times, share = rate(ours) / rate(theirs), cpu_us(theirs) / cpu_us(ours)
            findings.say(f"against {name}: {times:.2f} × the records/s, 1/{share:.2f} of the CPU")
    findings.at_most("CPU a record", cpu_us(ours), MOST_US, " µs")
    findings.at_most("peak memory at 200 in flight", peak_mb(ours), MOST_MB, " MB")
    peers = {tool.name: rate(found[tool.name]) for tool in PEERS if tool.name in found}
    if SDK.name in peers:
        findings.at_least("records/s against the openai SDK", rate(ours) / peers[SDK.name], SDK_TIMES, " ×")
    if peers:
        name = max(peers, key=lambda name: peers[name])
        what = f"records/s against the fastest peer here ({name})"
        findings.at_least(what, rate(ours) / peers[name], PEER_TIMES, " ×")


def wide(bench: Bench, plan: Plan, findings: Findings) -> None:
    """1,000 in flight on a slow endpoint: the share of what the endpoint would allow."""
    findings.title(f"wide: 1,000 in flight, {WIDE_LATENCY_MS} ms endpoint")
    count = round(IDEAL_WIDE * plan.seconds)
    latency_s = WIDE_LATENCY_MS / 1000
    with serving("--latency-ms", str(WIDE_LATENCY_MS)) as url:
        runs: dict[str, Callable[[], Net]] = {
            tool.name: partial(bench.net, tool, count, url, 1000, latency_s=latency_s)
            for tool in (BATCHLLM, LIMIT)
        }
        found = by_turns(plan.rounds, runs)
    table(found, findings)
    findings.at_least(
        "share of the ideal 10,000 records/s", rate(found[BATCHLLM.name]) / IDEAL_WIDE, WIDE_SHARE
    )


def sweep(bench: Bench, plan: Plan, findings: Findings) -> None:
    """More in flight is faster: `-c` from 1 to 1,000 on a slow endpoint."""
    findings.title(f"sweep: -c 1 to 1,000, {WIDE_LATENCY_MS} ms endpoint")
    latency_s = WIDE_LATENCY_MS / 1000

    def net(count: int, concurrency: int) -> Net:
        return bench.net(BATCHLLM, count, url, concurrency, latency_s=latency_s)

    with serving("--latency-ms", str(WIDE_LATENCY_MS)) as url:
        for concurrency in (1, 10, 50, 100, 200, 500, 1000):
            count = max(20, round(concurrency * plan.seconds / latency_s))
            run = net(count, concurrency)
            ideal = concurrency / latency_s
            findings.say(
                f"-c {concurrency:<5} {count:>7,} records {run.rate:>9,.1f} records/s, "
                f"{run.rate / ideal:>4.0%} of the ideal {ideal:,.0f}"
            )
        found = by_turns(plan.rounds, {"1": lambda: net(20, 1), "10": lambda: net(20, 10)})
    faster = rate(found["10"]) / rate(found["1"])
    findings.at_least("20 records at -c 10 against -c 1", faster, SWEEP_TIMES, " ×")


def tls(bench: Bench, plan: Plan, findings: Findings, files: tuple[str, str]) -> None:
    """What TLS adds at 200 in flight."""
    findings.title("tls: 200 in flight, immediate endpoint, plain and TLS")
    with serving() as plain, serving("--tls", *files) as secure:
        count = bench.enough(BATCHLLM, plain, 200, plan.seconds)
        found = by_turns(
            plan.rounds,
            {
                "plain": lambda: bench.net(BATCHLLM, count, plain, 200),
                "TLS": lambda: bench.net(BATCHLLM, count, secure, 200, certificate=files[0]),
            },
        )
    table(found, findings)
    findings.at_most("CPU over TLS", cpu_us(found["TLS"]) / cpu_us(found["plain"]), TLS_CPU_TIMES, " ×")
    findings.at_most(
        "memory over TLS", peak_mb(found["TLS"]) / peak_mb(found["plain"]), TLS_MEMORY_TIMES, " ×"
    )


def memory(bench: Bench, plan: Plan, findings: Findings, files: tuple[str, str]) -> None:
    """Peak memory of short and long runs; the endpoint waits, so that all of them really are in flight."""
    findings.title(f"memory: 200 and 2,000 in flight, 10,000 and {plan.many:,} records, plain and TLS")
    for concurrency, latency_ms, limit in ((200, "20", MOST_MB), (2000, "100", MOST_WIDE_MB)):
        with (
            serving("--latency-ms", latency_ms) as plain,
            serving("--latency-ms", latency_ms, "--tls", *files) as secure,
        ):
            for count in (10_000, plan.many):
                rounds = plan.rounds if count < plan.many else 1
                what = f"at {concurrency:,} in flight, {count:,} records"
                peaks: dict[str, list[float]] = {"plain": [], "TLS": []}
                for _ in range(rounds):
                    peaks["plain"].append(bench.run(BATCHLLM, count, plain, concurrency).peak_mb)
                    peaks["TLS"].append(bench.run(BATCHLLM, count, secure, concurrency, files[0]).peak_mb)
                mb, tls_mb = median(peaks["plain"]), median(peaks["TLS"])
                findings.at_most(f"peak memory {what}", mb, limit, " MB")
                times = f"{tls_mb / mb:.2f} × plain"
                findings.at_most(f"over TLS ({times}) {what}", tls_mb, TLS_MEMORY_TIMES * limit, " MB")
