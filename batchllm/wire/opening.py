"""Opening an output's run folder: the lock, what is moved aside, and recovery by the run's own header.

It compares nothing and decides nothing about resuming; `resume` does.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from batchllm import __version__, exact
from batchllm.errors import ConfigError
from batchllm.fields import mutable
from batchllm.job import Job, Setting, settings
from batchllm.ledger import Journal, RunFolder, State, move_aside
from batchllm.lines import Shape, failed_line_of, stamp
from batchllm.sinks import JsonlFile
from batchllm.wire.places import Places

Say = Callable[[str], None]


@mutable
class Opened:
    """An output with its run folder open.

    `state` is what earlier sessions settled, `header` their job.json, `new` that there were none. `replan`
    says by what the input is to be matched with what is settled: "redo" by content, "id" by id.
    `cut_short` says that a later pass of an earlier session is to be finished.
    """

    journal: Journal
    state: State
    run_id: str
    new: bool
    header: dict[str, Any] = field(default_factory=dict)
    replan: str | None = None
    cut_short: bool = False


def open_folder(job: Job, places: Places, say: Say, *, fresh: bool = False) -> Opened:
    """Take the lock and recover; with `fresh`, the old files are moved aside first."""
    output, dead = Path(places.output), Path(places.dead_letter)
    folder = RunFolder(places.output)
    existed = folder.path.exists()
    folder.acquire()
    with ExitStack() as undo:
        undo.callback(lambda: folder.release() if existed else folder.remove())
        if _move_old_run(folder, [output, dead], fresh and existed, say):
            existed = False
            folder.release()
            folder.acquire()
        elif fresh:
            tell(move_aside([output, dead]), say)
        begun = folder.exists() or (folder.path / "swap").exists()  # which may bring the header
        adopt = job.resume_by == "id"
        if not begun and not adopt:
            _refuse_orphan(output, folder)
            JsonlFile(str(dead), lazy=True).close()  # another run's, which still writes to them, stay there
            tell(move_aside([dead]), say)
        journal = Journal(folder, JsonlFile(str(folder.index), lazy=True), _sinks(places, folder))
        undo.callback(journal.close_files)
        begun = folder.exists()
        header = folder.read("job.json") or {}
        if begun:
            _check_letters(header, places)
        state = journal.open(_failed_line(header)) if begun or not adopt else journal.adopt(_failed_id(job))
        run_id = header.get("run_id") or secrets.token_hex(8)
        opened = Opened(journal, state, run_id, not begun, header, cut_short=state.later is not None)
        undo.pop_all()
    return opened


def write_header(opened: Opened, job: Job, places: Places, shape: str | None) -> None:
    """The whole merged job into the run folder; `shape` is that of the input's records."""
    opened.header = header_of(opened.run_id, job, places, shape)
    opened.journal.folder.write("job.json", opened.header)


def header_of(run_id: str, job: Job, places: Places, shape: str | None) -> dict[str, Any]:
    """The whole merged job as job.json holds it, less what may be secret in it."""
    table = settings()
    operation = {f.name: getattr(job, f.name) for f in fields(Job) if table[f.name].kind == "operation"}
    return {
        "run_id": run_id,
        "batchllm": __version__,
        "at": stamp(time.time()),
        "inputs": list(places.inputs),
        "output": str(Path(places.output).absolute()),
        "dead_letter": str(Path(places.dead_letter).absolute()),
        "shape": shape,
        "meaning": meaning_of(job, places),
        "operation": operation | {"base_url": without_secrets(job.base_url)} | _tables(job),
    }


def absolute(path: str) -> str:
    """The path from the root, without `..` and `.`; links are left as they are."""
    return os.path.normpath(Path(path).absolute())


def same_place(then: str, header: dict[str, Any], now: str, output: str) -> bool:
    """Whether `now` is the file that the header calls `then`: by its path, or as seen from the output."""
    return now in (then, _moved(then, header, output))


def _moved(path: str, header: dict[str, Any], output: str) -> str:
    """Where a file of the header lies if everything was moved together with the output."""
    if path == "-":
        return path
    seen = os.path.relpath(path, Path(header["output"]).parent)
    return os.path.normpath(Path(output).absolute().parent / seen)


def _letters_of(header: dict[str, Any], output: str) -> str:
    """The run's dead letters as they lie now: beside an output that was moved or copied, its own."""
    stored = str(header["dead_letter"])
    inside = Path(stored).is_relative_to(Path(header["output"]).parent)
    return _moved(stored, header, output) if inside or not Path(stored).exists() else stored


