"""Every way to stop a run from outside: at once where it must be, with every answer that came, and tidily."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.running import (
    LONGEST_S,
    checked,
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

NEVER_MS = 1e7
AT_ONCE = ("--rpm", "1e9")
"""With a limit told, as many calls as may be are in flight from the start."""


def script(folder: Path, *lines: dict[str, Any]) -> tuple[str, str]:
    """A fake that answers by these lines, matched with what is asked."""
    write(folder / "replies.jsonl", lines)
    return "-m", "fake/script?file=replies.jsonl&by=match"


def wait_for(process: subprocess.Popen[bytes], kind: str) -> dict[str, Any]:
    """Read the -vv events of a run until one of this kind comes."""
    assert process.stderr is not None
    for line in process.stderr:
        event: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
        if event.get("event") == kind:
            return event
    raise AssertionError(f"the run ended without {kind}")


def leftovers(folder: Path) -> list[Path]:
    """Files that only a run in progress may have."""
    return [
        path
        for path in folder.rglob("*")
        if path.suffix in (".tmp", ".batchllm-next") or path.name.startswith("todo-") or path.name == "swap"
    ]


def test_a_reader_that_leaves_ends_the_run_though_calls_are_in_flight(tmp_path: Path) -> None:
    records = [*tickets(3), *({"text": "hangs"} for _ in range(40))]
    write(tmp_path / "a.jsonl", records)
    model = script(
        tmp_path, {"match": "ok", "text": "fine"}, {"match": "hangs", "text": "", "latency_ms": NEVER_MS}
    )

    with started(tmp_path, "a.jsonl", *model, "-o", "-", "--progress", "none") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.stdout.close()
        code = process.wait(LONGEST_S)
        said = process.stderr.read()

    assert {row["output"] for row in first} == {"fine"}
    assert code == 141
    assert said == b""


def test_sigterm_keeps_what_arrives_within_the_grace_and_the_same_command_finishes(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(450))
    options = ("a.jsonl", "-m", "fake/echo?latency_ms=2000", "-c", "200", *AT_ONCE)

    with started(tmp_path, *options, "-vv") as process:
        wait_for_settled(process, 200)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        ran = ended(tmp_path, process)
        took = time.monotonic() - sent
    there = ran.rows("a.out.jsonl")
    more = run(tmp_path, *options)

    assert ran.code == 143
    assert took < 5
    assert len(there) == 400
    assert leftovers(tmp_path) == []
    assert more.code == 0
    assert [row["seq"] for row in more.rows("a.out.jsonl")] == list(range(450))
    assert "400 of them by earlier runs" in more.stderr


def test_without_grace_and_at_a_second_signal_calls_are_given_up_at_once_and_counted(tmp_path: Path) -> None:
    model = script(
        tmp_path, {"match": "ok", "text": "fine"}, {"match": "hangs", "text": "", "latency_ms": NEVER_MS}
    )
    write(tmp_path / "a.jsonl", [*tickets(5), *({"text": "hangs"} for _ in range(40))])
    write(tmp_path / "b.jsonl", [*tickets(5), *({"text": "hangs"} for _ in range(40))])

    with started(tmp_path, "a.jsonl", *model, "-vv", "--grace", "0", *AT_ONCE) as process:
        wait_for_settled(process, 5)
        process.send_signal(signal.SIGHUP)
        once = ended(tmp_path, process)
    with started(tmp_path, "b.jsonl", *model, "-vv", "--grace", "1000", *AT_ONCE) as process:
        wait_for_settled(process, 5)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        twice = ended(tmp_path, process)

    assert once.code == 129
    assert twice.code in (130, 143)  # two that wait at the same moment come in no order
    for ran in (once, twice):
        assert "calls in flight: 20" in ran.stderr
    assert len(once.rows("a.out.jsonl")) == len(twice.rows("b.out.jsonl")) == 5


def test_the_deadline_holds_in_pauses_in_backoffs_in_calls_and_before_the_first_record(
    tmp_path: Path,
) -> None:
    refusal = {"status": 429, "message": "slow down", "headers": {"Retry-After": "600"}}
    model = script(
        tmp_path,
        {"match": "limited", "error": refusal},
        {"match": "failing", "error": {"status": 500, "message": "oh", "headers": {"Retry-After": "600"}}},
        {"match": "hangs", "text": "", "latency_ms": NEVER_MS},
    )
    for name in ("limited", "failing", "hangs"):
        write(tmp_path / f"{name}.jsonl", [{"text": name}] * 3)
    os.mkfifo(tmp_path / "empty")
    options = ("--deadline", "1.5", "--grace", "0", "--max-stall", "1h")

    ran = together(
        *(
            lambda name=name: run(tmp_path, name, *model, *options)  # type: ignore[misc]
            for name in ("limited.jsonl", "failing.jsonl", "hangs.jsonl", "empty")
        )
    )

    assert [end.code for end in ran] == [3] * 4
    for end in ran:
        assert "the deadline of 1.5 s has passed" in end.stderr
        assert "same command" in end.hint
    assert "calls in flight: 3" in ran[2].stderr
    assert not {"limited.dead.jsonl", "failing.dead.jsonl", "empty.out.jsonl.run"} & names(tmp_path)


def test_a_signal_is_heeded_in_a_pause_and_while_stdin_is_silent(tmp_path: Path) -> None:
    refusal = {"status": 429, "message": "slow down", "headers": {"Retry-After": "600"}}
    model = script(tmp_path, {"match": "limited", "error": refusal}, {"match": "ok", "text": "fine"})
    write(tmp_path / "a.jsonl", [{"text": "limited"}] * 100)

    with started(tmp_path, "a.jsonl", *model, "-vv") as process:
        wait_for(process, "pause")
        process.send_signal(signal.SIGINT)
        paused = ended(tmp_path, process)
    with started(tmp_path, *model, "-vv", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"text": "ok"}\n')
        process.stdin.flush()
        wait_for_settled(process, 1)
        process.send_signal(signal.SIGTERM)
        process.wait(LONGEST_S)
        silent = ended(tmp_path, process)

    assert [paused.code, silent.code] == [130, 143]
    assert json.loads(silent.stdout)["output"] == "fine"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_signal_before_the_first_record_leaves_nothing(sent: signal.Signals, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")

    with started(tmp_path, "in", "-m", "fake/echo", "-o", "out.jsonl") as process:
        writer = os.open(tmp_path / "in", os.O_WRONLY)  # returns once the run has opened it to read
        process.send_signal(sent)
        process.wait(LONGEST_S)
        os.close(writer)
        ran = ended(tmp_path, process)

    assert ran.code == 128 + sent
    assert f"stopped: by {sent.name}" in ran.stderr
    assert names(tmp_path) == {"in"}


def test_what_a_record_spent_that_was_cut_short_is_noted(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "once"}])
    write(tmp_path / "replies.jsonl", [
        {"text": "no JSON at all", "usage": {"input_tokens": 7, "output_tokens": 5}},
        {"text": "{}", "latency_ms": NEVER_MS},
    ])  # fmt: skip
    (tmp_path / "schema.json").write_text('{"type": "object"}')

    with started(
        tmp_path, "a.jsonl", "-m", "fake/script?file=replies.jsonl&by=order", "--schema", "schema.json",
        "--grace", "0", "-vv",
    ) as process:  # fmt: skip
        wait_for(process, "attempt")
        process.send_signal(signal.SIGTERM)
        ran = ended(tmp_path, process)

    assert ran.code == 143
    (note,) = rows(tmp_path / "a.out.jsonl.run" / "notes")
    usage = {"input_tokens": 7, "output_tokens": 5, "cached_tokens": 0}
    assert note == {"kind": "spent", "seq": 0, "calls": 1, "usage": usage}


def test_a_stdout_that_nobody_takes_from_cannot_hold_a_stopped_run(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "ok" * 5000}] * 50)
    model = ("-m", "fake/echo", "-o", "-", "--grace", "0", "-vv")

    with started(tmp_path, "a.jsonl", *model) as process:
        wait_for(process, "attempt")
        process.send_signal(signal.SIGTERM)
        code = process.wait(LONGEST_S)
        assert process.stdout is not None
        assert process.stderr is not None
        ran = checked(tmp_path, code, process.stdout.read(), process.stderr.read())

    assert ran.code == 143
