"""The SIGKILL sweep: kills jobs until 500 of them have died, lets each go on, and compares the files.

Each job is killed once before or inside every step that it takes, from its first file to its last rename, and
at random moments from outside; whatever goes on after a kill may be killed again. `make crash` runs it all.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.crash.jobs import JOBS, Job, Lines, check, written
from tests.crash.launcher import End, Launcher, kill_after, launcher

AGAIN = 0.6
"""The chance that what goes on after a kill is killed too."""
LONGEST = 12
"""Kills of one job at most."""


def prepared(launched: Launcher, job: Job, folder: Path) -> Lines:
    """The job's input, and what comes before the command under test."""
    folder.mkdir(parents=True)
    lines = job.write(folder)
    for args in job.before:
        end = launched.run(folder, args)
        assert end.code in (0, 1), end
    return (job.change and job.change(folder)) or lines


def survives(launched: Launcher, job: Job, folder: Path, first: int | float, seed: int) -> End:
    """Run the job with a first kill, at that step or after so many seconds, until it ends; then compare.

    The end of the session that got the first kill is given back.
    """
    rng = random.Random(seed)
    lines = prepared(launched, job, folder)
    kept: set[bytes] = set()
    end = begun = _session(launched, job, folder, first, rng)
    for _ in range(LONGEST):
        if not end.killed:
            break
        if not job.passes:
            now = written(folder)
            assert kept <= now, "a line that was whole is gone"
            kept = now
        again = rng.random() < AGAIN
        end = _session(launched, job, folder, rng.randrange(1, 40) if again else 0, rng)
    if end.killed:
        end = _session(launched, job, folder, 0, rng)
    assert end.code in (0, 1), end
    assert kept <= written(folder), "a line that was whole is gone"
    check(job, folder, lines)
    _ends_alike(launched, job, folder, end)
    return begun


def _session(launched: Launcher, job: Job, folder: Path, kill: int | float, rng: random.Random) -> End:
    if isinstance(kill, float):
        return launched.run(folder, job.args, after=kill_after(kill))
    return launched.run(folder, job.args, kill_at=kill, seed=rng.randrange(1 << 30))


def _ends_alike(launched: Launcher, job: Job, folder: Path, end: End) -> None:
    """The same command once more finds nothing to do; retry's would be a new retry."""
    if job.args[0] == "run" and "--rounds" not in job.args and "--resume-by" not in job.args:
        before = written(folder)
        again = launched.run(folder, job.args)
        assert again.code == end.code
        assert written(folder) == before


def every_step(launched: Launcher, job: Job, folder: Path, seed: int, stride: int = 1) -> Iterator[int]:
    """Kill the job at each of its steps in turn; the steps at which it died."""
    step = 1 + seed % stride
    while True:
        place = folder / f"{job.name}-step{step}"
        begun = survives(launched, job, place, step, seed + step)
        shutil.rmtree(place)
        if not begun.killed:
            return
        yield step
        step += stride


def random_moments(launched: Launcher, job: Job, folder: Path, seed: int, count: int) -> None:
    """Kill the job so often at random moments of its time, from outside."""
    rng = random.Random(seed)
    for number in range(count):
        place = folder / f"{job.name}-moment{number}"
        survives(launched, job, place, rng.uniform(0.01, 0.35), rng.randrange(1 << 30))
        shutil.rmtree(place)


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="kill jobs and compare their files with the input")
    parser.add_argument("jobs", nargs="*", help=", ".join(JOBS))
    parser.add_argument("--kills", type=int, default=500, help="how many at least")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--step", type=int, help="only this step of the jobs named")
    given = parser.parse_args()
    jobs = [JOBS[name] for name in given.jobs] or list(JOBS.values())
    folder = Path(tempfile.mkdtemp(prefix="batchllm-crash-"))
    print(f"seed {given.seed}, files in {folder}")
    with launcher() as launched:
        if given.step:
            for job in jobs:
                survives(launched, job, folder / job.name, given.step, given.seed + given.step)
            return
        rounds = 0
        while rounds == 0 or launched.kills < given.kills:
            for job in jobs:
                before, began = launched.kills, time.monotonic()
                steps = list(every_step(launched, job, folder, given.seed + 1000 * rounds))
                random_moments(launched, job, folder, given.seed + rounds, 10)
                took = time.monotonic() - began
                print(f"{job.name:14} {len(steps):4} steps {launched.kills - before:5} kills {took:6.1f} s")
                sys.stdout.flush()
            rounds += 1
        print(f"{launched.kills} kills; every record once, every line whole, nothing left behind")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
