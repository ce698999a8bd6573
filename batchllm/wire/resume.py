"""Whether a run may go on where an earlier one stopped: the same meaning and the same inputs, or how not.

It refuses with the difference and what to do, starts anew where the contract says so, or asks for the input
to be matched with what is settled (`later`).
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from batchllm.errors import ConfigError
from batchllm.job import Job, settings
from batchllm.ledger import State, move_aside
from batchllm.sources import differs
from batchllm.wire.opening import TABLES, Opened, Say, absolute, meaning_of, open_folder, same_place, tell
from batchllm.wire.places import Places

_WITH_REDO = "run it as it was to go on, ask what changed again with --on-change redo, "


def open_run(job: Job, places: Places, say: Say) -> Opened:
    """Take the run folder, recover it, and make sure that this job may go on with it."""
    opened = open_folder(job, places, say, fresh=job.fresh)
    if opened.new:
        opened.replan = "id" if job.resume_by == "id" and opened.state.settled.count else None
        return opened
    with ExitStack() as undo:
        undo.callback(opened.journal.close)
        meaning = _meaning_change(opened.header, job, places)
        inputs = None if opened.state.later else _input_change(opened.header, opened.state, places)
        if opened.state.later is None and job.on_change == "redo" and (meaning or inputs):
            opened.replan = "redo"
        elif (
            inputs and opened.state.finished and job.resume_by == "position" and job.if_input_changed == "new"
        ):
            undo.close()
            say(f"the earlier run is finished and its input is another now ({inputs}): starting a new run")
            return open_folder(job, places, say, fresh=True)
        elif meaning:
            raise ConfigError(
                f"{places.output} belongs to a run with other settings: {meaning}",
                ("run it as it was to go on, " if job.variant else _WITH_REDO)
                + "give another output with -o FILE, or start over with --fresh",
            )
        elif opened.state.later is None and job.resume_by == "id":
            opened.replan = "id"
        elif inputs:
            raise ConfigError(
                f"the input was changed since the run began: {inputs}",
                "put it back as it was to go on, ask what changed again with --on-change redo, or start over "
                "with --fresh (the old files are kept aside)",
            )
        undo.pop_all()
    return opened


def move_old_letters(places: Places, say: Say) -> None:
    """With output on stdout every run is new: an older dead-letter file is moved aside."""
    tell(move_aside([Path(places.dead_letter)]), say)


def _meaning_change(header: dict[str, Any], job: Job, places: Places) -> str | None:
    """The settings that were others, as far as they bear on answers; None if none was."""
    old, new = header["meaning"], meaning_of(job, places)
    table = settings()  # a run of an earlier release knows nothing of newer settings
    changed = [n for n in new if n != "input" and old.get(n, table[n].default) != new[n]]
    return "; ".join(_difference(name, old.get(name), new[name]) for name in changed) or None


def _difference(name: str, old: Any, new: Any) -> str:
    """What became of a setting; of tables, the first that is another."""
    if name in TABLES and [each["name"] for each in old or ()] == [each["name"] for each in new or ()]:
        for was, now in zip(old or (), new or (), strict=True):
            for key in {**was, **now}:
                if was.get(key) != now.get(key):
                    return _difference(f"{key} of {name} {was['name']}", was.get(key), now.get(key))
    if name in TABLES:
        old, new = ([each["name"] for each in tables or ()] for tables in (old, new))
    return f"{name} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:40] + "…" + text[-15:]


def _input_change(header: dict[str, Any], state: State, places: Places) -> str | None:
    """What differs between the inputs now and then, beyond growth at the end; None if nothing does."""
    old = header["meaning"]["input"]
    now = [path if path == "-" else absolute(path) for path in places.inputs]
    if len(now) < len(old) or not all(
        same_place(then, header, path, places.output) for then, path in zip(old, now, strict=False)
    ):
        return f"it was {', '.join(old)}"
    for number, (path, known) in enumerate(zip(places.inputs, state.inputs, strict=False)):
        if difference := differs(path, known):
            return difference
        last = number == len(old) - 1
        if not last and known["size"] is not None and Path(path).stat().st_size != known["size"]:
            return f"{path} has grown, and only the last of several inputs may"
    return None
