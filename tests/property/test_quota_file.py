"""What runs on one quota file promise together, for any sequence of asks, settlements and torn files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.model import DIMENSIONS
from batchllm.quota import SharedLimits
from tests.sharing import Admission, Clock, opened

Ask = tuple[float, int, list[float], bool]


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, float], float, int, list[Ask]]:
    """Limits, a burst, how many runs, and what they ask: after a gap, which of them, for how much, and
    whether it asks again until it is let through."""
    dimensions = draw(st.sets(st.sampled_from(DIMENSIONS), min_size=1, max_size=3))
    per_minute = {
        name: draw(st.sampled_from([6.0, 60.0, 777.0, 60_000.0, 3e6])) for name in sorted(dimensions)
    }
    burst, count = draw(st.sampled_from([0.01, 0.5, 2.0])), draw(st.integers(1, 4))
    sizes = [max(1.0, per_minute.get(name, 0.0) / 60 * burst) for name in DIMENSIONS]
    need = st.tuples(*(st.sampled_from([0.0, 0.01 * size, 0.3 * size, 1.0, size]) for size in sizes)).map(
        list
    )
    gaps = st.sampled_from([0.0, 1e-6, 0.004, 0.1, 0.49, 0.51, 1.1, 6.0])
    ask = st.tuples(gaps, st.integers(0, count - 1), need, st.booleans())
    return per_minute, burst, count, draw(st.lists(ask, min_size=1, max_size=40))


@contextmanager
def sharing(
    count: int, per_minute: dict[str, float], burst: float
) -> Iterator[tuple[Path, list[SharedLimits]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q"
        runs = [opened(path, Clock(), per_minute, burst) for _ in range(count)]
        try:
            yield path, runs
        finally:
            for run in runs:
                run.close()


def admitted(runs: list[SharedLimits], asks: list[Ask], now: float = 1000.0) -> list[Admission]:
    let = []
    for gap, run, need, patient in asks:
        now += gap
        while wait := runs[run].take(need, now):
            assert 0 < wait <= 1.0
            if not patient:
                break
            now += wait
        else:
            let.append(Admission(now, run, need))
    return let


def held(let: list[Admission], per_minute: dict[str, float], burst: float) -> None:
    """Assert that no window saw more than its rate and one burst."""
    for name, limit in per_minute.items():
        index, rate = DIMENSIONS.index(name), limit / 60
        size = max(1.0, rate * burst)
        for i, first in enumerate(let):
            total = 0.0
            for each in let[i:]:
                total += each.need[index]
                assert total <= (size + rate * (each.at - first.at)) * (1 + 1e-6) + 1e-6


@given(cases())
@settings(max_examples=120, deadline=None)
def test_no_window_of_time_admits_more_than_its_rate_and_one_burst(
    case: tuple[dict[str, float], float, int, list[Ask]],
) -> None:
    per_minute, burst, count, asks = case
    with sharing(count, per_minute, burst) as (_, runs):
        held(admitted(runs, asks), per_minute, burst)


@given(cases(), st.integers(0, 40), st.binary(min_size=4, max_size=50))
@settings(max_examples=100, deadline=None)
def test_a_file_that_is_damaged_in_the_middle_never_admits_more(
    case: tuple[dict[str, float], float, int, list[Ask]], where: int, damage: bytes
) -> None:
    per_minute, burst, count, asks = case
    half = len(asks) // 2
    with sharing(count, per_minute, burst) as (path, runs):
        before = admitted(runs, asks[:half])
        with path.open("r+b") as file:
            for slot in (4096, 4096 + 65536):  # both, so that nothing is known any more
                file.seek(slot + where)
                file.write(damage)
        after = admitted(runs, asks[half:], before[-1].at if before else 1000.0)
        held(before + after, per_minute, burst)


@given(st.integers(1, 4), st.floats(0.3, 1.0), st.floats(0.0, 1.0), st.lists(st.integers(0, 3), min_size=20))
@settings(max_examples=40, deadline=None)
def test_what_is_settled_is_what_counts_in_the_long_run(
    count: int, reserve: float, used: float, order: list[int]
) -> None:
    rate, burst = 1000.0, 0.5
    with sharing(count, {"tokens": rate * 60}, burst) as (_, runs):
        now = start = 1000.0
        total, reserved, spent = 0.0, (0.0, reserve * 100, 0.0, 0.0), (0.0, used * 200, 0.0, 0.0)
        for turn in order * 3:
            run = runs[turn % count]
            while wait := run.take(reserved, now):
                now += wait
            run.settle(reserved, spent)
            total += spent[1]
        # Corrections that are small wait until their run asks again, at most a slice's worth of each.
        assert total <= rate * (now - start) + rate * burst + spent[1] + count * 0.05 * rate + 1e-6