def meaning_of(job: Job, places: Places) -> dict[str, Any]:
    """Every setting that must be the same to resume, as JSON carries it."""
    table = settings()
    meaning = {f.name: getattr(job, f.name) for f in fields(Job) if table[f.name].kind == "meaning"}
    inputs = [path if path == "-" else absolute(path) for path in places.inputs]
    tables = {
        name: [{key: each[key] for key in each if key in _MEANT or _is_meaning(table, key)} for each in given]
        for name in TABLES
        if (given := getattr(job, name)) is not None
    }
    return meaning | tables | {"input": inputs, "keep": list(job.keep)}


TABLES = ("variant", "stage")
_MEANT = frozenset({"name", "run", "when"})
"""What bears on answers among that which a table holds beside settings."""


def _is_meaning(table: Mapping[str, Setting], name: str) -> bool:
    return name in table and table[name].kind == "meaning"


def _tables(job: Job) -> dict[str, Any]:
    """The tables of variants and stages, whole but for what may be secret in them."""
    found = {}
    for name in TABLES:
        given = getattr(job, name)
        found[name] = given and [
            each | ({"base_url": without_secrets(each["base_url"])} if "base_url" in each else {})
            for each in given
        ]
    return found


def stored_job(output: str) -> dict[str, Any]:
    """The settings with which an output's run was made; ConfigError where it has none."""
    header = RunFolder(output).read("job.json")
    if header is None:
        raise ConfigError(f"there is no run folder {output}.run", "name the output of a run: OUTPUT.jsonl")
    table = settings()
    stored = (
        header["meaning"]
        | header["operation"]
        | {"dead_letter": _letters_of(header, output), "output": output}
    )
    passing = {name: table[name].default for name in ("fresh", "limit", "rounds")}
    known = {name: stored[name] for name in table if name in stored}
    return known | passing | {"input": tuple(header["inputs"]), "keep": tuple(stored["keep"])}


def discard(opened: Opened) -> None:
    """Undo the opening of a new run that never began: an empty run folder is no one's."""
    opened.journal.close_files()
    folder = opened.journal.folder
    if opened.new and not folder.exists():
        folder.remove()
    else:
        folder.release()


def tell(moved: list[Path], say: Say) -> None:
    """Say what was moved aside, if anything was."""
    if moved:
        say("moved aside: " + ", ".join(str(path) for path in moved))


def _move_old_run(folder: RunFolder, files: list[Path], wanted: bool, say: Say) -> bool:
    """Move an old run aside if that is wanted or an earlier session was killed in it; whether one was."""
    try:
        if folder.finish_move():
            return True
    except ConfigError:
        if not wanted:
            raise
        (folder.path / "aside").unlink()  # damaged: nothing can be made of it, and all is moved now
    if wanted:
        tell(folder.move_aside(files), say)
    return wanted


def _refuse_orphan(output: Path, folder: RunFolder) -> None:
    if output.exists() and output.stat().st_size:
        raise ConfigError(
            f"{output} exists already and has no run folder {folder.path.name} beside it",
            "give another output with -o FILE, start over with --fresh (the old file is kept aside), "
            "or go on with it by --resume-by id",
        )


def _check_letters(header: dict[str, Any], places: Places) -> None:
    letters = Path(_letters_of(header, places.output))
    if letters.absolute() != Path(places.dead_letter).absolute():
        raise ConfigError(
            f"the dead letters of this run are in {letters}, not {places.dead_letter}",
            f"go on with -d {letters}",
        )


def _sinks(places: Places, folder: RunFolder) -> dict[str, Any]:
    return {
        "output": JsonlFile(places.output, lazy=True),
        "dead": JsonlFile(places.dead_letter, lazy=True),
        "notes": JsonlFile(str(folder.path / "notes"), lazy=True),
    }


def _failed_line(header: dict[str, Any]) -> Callable[[bytes], bytes] | None:
    meaning = header.get("meaning", {})
    if not meaning.get("merge_failed"):
        return None
    shape = Shape(meaning["emit"], tuple(meaning["keep"]), merge_failed=True)
    return lambda letter: failed_line_of(letter, shape)


def _failed_id(job: Job) -> Callable[[bytes], Any]:
    """The id in a line that --merge-failed put among the output; None in a success."""
    name = {"merged": job.id_field, "openai-batch": "custom_id"}.get(job.emit, "id")

    def read(line: bytes) -> Any:
        if job.merge_failed or job.emit == "result":
            row = exact.loads(line)
            if "error_kind" in row and not job.merge_failed and "output" not in row:
                shown = line[:80].decode(errors="replace").strip()
                raise ConfigError(
                    f"the output has lines of records that failed: {shown}",
                    "give --merge-failed, as when it was written, or another output with -o FILE",
                )
            return row.get(name) if "error_kind" in row and job.merge_failed else None
        return None

    return read


def without_secrets(url: str | None) -> str | None:
    """An address without its user, password and query, any of which may hold a key."""
    if url is None:
        return None
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
