"""The pilot as people meet it: what runs before the decision, the question on a terminal, and going on."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_bar import Screen
from tests.running import (
    ECHO,
    LONGEST_S,
    Ran,
    Rows,
    checked,
    command,
    ended,
    environment,
    rows,
    run,
    started,
    tickets,
    wait_for_settled,
    write,
)
from tests.serving import simulated

QUESTION = "go on? [Y/n] "
LEADER = (
    "import fcntl, os, sys, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes stderr the controlling terminal, as a login shell finds it."""
BACKGROUND = (
    "import fcntl, subprocess, sys, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); "
    "sys.exit(subprocess.call(sys.argv[1:], process_group=0))"
)
"""The same, and the command as a shell starts it with `&`."""


class Terminal:
    """A run at a terminal of 80 columns; `seen` is all that it wrote there."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master, self.process = master, process
        self.seen = ""

    def until(self, text: str) -> None:
        """Read until a text has been written."""
        give_up = time.monotonic() + LONGEST_S
        while text not in self.seen:
            assert self._more(give_up), f"{text!r} never came: {self.seen}"

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self.master, text.encode())

    def end(self, folder: Path) -> Ran:
        """Read to the end of the run."""
        give_up = time.monotonic() + LONGEST_S
        while self._more(give_up):
            pass
        return checked(folder, self.process.wait(LONGEST_S), b"", self.seen.encode())

    def screen(self) -> list[str]:
        """What is to be read there."""
        screen = Screen(80)
        screen.feed(self.seen)
        return screen.text()

    def _more(self, give_up: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, give_up - time.monotonic()))
        assert ready, f"nothing more comes: {self.seen}"
        try:
            chunk = os.read(self.master, 65536)
        except OSError:
            return False  # Linux reports the end of a pseudo-terminal as an error
        self.seen += chunk.decode()
        return bool(chunk)


@contextlib.contextmanager
def at_terminal(
    folder: Path, *args: str, stdin: int = subprocess.DEVNULL, leader: str = LEADER
) -> Iterator[Terminal]:
    """`batchllm run ARGS` in a session of its own, whose terminal is its stderr."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", leader, *command(*args)],
        cwd=folder,
        env=environment(folder, {"TERM": "xterm", "NO_COLOR": "1"}),
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        try:
            yield Terminal(master, process)
        finally:
            process.kill()
            os.close(master)


def failing(folder: Path, count: int, every: int) -> tuple[str, ...]:
    """Records of which each so-many-th is refused, and the options that run them."""
    write(folder / "a.jsonl", [{"text": "bad" if n % every == 0 else "good"} for n in range(count)])
    write(folder / "replies.jsonl", [
        {"match": "good", "text": "fine"},
        {"match": "bad", "text": "", "finish": "content_filter"},
    ])  # fmt: skip
    return ("a.jsonl", "-m", "fake/script?file=replies.jsonl&by=match")


def test_just_the_pilot_is_called_before_the_question_and_a_yes_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(60))
    with (
        simulated() as server,
        at_terminal(
            tmp_path, "a.jsonl", "-m", "openai/any", "--base-url", server.url, "--pilot", "7"
        ) as terminal,
    ):
        terminal.until(QUESTION)
        asked = server.stats()["requests"]
        settled = len(rows(tmp_path / "a.out.jsonl"))
        terminal.type("y\n")
        ran = terminal.end(tmp_path)
        assert server.stats()["requests"] == 60

    assert (asked, settled, ran.code) == (7, 7, 0)
    assert [row["seq"] for row in ran.rows("a.out.jsonl")] == list(range(60))


def test_the_question_stands_below_the_bar_and_the_report(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(60))
    with at_terminal(tmp_path, "a.jsonl", *ECHO, "--pilot", "7") as terminal:
        terminal.until(QUESTION)
        screen = terminal.screen()
        terminal.type("\n")
        ran = terminal.end(tmp_path)
        after = terminal.screen()

    assert ran.code == 0
    assert screen[-1] == QUESTION.strip()
    assert screen[-3].startswith("pilot: 7 records, 100% ok, ")
    assert screen[-2].startswith("pilot: the other 53 would take about 1 s and ")
    assert screen[-5].split()[1:3] == ["7/60", "11%"]
    assert after[: len(screen) - 1] == screen[:-1], "what was asked stays on the screen"
    assert sum(line.startswith("pilot:") for line in after) == 2
    assert any(line.startswith("ok 60 (100%)") for line in after), "another bar goes on below"


