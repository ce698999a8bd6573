"""`batchllm ctl` on real runs: asked for their status, retuned, paused and drained while they go on."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.running import ECHO, LONGEST_S, Ran, ended, rows, run, started, tickets, wait_for_settled, write

ANSWERS = f"""
import time
from pathlib import Path
from batchllm.errors import Overloaded

def answer(messages):
    text = messages[-1]["content"]
    if "waits" in text:
        until(Path("go"))
    if "fails first" in text and not Path("failed").exists():
        Path("failed").touch()
        raise Overloaded("not now")
    return "fine: " + text

def until(file):
    end = time.monotonic() + {LONGEST_S}
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.01)
"""
MODEL = ("-m", "python/./answers.py:answer", "-vv", "--grace", "60")


def records(folder: Path, *texts: str) -> None:
    """An input of these texts; one that `waits` does so until a file `go` is there."""
    write(folder / "a.jsonl", [{"id": text, "text": text} for text in texts])
    (folder / "answers.py").write_text(ANSWERS)


def ctl(folder: Path, *args: str, output: str = "a.out.jsonl") -> Ran:
    return run(folder, output, *args, verb="ctl")


def status(folder: Path, output: str = "a.out.jsonl") -> dict[str, Any]:
    ran = ctl(folder, "status", "--json", output=output)
    assert ran.code == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def status_with(folder: Path, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask until there is an answer that fits; the process of each ask is pause enough."""
    for _ in range(100):
        ran = ctl(folder, "status", "--json")
        told: dict[str, Any] = json.loads(ran.stdout) if ran.code == 0 else {}
        if told and fits(told):
            return told
    raise AssertionError(ran)


def test_a_running_run_tells_how_it_goes_and_takes_other_limits(tmp_path: Path) -> None:
    records(tmp_path, "one", "two", "waits", "three")
    with started(tmp_path, "a.jsonl", *MODEL, "-c", "8", "--tpm", "1000000") as process:
        wait_for_settled(process, 3)
        before = status_with(tmp_path, lambda told: bool(told["processed"] == 3))
        tuned = ctl(tmp_path, "--concurrency", "2", "--rpm", "600", "--tpm", "none")
        table = ctl(tmp_path)
        refused = ctl(tmp_path, "-c", "90000")
        after = status(tmp_path)
        (tmp_path / "go").touch()
        end = ended(tmp_path, process)

    assert before | {"rate": 0, "run_id": ""} == {
        "run_id": "", "pid": process.pid, "model": "python/./answers.py:answer", "output": "a.out.jsonl",
        "processed": 3, "total": 4, "total_exact": True, "succeeded": 3, "failed": 0, "retried": 0, "rate": 0,
        "eta_s": before["eta_s"], "in_flight": 1, "concurrency": 8, "limits": {"tokens": 1_000_000.0},
        "paused": False, "stopping": None, "waiting": None,
    }  # fmt: skip
    assert before["rate"] > 0
    assert before["eta_s"] > 0
    assert tuned.stderr.splitlines() == ["concurrency is 2 now", "rpm is 600 now", "tpm has no limit now"]
    for line in (
        "records      3/4 settled: 3 ok, 0 failed",
        "in flight    1 of 2",
        "a minute     600 requests",
    ):
        assert line in table.stdout.decode().splitlines()
    assert refused.code == 2
    assert "calls in flight" in refused.error
    assert (after["concurrency"], after["limits"]) == (2, {"requests": 600.0})
    assert end.code == 0
    assert "note: concurrency is 2 now (ctl)" in end.stderr
    assert not (tmp_path / "a.out.jsonl.run" / "ctl").exists()


def test_a_pause_holds_every_call_back_until_resume(tmp_path: Path) -> None:
    records(tmp_path, "one")
    with started(
        tmp_path, "-", "-o", "a.out.jsonl", *MODEL, "--record-timeout", "30", stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"text": "one"}\n{"text": "two"}\n')
        process.stdin.flush()
        wait_for_settled(process, 2)
        paused = ctl(tmp_path, "pause")
        process.stdin.write(b'{"text": "three"}\n{"text": "four"}\n')
        process.stdin.close()
        process.stdin = None
        held = status_with(tmp_path, lambda told: bool(told["total_exact"]))
        resumed = ctl(tmp_path, "resume")
        end = ended(tmp_path, process)

    assert [paused.stderr, resumed.stderr] == ["paused: no new call goes out\n", "going on\n"]
    assert (held["paused"], held["waiting"]) == (True, "paused by ctl")
    assert (held["processed"], held["total"], held["in_flight"]) == (2, 4, 0)
    assert end.code == 0
    assert len(rows(tmp_path / "a.out.jsonl")) == 4


def test_a_drain_finishes_what_is_in_flight_and_the_same_command_the_rest(tmp_path: Path) -> None:
    texts = ["one", "waits", "two", "three"]
    records(tmp_path, *texts)
    command = ("a.jsonl", *MODEL, "-c", "1")
    with started(tmp_path, *command) as process:
        wait_for_settled(process, 1)
        status_with(tmp_path, lambda told: bool(told["in_flight"]))
        drained = ctl(tmp_path, "drain")
        stopping = status(tmp_path)
        late = ctl(tmp_path, "pause")
        (tmp_path / "go").touch()
        first = ended(tmp_path, process)
    settled = [row["id"] for row in rows(tmp_path / "a.out.jsonl")]
    nobody = ctl(tmp_path, "drain")
    second = run(tmp_path, *command)
    finished = ctl(tmp_path, "status")

    assert drained.code == 0
    assert stopping["stopping"] == "drained by ctl"
    assert late.code == 2
    assert "stopping already" in late.error
    assert first.code == 3
    assert "stopped: drained by ctl" in first.stderr
    assert first.hint == "run the same command again to go on"
    assert "given up" not in first.stderr
    assert settled == texts[:2]
    assert nobody.code == 3
    assert nobody.error == "nothing is running on a.out.jsonl: its last run stopped before its end"
    assert second.code == 0
    assert [row["id"] for row in rows(tmp_path / "a.out.jsonl")] == texts
    assert finished.code == 3
    assert finished.error == "nothing is running on a.out.jsonl: its run is finished"


