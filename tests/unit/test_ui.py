"""What the ui says: figures and their words, lines, events, messages and the end; the bar has tests/cli."""

import io
import json
import re
import sys
from dataclasses import replace

import anyio
import pytest

from batchllm import ui
from batchllm.model import Attempt, Dead, Done, Failure, Record, Reply, Request, Trail, Usage
from batchllm.summary import Summary
from batchllm.ui.figures import (
    Figures,
    Pace,
    done_of,
    duration,
    measure,
    per_cent,
    percent_done,
    short,
    speed,
)
from batchllm.ui.lines import json_line, log_line

FIGURES = Figures(
    processed=3120,
    total=13083,
    exact=True,
    succeeded=3098,
    failed=22,
    retried=31,
    rate=415.2,
    eta=23.9,
    elapsed=7.5,
    in_flight=200,
    input_tokens=280_000,
    output_tokens=78_000,
    waiting=None,
    last=False,
)
RECORD = Record(4, "t-4", {}, b"{}")
EVIL = "\x1b[31mred\x1b[0m [bold]x[/bold]\nnext\x07\x9b1m\u202eback \x1b]0;title\x07end"
CLEAN = "red [bold]x[/bold] next1mback end"


class FixedView:
    def __init__(self, succeeded: int = 0, total: int | None = 100, *, exact: bool = True) -> None:
        self.summary = Summary(succeeded=succeeded)
        self.skipped = succeeded
        self._total, self._exact = total, exact

    def total(self) -> tuple[int | None, bool]:
        return self._total, self._exact

    def in_flight(self) -> int:
        return 20

    def waiting(self) -> str | None:
        return "rate limit: paused 12 s"


def summary_of_three() -> Summary:
    summary = Summary()
    attempt = Attempt(0.0, 0.5, Usage(90, 25), 200)
    reply = Reply("a", "a", Usage(90, 25), "stop", "m")
    summary.add(Done(RECORD, reply, Trail(attempts=[attempt]), 10.0))
    summary.add(Dead(RECORD, Failure("exhausted", "timeout", EVIL), Trail(attempts=[attempt] * 2), 11.0))
    summary.add(Dead(RECORD, Failure("invalid", "invalid", "x" * 500), Trail(attempts=[attempt]), 12.0))
    return summary


# --- pace and ETA


def test_before_anything_is_done_rate_and_eta_are_unknown() -> None:
    figures = measure(FixedView(), Pace(0.0, 0), 5.0)
    assert figures.rate is None
    assert figures.eta is None
    assert (speed(figures.rate), duration(figures.eta)) == ("--/s", "--")


def test_what_earlier_runs_settled_counts_as_progress_but_not_as_speed() -> None:
    view = FixedView(50)
    pace = Pace(0.0, view.summary.settled)
    assert measure(view, pace, 1.0).rate is None
    view.summary.succeeded = 60
    figures = measure(view, pace, 10.0)
    assert figures.processed == 60
    assert figures.progress == 60.0
    assert figures.rate == pytest.approx(1.0)
    assert figures.eta == pytest.approx(40.0)


def test_the_rate_shown_is_the_recent_one_and_at_the_end_the_overall_one() -> None:
    view = FixedView(total=1000)
    pace = Pace(0.0, 0)
    for second in range(1, 201):
        view.summary.succeeded = second if second <= 100 else 100 + (second - 100) * 2
        figures = measure(view, pace, float(second))
    assert figures.rate == pytest.approx(2.0)
    assert figures.eta == pytest.approx(700 / ((2 * 2.0 + 1.5) / 3))
    assert measure(view, pace, 200.0, last=True).rate == pytest.approx(1.5)


def test_in_a_lull_the_rate_is_zero_and_the_eta_is_not_infinite() -> None:
    view = FixedView()
    pace = Pace(0.0, 0)
    view.summary.succeeded = 50
    measure(view, pace, 10.0)
    for second in range(11, 101):
        figures = measure(view, pace, float(second))
    assert figures.rate == 0.0
    assert figures.eta == pytest.approx(100.0)


