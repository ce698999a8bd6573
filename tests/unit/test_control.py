"""The control socket: private, gone after the end, and nothing that a client does there disturbs the run."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchllm.control import LONGEST_LINE, ask, read_change, serve, socket_of
from batchllm.errors import ConfigError, NoAnswer
from batchllm.ledger import RunFolder


class Wheel:
    """A run that only remembers how it was steered; `ends` is called by a drain."""

    def __init__(self, ends: Callable[[], None] = lambda: None) -> None:
        self.paused = False
        self.stopping: str | None = None
        self.tuned: list[Any] = []
        self.broken = False
        self._ends = ends

    def status(self) -> dict[str, Any]:
        if self.broken:
            raise KeyError("a bug")
        return {"paused": self.paused, "stopping": self.stopping}

    def retune(self, concurrency: int | None, limits: Mapping[str, float | None]) -> None:
        if concurrency is not None and concurrency > 100:
            raise ValueError("this run can have 1 to 100 calls in flight")
        self.tuned.append((concurrency, dict(limits)))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def drain(self) -> None:
        self.stopping = "drained by ctl"
        self._ends()


@asynccontextmanager
async def served(path: Path, wheel: Wheel, patience: float = 60.0) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(serve, path, wheel, patience=patience))
        yield
        tasks.cancel_scope.cancel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.run").mkdir()
    return socket_of(str(tmp_path / "a"))


def during(path: Path, wheel: Wheel, talk: Callable[[], Coroutine[Any, Any, None]], **more: Any) -> None:
    async def main() -> None:
        with anyio.fail_after(20):
            async with served(path, wheel, **more):
                await talk()

    anyio.run(main)
    assert not path.exists()


def connected(path: Path) -> socket.socket:
    """A client that does as it likes."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def test_requests_steer_the_run_and_each_change_is_noted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wheel = Wheel()
    caplog.set_level(logging.INFO, "batchllm")

    async def talk() -> None:
        tuned = await ask(path, {"do": "set", "concurrency": "50", "rpm": 600, "tpm": "none"})
        assert tuned["done"] == ["concurrency is 50 now", "rpm is 600 now", "tpm has no limit now"]
        assert (await ask(path, {"do": "pause"}))["done"] == ["paused: no new call goes out"]
        assert (await ask(path, {"do": "pause"}))["done"] == ["paused already"]
        assert await ask(path, {"do": "status"}) == {"paused": True, "stopping": None}
        assert (await ask(path, {"do": "resume"}))["done"] == ["going on"]
        assert not wheel.paused
        for _ in range(2):
            assert (await ask(path, {"do": "drain"}))["done"] == ["stopping: drained by ctl"]
        with pytest.raises(ConfigError, match="the run is stopping already: drained by ctl"):
            await ask(path, {"do": "pause"})

    during(path, wheel, talk)
    assert wheel.tuned == [(50, {"requests": 600.0, "tokens": None})]
    assert caplog.messages[:4] == [
        "concurrency is 50 now (ctl)",
        "rpm is 600 now (ctl)",
        "tpm has no limit now (ctl)",
        "paused: no new call goes out (ctl)",
    ]


def test_the_socket_is_its_users_alone_and_replaces_that_of_a_killed_run(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))

    async def talk() -> None:
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert await ask(path, {"do": "status"}) == {"paused": False, "stopping": None}

    during(path, Wheel(), talk)


def test_a_path_longer_than_a_sockets_address_does_as_well(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100) / "a.jsonl.run"
    folder.mkdir(parents=True)
    path = socket_of(str(folder).removesuffix(".run"))

    async def talk() -> None:
        assert path.is_socket()
        assert await ask(path, {"do": "status"})

    during(path, Wheel(), talk)


def test_the_socket_of_a_folder_that_was_moved_is_removed_and_no_other(path: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.run"

    async def talk() -> None:
        path.parent.rename(moved)
        assert await ask(moved / path.name, {"do": "status"})

    during(path, Wheel(), talk)
    assert list(moved.iterdir()) == []


def test_a_file_of_that_name_is_left_alone(path: Path) -> None:
    path.write_text("somebody's")
    with pytest.raises(OSError):
        anyio.run(serve, path, Wheel())
    assert path.read_text() == "somebody's"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"\n", "a request is one line of JSON"),
        (b"\xff{}\n", "a request is one line of JSON"),
        (b"[1]\n", "a request is a JSON object"),
        (b"[" * 10_000 + b"\n", "a request is one line of JSON"),
        (b'{"do": "dance"}\n', "expected do: status"),
        (b'{"do": ["status"]}\n', "expected do: status"),
        (b"{}\n", "expected do: status"),
        (b'{"do": "set"}\n', "what can be set is concurrency, rpm, tpm"),
        (b'{"do": "set", "model": "x"}\n', "what can be set is concurrency, rpm, tpm"),
        (b'{"do": "set", "concurrency": 0}\n', "concurrency: expected a whole number"),
        (b'{"do": "set", "concurrency": null}\n', "concurrency: expected a whole number"),
        (b'{"do": "set", "rpm": -1, "tpm": 5}\n', "rpm: expected a number"),
        (b'{"do": "set", "tpm": true}\n', "tpm: expected a number"),
        (b'{"do": "set", "concurrency": 101, "rpm": 5}\n', "1 to 100 calls in flight"),
        (b'{"do": "status"}', "a request is one line of JSON"),
        (b"", "a request is one line of JSON"),
        (b" " * (LONGEST_LINE + 1) + b"\n", "at most 65,536 bytes"),
    ],
)
def test_what_makes_no_sense_is_answered_with_an_error_and_changes_nothing(
    line: bytes, error: str, path: Path
) -> None:
    wheel = Wheel()

    async def talk() -> None:
        stream = await anyio.connect_unix(path)
        async with stream:
            await stream.send(line)
            await stream.send_eof()
            assert error in (await stream.receive()).decode()
        assert (await ask(path, {"do": "status"}))["paused"] is False

    during(path, wheel, talk)
    assert not wheel.tuned


