"""`python/…:function`: a function of the user's as the model, in this process."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest

from tests.running import Ran, ended, run, started, tickets, together, wait_for_settled, write

CODE = """
import threading

def shout(messages):
    return messages[-1]["content"].upper()

def both(messages, body):
    return {"messages": len(messages), "temperature": body["temperature"]}

async def later(messages):
    return "later"

class Deep:
    @staticmethod
    def within(messages):
        return ["within"]

def fails(messages):
    raise KeyError("colour")

def leaves(messages):
    raise SystemExit(3)

def odd(messages):
    return 5

def blocks(messages):
    if "00000" in messages[-1]["content"]:
        threading.Event().wait()
    return "fine"

number = 5
"""


def ask(folder: Path, function: str, *args: str) -> Ran:
    name = function.rpartition(":")[2]
    model = ("-m", f"python/{function}", "-o", f"{name}.jsonl", "--param", "temperature=1")
    return run(folder, "a.jsonl", *model, *args)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.jsonl", tickets(5))
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def test_what_the_function_returns_is_the_answer(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "inner.py").write_text("def deep(messages): return 'deep'\n")
    ran = together(
        lambda: ask(folder, "./mine.py:shout"),
        lambda: ask(folder, "mine:both"),
        lambda: ask(folder, "./mine.py:later"),
        lambda: ask(folder, "mine:Deep.within"),
        lambda: ask(folder, "package.inner:deep"),
    )

    assert [end.code for end in ran] == [0] * 5
    assert [row["output"] for row in ran[0].rows("shout.jsonl")] == [f"TICKET {n:05} OK" for n in range(5)]
    assert ran[1].rows("both.jsonl")[0]["output"] == '{"messages":1,"temperature":1}'
    assert ran[2].rows("later.jsonl")[0]["output"] == "later"
    assert ran[3].rows("Deep.within.jsonl")[0]["output"] == '["within"]'
    assert ran[4].rows("deep.jsonl")[0]["output"] == "deep"


def test_what_the_function_raises_costs_its_record_alone(folder: Path) -> None:
    ran = together(*(partial(ask, folder, f"mine:{name}") for name in ("fails", "leaves", "odd")))

    assert [end.code for end in ran] == [1] * 3
    errors = [end.rows(f"{name}.dead.jsonl")[0]["error"] for end, name in
              zip(ran, ("fails", "leaves", "odd"), strict=True)]  # fmt: skip
    assert [error["kind"] for error in errors] == ["internal"] * 3
    assert [error["message"] for error in errors] == [
        "KeyError: 'colour'",
        "SystemExit: 3",
        "the function returned int, not text, a dict or a list",
    ]


def test_a_function_that_blocks_costs_its_record_and_holds_neither_the_run_nor_its_end(folder: Path) -> None:
    ran = ask(folder, "mine:blocks", "--timeout", "0.3", "--max-retries", "0")

    assert ran.code == 1
    (letter,) = ran.rows("blocks.dead.jsonl")
    assert (letter["error"]["kind"], letter["error"]["cause"]) == ("exhausted", "timeout")
    assert [row["output"] for row in ran.rows("blocks.jsonl")] == ["fine"] * 4


def test_a_stop_gives_up_a_function_that_blocks_and_the_process_ends(folder: Path) -> None:
    with started(folder, "a.jsonl", "-m", "python/mine:blocks", "-vv", "--grace", "0.1") as process:
        wait_for_settled(process, 4)
        process.send_signal(signal.SIGTERM)
        ran = ended(folder, process)

    assert ran.code == 143
    assert "calls in flight: 1" in ran.stderr
    assert len(ran.rows("a.out.jsonl")) == 4


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("mine", "names no function"),
        ("mine:missing", "has no function 'missing'"),
        ("mine:number", "has no function 'number'"),
        ("nowhere:f", "there is no module nowhere"),
        ("./nowhere.py:f", "there is no file nowhere.py"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused_and_leaves_nothing(
    folder: Path, function: str, words: str
) -> None:
    before = set(folder.iterdir()) | {folder / "__pycache__"}

    ran = run(folder, "a.jsonl", "-m", f"python/{function}")

    assert ran.code == 2
    assert words in ran.error
    assert set(folder.iterdir()) <= before


def test_a_job_file_that_is_found_and_not_named_may_not_run_code(folder: Path) -> None:
    (folder / "batchllm.toml").write_text('model = "python/mine:shout"\n')

    found, named = together(
        lambda: run(folder, "a.jsonl", "-o", "b.jsonl"),
        lambda: run(folder, "a.jsonl", "-j", "batchllm.toml"),
    )

    assert found.code == 2
    assert "batchllm.toml line 1" in found.error
    assert "-j batchllm.toml" in found.hint
    assert named.code == 0


@pytest.mark.parametrize("function", ["model:answer", "model:later"])
def test_a_function_that_awaits_what_was_cancelled_costs_its_record_alone(
    tmp_path: Path, function: str
) -> None:
    (tmp_path / "model.py").write_text(
        "import asyncio\n"
        "async def answer(messages):\n"
        "    if messages[-1]['content'] == 'two':\n"
        "        task = asyncio.ensure_future(asyncio.sleep(60))\n"
        "        task.cancel()\n"
        "        await task\n"
        "    return 'fine'\n"
        "def later(messages):\n"
        "    if messages[-1]['content'] == 'two':\n"
        "        raise asyncio.CancelledError\n"
        "    return 'fine'\n"
    )
    write(tmp_path / "a.jsonl", [{"text": text} for text in ("one", "two", "three")])

    ran = run(tmp_path, "a.jsonl", "-m", f"python/{function}", "-c", "1")

    assert ran.code == 1, ran.stderr
    (letter,) = ran.rows("a.dead.jsonl")
    assert (letter["seq"], letter["error"]["kind"], letter["error"]["cause"]) == (
        1,
        "internal",
        "CancelledError",
    )
    assert [row["seq"] for row in ran.rows("a.out.jsonl")] == [0, 2]