def test_an_estimate_never_says_100_percent_nor_less_than_is_done() -> None:
    figures = measure(FixedView(120, 100, exact=False), Pace(0.0, 0), 1.0)
    assert (figures.total, percent_done(figures)) == (120, "99%")
    assert done_of(figures) == "120/~120"


def test_with_an_unknown_total_there_is_no_percent_and_no_eta() -> None:
    figures = measure(FixedView(7, None), Pace(0.0, 0), 1.0)
    assert (figures.total, figures.progress, figures.eta) == (None, None, None)
    assert (done_of(figures), percent_done(figures)) == ("7 done", "")


def test_an_empty_input_is_wholly_done() -> None:
    figures = measure(FixedView(0, 0), Pace(0.0, 0), 1.0)
    assert (figures.progress, figures.eta, figures.success_rate) == (100.0, 0.0, None)


# --- words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "--"),
        (0, "0s"),
        (23.2, "24s"),
        (59.9, "1m00s"),
        (185, "3m05s"),
        (8040, "2h14m"),
        (273600, "3d04h"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_speeds() -> None:
    assert [speed(rate) for rate in (0.0, 0.25, 4.24, 41.5, 415.2, 5120.0)] == [
        "0.0/s",
        "15.0/min",
        "4.2/s",
        "42/s",
        "415/s",
        "5,120/s",
    ]


def test_nothing_is_rounded_up_to_all() -> None:
    assert per_cent(0.99999) == "99.9%"
    assert per_cent(1.0) == "100%"
    assert percent_done(replace(FIGURES, processed=13082)) == "99%"


def test_large_numbers_stay_short() -> None:
    assert [short(n) for n in (0, 999, 1000, 12_345, 999_999, 1_234_567, 10**12)] == [
        "0",
        "999",
        "1.0k",
        "12.3k",
        "999k",
        "1.2M",
        "1,000B",
    ]


# --- lines


def test_a_log_line_says_it_all_in_one_line() -> None:
    assert log_line(FIGURES, "12:00:05") == (
        "12:00:05 3,120/13,083 23% ok 3,098 failed 22 415/s eta 24s in flight 200 retried 31"
    )


def test_a_log_line_says_why_it_is_slow_and_what_is_estimated() -> None:
    line = log_line(replace(FIGURES, exact=False, waiting="rate limit: paused 12 s"), "12:00:05")
    assert "3,120/~13,083" in line
    assert line.endswith("(rate limit: paused 12 s)")


def test_a_json_line_has_the_contract_s_keys() -> None:
    data = json.loads(json_line(FIGURES))
    assert list(data)[:9] == [
        "operation",
        "processed",
        "total",
        "progress_pct",
        "succeeded",
        "failed",
        "success_rate",
        "rate",
        "eta_s",
    ]
    assert data["operation"] == "run"
    assert data["progress_pct"] == 23.8
    assert data["success_rate"] == 0.9929
    assert set(data) - set(list(data)[:9]) == {
        "retried",
        "in_flight",
        "input_tokens",
        "output_tokens",
        "waiting",
        "total_exact",
    }


def test_an_estimated_total_is_marked_in_every_form() -> None:
    estimate = replace(FIGURES, exact=False)
    assert json.loads(json_line(FIGURES))["total_exact"] is True
    assert json.loads(json_line(estimate))["total_exact"] is False
    assert "/~13,083" in log_line(estimate, "12:00:05")
    assert "/13,083" in log_line(FIGURES, "12:00:05")


def test_what_json_does_not_know_is_null() -> None:
    data = json.loads(json_line(measure(FixedView(0, None), Pace(0.0, 0), 1.0)))
    assert [data[key] for key in ("total", "progress_pct", "success_rate", "rate", "eta_s")] == [None] * 5
    assert data["total_exact"] is False


# --- the task


def shown(view: FixedView, kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What one second of `show` prints when it is cancelled before its first interval is over."""

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            async def show() -> None:
                await ui.show(view, kind=kind, interval=3600)

            tasks.start_soon(show)
            await anyio.wait_all_tasks_blocked()
            view.summary.succeeded = 100
            tasks.cancel_scope.cancel()

    anyio.run(main)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_run_shorter_than_the_interval_still_gets_its_last_log_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    err = shown(FixedView(), "log", capsys)
    assert re.fullmatch(r"\d\d:\d\d:\d\d 100/100 100% ok 100 failed 0 \S+ in 0s retried 0\n", err)


def test_the_last_json_line_is_the_final_state(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(shown(FixedView(), "json", capsys))
    assert (data["processed"], data["progress_pct"], data["in_flight"], data["waiting"]) == (
        100,
        100.0,
        0,
        None,
    )


def test_none_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(FixedView(), "none", capsys) == ""


def test_a_bar_becomes_log_lines_where_stderr_is_no_terminal() -> None:
    assert ui.kind_for("auto") == "log"
    assert ui.kind_for("bar") == "log"
    assert ui.kind_for("json") == "json"


# --- messages


def test_messages_are_plain_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ui.error("no such file: x.jsonl", "check the path")
    ui.warn("the last line is not finished")
    assert capsys.readouterr().err == (
        "error: no such file: x.jsonl\nhint: check the path\nwarning: the last line is not finished\n"
    )


def test_foreign_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert ui.clean(EVIL) == CLEAN
    ui.error(EVIL, EVIL)
    assert capsys.readouterr().err == f"error: {CLEAN}\nhint: {CLEAN}\n"


def test_letters_of_all_languages_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert ui.clean("héé 日本 👩‍👩‍👧 שלום") == "héé 日本 👩‍👩‍👧 שלום"


@pytest.mark.parametrize("broken", ["none", "closed"])
def test_nobody_to_talk_to_is_no_reason_to_fail(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None if broken == "none" else closed)
    ui.error("a", "b")
    ui.final(Summary(), ui.Facts("out.jsonl", 1.0), kind="log")


# --- events


def test_an_attempt_is_one_json_line() -> None:
    lines: list[str] = []
    events = ui.JsonEvents(lines.append, clock=lambda: 1.5)
    request = Request("openai/gpt", {}, "run-4-1")
    events.attempt(request, Attempt(0.25, 0.125, Usage(9, 3), 200, "req_1"))
    events.attempt(request, Attempt(0.25, 0.125, None, 503, None, "\x1b[31moverloaded\x9b"))
    first, second = (json.loads(line) for line in lines)
    assert first == {
        "event": "attempt",
        "at": "1970-01-01T00:00:00.250Z",
        "key": "run-4-1",
        "model": "openai/gpt",
        "seconds": 0.125,
        "status": 200,
        "error": None,
        "request_id": "req_1",
        "input_tokens": 9,
        "output_tokens": 3,
    }
    assert (second["status"], second["input_tokens"]) == (503, None)
    assert lines[1].isprintable()


def test_every_other_event_is_one_json_line_too() -> None:
    lines: list[str] = []
    events = ui.JsonEvents(lines.append, clock=lambda: 0.0)
    trail = Trail(attempts=[Attempt(0.0, 0.1)])
    events.run_started({"inputs": ["a.jsonl"], "odd": {1, 2}.__class__})
    events.settled(Done(RECORD, Reply("a", "a", Usage(), None, "m"), trail, 2.0))
    events.settled(Dead(RECORD, Failure("refused", "content_filter", "no"), trail, 2.0))
    events.pause(12.0, "rate limit")
    events.run_stopped({"exit": 0})
    data = [json.loads(line) for line in lines]
    assert [one["event"] for one in data] == ["run_started", "settled", "settled", "pause", "run_stopped"]
    assert data[1]["ok"] is True
    assert (data[2]["ok"], data[2]["kind"], data[2]["id"], data[2]["seq"]) == (False, "refused", "t-4", 4)
    assert (data[3]["seconds"], data[3]["reason"]) == (12.0, "rate limit")


# --- the end


def test_the_final_table_says_what_failed_why_it_stopped_and_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = ui.Facts(
        "t.out.jsonl",
        2.0,
        dead_letter="t.dead.jsonl",
        stopped="the key is wrong",
        hint="set OPENAI_API_KEY",
        given_up=3,
        resumed=1,
    )
    ui.final(summary_of_three(), facts, kind="log")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert "records        3, 1 of them by earlier runs" in lines
    assert "ok             1 (33.3%)" in lines
    assert f"  exhausted    1  timeout: {CLEAN}" in lines
    assert f"  invalid      1  {'x' * 97}..." in lines
    assert "calls          4 (records retried: 1)" in lines
    assert "tokens         360 in, 100 out" in lines
    assert "latency        mean 500 ms  p50 500 ms  p95 500 ms  p99 500 ms" in lines
    assert "throughput     1.0/s over 2.00 s" in lines
    assert "given up       calls in flight: 3; their records run again next time" in lines
    assert "dead letters   t.dead.jsonl" in lines
    assert lines[-2:] == ["stopped: the key is wrong", "hint: set OPENAI_API_KEY"]


def test_causes_of_one_kind_are_listed_with_an_example_each(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary()
    for n in range(10):
        failure = Failure("exhausted", f"cause {n // 2 if n < 8 else n}", "m")
        summary.add(Dead(RECORD, failure, Trail(), 0.0))
    ui.final(summary, ui.Facts("-", 1.0), kind="none")
    err = capsys.readouterr().err
    assert "  exhausted    10\n               2  cause 0: m\n" in err
    assert "and 1 more" in err
    assert "output         stdout" in err


def test_answers_that_no_rule_knows_are_told_by_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    def ended(summary: Summary, kind: str) -> str:
        ui.final(summary, ui.Facts("t.out.jsonl", 2.0), kind=kind)
        return capsys.readouterr().err

    assert "unknown" not in ended(summary_of_three(), "log")
    summary = summary_of_three()
    odd = [Attempt(0.0, 0.1, status=599, error="odd", cause="unknown")] * 4
    summary.add(Dead(RECORD, Failure("exhausted", "unknown", "odd"), Trail(attempts=odd), 0.0))
    assert "unknown        answers that no rule knows: 4; dead letters of them: 1\n" in ended(summary, "log")
    data = json.loads(ended(summary, "json"))
    assert (data["unknown"], data["unknown_calls"]) == (1, 4)


def test_answers_from_the_cache_have_a_row_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for cached in (0, 1_200):
        ui.final(Summary(succeeded=1_200, cached=cached), ui.Facts("t.out.jsonl", 2.0), kind="log")
    before, after = capsys.readouterr().err.split("calls", 1)[1].split("calls", 1)

    assert "from cache" not in before
    assert "from cache     1,200\n" in after


def test_with_json_progress_the_end_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    ui.final(summary_of_three(), ui.Facts("t.out.jsonl", 2.0, stopped="SIGINT"), kind="json")
    data = json.loads(capsys.readouterr().err)
    assert (data["operation"], data["processed"], data["stopped"]) == ("summary", 3, "SIGINT")
    assert [one["kind"] for one in data["failures"]] == ["exhausted", "invalid"]
    assert data["latency_s"]["p50"] == 0.5


def test_quiet_says_nothing_but_errors(capsys: pytest.CaptureFixture[str]) -> None:
    ui.final(summary_of_three(), ui.Facts("t.out.jsonl", 2.0), kind="bar", quiet=True)
    assert capsys.readouterr().err == ""
    facts = ui.Facts("t.out.jsonl", 2.0, stopped="the key is wrong", hint="set it")
    ui.final(summary_of_three(), facts, kind="bar", quiet=True)
    assert capsys.readouterr().err == "error: stopped: the key is wrong\nhint: set it\n"


def test_a_run_that_was_finished_already_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    ui.final(summary_of_three(), ui.Facts("t.out.jsonl", 0.1, resumed=3, already_done=True), kind="log")
    err = capsys.readouterr().err
    assert "finished       by an earlier run; nothing was left to do" in err
    assert "throughput" not in err