def test_a_no_stops_the_run_and_the_same_command_asks_again(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(30))
    options = ("a.jsonl", *ECHO, "--pilot", "7")
    for answer in ("n\n", "\x04"):
        with at_terminal(tmp_path, *options) as terminal:
            terminal.until(QUESTION)
            terminal.type(answer)
            ran = terminal.end(tmp_path)
        assert ran.code == 3
        assert "stopped: at the pilot" in ran.stderr
        assert "run the same command again" in ran.stderr
        assert [row["seq"] for row in ran.rows("a.out.jsonl")] == list(range(7))
    with at_terminal(tmp_path, *options) as terminal:
        terminal.until(QUESTION)
        terminal.type("what\n")
        terminal.until("please answer y or n: " + QUESTION)
        terminal.type("YES\n")
        ran = terminal.end(tmp_path)
    assert ran.code == 0
    assert len(ran.rows("a.out.jsonl")) == 30


def test_interrupting_the_question_ends_the_run_as_a_signal_does(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(30))
    with at_terminal(tmp_path, "a.jsonl", *ECHO, "--pilot", "7") as terminal:
        terminal.until(QUESTION)
        terminal.type("\x03")
        ran = terminal.end(tmp_path)
        screen = terminal.screen()
    again = run(tmp_path, "a.jsonl", *ECHO, "--pilot", "7")

    assert ran.code == 130
    assert any(line.startswith("stopped: by SIGINT") for line in screen)
    assert any(line.startswith(QUESTION.strip()) for line in screen), "nothing is written behind it"
    assert len(again.rows("a.out.jsonl")) == 30
    assert "pilot: 7 records" in again.stderr


def test_a_deadline_ends_the_question(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(30))
    with at_terminal(tmp_path, "a.jsonl", *ECHO, "--pilot", "7", "--deadline", "1.5") as terminal:
        terminal.until(QUESTION)
        ran = terminal.end(tmp_path)
    assert ran.code == 3
    assert "the deadline of 1.5 s has passed" in ran.stderr


