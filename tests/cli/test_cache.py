"""`--cache` over real processes and sockets: what was paid for once is not paid for again."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.running import Ran, ended, rows, run, started, tickets, together, wait_for_settled, write
from tests.serving import simulated

JSON = ("--progress", "json", "--progress-interval", "60")
CACHE = ("--cache", "answers.cache", *JSON)


def summary(ran: Ran) -> dict[str, Any]:
    """The final JSON line."""
    found: dict[str, Any] = json.loads(ran.stderr.splitlines()[-1])
    assert found["operation"] == "summary"
    return found


def kept(folder: Path) -> int:
    """Answers in the cache, which must be whole."""
    with contextlib.closing(sqlite3.connect(folder / "answers.cache")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(connection.execute("SELECT count(*) FROM answers").fetchone()[0])


def script(folder: Path, *lines: dict[str, Any]) -> tuple[str, str]:
    """A fake that answers by these lines, matched with what is asked."""
    write(folder / "replies.jsonl", lines)
    return "-m", "fake/script?file=replies.jsonl&by=match"


def test_a_second_run_makes_no_call_and_its_lines_say_why(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(300))
    with simulated("--latency-ms", "5") as server:
        common = ("a.jsonl", "-m", "openai/any", "--base-url", server.url, *CACHE)
        first = run(tmp_path, *common, "-o", "1.jsonl")
        asked = server.stats()["requests"]
        second = run(tmp_path, *common, "-o", "2.jsonl", "-c", "7", "--max-retries", "1")
        changed = run(tmp_path, *common, "-o", "3.jsonl", "--param", "temperature=0", "--limit", "5")
        counts = server.stats()

    assert [first.code, second.code, changed.code] == [0, 0, 0]
    assert (asked, counts["requests"]) == (300, 305)
    assert (summary(first)["cached"], summary(second)["cached"], summary(second)["calls"]) == (0, 300, 0)
    before, after = first.rows("1.jsonl"), second.rows("2.jsonl")
    assert [row["output"] for row in after] == [row["output"] for row in before]
    assert not any("cached" in row for row in before)
    nothing = {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0}
    for row in after:
        assert (row["cached"], row["attempts"], row["latency_s"], row["usage"]) == (True, 0, None, nothing)
        assert row["request_id"]
        assert row["model"] == "any"


def test_as_many_calls_as_there_are_different_texts(tmp_path: Path) -> None:
    texts = [f"text {n // 20}" for n in range(1000)]
    write(tmp_path / "a.jsonl", ({"text": text} for text in texts))
    at_once = ("-c", "50", "--rpm", "1e9", "--burst", "60")
    with simulated("--latency-ms", "200") as server:
        ran = run(tmp_path, "a.jsonl", "-m", "openai/any", "--base-url", server.url, *at_once, *CACHE)
        counts = server.stats()

    assert ran.code == 0
    assert [row["output"] for row in ran.rows("a.out.jsonl")] == [f"echo: {text}" for text in texts]
    assert counts["requests"] == summary(ran)["calls"] == kept(tmp_path) == 50
    assert summary(ran)["cached"] == 950
    assert counts["highest_in_flight"] > 20, "records that wait keep others from asking"


def test_a_failed_record_is_never_answered_from_the_cache(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "good"}, {"text": "bad"}, {"text": "good"}, {"text": "bad"}])
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    common = ("--schema", "s.json", "--repair", "0", *CACHE)

    refuses = script(tmp_path, {"match": "good", "text": '{"a":1}'}, {"match": "bad", "text": '{"a":2}'})
    first = run(tmp_path, "a.jsonl", "-o", "1.jsonl", *refuses, *common)
    count = kept(tmp_path)
    answers = script(tmp_path, {"match": "good", "text": "nobody asks"}, {"match": "bad", "text": '{"a":1}'})
    second = run(tmp_path, "a.jsonl", "-o", "2.jsonl", *answers, *common)

    assert (first.code, summary(first)["failed"], summary(first)["calls"], count) == (1, 2, 3, 1)
    assert (second.code, summary(second)["calls"], summary(second)["cached"]) == (0, 1, 3)
    assert [row["output"] for row in second.rows("2.jsonl")] == [{"a": 1}] * 4
    assert kept(tmp_path) == 2


def test_runs_that_share_a_cache_at_the_same_time_both_use_it(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 150)):
        write(tmp_path / f"{name}.jsonl", tickets(300, start))
    with simulated("--latency-ms", "5") as server:
        common = ("-m", "openai/any", "--base-url", server.url, *CACHE)
        both = together(lambda: run(tmp_path, "a.jsonl", *common), lambda: run(tmp_path, "b.jsonl", *common))
        asked = server.stats()["requests"]
        later = run(tmp_path, "a.jsonl", "b.jsonl", "-o", "c.jsonl", *common)
        again = server.stats()["requests"]

    assert [ran.code for ran in (*both, later)] == [0, 0, 0]
    assert not [line for ran in both for line in ran.stderr.splitlines() if line.startswith("note")]
    assert 450 <= asked <= 600
    assert again == asked
    assert kept(tmp_path) == 450


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_in_the_middle_leaves_a_cache_that_the_next_one_uses(
    tmp_path: Path, end: signal.Signals
) -> None:
    hanging = [{"text": f"hangs {n}"} for n in range(20)]
    write(tmp_path / "a.jsonl", [*tickets(200), *hanging])
    model = script(
        tmp_path, {"match": "ok", "text": "fine"}, {"match": "hangs", "latency_ms": 1e7, "text": ""}
    )
    common = ("a.jsonl", *model, *CACHE)
    with started(tmp_path, *common, "-vv", "--grace", "0") as process:
        wait_for_settled(process, 200)
        if end == signal.SIGKILL:  # what was written is found, which is all but the last moments
            with contextlib.closing(sqlite3.connect(tmp_path / "answers.cache")) as watching:
                while watching.execute("SELECT count(*) FROM answers").fetchone()[0] < 200:
                    pass
        process.send_signal(end)
        ended(tmp_path, process)
    count = kept(tmp_path)
    script(tmp_path, {"match": "ok", "text": "new"}, {"match": "hangs", "text": "at last"})
    resumed = run(tmp_path, *common)
    fresh = run(tmp_path, *common, "-o", "fresh.jsonl")

    assert count == 200
    assert [resumed.code, fresh.code] == [0, 0]
    assert summary(fresh)["cached"] == 220
    assert [row["output"] for row in fresh.rows("fresh.jsonl")] == ["fine"] * 200 + ["at last"] * 20
    assert not any("cached" in row for row in resumed.rows("a.out.jsonl"))


def test_answers_from_the_cache_stay_counted_over_a_kill(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(50))
    write(tmp_path / "b.jsonl", [*tickets(50), {"text": "hangs"}])
    model = script(
        tmp_path, {"match": "ok", "text": "fine"}, {"match": "hangs", "latency_ms": 1e7, "text": ""}
    )
    run(tmp_path, "a.jsonl", *model, *CACHE)
    with started(tmp_path, "b.jsonl", *model, *CACHE, "-vv") as process:
        wait_for_settled(process, 50)
        while not (tmp_path / "b.out.jsonl").exists() or len(rows(tmp_path / "b.out.jsonl")) < 50:
            pass
        process.kill()
        ended(tmp_path, process)
    script(tmp_path, {"match": "ok", "text": "new"}, {"match": "hangs", "text": "at last"})
    ran = run(tmp_path, "b.jsonl", *model, *CACHE)

    assert (summary(ran)["succeeded"], summary(ran)["cached"], summary(ran)["calls"]) == (51, 50, 1)


def test_a_check_that_sees_the_record_judges_every_record_by_itself(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "same", "want": want} for want in ("same", "other", "same")])
    (tmp_path / "mine.py").write_text("def check(value, record):\n    return record['want'] in value\n")
    common = ("a.jsonl", "-m", "fake/echo", "--check", "./mine.py:check", "--repair", "0", *CACHE)
    first, second = [run(tmp_path, *common, "-o", name) for name in ("1.jsonl", "2.jsonl")]

    assert [(ran.code, summary(ran)["calls"]) for ran in (first, second)] == [(1, 2), (1, 1)]
    assert [row["seq"] for row in first.rows("1.jsonl")] == [0, 2]
    assert [row["seq"] for row in second.rows("2.jsonl")] == [0, 2]
    assert all(row["cached"] for row in second.rows("2.jsonl"))


def test_variants_on_two_servers_are_both_asked_and_another_address_of_one_run_is_not(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    with simulated() as one, simulated() as two:
        (tmp_path / "job.toml").write_text(
            'model = "openai/any"\n'
            f'[[variant]]\nname = "a"\nbase_url = "{one.url}"\n'
            f'[[variant]]\nname = "b"\nbase_url = "{two.url}"\n'
        )
        common = ("a.jsonl", *CACHE)
        runs = [run(tmp_path, *common, "-j", "job.toml", "-o", name) for name in ("1.jsonl", "2.jsonl")]
        asked = [server.stats()["requests"] for server in (one, two)]
        for name, server in (("3.jsonl", one), ("4.jsonl", two)):
            plain = ("-m", "openai/any", "--base-url", server.url, "-o", name)
            runs.append(run(tmp_path, *common, *plain))

    assert [(ran.code, summary(ran)["cached"]) for ran in runs] == [(0, 0), (0, 6), (0, 0), (0, 3)]
    assert asked == [3, 3]


def test_batch_lines_come_whole_from_the_cache(tmp_path: Path) -> None:
    body = {"model": "any", "messages": [{"role": "user", "content": "hello"}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    write(tmp_path / "a.jsonl", [line | {"custom_id": "1"}, line | {"custom_id": "2"}])
    common = ("a.jsonl", "-m", "fake/echo", *CACHE)
    plain = run(tmp_path, *common, "-o", "1.jsonl")
    whole = run(tmp_path, *common, "-o", "2.jsonl", "--emit", "openai-batch")
    again = run(tmp_path, *common, "-o", "3.jsonl", "--emit", "openai-batch")

    assert [summary(ran)["calls"] for ran in (plain, whole, again)] == [1, 1, 0]
    bodies = [
        row["response"]["body"]
        for ran, name in ((whole, "2"), (again, "3"))
        for row in ran.rows(f"{name}.jsonl")
    ]
    assert len(bodies) == 4
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0]["choices"][0]["message"]["content"] == "echo: hello"


def test_a_python_function_is_not_called_again(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    (tmp_path / "mine.py").write_text(
        "def answer(messages):\n    open('calls', 'a').write('x')\n    return {'n': 10**30 + 1}\n"
    )
    (tmp_path / "s.json").write_text('{"type": "object"}')
    common = ("a.jsonl", "-m", "python/./mine.py:answer", "--schema", "s.json", *CACHE)
    outputs = [run(tmp_path, *common, "-o", name).rows(name) for name in ("1.jsonl", "2.jsonl")]

    assert (tmp_path / "calls").read_text() == "xxx"
    assert [[row["output"] for row in output] for output in outputs] == [[{"n": 10**30 + 1}] * 3] * 2


def test_an_old_answer_is_asked_for_again(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    common = ("a.jsonl", "-m", "fake/echo", *CACHE)
    run(tmp_path, *common, "-o", "1.jsonl")
    young = run(tmp_path, *common, "-o", "2.jsonl", "--cache-ttl", "1h")
    old = run(tmp_path, *common, "-o", "3.jsonl", "--cache-ttl", "1ms")

    assert [summary(ran)["calls"] for ran in (young, old)] == [0, 2]


def test_a_cache_that_can_not_be_used_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    (tmp_path / "text").write_text("no database at all, and long enough to be read as one\n" * 10)
    common = ("a.jsonl", "-m", "fake/echo")

    for args, words in (
        (("--cache", "text"), "text is no cache"),
        (("--cache", "a.jsonl"), "both input and cache"),
        (("--cache", "a.out.jsonl"), "both output and cache"),
        (("--cache-ttl", "1d"), "--cache-ttl"),
    ):
        ran = run(tmp_path, *common, *args)
        assert ran.code == 2
        assert words in ran.error
        assert ran.hint
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "text"}


def test_a_cache_named_in_a_job_file_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "a.jsonl", tickets(2))
    (tmp_path / "sub" / "job.toml").write_text('model = "fake/echo"\ninput = ["a.jsonl"]\ncache = "kept"\n')

    assert run(tmp_path, "-j", "sub/job.toml").code == 0
    assert (tmp_path / "sub" / "kept").is_file()


def test_stats_and_prune_say_what_is_there_and_what_went(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(20))
    run(tmp_path, "a.jsonl", "-m", "fake/echo", *CACHE)

    stats = run(tmp_path, "stats", "answers.cache", "--json", verb="cache")
    shown = run(tmp_path, "stats", "answers.cache", verb="cache")
    pruned = run(tmp_path, "prune", "answers.cache", "--older-than", "1h", "--max-entries", "5", verb="cache")
    refused = [
        run(tmp_path, *args, verb="cache")
        for args in (
            ("prune", "answers.cache"),
            ("prune", "answers.cache", "--older-than", "soon"),
            ("stats", "a.jsonl"),
        )
    ]

    facts = json.loads(stats.stdout)
    assert (facts["file"], facts["entries"]) == ("answers.cache", 20)
    assert facts["bytes"] > 0
    assert facts["oldest"] <= facts["newest"]
    assert b"entries  20\n" in shown.stdout
    assert b"answers removed: 15; kept: 5\n" in pruned.stdout
    assert kept(tmp_path) == 5
    assert [(ran.code, bool(ran.error), bool(ran.hint)) for ran in refused] == [(2, True, True)] * 3
