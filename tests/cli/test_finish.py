"""`[finish]`: a function or a command that gets the finished files, once, and again after a crash."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.running import ECHO, Ran, ended, run, started, tickets, together, write

CODE = """
import asyncio, json, os, pathlib, signal, sys, threading

def note(output, dead_letter, summary):
    print("noted")
    with open("notes.jsonl", "a") as notes:
        lines = open(output).read().count("\\\\n") if output != "-" else None
        letters = dead_letter and os.path.basename(dead_letter)
        notes.write(json.dumps([lines, letters, summary["processed"]]) + "\\\\n")

async def later(summary):
    await asyncio.sleep(0)
    note("-", None, summary)

def dies_once(output, dead_letter, summary):
    if not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    note(output, dead_letter, summary)

def fails_once(output, dead_letter, summary):
    if not os.path.exists("failed"):
        open("failed", "w").close()
        raise KeyError("colour")
    note(output, dead_letter, summary)

def hangs():
    print("hanging", file=sys.stderr, flush=True)
    threading.Event().wait()

def asks(colour): ...

def picky(messages):
    if "00001" in messages[-1]["content"]:
        raise ValueError("no")
    return "fine"
""".replace("\\\\", "\\")


def job(folder: Path, *lines: str, name: str = "job.toml") -> Path:
    (folder / name).write_text("\n".join(["[finish]", *lines]) + "\n")
    return folder / name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.jsonl", tickets(3))
    (tmp_path / "hooks.py").write_text(CODE)
    return tmp_path


def again(folder: Path, *args: str) -> Ran:
    return run(folder, "a.jsonl", "-j", "job.toml", *ECHO, *args)


def notes(folder: Path) -> list[list[object]]:
    path = folder / "notes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_function_gets_the_finished_files_once(folder: Path) -> None:
    job(folder, 'run = "python/hooks.py:note"')

    first, second = again(folder), again(folder)

    assert (first.code, second.code) == (0, 0)
    assert notes(folder) == [[3, None, 3]]
    assert first.stdout == b""
    assert "noted" in first.stderr
    assert "noted" not in second.stderr


def test_what_joins_a_finished_run_is_finished_again(folder: Path) -> None:
    job(folder, 'run = "python/hooks:note"')
    again(folder)
    write(folder / "a.jsonl", tickets(4))

    assert again(folder).code == 0
    assert notes(folder) == [[3, None, 3], [4, None, 4]]


def test_a_run_with_dead_letters_and_its_retry_are_finished_too(folder: Path) -> None:
    job(folder, 'run = "python/hooks.py:note"')

    first = again(folder, "-m", "python/hooks.py:picky")
    retried = run(folder, "a.out.jsonl", *ECHO, verb="retry")

    assert (first.code, retried.code) == (1, 0)
    assert notes(folder) == [[2, "a.dead.jsonl", 3], [3, None, 3]]


def test_a_crash_in_finish_runs_it_again(folder: Path) -> None:
    job(folder, 'run = "python/hooks.py:dies_once"')

    killed, second, third = again(folder), again(folder), again(folder)

    assert (killed.code, second.code, third.code) == (137, 0, 0)
    assert notes(folder) == [[3, None, 3]]


def test_a_failure_is_said_and_is_exit_1_until_it_succeeds(folder: Path) -> None:
    job(folder, 'run = "python/hooks.py:fails_once"')

    failed, second = again(folder), again(folder)

    assert (failed.code, second.code) == (1, 0)
    assert failed.error == "finish failed: KeyError: 'colour'"
    assert "run the same command again" in failed.hint
    assert notes(folder) == [[3, None, 3]]


def test_a_run_to_stdout_is_finished_and_its_data_stay_clean(folder: Path) -> None:
    job(folder, 'run = "python/hooks.py:later"')

    ran = again(folder, "-o", "-")

    assert ran.code == 0
    assert len([json.loads(line) for line in ran.stdout.splitlines()]) == 3
    assert notes(folder) == [[None, None, 3]]


def test_a_command_is_told_by_its_environment(folder: Path) -> None:
    script = folder / "after.sh"
    script.write_text(
        'echo to stderr; printf "%s\\n" "$BATCHLLM_FINISHED_OUTPUT" "$BATCHLLM_FINISHED_DEAD_LETTER" '
        '"$BATCHLLM_FINISHED_SUMMARY" "$0" > told\n'
    )
    script.chmod(0o755)
    script.write_text("#!/bin/sh\n" + script.read_text())
    job(folder, 'command = ["./after.sh"]')

    ran = again(folder, "-o", "b.jsonl")

    output, dead, summary, program = (folder / "told").read_text().splitlines()
    assert ran.code == 0
    assert (output, dead) == (str(folder / "b.jsonl"), "")
    assert json.loads(summary)["succeeded"] == 3
    assert program == str(folder / "after.sh")
    assert ran.stdout == b""
    assert "to stderr" in ran.stderr


def test_a_command_that_fails_or_takes_too_long_is_exit_1(folder: Path) -> None:
    job(folder, 'command = ["sh", "-c", "exit 7"]', name="fails.toml")
    job(folder, 'command = ["sh", "-c", "sleep 60"]', "timeout = 0.1", name="slow.toml")
    job(folder, 'run = "python/hooks:hangs"', "timeout = 0.1", name="hangs.toml")

    ran = together(
        *(
            lambda name=name: run(folder, "a.jsonl", "-j", f"{name}.toml", "-o", f"{name}.jsonl", *ECHO)
            for name in ("fails", "slow", "hangs")
        )
    )

    assert [end.code for end in ran] == [1, 1, 1]
    assert [end.error for end in ran] == [
        "finish failed: sh ended with 7",
        "finish failed: it took longer than 0.1 s",
        "finish failed: it took longer than 0.1 s",
    ]


def test_a_signal_gives_finish_up(folder: Path) -> None:
    job(folder, 'run = "python/hooks.py:hangs"')

    with started(folder, "a.jsonl", "-j", "job.toml", *ECHO) as process:
        assert process.stderr is not None
        while b"hanging" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        ran = ended(folder, process)

    assert ran.code == 130
    assert ran.error == "finish was cut short by a stop"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('run = "python/hooks:missing"', "has no function 'missing'"),
        ('run = "python/hooks:asks"', "hooks:asks takes 'colour'"),
        ('run = "hooks:note"', 'expected run = "python/module:function"'),
        ('command = "after.sh"', "expected command ="),
        ('command = ["./nowhere.sh"]', "there is no program"),
        ('command = ["sh"]\nrun = "python/hooks:note"', "expected run ="),
        ('command = ["sh"]\nshell = true', "but found shell"),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_run(folder: Path, line: str, words: str) -> None:
    job(folder, line)

    ran = again(folder)

    assert ran.code == 2
    assert words in ran.error
    assert not (folder / "a.out.jsonl").exists()


def test_a_job_file_that_is_found_and_not_named_may_not_finish(folder: Path) -> None:
    job(folder, 'command = ["true"]', name="batchllm.toml")

    found = run(folder, "a.jsonl", *ECHO)

    assert found.code == 2
    assert "may not name code to run (finish)" in found.error
