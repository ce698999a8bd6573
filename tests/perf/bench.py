"""The benchmarks: `python -m tests.perf.bench [--quick] [--rounds N] [NAME…]`, or `make bench`.

Prints each phase's figures and whether its limits hold; ends with 1 when one doesn't, and with 2 when a tool
failed. docs/performance.md says what the figures are.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.perf import costs
from tests.perf.calibrate import REFERENCE_S, calibrate
from tests.perf.findings import Findings
from tests.perf.phases import Plan, hot, memory, sweep, tls, wide
from tests.perf.process import Failed
from tests.perf.serving import serving
from tests.perf.startup import startup
from tests.perf.tools import Bench, bench
from tests.perf.workload import certificate

QUICK = Plan(rounds=1, seconds=1.0, many=100_000)


def in_process(findings: Findings) -> None:
    """The table of what the pieces of a record's way cost."""
    findings.title("costs: a record, in one process, CPU at the reference speed")
    with serving() as url:
        for name, us in costs.table(url):
            findings.say(f"{name:20} {us:7.2f} µs")


def phases(
    place: Bench, plan: Plan, findings: Findings, files: tuple[str, str]
) -> dict[str, Callable[[], None]]:
    """Every phase by name, in the order in which they run."""
    return {
        "startup": lambda: startup(place, findings),
        "hot": lambda: hot(place, plan, findings),
        "wide": lambda: wide(place, plan, findings),
        "sweep": lambda: sweep(place, plan, findings),
        "tls": lambda: tls(place, plan, findings, files),
        "costs": lambda: in_process(findings),
        "memory": lambda: memory(place, plan, findings, files),
    }


def main() -> int:
    """Run the phases that are asked for."""
    parser = argparse.ArgumentParser(description="what a record costs, and whether the limits hold")
    parser.add_argument("--quick", action="store_true", help="one round of short runs: a look, no verdict")
    parser.add_argument(
        "--rounds", type=int, help="rounds of which the median counts (default 5; 1 if quick)"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="phases (default: all)")
    given = parser.parse_args()
    plan = QUICK if given.quick else Plan()
    if given.rounds:
        plan = Plan(given.rounds, plan.seconds, plan.many)
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="batchllm-tls-") as folder, bench() as place:
        known = phases(place, plan, findings, certificate(Path(folder)))
        wrong = [name for name in given.names if name not in known]
        if wrong:
            parser.error(f"no phase {wrong[0]}; there are {', '.join(known)}")
        print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
        quick = "there" if importlib.util.find_spec("jsonschema_rs") else "not installed"
        print(f"jsonschema-rs, the optional check before jsonschema: {quick}")
        print(f"speed now {REFERENCE_S / calibrate():.2f} × the reference; {plan.rounds} rounds")
        try:
            for name in given.names or known:
                known[name]()
        except Failed as error:
            print(f"\nerror: {error}", file=sys.stderr)
            return 2
    print()
    print("\n".join(f"FAILED {line}" for line in findings.failed) or "every limit holds")
    return 1 if findings.failed else 0


if __name__ == "__main__":
    sys.exit(main())
