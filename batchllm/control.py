"""Steering a run from outside while it goes on, through a private Unix socket in its run folder.

`serve` answers clients beside the run, `ask` is the client; one line of JSON goes each way and the connection
ends. What a request comes to is the business of what is `Controlled`; whatever else clients do, the run
never hears of it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import anyio
import orjson
from anyio.abc import ByteStream, SocketListener, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from batchllm.errors import BatchError, ConfigError, NoAnswer
from batchllm.job.values import MOST_CALLS, number, whole
from batchllm.job.values import limit as least_limit
from batchllm.ledger import RunFolder

LIMITS = {"rpm": "requests", "tpm": "tokens"}
"""Limits a minute that can be set, and their names among `model.DIMENSIONS`."""
LONGEST_LINE = 64 << 10
"""Bytes of a request or an answer."""
_SOCKET = "ctl"
_CLIENTS = 8
"""That are attended to at a time; more of them wait to be accepted."""
_PATIENCE = 5.0
"""Seconds that a client may take to ask and to hear its answer."""
_LONGEST_ANSWER = 10.0
"""Seconds after which a run that says nothing is too busy to answer."""
_LONGEST_START = 2.0
"""Seconds that a client waits for a run that has its folder, but no socket: between two passes, for one."""
_LONGEST_PATH = 100
"""Bytes of a path that a socket's address has room for everywhere: Linux takes 107, others 103."""
_NO_JSON = "a request is one line of JSON"
_log = logging.getLogger("batchllm")


class Controlled(Protocol):
    """A run as its controls see it. Every method is quick; a change takes effect at once."""

    @property
    def paused(self) -> bool:
        """Whether no new call goes out, since `pause`."""
        ...

    @property
    def stopping(self) -> str | None:
        """Why the run is stopping, in words, or None."""
        ...

    def status(self) -> dict[str, Any]:
        """How it goes, as JSON carries it."""
        ...

    def retune(self, concurrency: int | None, limits: Mapping[str, float | None]) -> None:
        """Set the window unless it is None, and the limits a minute of these dimensions, None for no limit.

        Raises ValueError, with nothing changed, for what the run can't do.
        """
        ...

    def pause(self) -> None:
        """Let no new call go out; those in flight finish."""
        ...

    def resume(self) -> None:
        """Go on after a pause."""
        ...

    def drain(self) -> None:
        """Take up no new record, and stop once the calls in flight have finished."""
        ...


def socket_of(output: str) -> Path:
    """Where the run that writes `output` has its socket."""
    return RunFolder(output).path / _SOCKET


