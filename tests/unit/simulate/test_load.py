"""Up to the knee everyone is served at once, beyond it latency grows and throughput doesn't."""

from __future__ import annotations

import pytest

from batchllm.simulate.load import Line, overloaded


def test_up_to_the_knee_the_latency_is_the_work_alone() -> None:
    line = Line(4)
    assert [line.enter(0.5, 1.0) for _ in range(4)] == [0.5] * 4
    assert line.highest == 0


def test_beyond_the_knee_latency_grows_and_throughput_does_not() -> None:
    line = Line(4)
    done = [line.enter(0.5, 0.0) or 0.0 for _ in range(40)]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(40 / 4 * 0.5)
    assert line.highest == 36


def test_places_that_are_free_again_are_taken_again() -> None:
    line = Line(1)
    assert line.enter(1.0, 0.0) == 1.0
    assert line.enter(1.0, 0.75) == 1.25
    assert line.enter(1.0, 5.0) == 1.0


def test_a_full_line_refuses_until_it_moves() -> None:
    line = Line(1, longest=2)
    assert [line.enter(1.0, 0.0) for _ in range(4)] == [1.0, 2.0, 3.0, None]
    assert line.enter(1.0, 1.0) == 3.0
    assert line.enter(1.0, 1.0) is None


def test_no_line_at_all_refuses_whoever_finds_no_place() -> None:
    line = Line(2, longest=0)
    assert [line.enter(1.0, 0.0) for _ in range(3)] == [1.0, 1.0, None]


def test_episodes_of_overload_come_every_so_often_and_last_so_long() -> None:
    bad = [second for second in range(70) if overloaded(30, 5, second)]
    assert bad == [30, 31, 32, 33, 34, 60, 61, 62, 63, 64]
