"""Killed at any step and at any moment, the same command finishes the job; the short form of the sweep."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.jobs import JOBS
from tests.crash.launcher import Launcher, launcher
from tests.crash.sweep import survives


@pytest.fixture(scope="module")
def launched() -> Iterator[Launcher]:
    with launcher() as running:
        yield running


@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_is_killed_at_some_steps_ends_with_every_record_once(
    name: str, launched: Launcher, tmp_path: Path
) -> None:
    rng = random.Random(name)
    before = launched.kills
    later = rng.uniform(0.02, 0.15) if JOBS[name].passes else rng.randrange(12, 50)
    for number, kill in enumerate((rng.randrange(1, 12), later)):
        survives(launched, JOBS[name], tmp_path / str(number), kill, rng.randrange(1 << 30))
    assert launched.kills > before, "the sweep kills"
