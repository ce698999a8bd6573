"""Nothing piles up: what is slow at the end holds back what is at the front, in records and in bytes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from tests.running import (
    ECHO,
    LONGEST_S,
    checked,
    command,
    environment,
    run,
    started,
    tickets,
    wait_for_settled,
    write,
)

FAT = 100_000
MIB = 1 << 20


def test_a_stdout_that_is_not_read_holds_stdin_back_and_memory_stays_bounded(tmp_path: Path) -> None:
    records = [json.dumps({"id": n, "text": f"{n} " * (FAT // 8)}).encode() + b"\n" for n in range(600)]
    content = memoryview(b"".join(records))
    with subprocess.Popen(
        command(*ECHO, "-c", "50"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin = process.stdin
        sent, feed = 0, stdin.fileno()
        os.set_blocking(feed, False)
        while select.select([], [feed], [], 1.5)[1] and sent < len(content):
            sent += os.write(feed, content[sent : sent + (1 << 16)])
        held = sent
        os.set_blocking(feed, True)
        feeder = threading.Thread(target=lambda: (stdin.write(content[sent:]), stdin.close()))
        feeder.start()
        pieces, peak_mib = [], 0.0
        while piece := process.stdout.read1():
            pieces.append(piece)
            peak_mib = max(peak_mib, _peak_mib(process.pid))
        out = b"".join(pieces)
        feeder.join()
        process.wait()

    assert held < len(content) / 2
    assert checked(tmp_path, process.returncode, b"", b"").code == 0
    assert sorted(json.loads(line)["id"] for line in out.splitlines()) == list(range(600))
    assert 0 < peak_mib < 200


def _peak_mib(pid: int) -> float:
    """The peak of a process's resident memory so far; what wait4 says of it also counts who started it."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def test_one_record_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "hangs"}, *tickets(3000)])
    write(tmp_path / "replies.jsonl", [
        {"match": "ok", "text": "fine", "latency_ms": 2},
        {"match": "hangs", "text": "", "latency_ms": 1e7},
    ])  # fmt: skip

    with started(
        tmp_path, "a.jsonl", "-m", "fake/script?file=replies.jsonl&by=match", "-vv", "--grace", "0"
    ) as process:
        wait_for_settled(process, 3000)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONGEST_S) == 143


def test_lines_leave_stdout_in_input_order_if_that_is_asked(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"id": n, "text": f"{n % 5} of 5"} for n in range(300)])
    write(tmp_path / "replies.jsonl", [
        {"match": f"{n} of 5", "text": "" if n == 3 else "fine", "latency_ms": 40 - 9 * n} for n in range(5)
    ])  # fmt: skip

    ran = run(
        tmp_path, "a.jsonl", "-m", "fake/script?file=replies.jsonl&by=match", "-o", "-", "--ordered",
        "--repair", "0",
    )  # fmt: skip

    assert ran.code == 1
    assert [json.loads(line)["id"] for line in ran.stdout.splitlines()] == [
        n for n in range(300) if n % 5 != 3
    ]
    assert len(ran.rows("a.dead.jsonl")) == 60
