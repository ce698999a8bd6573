"""`[finish]` from Python: done once everything is settled, as by the command line, and told of a failure."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import batchllm
from batchllm.errors import ConfigError, DeadlinePassed, FinishFailed
from tests.api.test_api_stream import ECHO, collect, live
from tests.running import names, rows, tickets, write

CODE = """
import asyncio, json, os

def note(output, dead_letter, summary):
    with open(output) as lines, open("notes.jsonl", "a") as notes:
        counts = [summary["processed"], summary["resumed"], summary["already_done"]]
        notes.write(json.dumps([len(list(lines)), dead_letter, *counts]) + "\\n")

def fails_once(output, dead_letter, summary):
    if not os.path.exists("failed"):
        open("failed", "w").close()
        raise KeyError("colour")
    note(output, dead_letter, summary)

async def hangs(output):
    open("hanging", "w").close()
    await asyncio.sleep(600)
"""
NOTE = {"run": "python/hooks.py:note"}
FAILS_ONCE = {"run": "python/hooks.py:fails_once"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", tickets(3))
    (tmp_path / "hooks.py").write_text(CODE)
    return tmp_path


def run(**settings: Any) -> batchllm.Result:
    return batchllm.run(**({"input": "a.jsonl", "model": ECHO, "finish": NOTE, "environ": {}} | settings))


def notes(folder: Path) -> list[Any]:
    path = folder / "notes.jsonl"
    return rows(path) if path.exists() else []


def test_run_does_it_once_for_the_finished_files_whatever_holds_it(folder: Path) -> None:
    (folder / "job.toml").write_text(f'model = "{ECHO}"\n[finish]\nrun = "python/hooks.py:note"\n')

    assert run().ok
    assert run().ok
    assert batchllm.run("job.toml", input="a.jsonl", output="file.jsonl", environ={}).ok
    assert run(output="limited.jsonl", limit=2).ok
    assert notes(folder) == [[3, None, 3, 0, False]] * 2


def test_run_async_does_it_and_a_command_finds_the_figures(folder: Path) -> None:
    code = "import os; open('told', 'w').write(os.environ['BATCHLLM_FINISHED_SUMMARY'])"

    async def main() -> batchllm.Result:
        finish = {"command": (sys.executable, "-c", code)}
        return await batchllm.run_async(input="a.jsonl", model=ECHO, finish=finish, environ={})

    assert asyncio.run(main()).ok
    told = json.loads((folder / "told").read_text())
    assert (told["processed"], told["output"]) == (3, "a.out.jsonl")


def test_one_that_fails_is_exit_1_with_its_error_until_it_succeeds(folder: Path) -> None:
    failed, again = run(finish=FAILS_ONCE), run(finish=FAILS_ONCE)

    assert (failed.exit_code, failed.summary.succeeded, failed.stopped) == (1, 3, None)
    assert isinstance(failed.error, FinishFailed)
    assert failed.error.message == "finish failed: KeyError: 'colour'"
    assert failed.notes == (failed.error.message,)
    assert "nothing but finish is left to do" in (failed.hint or "")
    assert (again.exit_code, again.error, again.hint) == (0, None, None)
    assert notes(folder) == [[3, None, 3, 3, True]]


def test_one_that_is_not_there_is_refused_before_any_call(folder: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        run(finish={"run": "python/hooks.py:nothing"})
    with pytest.raises(ConfigError, match="there is no output"):
        collect(tickets(3), model=ECHO, finish=NOTE)
    assert names(folder) - {"__pycache__"} == {"a.jsonl", "hooks.py"}


def test_a_deadline_or_a_cancellation_gives_it_up(folder: Path) -> None:
    hangs = {"run": "python/hooks.py:hangs"}
    late = run(finish=hangs, deadline=0.5)
    assert isinstance(late.error, DeadlinePassed)
    assert late.exit_code == 3
    (folder / "hanging").unlink(missing_ok=True)

    async def main() -> None:
        settings: Any = {"input": "a.jsonl", "model": ECHO, "finish": hangs, "environ": {}}
        task = asyncio.create_task(batchllm.run_async(**settings))
        while not (folder / "hanging").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert run().ok
    assert notes(folder) == [[3, None, 3, 3, True]]


def test_a_stream_with_an_output_does_it_at_its_end_alone_and_raises_what_went_wrong(folder: Path) -> None:
    settings: dict[str, Any] = {"model": ECHO, "output": "o.jsonl", "finish": FAILS_ONCE, "environ": {}}
    seen = []

    async def left() -> None:
        async with aclosing(batchllm.stream(tickets(300), concurrency=1, **settings)) as stream:
            seen.append((await anext(stream)).seq)

    async def whole() -> None:
        async for outcome in batchllm.stream(tickets(300), **settings):
            seen.append(outcome.seq)

    live(left)
    assert not (folder / "failed").exists()
    with pytest.raises(FinishFailed, match="colour"):
        live(whole)
    assert max(seen) == 299
    assert notes(folder) == []
    live(whole)
    ((lines, letters, processed, *_),) = notes(folder)
    assert (lines, letters, processed) == (300, None, 300)
