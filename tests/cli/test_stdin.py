"""Pipes: records from stdin as they come, answers alone on stdout, and readers that leave."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import IO

from tests.running import (
    ECHO,
    LONGEST_S,
    command,
    ended,
    environment,
    names,
    rows,
    run,
    started,
    tickets,
    write,
)


def line_of(stream: IO[bytes] | None) -> bytes:
    """The next line, waiting for it; a test must not hang where none comes."""
    assert stream is not None
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(LONGEST_S)
    assert found, "no line came"
    return found[0]


def test_the_answer_to_a_record_is_out_before_the_next_record_comes(tmp_path: Path) -> None:
    with started(tmp_path, *ECHO, "-p", "{{ text }}", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"id": 1, "text": "first"}\n')
        process.stdin.flush()
        first = json.loads(line_of(process.stdout))
        process.stdin.write(b'{"id": 2, "text": "second"}')
        ran = ended(tmp_path, process)

    assert (first["id"], first["output"]) == (1, "echo: first")
    assert ran.code == 0
    assert [json.loads(line)["output"] for line in ran.stdout.splitlines()] == ["echo: second"]


def test_stdin_goes_to_stdout_and_its_dead_letters_to_a_file_that_is_announced(tmp_path: Path) -> None:
    (tmp_path / "stdin.dead.jsonl").write_text("from yesterday\n")
    piped = b'{"text": "a"}\nbroken\n{"text": "b"}\n'

    ran = run(tmp_path, *ECHO, stdin=piped)

    assert ran.code == 1
    assert sorted(json.loads(line)["output"] for line in ran.stdout.splitlines()) == ["echo: a", "echo: b"]
    assert [letter["id"] for letter in ran.rows("stdin.dead.jsonl")] == ["line-2"]
    assert (tmp_path / "stdin.dead.jsonl.old1").read_text() == "from yesterday\n"
    assert "moved aside: stdin.dead.jsonl.old1" in ran.stderr
    assert "stdin.dead.jsonl" in ran.stderr.splitlines()[-1]
    assert names(tmp_path) == {"stdin.dead.jsonl", "stdin.dead.jsonl.old1"}


def test_a_file_to_stdout_makes_no_run_folder_and_a_redirected_file_is_stdin(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*tickets(3), {"id": "bad"}])
    redirected = subprocess.run(
        ["/bin/sh", "-c", 'head -c 0; exec "$0" "$@" < a.jsonl > out.jsonl', *command(*ECHO, "-q")],
        cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    named = run(tmp_path, "a.jsonl", *ECHO, "-o", "-")

    assert (redirected.returncode, redirected.stdout, redirected.stderr) == (1, b"", b"")
    assert {json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()} == {
        ticket["id"] for ticket in tickets(3)
    }
    assert named.code == 1
    assert len(named.stdout.splitlines()) == 3
    assert names(tmp_path) == {"a.jsonl", "out.jsonl", "stdin.dead.jsonl", "a.dead.jsonl"}


def test_answers_are_never_appended_to_the_input_that_they_come_from(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    script = 'exec "$@" >> a.jsonl'
    shell = ["/bin/sh", "-c", script, "sh", *command("a.jsonl", "-o", "-", *ECHO)]

    ran = subprocess.run(
        shell, cwd=tmp_path, env=environment(tmp_path), capture_output=True, timeout=LONGEST_S
    )

    assert ran.returncode == 2
    assert b"error: stdout is both input and output\nhint: " in ran.stderr
    assert rows(tmp_path / "a.jsonl") == tickets(3)


def test_another_stdin_after_a_finished_run_is_never_taken_for_the_one_that_was_settled(
    tmp_path: Path,
) -> None:
    command = ("-", *ECHO, "-o", "out.jsonl")
    monday = run(tmp_path, *command, stdin=b'{"text": "monday 1"}\n{"text": "monday 2"}\n')
    again = run(tmp_path, *command, stdin=b'{"text": "monday 1"}\n{"text": "monday 2"}\n')
    old = (tmp_path / "out.jsonl").read_bytes()
    tuesday = run(
        tmp_path, *command, stdin=b'{"text": "tuesday 1"}\n{"text": "tuesday 2"}\n{"text": "tuesday 3"}\n'
    )

    assert [monday.code, again.code] == [0, 0]
    if tuesday.code == 2:
        assert (tmp_path / "out.jsonl").read_bytes() == old
        assert "--fresh" in tuesday.hint
    else:
        answers = [row["output"] for row in tuesday.rows("out.jsonl")]
        assert (tuesday.code, answers) == (0, [f"echo: tuesday {n}" for n in (1, 2, 3)])


def test_a_named_pipe_is_read_like_any_other(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    write(tmp_path / "a.jsonl", tickets(3))
    with subprocess.Popen(["/bin/sh", "-c", "exec cat a.jsonl > pipe.jsonl"], cwd=tmp_path) as writer:
        try:
            ran = run(tmp_path, "pipe.jsonl", *ECHO, "-o", "o.jsonl")
        finally:
            writer.kill()

    assert ran.code == 0
    assert [row["output"] for row in ran.rows("o.jsonl")] == [f"echo: ticket 0000{n} ok" for n in range(3)]


def test_a_reader_that_leaves_ends_the_run_with_141_and_without_a_word(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [ticket | {"pad": "x" * 2000} for ticket in tickets(3000)])
    script = '(cat a.jsonl | "$@"; echo $? > code) | head -3'
    shell = ["/bin/sh", "-c", script, "sh", *command("-", "-o", "-", *ECHO, "--emit", "merged")]

    ran = subprocess.run(
        shell, cwd=tmp_path, env=environment(tmp_path), capture_output=True, timeout=LONGEST_S
    )

    assert (tmp_path / "code").read_text() == "141\n"
    assert ran.stderr == b""
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(lines) == 3
    assert all(line["output"] == f"echo: {line['text']}" for line in lines)
    assert names(tmp_path) == {"a.jsonl", "code"}


def test_closed_descriptors_cost_no_data_and_hit_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*tickets(5), {"id": "bad"}])

    def code(closed: str, *args: str) -> int:
        script = f'exec "$@" {closed}'
        shell = ["/bin/sh", "-c", script, "sh", *command("a.jsonl", *ECHO, *args)]
        return subprocess.run(shell, cwd=tmp_path, env=environment(tmp_path), timeout=LONGEST_S).returncode

    assert code("<&- >&- 2>&-", "-o", "all.jsonl") == 1
    assert code(">&- 2>&-", "-o", "-", "-d", "none.jsonl") == 3
    assert [row["id"] for row in rows(tmp_path / "all.jsonl")] == [ticket["id"] for ticket in tickets(5)]
    assert len(rows(tmp_path / "all.dead.jsonl")) == 1
    assert rows(tmp_path / "a.jsonl") == [*tickets(5), {"id": "bad"}]
