"""The Summary: what it counts, that it merges and round-trips exactly, and that it stays small."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.model import Attempt, Dead, Done, Failure, Record, Reply, Trail, Usage
from batchllm.summary import Histogram, Summary, Throughput

RECORD = Record(0, "a", {}, b"{}")
REPLY = Reply("yes", "yes", Usage(10, 5), "stop", "m")


def trail(*seconds: float, usage: Usage | None = None) -> Trail:
    return Trail(attempts=[Attempt(0.0, one, usage) for one in seconds])


def done(at: float = 100.0, *seconds: float, usage: Usage | None = None) -> Done:
    return Done(RECORD, REPLY, trail(*seconds, usage=usage), at)


def dead(kind: str, cause: str, message: str, at: float = 100.0, calls: int = 1) -> Dead:
    return Dead(RECORD, Failure(kind, cause, message), trail(*[0.1] * calls), at)


def folded(outcomes: list[Done | Dead]) -> Summary:
    summary = Summary()
    for outcome in outcomes:
        summary.add(outcome)
    return summary


times = st.floats(min_value=0, max_value=2e9, allow_nan=False)
durations = st.floats(min_value=0, max_value=1e6, allow_nan=False)
outcomes = st.lists(
    st.one_of(
        st.builds(
            lambda at, one: done(at, *one, usage=Usage(3, 2, 1)), times, st.lists(durations, max_size=3)
        ),
        st.builds(dead, st.sampled_from(["refused", "invalid"]), st.sampled_from("xyz"), st.text(), times),
    ),
    max_size=30,
)


def test_totals_are_those_of_the_outcomes() -> None:
    summary = folded(
        [
            done(10.0, 0.5, usage=Usage(10, 5, 2)),
            done(12.0, 0.1, 0.1, 0.7, usage=Usage(10, 5)),
            dead("exhausted", "timeout", "too slow", 11.0, calls=4),
            dead("bad_input", "bad_input", "no JSON", 9.0, calls=0),
        ]
    )
    assert (summary.succeeded, summary.failed, summary.settled) == (2, 2, 4)
    assert (summary.calls, summary.retried) == (8, 2)
    assert summary.usage == Usage(40, 20, 2)
    assert (summary.first_at, summary.last_at) == (9.0, 12.0)
    assert summary.success_rate == 0.5


def unknown(calls: int, at: float = 100.0) -> list[Attempt]:
    return [Attempt(at, 0.1, status=599, error="odd", cause="unknown") for _ in range(calls)]


def test_answers_that_no_rule_knows_are_counted_whether_their_record_was_lost_or_not() -> None:
    helped = Done(RECORD, REPLY, Trail(attempts=[*unknown(2), Attempt(0.0, 0.1, Usage(3, 2))]), 1.0)
    lost = Dead(
        RECORD, Failure("exhausted", "unknown", "after 4 tries: odd"), Trail(attempts=unknown(4)), 1.0
    )
    refused = Dead(RECORD, Failure("refused", "unknown", "418"), Trail(attempts=unknown(1)), 1.0)
    failed = Attempt(0.0, 0.1, status=500, error="no", cause="server_error")
    usual = Done(RECORD, REPLY, Trail(attempts=[failed, Attempt(0.0, 0.1, Usage(3, 2))]), 1.0)

    parts = [folded([helped, lost]), folded([refused, usual])]
    for part in parts:
        assert Summary.from_dict(json.loads(json.dumps(part.to_dict()))) == part
    parts[0].merge(parts[1])

    assert parts[0] == folded([helped, lost, refused, usual])
    assert (parts[0].unknown_calls, parts[0].unknown) == (7, 2)


def test_a_snapshot_from_before_unknown_answers_were_counted_can_be_read() -> None:
    document = folded([done(1.0, 0.5)]).to_dict()
    del document["unknown_calls"]
    assert Summary.from_dict(document) == folded([done(1.0, 0.5)])


def test_unknown_answers_stay_a_cause_of_their_own_among_ever_so_many() -> None:
    summary = folded([dead("refused", f"cause {n}", "m") for n in range(300)])
    for kind in ("refused", "exhausted"):
        summary.add(dead(kind, "unknown", "odd"))
    assert summary.unknown == 2
    assert summary.causes("refused")["unknown"].count == 1
    assert len(summary.failures) < 110
    summary.reopen({"error": {"kind": "refused", "cause": "unknown"}})
    assert summary.unknown == 1


def test_latency_is_that_of_the_call_that_answered() -> None:
    summary = folded([done(1.0, 9.0, 9.0, 0.5), dead("exhausted", "timeout", "m")])
    assert summary.latency.count == 1
    assert summary.latency.mean == summary.latency.maximum == summary.latency.quantile(0.5) == 0.5


def test_a_summary_of_nothing_knows_nothing() -> None:
    summary = Summary()
    assert summary.success_rate is None
    assert summary.rate(100.0) is None
    assert summary.latency.mean is summary.latency.maximum is summary.latency.quantile(0.5) is None
    assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


@given(outcomes)
def test_a_summary_survives_json(given: list[Done | Dead]) -> None:
    summary = folded(given)
    assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


@given(outcomes, outcomes)
def test_parts_merged_equal_the_whole(first: list[Done | Dead], second: list[Done | Dead]) -> None:
    merged = folded(first)
    merged.merge(folded(second))
    assert merged == folded(first + second)


@given(outcomes, st.integers(min_value=1, max_value=7))
def test_groups_count_as_one_by_one(given: list[Done | Dead], size: int) -> None:
    grouped = Summary()
    for at in range(0, len(given), size):
        grouped.add_all(given[at : at + size])

    assert grouped == folded(given)


def test_a_serialised_summary_does_not_change_with_the_summary() -> None:
    summary = folded([dead("invalid", "schema", "one")])
    before = summary.to_dict()
    text = json.dumps(before)
    summary.add(dead("invalid", "schema", "two"))
    assert json.dumps(before) == text


@given(st.lists(st.floats(min_value=1e-6, max_value=1e5), min_size=1), st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_two_percent_of_the_exact_one(values: list[float], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = next(i for i in range(1, len(values) + 1) if i >= q * len(values))
    assert histogram.quantile(q) == pytest.approx(sorted(values)[rank - 1], rel=0.0201)


def test_a_histogram_of_a_million_different_latencies_stays_small() -> None:
    seed = random.Random(1)
    histogram = Histogram()
    for _ in range(20_000):
        histogram.add(10 ** seed.uniform(-4, 3))
    assert len(histogram.buckets) < 420


@settings(max_examples=20)
@given(st.integers(min_value=1, max_value=10**6), st.integers(min_value=0, max_value=2**31))
def test_throughput_stays_bounded_and_loses_nothing(step: int, start: int) -> None:
    throughput = Throughput()
    for n in range(2_000):
        throughput.add(start + n * step)
    assert len(throughput.counts) <= 512
    assert sum(count for _, count in throughput.buckets()) == 2_000
    assert throughput.width & (throughput.width - 1) == 0


def test_throughput_does_not_depend_on_order() -> None:
    times = [float(n) for n in range(3_000)]
    forward, shuffled = Throughput(), Throughput()
    for at in times:
        forward.add(at)
    random.Random(2).shuffle(times)
    for at in times:
        shuffled.add(at)
    assert forward == shuffled


def test_the_rate_is_that_of_the_window() -> None:
    slow_then_fast = [done(float(n)) for n in range(100)]
    slow_then_fast += [done(100 + n / 10) for n in range(300)]
    summary = folded(slow_then_fast)
    assert summary.rate(130.0, window=30) == pytest.approx(10.0)
    assert summary.rate(130.0, window=130) == pytest.approx(400 / 130)
    assert summary.rate(1_000.0, window=30) == 0


def test_the_first_seconds_count_as_a_whole_one() -> None:
    assert folded([done(50.0), done(50.1)]).rate(50.2) == pytest.approx(2.0)


def test_a_rate_in_a_long_run_is_right_though_buckets_are_wide() -> None:
    summary = folded([done(float(n)) for n in range(4_000)])
    assert summary.throughput.width == 8
    assert summary.rate(4_000.0, window=5) == pytest.approx(1.0)


def test_failures_are_counted_by_kind_and_cause_the_most_frequent_first() -> None:
    summary = folded(
        [
            dead("refused", "content_filter", "no"),
            *[dead("exhausted", "timeout", "slow")] * 2,
            *[dead("exhausted", "server_error", "503")] * 3,
        ]
    )
    assert list(summary.by_kind().items()) == [("exhausted", 5), ("refused", 1)]
    counts = {cause: failed.count for cause, failed in summary.causes("exhausted").items()}
    assert list(counts.items()) == [("server_error", 3), ("timeout", 2)]


def test_three_different_messages_are_kept_of_each_cause() -> None:
    summary = folded([dead("invalid", "schema", f"bad {n % 5}") for n in range(20)])
    assert summary.causes("invalid")["schema"].examples == ["bad 0", "bad 1", "bad 2"]
    assert summary.causes("invalid")["schema"].count == 20


def test_ever_new_causes_and_endless_messages_do_not_make_it_grow() -> None:
    summary = folded([dead("refused", f"code {n}", "x" * 10_000) for n in range(1_000)])
    assert sum(summary.by_kind().values()) == 1_000
    assert len(summary.failures) <= 101
    assert len(json.dumps(summary.to_dict())) < 60_000


def test_answers_from_the_cache_are_counted_and_a_snapshot_from_before_there_were_any_is_read() -> None:
    cached = Done(RECORD, Reply("yes", "yes", Usage(), "stop", "m", cached=True), Trail(), 100.0)
    summary = folded([cached, cached, done(100.0, 0.5)])
    old = folded([done(100.0, 0.5)]).to_dict()
    del old["cached"]

    assert (summary.succeeded, summary.cached, summary.calls) == (3, 2, 1)
    assert summary.latency.count == 1
    assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
    summary.merge(Summary.from_dict(old))
    assert (summary.succeeded, summary.cached) == (4, 2)
