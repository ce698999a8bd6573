"""`batchllm.run`: what the command line does with the same settings, in the caller's own process."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchllm
from batchllm.errors import AuthFailed, ConfigError, DeadlinePassed, InUse, PilotFailed
from batchllm.summary import Summary
from tests.running import LONGEST_S, environment, names, rows, tickets, write
from tests.running import run as run_command
from tests.serving import Simulated, simulated

ECHO = "fake/echo"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", tickets(30))
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[Simulated]:
    with simulated("--latency-ms", "200") as running:
        yield running


def run(*job: Any, **settings: Any) -> batchllm.Result:
    return batchllm.run(*job, environ={}, **settings)


def test_the_files_are_those_of_the_command_line(folder: Path) -> None:
    write(folder / "sub" / "a.jsonl", tickets(30))
    ran = run_command(folder / "sub", "a.jsonl", "-m", ECHO, "--keep", "text", "-c", "4")
    result = run(input=folder / "a.jsonl", model=ECHO, keep=["text"], concurrency=4)

    assert ran.code == result.exit_code == 0
    assert result.ok
    assert names(folder) - {"sub"} == names(folder / "sub")
    assert result.output == str(folder / "a.out.jsonl")
    varying = dict.fromkeys(("finished_at", "latency_s", "request_id"))
    ours, theirs = rows(Path(result.output)), ran.rows("a.out.jsonl")
    assert [row | varying for row in ours] == [row | varying for row in theirs]
    assert (result.summary.succeeded, result.summary.failed, result.dead_letter) == (30, 0, None)


def test_a_job_is_a_file_a_mapping_or_keywords_and_keywords_win(folder: Path) -> None:
    (folder / "job.toml").write_text(f'model = "{ECHO}"\ninput = "a.jsonl"\noutput = "file.jsonl"\n')
    run(folder / "job.toml")
    run({"model": ECHO, "input": "a.jsonl", "output": "mapping.jsonl", "max-retries": 1})
    run("job.toml", output="keyword.jsonl", limit=3)

    assert len(rows(folder / "file.jsonl")) == len(rows(folder / "mapping.jsonl")) == 30
    assert len(rows(folder / "keyword.jsonl")) == 3


def test_a_job_file_that_merely_lies_there_counts_as_for_the_command_but_not_beside_a_mapping(
    folder: Path,
) -> None:
    (folder / "batchllm.toml").write_text(f'model = "{ECHO}"\n')

    assert run(input="a.jsonl").ok
    with pytest.raises(ConfigError, match="no model was named"):
        run({"input": "a.jsonl", "output": "b.jsonl"})


def test_an_unfinished_run_goes_on_and_a_finished_one_calls_nobody(folder: Path) -> None:
    first = run(input="a.jsonl", model=ECHO, limit=10)
    second = run(input="a.jsonl", model=ECHO)
    third = run(input="a.jsonl", model=ECHO)

    assert [r.resumed for r in (first, second, third)] == [0, 10, 30]
    assert [r.exit_code for r in (first, second, third)] == [0, 0, 0]
    assert [row["seq"] for row in rows(folder / "a.out.jsonl")] == list(range(30))


def test_dead_letters_rounds_and_the_exit_code_are_those_of_the_run(folder: Path) -> None:
    write(folder / "b.jsonl", tickets(3))
    with (folder / "b.jsonl").open("a") as file:
        file.write("no json\n")
    result = run(input="b.jsonl", model=ECHO)

    assert result.exit_code == 1
    assert result.dead_letter is not None
    assert [letter["error"]["kind"] for letter in rows(Path(result.dead_letter))] == ["bad_input"]
    assert run(input="b.jsonl", model=ECHO, accept_failures=1).ok


def test_a_stopped_run_says_why_and_raises_nothing(folder: Path) -> None:
    result = run(input="a.jsonl", model="fake/echo?faults=401:1")

    assert result.exit_code == 3
    assert isinstance(result.error, AuthFailed)
    assert result.stopped == result.error.message
    assert result.hint


def test_a_deadline_ends_it_with_exit_3(folder: Path) -> None:
    result = run(input="a.jsonl", model="fake/echo?latency_ms=200", concurrency=1, deadline=0.3, grace=0)

    assert isinstance(result.error, DeadlinePassed)
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"model": ECHO}, "no input", "name a file"),
        ({"input": "a.jsonl", "model": ECHO, "concurency": 5}, "no setting 'concurency'", "concurrency"),
        ({"input": "a.jsonl", "model": ECHO, "api_key": "x"}, "no setting 'api_key'", "environ"),
        ({"input": "a.jsonl", "model": ECHO, "rpm": "fast"}, "expected a number", "rpm"),
        ({"input": "a.jsonl", "model": "openai/m"}, "no key for openai/m", "OPENAI_API_KEY"),
        ({"input": "a.jsonl", "model": ECHO, "prompt": "{{ colour }}"}, "'colour'", "text"),
        ({"input": "a.jsonl", "model": ECHO, "pilot": 3}, "nobody is there to be asked", "confirm"),
    ],
)
def test_what_is_wrong_is_raised_before_any_call(
    folder: Path, settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(**settings)

    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert names(folder) == {"a.jsonl"}


def test_a_pilot_asks_the_callback_async_or_not(folder: Path) -> None:
    asked: list[int] = []

    async def no(summary: Summary) -> bool:
        asked.append(summary.settled)
        return False

    refused = run(input="a.jsonl", model=ECHO, pilot=5, confirm=no)
    assert asked == [5]
    assert isinstance(refused.error, PilotFailed)
    assert refused.summary.settled == 5
    assert run(input="a.jsonl", model=ECHO, pilot=5, output="b.jsonl", confirm=lambda s: True).ok
    assert run(input="a.jsonl", model=ECHO, pilot=5, output="c.jsonl", yes=True).ok


def test_it_writes_nothing_to_stdout_and_stderr_and_leaves_signals_and_threads_as_they_were(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    (folder / "a.out.jsonl").write_text("something\n")
    result = run(input="a.jsonl", model=ECHO, fresh=True, progress="log")

    assert capfd.readouterr() == ("", "")
    assert any("moved aside" in note for note in result.notes)
    assert {number: signal.getsignal(number) for number in before} == before
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(5)  # one that read the input was told to end, and may still be at it
    assert threading.active_count() == 1


def test_in_an_event_loop_run_says_what_to_await_and_run_async_works(folder: Path) -> None:
    async def main() -> batchllm.Result:
        with pytest.raises(RuntimeError, match="run_async"):
            run(input="a.jsonl", model=ECHO)
        return await batchllm.run_async(input="a.jsonl", model=ECHO, environ={})

    assert asyncio.run(main()).ok


def test_an_output_in_use_is_raised(folder: Path) -> None:
    async def main() -> None:
        slow = {"input": "a.jsonl", "model": "fake/echo?latency_ms=60000", "grace": 0}
        first = asyncio.create_task(batchllm.run_async(slow, environ={}))
        while not (folder / "a.out.jsonl.run" / "job.json").exists():
            await asyncio.sleep(0.01)
        with pytest.raises(InUse):
            await batchllm.run_async(slow, environ={})
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())


def test_a_cancelled_run_keeps_what_was_answered_and_gives_the_output_back(folder: Path) -> None:
    async def main() -> batchllm.Result:
        job = {"input": "a.jsonl", "model": "fake/script?file=replies.jsonl&by=match", "grace": 600}
        task = asyncio.create_task(batchllm.run_async(job, environ={}))
        while not (folder / "a.out.jsonl").exists() or len(rows(folder / "a.out.jsonl")) < 29:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        write(folder / "replies.jsonl", [{"match": "ticket", "text": "later"}])
        return await batchllm.run_async(job, environ={})

    hangs = {"match": "00007", "text": "never", "latency_ms": 600_000}
    write(folder / "replies.jsonl", [hangs, {"match": "ticket", "text": "at once"}])
    result = asyncio.run(main())

    assert result.ok
    assert result.resumed == 29
    outputs = [row["output"] for row in rows(folder / "a.out.jsonl")]
    assert outputs == ["at once"] * 7 + ["later"] + ["at once"] * 22


PROGRAM = """
import batchllm, sys
try:
    batchllm.run(input="a.jsonl", model="openai/m", base_url=sys.argv[1], concurrency=4)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_settles_what_is_in_flight_and_raises_keyboard_interrupt(
    folder: Path, server: Simulated
) -> None:
    before = server.stats()["requests"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.url],
        cwd=folder,
        env=environment(folder, {"OPENAI_API_KEY": "k"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while process.poll() is None and server.stats()["requests"] < before + 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=LONGEST_S)

    assert (stdout, stderr, process.returncode) == (b"interrupted\n", b"", 0)
    stats = server.stats()
    settled = len(rows(folder / "a.out.jsonl"))
    assert 5 <= settled < 30
    assert stats["requests"] - before == settled
    assert stats["abandoned"] == 0
    again = batchllm.run(
        input="a.jsonl", model="openai/m", base_url=server.url, environ={"OPENAI_API_KEY": "k"}
    )
    assert again.ok
    assert server.stats()["requests"] - before == 30
