"""Python code of the user's by its place: whole for every thread, and nobody waits for nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchllm.errors import ConfigError
from batchllm.job import importing
from batchllm.job.importing import found, is_async

LONGEST_S = 30.0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What files of a test can wait at: `import the_gate`."""
    gate = SimpleNamespace(begun=threading.Event(), go_on=threading.Event())
    monkeypatch.setitem(sys.modules, "the_gate", gate)
    yield gate
    gate.go_on.set()


def test_threads_that_name_one_function_at_once_all_get_it(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def last_of(name: str) -> Any:
        together.wait(LONGEST_S)
        return found(f"{name}:last", tmp_path)()

    with ThreadPoolExecutor(4) as pool:
        for number in range(20):
            name = f"large{number}.py"
            (tmp_path / name).write_text("one = 1\n" * 2000 + "def last(): return 'line'\n")
            assert list(pool.map(last_of, [name] * 4)) == ["line"] * 4


def test_a_file_that_is_still_being_run_holds_up_no_other_and_gives_what_it_has(
    tmp_path: Path, gate: Any
) -> None:
    (tmp_path / "slow.py").write_text(
        "import the_gate\ndef early(): return 1\nthe_gate.begun.set()\nthe_gate.go_on.wait(30)\n"
    )
    (tmp_path / "other.py").write_text("def answer(): return 2\n")
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(found, "slow.py:early", tmp_path)
        assert gate.begun.wait(LONGEST_S)

        assert found("other.py:answer", tmp_path)() == 2
        assert found("slow.py:early", tmp_path)() == 1
        gate.go_on.set()
        assert whole.result()() == 1


def test_a_file_that_waits_for_a_name_of_its_own_gets_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks in another thread, which can't know that it is waited for."""
    monkeypatch.setattr(importing, "_PATIENCE_S", 0.01)
    (tmp_path / "itself.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from batchllm.errors import ConfigError\n"
        "from batchllm.job.importing import found\n"
        "with ThreadPoolExecutor(1) as pool:\n"
        "    try: pool.submit(found, 'itself.py:late', Path(__file__).parent).result()\n"
        "    except ConfigError as error: said = error.message\n"
        "def late(): return said\n"
    )
    assert found("itself.py:late", tmp_path)() == "itself.py has no function 'late'"


def test_a_module_whose_names_raise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text("def __getattr__(name): raise RuntimeError('not there')\n")
    with pytest.raises(ConfigError, match=r"looking up f in lazy.py failed: RuntimeError: not there"):
        found("lazy.py:f", tmp_path)


def test_what_gives_something_to_await_is_async() -> None:
    class Calls:
        async def __call__(self) -> None: ...

    async def later() -> None: ...

    assert is_async(later)
    assert is_async(Calls())
    assert not is_async(print)
