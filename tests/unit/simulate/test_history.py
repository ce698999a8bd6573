"""What was admitted when: the densest spans are exact, and no more than ten minutes are kept."""

from __future__ import annotations

from batchllm.simulate.history import KEPT_S, History


def test_the_densest_span_is_found_wherever_it_begins() -> None:
    history = History(100.0)
    for now in (100.0, 109.5, 109.7, 109.9, 115.0, 119.4, 119.6):
        history.admit(10, now)
    highest = history.as_json()["highest_admitted"]
    assert highest["1"] == {"requests": 3, "tokens": 30}
    assert highest["10"] == {"requests": 5, "tokens": 50}
    assert highest["60"] == {"requests": 7, "tokens": 70}


def test_refusals_are_counted_by_reason_and_never_as_admitted() -> None:
    history = History(0.0)
    history.admit(7, 0.1)
    for reason in ("requests", "quota", "requests"):
        history.refuse(reason, 0.2)
    found = history.as_json()
    assert (found["admitted"], found["tokens_admitted"], found["refused"]) == (1, 7, 3)
    assert found["refusals"] == {"quota": 1, "requests": 2}


def test_seconds_tell_what_came_in_each_and_are_forgotten_after_ten_minutes() -> None:
    history = History(50.0)
    for second in range(2 * KEPT_S):
        history.admit(3, 50.5 + second)
    history.refuse("tokens", 50.9 + 2 * KEPT_S - 1)
    seconds = history.seconds(50.9 + 2 * KEPT_S - 1)
    assert len(seconds) == KEPT_S
    assert seconds[0] == {"second": KEPT_S, "admitted": 1, "refused": 0, "tokens": 3}
    assert seconds[-1] == {"second": 2 * KEPT_S - 1, "admitted": 1, "refused": 1, "tokens": 3}
    assert history.seconds(50.0 + 4 * KEPT_S) == []
