"""A Python function as a stage: what it is called with, what it answers, and how its calls end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchllm.errors import (
    BatchError,
    ConfigError,
    Disconnected,
    FatalError,
    Internal,
    Overloaded,
    RateLimited,
    Refused,
    StillRunning,
    TimedOut,
)
from batchllm.job.importing import imported
from batchllm.model import Reply, Request, Trail
from batchllm.providers.step import Step, StepSpec, connect_step
from tests import virtual
from tests.running import LONGEST_S, environment

CODE = """
import asyncio, contextlib, os, pathlib, threading, time
from batchllm import errors

here = pathlib.Path(__file__).parent
go_on, entered = threading.Event(), threading.Event()
log = []

def one(row): return row
def two(row, earlier): return [row, earlier]
def three(a, b, c): return [a, b, c]
def by_name(answers, record): return [answers, record]
def mixed(ticket, *, key): return [ticket, key]
def with_default(record, limit=5, key=None): return [limit, key]
def whatever(*args, **more): return list(args)
async def later(record):
    await asyncio.sleep(0)
    return {"later": record["n"]}
class Deep:
    async def __call__(self, record, answers): return answers
    @staticmethod
    def within(record): return "text"
deep = Deep()

def gives(record):
    return {"none": None, "tuple": (1, 2), "set": {1}, "deep": [{"at": here}], "nan": float("nan"),
            "big": 2**80, "keys": {1: "a"}}[record["what"]]

def spoils(record, answers):
    record["list"].append(5)
    answers.clear()

class HTTPError(Exception): pass
class TransportError(HTTPError): pass
TransportError.__module__ = "httpx._exceptions"
class ConnectTimeout(TransportError): pass
class TimeoutException(TransportError): pass
TimeoutException.__module__ = "httpx._exceptions"
class ReadTimeout(TimeoutException): pass
class Mine(errors.Refused): pass

def raises(record):
    name = record["error"]
    if name == "rate": raise errors.RateLimited("slowly", retry_after=5)
    if name == "mine": raise Mine("not that one", cause="policy")
    if name == "url":
        import urllib.error
        raise urllib.error.URLError(ConnectionRefusedError(111, "refused"))
    if name == "group": raise ExceptionGroup("tasks", [ConnectionResetError("gone")])
    if name == "exit": raise SystemExit(3)
    if name == "stopped": raise errors.Stopped()
    found = globals().get(name) or getattr(errors, name, None) or getattr(__builtins__, "get", None)(name)
    raise found("words")

async def cancels_itself(record):
    raise asyncio.CancelledError

def waits(record):
    entered.set()
    go_on.wait()
    return threading.current_thread().name

async def waits_long(record):
    entered.set()
    try:
        await asyncio.Event().wait()
    finally:
        log.append("cancelled")

async def opens_late(record):
    while not go_on.is_set():
        await asyncio.sleep(0.001)
    return "late"

def pid(record):
    print("to nobody's harm")
    return [os.getpid(), os.getppid()]

def dies(record): os._exit(7)

def hangs_in_c(record):
    (here / "pid").write_text(str(os.getpid()))
    while True: pass

@contextlib.contextmanager
def opened():
    log.append("open")
    try:
        yield {"rows": []}
    finally:
        log.append("closed")

@contextlib.asynccontextmanager
async def opened_async():
    log.append("open")
    try:
        yield "resource"
    finally:
        await asyncio.sleep(0)
        log.append("closed")

async def opens_then_gives():
    return opened()

gone = threading.Event()

@contextlib.contextmanager
def opened_slowly():
    entered.set()
    go_on.wait()
    log.append("open")
    try:
        yield
    finally:
        log.append("closed")
        gone.set()

@contextlib.asynccontextmanager
async def never_closed():
    yield
    await asyncio.Event().wait()

def not_opened(): raise OSError("no database")
def no_manager(): return 5

@contextlib.contextmanager
def not_closed():
    yield 1
    raise OSError("not committed")

def loads(record, resource): return resource
def takes_nothing(): ...
def takes_four(a, b, c, d): ...
number = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "steps.py").write_text(CODE)
    return tmp_path


def ask(**record: Any) -> Request:
    return Request("step", {"record": record, "answers": {"first": {"a": 1}}}, "run-0-7")