async def serve(
    path: Path,
    controlled: Controlled,
    *,
    patience: float = _PATIENCE,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer clients at the socket `path` until cancelled, then remove it. Only its user can connect.

    Whoever calls this holds the folder's lock, so a socket that is there is a killed run's, and is replaced.
    A client has `patience` seconds. Raises OSError where no socket can be made.
    """
    with _opened(path.parent) as folder:
        try:
            with anyio.CancelScope(shield=True):  # it binds in a thread, which must not do so after the end
                listener = await anyio.create_unix_listener(_address(path, folder), mode=0o600, backlog=64)
            async with listener, anyio.create_task_group() as tasks:
                task_status.started()
                room = anyio.Semaphore(_CLIENTS)
                while True:
                    await room.acquire()
                    tasks.start_soon(_attend, await _accept(listener), controlled, room, patience)
        finally:
            _remove(path.name, folder)


async def ask(
    path: Path, request: dict[str, Any], *, longest_start: float = _LONGEST_START
) -> dict[str, Any]:
    """The answer of the run that serves the socket `path`; one that begins has `longest_start` seconds.

    Raises NoAnswer where nothing runs there or it is too busy, ConfigError where it refuses the request.
    """
    started = anyio.current_time()
    while True:
        try:
            with anyio.fail_after(_LONGEST_ANSWER):
                line = await _exchange(path, request)
            break
        except TimeoutError:
            raise NoAnswer(
                f"the run of {_output(path)} did not answer within {_LONGEST_ANSWER:g} s",
                "it is busy: try again in a moment",
            ) from None
        except PermissionError:
            raise NoAnswer(
                f"the run of {_output(path)} is not yours to steer", "only the user who runs it may"
            ) from None
        except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead):
            raise NoAnswer(
                f"the run of {_output(path)} ended before it answered", "see what it said"
            ) from None
        except OSError:
            holder = _holder(path.parent)
            if holder is None or anyio.current_time() > started + longest_start:
                raise _nobody(path, holder) from None
        await anyio.sleep(0.05)
    answer: dict[str, Any] = orjson.loads(line)
    if "error" in answer:
        raise ConfigError(str(answer["error"]), "the run goes on as it was")
    return answer


def read_change(name: str, value: Any) -> int | float | None:
    """What a setting is to be, from a number or a text; a limit of 0 or `none` is None. Raises ValueError."""
    if name == "concurrency":
        return int(whole(1, MOST_CALLS)(value))
    if value is None or value == "none":
        return None
    wanted = float(number(0)(value))
    return float(least_limit(wanted)) if wanted else None


async def _accept(listener: SocketListener) -> ByteStream:
    while True:
        try:
            return await listener.accept()
        except anyio.BrokenResourceError:
            await anyio.sleep(1)  # there is no descriptor left for now; the client waits


async def _attend(client: ByteStream, controlled: Controlled, room: anyio.Semaphore, patience: float) -> None:
    """One client, whatever it does."""
    try:
        with suppress(anyio.BrokenResourceError, anyio.EndOfStream), anyio.move_on_after(patience):
            async with client:
                try:
                    line = await _line(client)
                except anyio.IncompleteRead:
                    answer = {"error": _NO_JSON}
                except anyio.DelimiterNotFound:
                    answer = {"error": f"a request has at most {LONGEST_LINE:,} bytes"}
                else:
                    answer = _answer(line, controlled)
                with anyio.move_on_after(1, shield=True):  # a drain may end the run at once
                    await client.send(orjson.dumps(answer) + b"\n")
    finally:
        room.release()


async def _line(stream: ByteStream) -> bytes:
    return await BufferedByteReceiveStream(stream).receive_until(b"\n", LONGEST_LINE)


def _answer(line: bytes, controlled: Controlled) -> dict[str, Any]:
    try:
        request = orjson.loads(line)
        if not isinstance(request, dict):
            raise ValueError("a request is a JSON object")
        if request.get("do") == "status":
            return controlled.status()
        done = list(_changes(request, controlled))
    except orjson.JSONDecodeError:
        return {"error": _NO_JSON}
    except ValueError as error:
        return {"error": str(error)}
    except Exception as error:  # a bug of ours in here must not end the run
        return {"error": f"{type(error).__name__}: {error}"}
    for change in done:
        _log.info("%s (ctl)", change)
    return {"done": done}


def _changes(request: dict[str, Any], controlled: Controlled) -> Iterator[str]:
    """Do what is asked, and say it. Raises ValueError, with nothing done, where that can't be."""
    match request.get("do"):
        case "drain":
            controlled.drain()
            yield f"stopping: {controlled.stopping}"
        case _ if controlled.stopping:
            raise ValueError(f"the run is stopping already: {controlled.stopping}")
        case "set":
            yield from _retune(request, controlled)
        case "pause":
            yield "paused already" if controlled.paused else "paused: no new call goes out"
            controlled.pause()
        case "resume":
            yield "going on" if controlled.paused else "it was not paused"
            controlled.resume()
        case _:
            raise ValueError("expected do: status, set, pause, resume or drain")


def _retune(request: dict[str, Any], controlled: Controlled) -> Iterator[str]:
    wanted = {name: value for name, value in request.items() if name != "do"}
    if not wanted or wanted.keys() - {"concurrency", *LIMITS}:
        raise ValueError(f"what can be set is concurrency, {', '.join(LIMITS)}")
    changes: dict[str, Any] = {}
    for name, value in wanted.items():
        try:
            changes[name] = read_change(name, value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    limits = {LIMITS[name]: value for name, value in changes.items() if name in LIMITS}
    controlled.retune(changes.get("concurrency"), limits)
    held = controlled.status().get("limits", {})
    for name, value in changes.items():
        said = f"{name} has no limit now" if value is None else f"{name} is {value:.12g} now"
        limit = held.get(LIMITS.get(name, ""))
        if limit is not None and (value is None or limit < value):
            said += f", of yours; held to {limit:,.12g} by what is shared or told"
        yield said


async def _exchange(path: Path, request: dict[str, Any]) -> bytes:
    with _opened(path.parent) as folder:
        stream = await anyio.connect_unix(_address(path, folder))
    async with stream:
        await stream.send(orjson.dumps(request) + b"\n")
        return await _line(stream)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, which stays the same one when it is moved."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _address(path: Path, folder: int) -> str:
    """The path, or a short way to it for one that is longer than a socket's address."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        return str(path)
    return f"/proc/self/fd/{folder}/{path.name}"


def _remove(name: str, folder: int) -> None:
    with suppress(OSError):
        if stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)


def _output(path: Path) -> str:
    return str(path.parent).removesuffix(".run")


def _holder(folder: Path) -> int | None:
    """The process that has the run folder, or None."""
    process = None
    try:
        with (folder / "lock").open("rb") as lock:
            process = int(lock.read(32))
            os.kill(process, 0)
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the number may be another process's by now
    except BlockingIOError:
        return process
    except (OSError, ValueError):
        pass
    return None


def _nobody(path: Path, holder: int | None) -> NoAnswer:
    """The error that says why nobody is at the socket."""
    output = _output(path)
    if holder is not None:
        return NoAnswer(
            f"the run of {output} (process {holder}) takes no requests: it is starting or ending",
            "try again in a moment; a file system that has no sockets has no ctl",
        )
    try:
        snapshot = RunFolder(output).read("snapshot") or {}
    except BatchError:
        snapshot = {}
    if not snapshot.get("finished"):
        return NoAnswer(
            f"nothing is running on {output}: its last run stopped before its end",
            "run the same command again to go on",
        )
    failed = snapshot.get("summary", {}).get("failed")
    return NoAnswer(
        f"nothing is running on {output}: its run is finished",
        f"batchllm retry {output} runs its dead letters again" if failed else None,
    )
