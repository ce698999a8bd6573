"""Whether a run may go on where an earlier one stopped: the same meaning, the same inputs, the same files.

Opens the run folder, moves old files aside where they must not be mixed, and refuses with the difference
and what to do. What it finds it hands to `build`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from batchllm import __version__
from batchllm.errors import ConfigError
from batchllm.job import Job, settings
from batchllm.ledger import Journal, RunFolder, State, move_aside
from batchllm.lines import Shape, failed_line_of, stamp
from batchllm.sinks import JsonlFile
from batchllm.sources import differs
from batchllm.wire.places import Places

Say = Callable[[str], None]


@dataclass(slots=True)
class Opened:
    """An output with its run folder open: `state` is what earlier sessions settled, `new` that none did."""

    journal: Journal
    state: State
    run_id: str
    new: bool


def open_run(job: Job, places: Places, say: Say) -> Opened:
    """Take the run folder, recover it, and make sure that this job may go on with it."""
    opened = _open(job, places, say)
    if opened.new:
        return opened
    with ExitStack() as undo:
        undo.callback(opened.journal.close)
        header = opened.journal.folder.read("job.json") or {}
        changed = _input_change(header, opened.state, places)
        if changed and opened.state.finished:
            undo.close()
            say(f"the earlier run is finished and its input is another now ({changed}): starting a new run")
            return _open(job, places, say, fresh=True)
        _check_meaning(header, job, places)
        if changed:
            raise ConfigError(
                f"the input was changed since the run began: {changed}",
                "put it back as it was to go on, or start over with --fresh (the old files are kept aside)",
            )
        opened.run_id = header["run_id"]
        undo.pop_all()
    return opened


def write_header(opened: Opened, job: Job, places: Places) -> None:
    """The whole merged job into the run folder, less what may be secret in it."""
    operation = {f.name: getattr(job, f.name) for f in fields(Job) if settings()[f.name].kind == "operation"}
    document = {
        "run_id": opened.run_id,
        "batchllm": __version__,
        "at": stamp(time.time()),
        "output": str(Path(places.output).absolute()),
        "dead_letter": str(Path(places.dead_letter).absolute()),
        "meaning": _meaning(job, places),
        "operation": operation | {"base_url": _without_secrets(job.base_url)},
    }
    opened.journal.folder.write("job.json", document)


def _without_secrets(url: str | None) -> str | None:
    """An address without its user, password and query, any of which may hold a key."""
    if url is None:
        return None
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def discard(opened: Opened) -> None:
    """Undo the opening of a new run that never began: an empty run folder is no one's."""
    opened.journal.close()
    if opened.new:
        _remove_unbegun(opened.journal.folder)


def _open(job: Job, places: Places, say: Say, *, fresh: bool = False) -> Opened:
    output, dead = Path(places.output), Path(places.dead_letter)
    folder = RunFolder(places.output)
    existed = folder.path.exists()
    folder.acquire()
    with ExitStack() as undo:
        undo.callback(_abandon, folder, existed)
        if job.fresh or fresh:
            files = [output, dead, *([folder.path] if existed else [])]
            _tell(move_aside(files), say)
            if existed:
                folder.release()
                folder.acquire()
        begun = folder.exists()
        if not begun and output.exists() and output.stat().st_size:
            raise ConfigError(
                f"{output} exists already and has no run folder {folder.path.name} beside it",
                "give another output with -o FILE, or start over with --fresh (the old file is kept aside)",
            )
        if not begun:
            _tell(move_aside([dead]), say)
        sinks = {
            "output": JsonlFile(str(output), lazy=True),
            "dead": JsonlFile(str(dead), lazy=True),
            "notes": JsonlFile(str(folder.path / "notes"), lazy=True),
        }
        journal = Journal(folder, JsonlFile(str(folder.index), lazy=True), dict(sinks))
        opened = Opened(journal, journal.open(_failed_line(job)), secrets.token_hex(8), not begun)
        undo.pop_all()
    return opened


def _failed_line(job: Job) -> Callable[[bytes], bytes] | None:
    shape = Shape(job.emit, job.keep, job.merge_failed)
    return (lambda letter: failed_line_of(letter, shape)) if job.merge_failed else None


def _abandon(folder: RunFolder, existed: bool) -> None:
    folder.release()
    if not existed:
        _remove_unbegun(folder)


def _remove_unbegun(folder: RunFolder) -> None:
    if not folder.exists() and folder.path.exists():
        for path in folder.path.iterdir():
            path.unlink()
        folder.path.rmdir()


def move_old_letters(places: Places, say: Say) -> None:
    """With output on stdout every run is new: an older dead-letter file is moved aside."""
    _tell(move_aside([Path(places.dead_letter)]), say)


def _tell(moved: list[Path], say: Say) -> None:
    if moved:
        say("moved aside: " + ", ".join(str(path) for path in moved))


def _meaning(job: Job, places: Places) -> dict[str, Any]:
    table = settings()
    meaning = {f.name: getattr(job, f.name) for f in fields(Job) if table[f.name].kind == "meaning"}
    inputs = [path if path == "-" else str(Path(path).absolute()) for path in places.inputs]
    return meaning | {"input": inputs, "keep": list(job.keep)}


def _check_meaning(header: dict[str, Any], job: Job, places: Places) -> None:
    old, new = header["meaning"], _meaning(job, places)
    changed = [name for name in new if name != "input" and old.get(name) != new[name]]
    if changed:
        shown = "; ".join(f"{name} was {_short(old.get(name))}, is {_short(new[name])}" for name in changed)
        raise ConfigError(
            f"{places.output} belongs to a run with other settings: {shown}",
            "run it as it was to go on, give another output with -o FILE, or start over with --fresh",
        )
    if header["dead_letter"] != str(Path(places.dead_letter).absolute()):
        raise ConfigError(
            f"the dead letters of this run are in {header['dead_letter']}, not {places.dead_letter}",
            f"go on with -d {header['dead_letter']}",
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:40] + "…" + text[-15:]


def _input_change(header: dict[str, Any], state: State, places: Places) -> str | None:
    """What differs between the inputs now and then, beyond growth at the end; None if nothing does."""
    old = header["meaning"]["input"]
    now = [path if path == "-" else str(Path(path).absolute()) for path in places.inputs]
    if now[: len(old)] != old:
        return f"it was {', '.join(old)}"
    for number, (path, known) in enumerate(zip(places.inputs, state.inputs, strict=False)):
        if difference := differs(path, known):
            return difference
        last = number == len(old) - 1
        if not last and known["size"] is not None and Path(path).stat().st_size != known["size"]:
            return f"{path} has grown, and only the last of several inputs may"
    return None