async def call(step: Step, **record: Any) -> Reply:
    return await step.complete(ask(**record), Trail())


def within(folder: Path, function: str, body: Callable[[Step], Awaitable[Any]], **more: Any) -> Any:
    """What `body` comes to with the step `function` of the folder's file."""

    async def main() -> Any:
        with anyio.fail_after(30):
            async with connect_step(StepSpec(f"steps.py:{function}", folder, **more)) as step:
                return await body(step)

    return anyio.run(main)


def value(folder: Path, function: str, more: dict[str, Any] | None = None, **record: Any) -> Any:
    async def body(step: Step) -> Any:
        return (await call(step, **record)).value

    return within(folder, function, body, **(more or {}))


def module(folder: Path) -> Any:
    """The module that a step of this folder runs in."""
    return imported("steps.py", folder)


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        ("one", {"n": 1}),
        ("two", [{"n": 1}, {"first": {"a": 1}}]),
        ("three", [{"n": 1}, {"first": {"a": 1}}, "run-0-7"]),
        ("by_name", [{"first": {"a": 1}}, {"n": 1}]),
        ("mixed", [{"n": 1}, "run-0-7"]),
        ("with_default", [5, "run-0-7"]),
        ("whatever", [{"n": 1}]),
        ("later", {"later": 1}),
        ("deep", {"first": {"a": 1}}),
        ("Deep.within", "text"),
    ],
)
def test_a_function_is_called_with_what_it_takes(folder: Path, function: str, answer: Any) -> None:
    assert value(folder, function, n=1) == answer


def test_the_value_is_what_json_makes_of_it(folder: Path) -> None:
    async def body(step: Step) -> list[Reply]:
        return [await call(step, what=what) for what in ("none", "tuple", "big", "keys")]

    replies = within(folder, "gives", body)

    assert [reply.value for reply in replies] == [None, [1, 2], 2**80, {"1": "a"}]
    assert [reply.text for reply in replies[:2]] == ["null", "[1, 2]"]


@pytest.mark.parametrize(
    ("what", "words"), [("set", "type set"), ("deep", "PosixPath"), ("nan", "not JSON compliant")]
)
@pytest.mark.parametrize("process", [False, True])
def test_what_json_cannot_carry_is_internal_and_named(
    folder: Path, what: str, words: str, process: bool
) -> None:
    with pytest.raises(Internal, match=words):
        value(folder, "gives", {"process": process}, what=what)


def test_what_a_function_does_to_its_arguments_stays_with_it(folder: Path) -> None:
    request = ask(list=[1])

    async def body(step: Step) -> None:
        await step.complete(request, Trail())

    within(folder, "spoils", body)

    assert request.body == {"record": {"list": [1]}, "answers": {"first": {"a": 1}}}


@pytest.mark.parametrize("process", [False, True])
def test_an_exception_means_what_it_says(folder: Path, process: bool) -> None:
    names = {
        "rate": RateLimited,
        "Overloaded": Overloaded,
        "mine": Refused,
        "AuthFailed": FatalError,
        "ConnectionResetError": Disconnected,
        "TimeoutError": TimedOut,
        "ConnectTimeout": Disconnected,
        "ReadTimeout": TimedOut,
        "url": Disconnected,
        "group": Disconnected,
        "HTTPError": Internal,
        "ConfigError": Internal,
        "stopped": Internal,
        "exit": Internal,
    }

    async def body(step: Step) -> dict[str, BatchError]:
        raised = {}
        for name in names:
            try:
                await call(step, error=name)
            except BatchError as error:
                raised[name] = error
        return raised

    raised = within(folder, "raises", body, process=process)

    assert {name for name, kind in names.items() if not isinstance(raised[name], kind)} == set()
    assert raised["rate"].retry_after == 5
    assert (raised["mine"].message, raised["mine"].cause) == ("not that one", "policy")
    assert raised["HTTPError"].message == "HTTPError: words"


def test_a_function_that_is_cancelled_by_itself_costs_its_record_alone(folder: Path) -> None:
    with pytest.raises(Internal, match="cancelled by itself"):
        value(folder, "cancels_itself")


def test_a_thread_that_takes_too_long_is_left_behind(folder: Path) -> None:
    async def body(step: Step) -> None:
        with pytest.raises(TimedOut):
            await call(step)
        module(folder).go_on.set()

    within(folder, "waits", body, timeout=0.05)


