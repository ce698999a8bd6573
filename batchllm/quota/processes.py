"""Which process this is, on which clock, and whether another one still lives; read from the system only.

Where there is no /proc, a process is known by its number alone and the clock by nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from batchllm.fields import frozen

_PROC = Path("/proc")


@frozen
class Identity:
    """A process: its number, its start and the space of its number; `clock` names the monotonic clock.

    The clock is another after each start of the machine, on another machine, and in another time namespace.
    """

    pid: int
    started: str | None
    space: str | None
    clock: str


def this_process() -> Identity:
    """The process that asks."""
    pid = os.getpid()
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    clock = f"{boot} {_link('time') or ''}".strip()
    return Identity(pid, _started(pid), _link("pid"), clock)


def lives(pid: int, started: str | None) -> bool:
    """Whether the process with this number, begun then, is still there; zombies are not."""
    if started is not None:
        return _started(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _link(kind: str) -> str | None:
    """The namespace of this kind in which we are, None where the system has none."""
    try:
        return str((_PROC / "self/ns" / kind).readlink())
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None where there is none, or no way to know."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    state, *rest = stat[stat.rindex(b")") + 1 :].split()  # the name before it may hold anything
    return None if state in (b"Z", b"X") else rest[18].decode()
