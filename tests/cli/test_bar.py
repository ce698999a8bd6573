"""The bar on a real pseudo-terminal: what is on the screen when a child process has drawn it."""

import fcntl
import os
import pty
import re
import subprocess
import sys
import termios
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", re.S)

CHILD = """
import sys
import anyio
from batchllm import ui
from batchllm.summary import Summary

class View:
    summary = Summary(succeeded={succeeded}, failed={failed}, retried=5310, input_tokens=123_456_789,
                      output_tokens=34_567_890)
    skipped = 0
    drawn = 0
    def total(self):
        return {total}
    def in_flight(self):
        return 2_000
    def waiting(self):
        self.drawn += 1
        if self.drawn == 2:
            self.again.set()
        return "rate limit: paused 12 s " + "x" * 200 if self.drawn == 1 else None

async def main():
    view = View()
    view.again = anyio.Event()
    async with anyio.create_task_group() as tasks:
        async def show():
            await ui.show(view, kind="bar", clock=lambda: view.drawn * 1.0)
        tasks.start_soon(show)
        await anyio.wait_all_tasks_blocked()
        ui.warn("[bold]dead letters[/bold] go to t.dead.jsonl", "look at them")
        print("y" * 300, file=sys.stderr)
        print("unfinished", file=sys.stderr, end="")
        view.summary.succeeded += 90_000
        await view.again.wait()
        tasks.cancel_scope.cancel()
    {end}

anyio.run(main)
"""
FINAL = 'ui.final(view.summary, ui.Facts("t.out.jsonl", 12.0, hint="look [bold]here[/bold]"), kind="bar")'


class Screen:
    """As much of a terminal as the bar needs, endlessly high; `wrapped` holds the rows that ran over."""

    def __init__(self, columns: int) -> None:
        self.columns, self.rows = columns, [""]
        self.row = self.column = 0
        self.wrapped: set[str] = set()

    def feed(self, text: str) -> None:
        for arguments, command, letter in TOKEN.findall(text):
            if command == "A":
                self.row -= int(arguments or 1)
                assert self.row >= 0
            elif command == "K":
                self._set(self._line()[: self.column])
            elif command == "J":
                self._set(self._line()[: self.column])
                del self.rows[self.row + 1 :]
            elif command:
                assert command == "m", f"unexpected {command}"
            elif letter == "\r":
                self.column = 0
            elif letter == "\n":
                self._down()
            else:
                self._put(letter)

    def text(self) -> list[str]:
        return [row.rstrip() for row in self.rows if row.strip()]

    def _put(self, letter: str) -> None:
        if self.column == self.columns:
            self.wrapped.add(self._line())
            self.column = 0
            self._down()
        line = self._line().ljust(self.column)
        self._set(line[: self.column] + letter + line[self.column + 1 :])
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")

    def _line(self) -> str:
        return self.rows[self.row]

    def _set(self, line: str) -> None:
        self.rows[self.row] = line


@cache
def run(
    columns: int,
    *,
    succeeded: int = 400_000,
    failed: int = 123,
    total: str = "(1_234_567, False)",
    end: str = "",
    **environment: str,
) -> tuple[Screen, str]:
    """Run the child on a terminal of so many columns; its screen at the end, and the bytes it wrote."""
    master, slave = pty.openpty()
    fcntl.ioctl(
        slave, termios.TIOCSWINSZ, (24).to_bytes(2, "little") + columns.to_bytes(2, "little") + b"\0" * 4
    )
    code = CHILD.format(succeeded=succeeded, failed=failed, total=total, end=end)
    variables = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stderr=slave, stdout=subprocess.PIPE, env=variables
    )
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 65536):
            seen += chunk
    except OSError:
        pass  # Linux reports the end of a pseudo-terminal as an error
    finally:
        os.close(master)
    stdout, _ = child.communicate()
    assert (child.returncode, stdout) == (0, b""), seen.decode()
    screen = Screen(columns)
    screen.feed(seen.decode())
    return screen, seen.decode()


@pytest.mark.parametrize(("columns", "environment"), [(80, {}), (50, {}), (30, {"NO_COLOR": "1"})])
def test_the_bar_never_wraps_and_leaves_its_final_state(columns: int, environment: dict[str, str]) -> None:
    screen, _ = run(columns, **environment)
    assert all("yyyyy" in row or row.startswith("warning: ") for row in screen.wrapped)
    lines = screen.text()
    words = " ".join(lines)
    assert "490,123/~1,234,567" in words
    assert "39%" in words
    assert "ok 490,000 (99.9%)" in words
    assert "failed 123" in words
    assert "retried 5,310" in words
    assert "in 2s" in words
    assert all(len(line) < columns for line in lines if "y" not in line and "dead" not in line)
    assert words.count("failed 123") == 1, "older frames are gone"
    assert "paused" not in words


def test_at_80_columns_the_bar_takes_two_lines_below_what_others_print() -> None:
    lines = run(80)[0].text()
    assert lines[:2] == ["warning: [bold]dead letters[/bold] go to t.dead.jsonl", "hint: look at them"]
    assert "".join(lines[2:-3]) == "y" * 300
    assert lines[-3] == "unfinished"
    assert lines[-2].startswith("━━━")
    assert lines[-1].startswith("ok 490,000")


def test_all_of_the_figures_fit_two_lines_of_80_columns_in_a_run_of_thousands() -> None:
    output = run(80, succeeded=3_098, failed=22, total="(100_000, True)")[1]
    screen = Screen(80)
    screen.feed(output[: output.index("ok 93,098")])
    assert screen.text()[-1].startswith("━")
    first = Screen(80)
    first.feed(output[: output.index("rate limit")])
    bar, figures = first.text()
    assert bar.endswith("3,120/100,000    3%     --/s  eta --")
    assert figures == "ok 3,098 (99.2%)  failed 22  retried 5,310  in flight 2,000  tokens 123M/34.5M"


def test_an_unknown_total_on_a_terminal_of_unknown_size_shows_a_count_at_80_columns() -> None:
    _, output = run(0, total="(None, False)")
    screen = Screen(80)
    screen.feed(output)
    assert screen.wrapped <= {"y" * 80}
    assert "490,123 done" in screen.text()[-2]
    assert "eta" not in output


def test_colours_are_used_on_a_terminal_and_not_against_no_color() -> None:
    coloured, plain = run(80)[1], run(30, NO_COLOR="1")[1]
    assert re.search(r"\x1b\[(1;)?3\dm", coloured)
    assert not re.search(r"\x1b\[[0-9;]*[34]\d[0-9;]*m", plain)


def test_the_final_table_follows_the_bar_and_shows_text_as_it_stands() -> None:
    screen, _ = run(80, end=FINAL)
    lines = screen.text()
    assert any(line.startswith("ok 490,000") for line in lines)
    assert "failed      123" in lines
    assert "output      t.out.jsonl" in lines
    assert lines[-1] == "hint: look [bold]here[/bold]"