def test_a_paused_run_ends_at_a_signal_with_what_was_in_flight(tmp_path: Path) -> None:
    records(tmp_path, "one", "waits", "two")
    with started(tmp_path, "a.jsonl", *MODEL, "-c", "1") as process:
        wait_for_settled(process, 1)
        status_with(tmp_path, lambda told: bool(told["in_flight"]))
        ctl(tmp_path, "pause")
        process.send_signal(signal.SIGTERM)
        status_with(tmp_path, lambda told: bool(told["stopping"] == "by SIGTERM"))
        (tmp_path / "go").touch()
        end = ended(tmp_path, process)

    assert end.code == 143
    assert [row["id"] for row in rows(tmp_path / "a.out.jsonl")] == ["one", "waits"]


def test_what_was_set_holds_for_the_rounds_that_follow(tmp_path: Path) -> None:
    records(tmp_path, "one", "waits and fails first")
    command = ("a.jsonl", *MODEL, "--rounds", "1", "--max-retries", "0")
    with started(tmp_path, *command) as process:
        wait_for_settled(process, 1)
        ctl(tmp_path, "-c", "3", "--rpm", "6000", "pause")
        (tmp_path / "go").touch()
        settled = wait_for_settled(process, 1)
        told = status_with(tmp_path, lambda told: bool(told["total"] == 2 and not told["failed"]))
        ctl(tmp_path, "resume")
        end = ended(tmp_path, process)

    assert settled[0]["id"] == "waits and fails first"
    assert (told["concurrency"], told["limits"], told["paused"]) == (3, {"requests": 6000.0}, True)
    assert end.code == 0
    assert len(rows(tmp_path / "a.out.jsonl")) == 2


def test_after_a_kill_the_socket_that_is_left_answers_nobody_and_is_replaced(tmp_path: Path) -> None:
    records(tmp_path, "one", "waits")
    left = tmp_path / "a.out.jsonl.run" / "ctl"
    with started(tmp_path, "a.jsonl", *MODEL) as process:
        wait_for_settled(process, 1)
        status(tmp_path)
        process.kill()
        process.communicate()
    was_left = left.is_socket()
    nobody = ctl(tmp_path, "pause")
    with started(tmp_path, "a.jsonl", *MODEL) as process:
        told = status_with(tmp_path, lambda told: bool(told["pid"] == process.pid))
        (tmp_path / "go").touch()
        end = ended(tmp_path, process)

    assert was_left
    assert nobody.code == 3
    assert "its last run stopped before its end" in nobody.error
    assert told["processed"] == 1
    assert end.code == 0
    assert not left.exists()


def test_bad_usage_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    run(tmp_path, "a.jsonl", *ECHO)

    unknown, stdout, verb, value = (
        ctl(tmp_path, "status", output="other.jsonl"),
        ctl(tmp_path, "pause", output="-"),
        ctl(tmp_path, "stop"),
        ctl(tmp_path, "--rpm", "fast"),
    )

    assert [ran.code for ran in (unknown, stdout, verb, value)] == [2, 2, 2, 2]
    assert unknown.error == "there is no run folder other.jsonl.run"
    assert "no run folder" in stdout.error
    assert "-o FILE" in stdout.hint
    assert "status, pause, resume, drain" in verb.hint
    assert value.error == "--rpm: expected a number of at least 0, got 'fast'"


def test_garbage_and_silence_disturb_no_run_and_long_paths_are_as_good_as_others(tmp_path: Path) -> None:
    records(tmp_path, "one", "waits")
    folder = tmp_path / ("long" * 20) / ("longer" * 20)
    folder.mkdir(parents=True)
    output = str(folder / "a.out.jsonl")
    with started(tmp_path, "a.jsonl", "-o", output, *MODEL) as process:
        wait_for_settled(process, 1)
        (tmp_path / "s").symlink_to(folder / "a.out.jsonl.run")
        told = [status(tmp_path, output)]
        clients = []
        for line in (b"", b"", b"nonsense", b"\xff\n", b"x" * 100_000, b'{"do": "set", "concurrency": -1}\n'):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].connect(str(tmp_path / "s" / "ctl"))
            clients[-1].sendall(line)
        told.append(status(tmp_path, output))
        (tmp_path / "go").touch()
        end = ended(tmp_path, process)
        for client in clients:
            client.close()

    assert [each["in_flight"] for each in told] == [1, 1]
    assert told[0]["concurrency"] == told[1]["concurrency"] == 20
    assert end.code == 0
    assert len(rows(Path(output))) == 2
    assert not (folder / "a.out.jsonl.run" / "ctl").exists()


def test_without_a_socket_the_run_goes_on_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    slow = ("-m", "fake/echo?latency_ms=500")
    run(tmp_path, "a.jsonl", *slow, "--limit", "1")
    (tmp_path / "a.out.jsonl.run" / "ctl").write_text("no socket")
    end = run(tmp_path, "a.jsonl", *slow)

    assert end.code == 0
    assert len(rows(tmp_path / "a.out.jsonl")) == 3
    assert "warning: this run can't be steered by batchllm ctl" in end.stderr