def test_an_endless_line_and_clients_that_leave_do_no_harm(path: Path) -> None:
    async def talk() -> None:
        stream = await anyio.connect_unix(path)
        async with stream:
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"x" * 10_000_000)
        for line in (b"", b'{"do"', b'{"do": "status"}\n'):
            with connected(path) as client:
                client.sendall(line)
        assert await ask(path, {"do": "status"})

    during(path, Wheel(), talk)


def test_clients_that_say_nothing_are_let_go_and_the_others_wait_for_that(path: Path) -> None:
    async def talk() -> None:
        silent = [connected(path) for _ in range(20)]
        assert await ask(path, {"do": "status"})
        for client in silent:
            client.close()

    during(path, Wheel(), talk, patience=0.05)


def test_clients_that_say_nothing_dont_hold_up_the_end(path: Path) -> None:
    clients: list[socket.socket] = []

    async def talk() -> None:
        clients.extend(connected(path) for _ in range(3))
        await anyio.wait_all_tasks_blocked()

    during(path, Wheel(), talk, patience=1e6)
    for client in clients:
        assert client.recv(1) == b""
        client.close()


def test_a_bug_behind_a_request_is_an_error_for_its_client_alone(path: Path) -> None:
    wheel = Wheel()

    async def talk() -> None:
        wheel.broken = True
        with pytest.raises(ConfigError, match="KeyError: 'a bug'"):
            await ask(path, {"do": "status"})
        wheel.broken = False
        assert await ask(path, {"do": "status"})

    during(path, wheel, talk)


def test_a_drain_is_answered_though_the_run_ends_with_it(path: Path) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as run:
                answers: list[Any] = []

                async def drain() -> None:
                    answers.append(await ask(path, {"do": "drain"}))

                async with anyio.create_task_group() as beside:
                    await beside.start(serve, path, Wheel(run.cancel))
                    tasks.start_soon(drain)
        assert answers == [{"done": ["stopping: drained by ctl"]}]

    anyio.run(main)
    assert not path.exists()


def test_a_client_waits_for_a_run_that_has_its_folder_but_no_socket_yet(path: Path) -> None:
    folder = RunFolder(str(path.parent).removesuffix(".run"))
    folder.acquire()

    async def main() -> None:
        answers: list[Any] = []

        async def client() -> None:
            answers.append(await ask(path, {"do": "status"}, longest_start=60))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client)
            await anyio.wait_all_tasks_blocked()
            async with served(path, Wheel()):
                while not answers:
                    await anyio.lowlevel.checkpoint()

    anyio.run(main)
    folder.release()


def test_where_nothing_runs_the_client_says_how_it_ended(path: Path) -> None:
    output = str(path.parent).removesuffix(".run")

    def said() -> NoAnswer:
        with pytest.raises(NoAnswer) as caught:
            anyio.run(ask, path, {"do": "status"})
        return caught.value

    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    (path.parent / "lock").write_text(str(os.getpid()))  # whose number another process has by now
    unfinished = said()
    folder = RunFolder(output)
    folder.write("snapshot", {"finished": True, "summary": {"failed": 2}})
    finished = said()
    (path.parent / "snapshot").write_text("{")
    damaged = said()

    assert unfinished.message == f"nothing is running on {output}: its last run stopped before its end"
    assert unfinished.hint == damaged.hint == "run the same command again to go on"
    assert finished.message == f"nothing is running on {output}: its run is finished"
    assert finished.hint == f"batchllm retry {output} runs its dead letters again"


def test_a_limit_of_zero_or_none_is_no_limit() -> None:
    assert [read_change("rpm", value) for value in ("none", 0, "0", None, "90", 0.5)] == [
        *[None] * 4, 90.0, 0.5,
    ]  # fmt: skip
    assert read_change("concurrency", "7") == 7
    for name, value in (("concurrency", "none"), ("concurrency", "auto"), ("rpm", "inf"), ("tpm", "many")):
        with pytest.raises(ValueError, match="expected"):
            read_change(name, value)