def test_threads_that_were_left_behind_are_bounded(
    folder: Path,
) -> None:
    async def body(step: Step) -> None:
        for _ in range(3):
            with pytest.raises(TimedOut):
                await call(step)
        with pytest.raises(FatalError, match="go on in threads"):
            await call(step)
        module(folder).go_on.set()

    within(folder, "waits", body, timeout=0.02, threads=1, left_behind=2)


def test_an_async_function_that_takes_too_long_is_cancelled(folder: Path) -> None:
    async def body(step: Step) -> None:
        with pytest.raises(TimedOut):
            await call(step)

    within(folder, "waits_long", body, timeout=0.05)

    assert module(folder).log == ["cancelled"]


def test_at_most_so_many_threads_at_once(folder: Path) -> None:
    names = set[str]()

    async def body(step: Step) -> None:
        async def one() -> None:
            names.add((await call(step)).value)

        async with anyio.create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(one)
            await anyio.to_thread.run_sync(module(folder).entered.wait)
            assert step.in_threads <= 2
            module(folder).go_on.set()

    within(folder, "waits", body, threads=2)

    assert threading.current_thread().name not in names


def test_a_process_step_runs_elsewhere_and_is_used_again(folder: Path) -> None:
    async def body(step: Step) -> list[Any]:
        return [(await call(step)).value for _ in range(3)]

    pids = within(folder, "pid", body, process=True)

    assert len({pid for pid, _ in pids}) == 1
    assert {parent for _, parent in pids} == {os.getpid()}
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0][0], 0)


def test_a_process_that_takes_too_long_is_killed(folder: Path) -> None:
    async def body(step: Step) -> None:
        with pytest.raises(TimedOut):
            await call(step)
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / "pid").read_text()), 0)

    within(folder, "hangs_in_c", body, process=True, timeout=1.0)


def test_a_process_that_dies_costs_its_record_alone(folder: Path) -> None:
    async def body(step: Step) -> None:
        for _ in range(2):
            with pytest.raises(Internal, match="worker process ended with 7"):
                await call(step)

    within(folder, "dies", body, process=True)


@pytest.mark.parametrize("function", ["opened", "opened_async", "opens_then_gives"])
def test_a_resource_is_opened_once_and_closed(folder: Path, function: str) -> None:
    async def body(step: Step) -> None:
        assert module(folder).log == ["open"]
        first, second = (await call(step)).value, (await call(step)).value
        assert first == second

    within(folder, "loads", body, open=f"steps.py:{function}")

    assert module(folder).log == ["open", "closed"]


@pytest.mark.parametrize("function", ["opened", "opened_async"])
def test_a_resource_is_closed_on_cancellation_too(folder: Path, function: str) -> None:
    code = module(folder)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            spec = StepSpec("steps.py:waits_long", folder, open=f"steps.py:{function}")

            async def use() -> None:
                async with connect_step(spec) as step:
                    await call(step)

            tasks.start_soon(use)
            await anyio.to_thread.run_sync(code.entered.wait)
            tasks.cancel_scope.cancel()

    anyio.run(main)

    assert code.log == ["open", "cancelled", "closed"]


def test_a_resource_that_is_not_opened_or_closed_says_so(folder: Path) -> None:
    async def body(step: Step) -> None: ...

    with pytest.raises(ConfigError, match=r"opening steps.py:not_opened failed: OSError: no database"):
        within(folder, "loads", body, open="steps.py:not_opened")
    with pytest.raises(ConfigError, match="which is no context manager"):
        within(folder, "loads", body, open="steps.py:no_manager")
    with pytest.raises(FatalError, match=r"closing steps.py:not_closed failed: OSError: not committed"):
        within(folder, "loads", body, open="steps.py:not_closed")


def test_what_the_run_raises_passes_through_a_step_as_it_is(folder: Path) -> None:
    async def body(step: Step) -> None:
        raise ConfigError("something else")

    with pytest.raises(ConfigError, match="something else"):
        within(folder, "loads", body, open="steps.py:opened")


