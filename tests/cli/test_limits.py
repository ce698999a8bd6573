"""Limits over real processes and sockets: found, shared, and a service that goes away for a while."""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.running import ended, run, started, tickets, together, wait_for_settled, write
from tests.serving import simulated


def test_a_limit_that_nobody_told_the_run_is_found_with_hardly_a_refusal(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(150))
    with simulated("--rpm", "3000") as server:
        ran = run(tmp_path, "a.jsonl", "-m", "openai/any", "--base-url", server.url, "-c", "50")
        counts = server.stats()

    assert ran.code == 0
    assert len(ran.rows("a.out.jsonl")) == 150
    assert counts["limited"] <= 2
    assert counts["highest_admitted"]["1"]["requests"] <= 50 + 25 + 1


def test_auto_and_a_limit_of_the_service_go_together(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(100))
    with simulated("--rpm", "3000", "--knee", "4", "--latency-ms", "20") as server:
        ran = run(tmp_path, "a.jsonl", "-m", "openai/any", "--base-url", server.url, "-c", "auto")

    assert ran.code == 0
    assert len(ran.rows("a.out.jsonl")) == 100


def test_runs_that_name_one_quota_file_keep_one_limit_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", tickets(30))
    with simulated() as server:
        common = ("-m", "openai/any", "--base-url", server.url, "--rps", "30", "--quota-file", "quota")
        first, second = together(
            lambda: run(tmp_path, "a.jsonl", *common), lambda: run(tmp_path, "b.jsonl", *common)
        )
        most = server.stats()["highest_admitted"]["1"]["requests"]

    assert [first.code, second.code] == [0, 0]
    assert most <= 30 + 15 + 1


def test_a_quota_file_wants_limits_and_the_same_ones(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*tickets(1), {"id": "last", "text": "waits"}])
    write(tmp_path / "b.jsonl", tickets(1))
    write(tmp_path / "replies.jsonl", [
        {"match": "ok", "text": "fine"}, {"match": "waits", "text": "late", "latency_ms": 1e7},
    ])  # fmt: skip
    model = ("-m", "fake/script?file=replies.jsonl&by=match", "--quota-file", "quota")

    none = run(tmp_path, "b.jsonl", *model)
    with started(tmp_path, "a.jsonl", *model, "--rpm", "600", "-vv", "--grace", "0") as process:
        wait_for_settled(process, 1)
        other = run(tmp_path, "b.jsonl", *model, "--rpm", "300")
        process.terminate()
        ended(tmp_path, process)
    alone = run(tmp_path, "b.jsonl", *model, "--rpm", "300")

    assert [none.code, other.code, alone.code] == [2, 2, 0]
    assert "--rpm" in none.hint
    assert "600" in other.error
    assert "300" in other.error


def test_a_service_that_is_away_for_a_while_costs_no_record(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    write(tmp_path / "a.jsonl", tickets(600))
    url = f"http://127.0.0.1:{port}/v1"
    args = ("a.jsonl", "-m", "openai/any", "--base-url", url, "-c", "20", "--rps", "100", "-vv")
    with ExitStack() as stack:
        with simulated("--port", port, "--latency-ms", "20") as server:
            process = stack.enter_context(started(tmp_path, *args, "--max-retries", "1", "--backoff", "0.1"))
            wait_for_settled(process, 100)
            server.stop()
        attempts = _attempts_until_probed(process)
        with simulated("--port", port):
            ran = ended(tmp_path, process)

    assert ran.code in (0, 1)
    assert len(ran.rows("a.out.jsonl")) >= 600 - 20  # those in flight at the time may have run out of tries
    assert attempts <= 80


def _attempts_until_probed(process: subprocess.Popen[bytes]) -> int:
    """Read events until the service is being probed; how many attempts were made until then."""
    attempts = 0
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line) if line.startswith(b"{") else {}
        attempts += event.get("event") == "attempt"
        if event.get("event") == "pause":
            return attempts
    raise AssertionError("nobody noticed")


def test_records_that_always_fail_are_their_own_fault_and_do_not_hold_up_the_run(tmp_path: Path) -> None:
    """Nine scattered ones, and a patch of them with good ones behind it."""
    bad = {"match": "bad", "error": {"status": 500, "message": "the server failed"}}
    write(tmp_path / "replies.jsonl", [{"match": "ok", "text": "fine"}, bad])
    scattered = [{"text": "bad" if n % 20 == 7 else "ok"} for n in range(180)]
    patch = [{"text": "bad" if 20 <= n < 36 else "ok"} for n in range(80)]
    write(tmp_path / "a.jsonl", scattered)
    write(tmp_path / "b.jsonl", patch)
    model = (
        "-m",
        "fake/script?file=replies.jsonl&by=match&latency_ms=5",
        "--backoff",
        "0.01",
        "--max-retries",
        "1",
    )

    tail, middle = together(
        lambda: run(tmp_path, "a.jsonl", *model, "--max-stall", "30s"),
        lambda: run(tmp_path, "b.jsonl", *model, "-c", "20", "--max-stall", "30s"),
    )

    assert [tail.code, middle.code] == [1, 1]
    assert [len(tail.rows("a.dead.jsonl")), len(middle.rows("b.dead.jsonl"))] == [9, 16]
    assert [len(tail.rows("a.out.jsonl")), len(middle.rows("b.out.jsonl"))] == [171, 64]
