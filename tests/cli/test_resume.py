"""The same command again: after any end every record is there once, and nothing is asked for nothing."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import (
    ECHO,
    Ran,
    ended,
    names,
    rows,
    run,
    started,
    tickets,
    together,
    wait_for_settled,
    write,
)
from tests.serving import Simulated, simulated

MATCHED = ("-m", "fake/script?file=replies.jsonl&by=match")


@pytest.fixture(scope="module")
def server() -> Iterator[Simulated]:
    with simulated() as running:
        yield running


def openai(server: Simulated) -> tuple[str, ...]:
    return ("-m", "openai/any", "--base-url", server.url)


@pytest.mark.parametrize(
    ("sent", "shape"), [(signal.SIGTERM, "result"), (signal.SIGKILL, "merged")], ids=["SIGTERM", "SIGKILL"]
)
def test_after_a_signal_the_same_command_finishes_with_every_record_once(
    sent: signal.Signals, shape: str, tmp_path: Path
) -> None:
    slow = {150: "waits", 180: "waits"}
    records = [{"id": n, "text": slow.get(n, "bad" if n % 10 == 3 else "good")} for n in range(400)]
    write(tmp_path / "a.jsonl", records)
    replies = [{"match": "good", "text": "fine"}, {"match": "bad", "text": "", "finish": "content_filter"}]
    write(tmp_path / "replies.jsonl", [*replies, {"match": "waits", "text": "late", "latency_ms": 1e7}])
    command = ("a.jsonl", *MATCHED, "--grace", "0", "--emit", shape, "--merge-failed")

    with started(tmp_path, *command, "-vv", "-c", "10") as process:
        seen = {event["id"] for event in wait_for_settled(process, 250)}
        process.send_signal(sent)
        first = ended(tmp_path, process)
    whole = [
        line for line in (tmp_path / "a.out.jsonl").read_bytes().splitlines(True) if line.endswith(b"\n")
    ]
    settled = {json.loads(line)["id"] for line in whole}
    write(tmp_path / "replies.jsonl", [*replies, {"match": "waits", "text": "at last"}])
    second = run(tmp_path, *command, "-vv")

    assert first.code == 128 + sent
    assert seen <= settled, "what was told is there"
    assert second.code == 1
    asked = [json.loads(line) for line in second.stderr.splitlines() if line.startswith("{")]
    again = {event["id"] for event in asked if event["event"] == "settled"}
    assert again == set(range(400)) - settled
    assert [row["id"] for row in second.rows("a.out.jsonl")] == list(range(400))
    dead = {n for n in range(400) if n % 10 == 3}
    assert {row["id"] for row in second.rows("a.out.jsonl") if "error_kind" in row} == dead
    assert [row["id"] for row in second.rows("a.dead.jsonl")] == sorted(dead)
    answers = [row.get("output") for row in second.rows("a.out.jsonl")]
    assert [answers[150], answers[180]] == ["at last", "at last"]
    assert f"{len(settled)} of them by earlier runs" in second.stderr


def test_a_finished_run_run_again_calls_nobody_and_ends_alike(tmp_path: Path, server: Simulated) -> None:
    write(tmp_path / "a.jsonl", [*tickets(5), {"id": "no text"}])
    server.reset()

    first = run(tmp_path, "a.jsonl", *openai(server))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    second = run(tmp_path, "a.jsonl", *openai(server), "-c", "3", "--rpm", "60")

    assert [first.code, second.code] == [1, 1]
    assert server.stats()["requests"] == 5
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before
    assert "nothing was left to do" in second.stderr


def test_an_input_that_grew_goes_on_and_files_may_be_added_behind_it(
    tmp_path: Path, server: Simulated
) -> None:
    write(tmp_path / "a.jsonl", tickets(5))
    server.reset()
    first = run(tmp_path, "a.jsonl", *openai(server), "--limit", "3")
    limited = first.rows("a.out.jsonl")
    whole = run(tmp_path, "a.jsonl", *openai(server))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.writelines(json.dumps(ticket) + "\n" for ticket in tickets(2, 5))
    grown = run(tmp_path, "a.jsonl", *openai(server))
    write(tmp_path / "b.jsonl", tickets(2, 7))
    added, again = (run(tmp_path, "a.jsonl", "b.jsonl", *openai(server)) for _ in range(2))

    assert [first.code, whole.code, grown.code, added.code, again.code] == [0, 0, 0, 0, 0]
    assert [row["seq"] for row in limited] == [0, 1, 2]
    assert [row["id"] for row in added.rows("a.out.jsonl")] == [ticket["id"] for ticket in tickets(9)]
    assert [row["seq"] for row in added.rows("a.out.jsonl")] == list(range(9))
    assert server.stats()["requests"] == 9
    assert "moved aside" not in whole.stderr + grown.stderr + added.stderr


def test_fresh_moves_the_earlier_run_aside_and_deletes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*tickets(2), {"id": "bad"}])
    run(tmp_path, "a.jsonl", *ECHO)
    old = (tmp_path / "a.out.jsonl").read_bytes()
    ran = run(tmp_path, "a.jsonl", *ECHO, "--fresh", "-p", "{{ text }}!", "-d", "a.dead.jsonl")
    twice = run(tmp_path, "a.jsonl", *ECHO, "--fresh")

    assert [ran.code, twice.code] == [1, 1]
    assert (tmp_path / "a.out.jsonl.old1").read_bytes() == old
    assert rows(tmp_path / "a.out.jsonl.old2")[0]["output"] == "echo: ticket 00000 ok!"
    new = {"a.out.jsonl", "a.out.jsonl.run", "a.dead.jsonl"}
    assert names(tmp_path) == {"a.jsonl", *new, *(f"{name}.old{n}" for name in new for n in (1, 2))}
    assert "moved aside: a.out.jsonl.old1, a.dead.jsonl.old1, a.out.jsonl.run.old1" in ran.stderr


def test_what_may_not_go_on_is_refused_with_the_difference_and_the_ways_out(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(5))
    write(tmp_path / "b.jsonl", tickets(5))
    (tmp_path / "s.json").write_text('{"type": "object"}')
    first = run(tmp_path, "a.jsonl", *ECHO, "--limit", "3")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    changed = ("-p", "Now {{ text }}", "-m", "fake/echo?seed=2", "--schema", "s.json", "--param", "seed=1")
    meaning, letters, other = together(
        lambda: run(tmp_path, "a.jsonl", *changed),
        lambda: run(tmp_path, "a.jsonl", *ECHO, "-d", "other.jsonl"),
        lambda: run(tmp_path, "b.jsonl", *ECHO, "-o", "a.out.jsonl"),
    )

    assert [first.code, meaning.code, letters.code, other.code] == [0, 2, 2, 2]
    for difference in (
        "model was 'fake/echo', is 'fake/echo?seed=2'", "prompt was None, is 'Now {{ text }}'",
        "schema was None, is {'type': 'object'}", "param was {}, is {'seed': 1}",
    ):  # fmt: skip
        assert difference in meaning.error
    assert "--fresh" in meaning.hint
    assert "-o FILE" in meaning.hint
    assert "a.dead.jsonl" in letters.hint
    assert "a.jsonl" in other.error
    assert "--fresh" in other.hint
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_changed_input_is_refused_while_the_run_is_unfinished_and_a_new_run_after_it(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.jsonl", tickets(5))
    run(tmp_path, "a.jsonl", *ECHO, "--limit", "3")
    write(tmp_path / "a.jsonl", tickets(5, 100))
    unfinished = run(tmp_path, "a.jsonl", *ECHO)
    write(tmp_path / "a.jsonl", tickets(5))
    finished = run(tmp_path, "a.jsonl", *ECHO)
    old = (tmp_path / "a.out.jsonl").read_bytes()
    write(tmp_path / "a.jsonl", tickets(4, 100))
    nightly = run(tmp_path, "a.jsonl", *ECHO)

    assert [unfinished.code, finished.code, nightly.code] == [2, 0, 0]
    assert "the input was changed since the run began: a.jsonl" in unfinished.error
    assert "--fresh" in unfinished.hint
    assert [row["id"] for row in nightly.rows("a.out.jsonl")] == [ticket["id"] for ticket in tickets(4, 100)]
    assert (tmp_path / "a.out.jsonl.old1").read_bytes() == old
    assert "starting a new run" in nightly.stderr
    assert "moved aside: a.out.jsonl.old1, a.out.jsonl.run.old1" in nightly.stderr


def test_an_output_that_the_run_did_not_write_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(5))
    (tmp_path / "theirs.jsonl").write_text("precious\n")
    (tmp_path / "empty.jsonl").touch()
    run(tmp_path, "a.jsonl", *ECHO, "-o", "ours.jsonl")
    with (tmp_path / "ours.jsonl").open("a") as file:
        file.write("edited\n")

    theirs, ours, empty = together(
        lambda: run(tmp_path, "a.jsonl", *ECHO, "-o", "theirs.jsonl"),
        lambda: run(tmp_path, "a.jsonl", *ECHO, "-o", "ours.jsonl"),
        lambda: run(tmp_path, "a.jsonl", *ECHO, "-o", "empty.jsonl"),
    )

    assert [theirs.code, ours.code, empty.code] == [2, 2, 0]
    assert "theirs.jsonl exists already and has no run folder" in theirs.error
    assert "--fresh" in theirs.hint
    assert (tmp_path / "theirs.jsonl").read_text() == "precious\n"
    assert not (tmp_path / "theirs.jsonl.run").exists()
    assert "ours.jsonl was changed since the run wrote it" in ours.error
    assert (tmp_path / "ours.jsonl").read_text().endswith("edited\n")
    assert len(empty.rows("empty.jsonl")) == 5


def test_a_second_run_on_an_output_in_use_is_turned_away_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*tickets(3), {"text": "waits"}])
    write(tmp_path / "replies.jsonl", [
        {"match": "ok", "text": "fine"}, {"match": "waits", "text": "late", "latency_ms": 1e7},
    ])  # fmt: skip

    with started(tmp_path, "a.jsonl", *MATCHED, "-vv", "--grace", "0") as process:
        wait_for_settled(process, 3)
        second, fresh = together(
            lambda: run(tmp_path, "a.jsonl", *MATCHED), lambda: run(tmp_path, "a.jsonl", *ECHO, "--fresh")
        )
        process.send_signal(signal.SIGTERM)
        first = ended(tmp_path, process)

    for ran in (second, fresh):
        assert ran.code == 4
        assert f"another run holds a.out.jsonl (process {process.pid})" in ran.error
        assert "-o FILE" in ran.hint
    assert first.code == 143
    assert len(first.rows("a.out.jsonl")) == 3
    assert names(tmp_path) == {"a.jsonl", "replies.jsonl", "a.out.jsonl", "a.out.jsonl.run"}


def test_a_project_that_was_moved_goes_on_and_a_copy_keeps_its_hands_off_the_original(tmp_path: Path) -> None:
    (tmp_path / "old/out").mkdir(parents=True)
    write(tmp_path / "old/data/a.jsonl", [*tickets(4), {"id": "bad"}])
    call = ("data/a.jsonl", *ECHO, "-o", "out/b.jsonl")
    first = run(tmp_path / "old", *call, "--limit", "2")
    shutil.move(tmp_path / "old", tmp_path / "new")
    second = run(tmp_path / "new", *call)
    shutil.copytree(tmp_path / "new", tmp_path / "copy")
    letter = (tmp_path / "new/out/b.dead.jsonl").read_bytes()
    retried = run(tmp_path / "copy", "out/b.jsonl", "-p", "a bad one", verb="retry")

    assert [first.code, second.code, retried.code] == [0, 1, 0]
    assert [row["seq"] for row in second.rows("out/b.jsonl")] == [0, 1, 2, 3]
    assert [row["seq"] for row in retried.rows("out/b.jsonl")] == [0, 1, 2, 3, 4]
    assert (tmp_path / "new/out/b.dead.jsonl").read_bytes() == letter
    assert not (tmp_path / "copy/out/b.dead.jsonl").exists()


def test_fresh_renames_the_file_behind_a_link_and_a_damaged_document_does_not_hold_it_up(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    (tmp_path / "disk").mkdir()
    (tmp_path / "b.jsonl").symlink_to("disk/b.jsonl")
    (tmp_path / "c.jsonl").symlink_to("gone/c.jsonl")
    first = run(tmp_path, "a.jsonl", *ECHO, "-o", "b.jsonl")
    (tmp_path / "b.jsonl.run" / "aside").write_bytes(b"{")
    damaged = run(tmp_path, "a.jsonl", *ECHO, "-o", "b.jsonl")
    fresh = run(tmp_path, "a.jsonl", *ECHO, "-o", "b.jsonl", "--fresh", "-p", "{{ text }}!")
    nowhere = run(tmp_path, "a.jsonl", *ECHO, "-o", "c.jsonl")

    assert [first.code, damaged.code, fresh.code, nowhere.code] == [0, 2, 0, 2]
    assert "--fresh" in damaged.hint
    assert names(tmp_path / "disk") == {"b.jsonl", "b.jsonl.old1"}
    assert (tmp_path / "b.jsonl").is_symlink()
    assert fresh.rows("b.jsonl")[0]["output"] == "echo: ticket 00000 ok!"
    assert nowhere.hint == f"mkdir -p {tmp_path / 'gone'}"


def test_lines_of_failed_records_are_not_taken_over_as_answers(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*tickets(2), {"id": "bad"}])
    first = run(tmp_path, "a.jsonl", *ECHO, "--merge-failed")
    shutil.rmtree(tmp_path / "a.out.jsonl.run")
    without = run(tmp_path, "a.jsonl", *ECHO, "--resume-by", "id")
    given = run(tmp_path, "a.jsonl", *ECHO, "--resume-by", "id", "--merge-failed")

    assert [first.code, without.code, given.code] == [1, 2, 1]
    assert "--merge-failed" in without.hint
    assert len(given.rows("a.out.jsonl")) == 3


def test_a_packed_input_goes_on_where_it_stopped(tmp_path: Path) -> None:
    lines = "".join(json.dumps(ticket) + "\n" for ticket in tickets(3000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))

    def part(*args: str) -> Ran:
        return run(tmp_path, "a.jsonl.gz", *ECHO, "--unordered", *args)

    first, second = part("--limit", "1700"), part()

    assert [first.code, second.code] == [0, 0]
    assert sorted(row["seq"] for row in second.rows("a.out.jsonl")) == list(range(3000))
    assert "1,700 of them by earlier runs" in second.stderr