@pytest.mark.parametrize(
    ("function", "more", "words"),
    [
        ("missing", {}, "has no function 'missing'"),
        ("number", {}, "has no function 'number'"),
        ("takes_nothing", {}, "takes no record"),
        ("takes_four", {}, "takes 'd'"),
        ("loads", {}, "takes 'resource'"),
        ("later", {"process": True}, "async"),
        ("loads", {"process": True, "open": "steps.py:opened"}, "open"),
        ("loads", {"open": "steps.py:missing"}, "has no function 'missing'"),
    ],
)
def test_a_function_that_cannot_be_a_step_is_refused(
    folder: Path, function: str, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        value(folder, function, more)


@pytest.mark.parametrize("function", ["opens_late", "waits"])
def test_a_call_that_goes_on_gives_its_place_up_and_still_counts(folder: Path, function: str) -> None:
    async def body(step: Step) -> Any:
        raised = []
        for _ in range(2):  # the second gets the one place that there is
            with pytest.raises(StillRunning) as late:
                await call(step)
            raised.append(late.value)
        module(folder).go_on.set()
        return [(await error.outcome()).text for error in raised]

    assert within(folder, function, body, timeout=0.05, on_timeout="continue", threads=1)


def test_a_thread_that_hangs_for_ever_does_not_hold_the_process(folder: Path) -> None:
    program = """
import sys, anyio
from pathlib import Path
from batchllm.cli.leaving import leave
from batchllm.errors import StillRunning, TimedOut
from batchllm.model import Request, Trail
from batchllm.providers.step import StepSpec, connect_step

async def main(then):
    spec = StepSpec("steps.py:waits", Path("."), timeout=0.05, on_timeout=then)
    async with connect_step(spec) as step:
        try:
            await step.complete(Request("step", {"record": {}}, "key"), Trail())
        except (StillRunning, TimedOut):
            print("late", flush=True)

anyio.run(main, sys.argv[1])
leave(0)
"""
    for then in ("kill", "continue"):
        ran = subprocess.run(
            [sys.executable, "-c", program, then],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            timeout=LONGEST_S,
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"late\n", b"")


def test_a_call_that_goes_on_ends_with_the_step(folder: Path) -> None:
    async def body(step: Step) -> None:
        with pytest.raises(StillRunning):
            await call(step)

    within(folder, "waits_long", body, timeout=0.05, on_timeout="continue")

    assert module(folder).log == ["cancelled"]


def test_a_call_that_is_quick_enough_is_as_any_other(folder: Path) -> None:
    more = {"timeout": 30.0, "on_timeout": "continue"}
    assert value(folder, "one", more, n=1) == {"n": 1}
    with pytest.raises(Refused):
        value(folder, "raises", more, error="mine")


def test_a_worker_is_in_a_session_of_its_own_and_dies_with_its_parent(folder: Path) -> None:
    program = """
import os, signal, anyio
from pathlib import Path
from batchllm.model import Request, Trail
from batchllm.providers.step import StepSpec, connect_step

async def main():
    async with connect_step(StepSpec("steps.py:hangs_in_c", Path("."), process=True)) as step:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step.complete, Request("step", {"record": {}}, "key"), Trail())
            while not (Path("pid").exists() and Path("pid").read_text()):
                await anyio.sleep(0.001)
            pid = int(Path("pid").read_text())
            print(os.getsid(pid) == pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment(folder),
        capture_output=True,  # stderr is the worker's too: it ends when the worker has ended
        timeout=LONGEST_S,
    )

    assert (ran.returncode, ran.stdout) == (-signal.SIGKILL, b"True\n")


def test_a_resource_that_is_unwanted_once_it_is_open_is_closed(folder: Path) -> None:
    async def main() -> None:
        code = module(folder)
        async with anyio.create_task_group() as tasks:

            async def use() -> None:
                async with connect_step(StepSpec("steps.py:loads", folder, open="steps.py:opened_slowly")):
                    pass

            tasks.start_soon(use)
            await anyio.to_thread.run_sync(code.entered.wait)
            tasks.cancel_scope.cancel()
        code.go_on.set()
        await anyio.to_thread.run_sync(code.gone.wait)

    anyio.run(main)

    assert module(folder).log == ["open", "closed"]


def test_closing_that_never_ends_is_given_up_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with connect_step(StepSpec("steps.py:loads", folder, open="steps.py:never_closed")):
            pass

    virtual.run(main)

    assert [record.message for record in caplog.records] == [
        "closing steps.py:never_closed took longer than 5 s and was given up"
    ]