def test_yes_answers_the_question_of_a_pilot_that_passed_alone(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", tickets(30))
    options = failing(tmp_path, 40, 4)
    with at_terminal(tmp_path, "b.jsonl", *ECHO, "--pilot", "7", "-y") as terminal:
        passed = terminal.end(tmp_path)
    with at_terminal(tmp_path, *options, "--pilot", "8", "-y") as terminal:
        failed = terminal.end(tmp_path)

    assert (passed.code, failed.code) == (0, 3)
    assert "pilot: 7 records, 100% ok" in passed.stderr
    assert QUESTION not in passed.stderr + failed.stderr
    assert "2 of 8 records failed (25%), allowed are under 10%" in failed.stderr


def test_a_pipe_on_stdin_is_asked_about_at_the_terminal_while_it_is_silent(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    lines = [b'{"id":%d,"text":"a"}\n' % n for n in range(9)]
    options = ("-", *ECHO, "-o", "out.jsonl", "--pilot", "5")
    with os.fdopen(writing, "wb", buffering=0) as pipe, os.fdopen(reading, "rb") as end:
        pipe.write(b"".join(lines[:5]))
        with at_terminal(tmp_path, *options, stdin=end.fileno()) as terminal:
            terminal.until(QUESTION)
            assert "how much more comes is not known" in terminal.seen
            terminal.type("y\n")
            pipe.write(b"".join(lines[5:]))
            pipe.close()
            ran = terminal.end(tmp_path)
    assert ran.code == 0
    assert [row["id"] for row in ran.rows("out.jsonl")] == list(range(9))


def test_nobody_is_asked_in_the_background(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(30))
    with at_terminal(tmp_path, "a.jsonl", *ECHO, "--pilot", "7", leader=BACKGROUND) as terminal:
        ran = terminal.end(tmp_path)
    assert ran.code == 0
    assert "pilot: 7 records" in ran.stderr
    assert QUESTION not in ran.stderr
    assert len(ran.rows("a.out.jsonl")) == 30


def test_without_a_terminal_the_run_decides_alone(tmp_path: Path) -> None:
    options = failing(tmp_path, 40, 11)
    passed = run(tmp_path, *options, "--pilot", "20", "--max-failures", "20%")
    settled = len(passed.rows("a.out.jsonl")) + len(passed.rows("a.dead.jsonl"))
    to_stdout = run(
        tmp_path, *options, "--pilot", "20", "--max-failures", "20%", "-o", "-", "--progress", "none"
    )
    stopped = run(tmp_path, *options, "--pilot", "20", "-o", "-", "-q")

    assert (passed.code, settled) == (1, 40)
    assert "pilot: 20 records, 90% ok" in passed.stderr
    assert "pilot: 2 failed as refused, such as: " in passed.stderr
    assert "pilot: the other 20 would take" in passed.stderr
    assert (to_stdout.code, len(to_stdout.stdout.splitlines())) == (1, 36)
    assert "pilot: the other 20 would take" in to_stdout.stderr
    assert (stopped.code, len(stopped.stdout.splitlines())) == (3, 18)
    assert stopped.error.startswith("stopped: the pilot failed: 2 of 20 records failed (10%)")
    assert stopped.hint.startswith("look into a.dead.jsonl, mend what fails and run again, or")


def test_a_failed_pilot_is_kept_and_judged_again_until_more_is_allowed(tmp_path: Path) -> None:
    options = failing(tmp_path, 50, 4)
    first = run(tmp_path, *options, "--pilot", "20")
    again = run(tmp_path, *options, "--pilot", "20", "-y")
    more = run(tmp_path, *options, "--pilot", "20", "--max-failures", "30%")

    assert [first.code, again.code, more.code] == [3, 3, 1]
    assert len(rows(tmp_path / "a.dead.jsonl")) == 13
    for ran in (first, again):
        assert "stopped: the pilot failed: 5 of 20 records failed (25%), allowed are under 10%" in ran.stderr
        assert "  refused      5" in ran.stderr
        assert "a.dead.jsonl" in ran.hint
    assert "calls          20" in again.stderr
    assert "pilot: 20 records, 75% ok" in more.stderr
    assert len(more.rows("a.out.jsonl")) == 37


def test_a_pilot_that_has_passed_is_over(tmp_path: Path) -> None:
    options = failing(tmp_path, 50, 4)
    left_out = run(tmp_path, *options, "--limit", "30")
    over = run(tmp_path, *options, "--pilot", "20")
    assert [left_out.code, over.code] == [1, 1]
    assert "pilot" not in over.stderr


def test_an_interrupted_pilot_goes_on_where_it_was(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*tickets(6), {"text": "hangs"}, *tickets(30, 6)])
    hanging: Rows = [{"match": "ok", "text": "fine"}, {"match": "hangs", "text": "late", "latency_ms": 1e7}]
    write(tmp_path / "replies.jsonl", hanging)
    options = ("a.jsonl", "-m", "fake/script?file=replies.jsonl&by=match", "--pilot", "10", "--grace", "0.1")
    with started(tmp_path, *options, "-vv") as process:
        wait_for_settled(process, 9)
        process.send_signal(signal.SIGINT)
        first = ended(tmp_path, process)
    settled = [row["seq"] for row in first.rows("a.out.jsonl")]
    hanging[1] = {"match": "hangs", "text": "", "finish": "content_filter"}
    write(tmp_path / "replies.jsonl", hanging)
    second = run(tmp_path, *options)
    third = run(tmp_path, *options, "--max-failures", "2")

    assert [first.code, second.code, third.code] == [130, 3, 1]
    assert sorted(settled) == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert "1 of 10 records failed (10%)" in second.stderr
    assert [letter["seq"] for letter in third.rows("a.dead.jsonl")] == [6]


def test_another_prompt_has_a_pilot_of_its_own(tmp_path: Path) -> None:
    options = (*failing(tmp_path, 40, 2), "--merge-failed")
    redo = ("--pilot", "10", "--on-change", "redo", "-p", "bad")
    first = run(tmp_path, *options, "--pilot", "10", "--max-failures", "60%")
    worse = run(tmp_path, *options, *redo)
    same = run(tmp_path, *options, *redo)
    letters = rows(tmp_path / "a.dead.jsonl")
    better = run(tmp_path, *options, "--pilot", "10", "-p", "good", "--fresh")

    assert [first.code, worse.code, same.code, better.code] == [1, 3, 3, 0]
    for ran in (worse, same):
        assert "10 of 10 records failed (100%)" in ran.stderr
        assert "on-change" not in ran.hint
    assert [letter["seq"] for letter in letters] == list(range(10))


@pytest.mark.parametrize("rounds", [True, False])
def test_dead_letters_are_tried_again_without_a_pilot(rounds: bool, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "bad" if n >= 28 else "good"} for n in range(30)])
    write(tmp_path / "replies.jsonl", [
        {"match": "good", "text": "fine"},
        {"match": "bad", "error": "timeout"},
    ])  # fmt: skip
    model = ("-m", "fake/script?file=replies.jsonl&by=match", "--max-retries", "0")
    ran = run(tmp_path, "a.jsonl", *model, "--pilot", "1", *(["--rounds", "1"] if rounds else []))
    assert ran.stderr.count("pilot: ") == 2
    if not rounds:
        ran = run(tmp_path, "a.out.jsonl", verb="retry")
        assert "pilot" not in ran.stderr
    assert ran.code == 1
    assert "calls          32" in ran.stderr
