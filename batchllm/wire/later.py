"""Which records a later pass is for: dead letters that are tried again, or what changed since.

Dead letters are chosen by kind. Changes are found by matching the whole input with what is settled, by
content or by id; that takes memory for each settled record. The pass itself is opened by `ledger.passes`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from batchllm import exact
from batchllm.errors import ConfigError
from batchllm.job import Job
from batchllm.ledger import Journal, passes, read_notes, restore
from batchllm.ledger.folder import writing
from batchllm.ledger.group import digest_of, digest_of_meaning
from batchllm.ledger.index import DEAD, FAILED, OUTPUT, Entry
from batchllm.ledger.verifying import verified
from batchllm.lines import dead_line, renumbered
from batchllm.model import Dead, Failure, Record, Trail
from batchllm.sources import JsonlSource
from batchllm.wire.opening import Opened, header_of, meaning_of
from batchllm.wire.places import Places

Key = Any


def meaning_digest(meaning: dict[str, Any]) -> bytes:
    """16 bytes over all that bears on a record's line, which is the whole meaning but the inputs' names."""
    asked = {name: value for name, value in meaning.items() if name != "input"}
    return blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=16).digest()


def again(opened: Opened, kinds: Callable[[dict[str, Any]], bool], job: dict[str, Any]) -> int:
    """Open a pass over the dead letters whose `error` passes `kinds`; how many there are.

    `job` holds the settings of the pass that differ from the run's. With no such letter nothing changes.
    """
    journal, state = opened.journal, opened.state
    chosen = {entry.unit for entry, line in _letters(journal) if kinds(orjson.loads(line)["error"])}
    if not chosen:
        return 0
    summary = restore(state)
    for entry, line in _letters(journal):
        if entry.unit in chosen:
            summary.reopen(orjson.loads(line))

    def keep(entry: Entry, line: bytes) -> tuple[Entry, bytes] | None:
        return None if entry.kind in (DEAD, FAILED) and entry.unit in chosen else (entry, line)

    passes.begin(
        journal,
        (line for entry, line in _letters(journal) if entry.unit in chosen),
        keep,
        summary,
        state.inputs,
        rewrite=("output", "dead") if opened.header["meaning"]["merge_failed"] else ("dead",),
        watermark=state.settled.watermark,
        position=state.position,
        shape=opened.header.get("shape"),
        job=job,
    )
    opened.state = journal.open()
    return len(chosen)


async def replan(opened: Opened, job: Job, places: Places, source: JsonlSource) -> None:
    """Match the whole input, which is `source`, with what is settled, and open a pass over what has no match.

    Lines whose record is no longer there, or has changed, are taken out and kept in the run folder.
    """
    journal = opened.journal
    meaning = meaning_digest(meaning_of(job, places))
    known = _known(journal, opened.replan, job)
    answered = _answered(opened, job, meaning)
    with _temporary(journal) as todo:
        units = await _match(
            source, todo, known, lambda record: _key_of(record, opened.replan, job, meaning), answered
        )
        end = source.position(source.records)
        summary = restore(opened.state)

        def keep(entry: Entry, line: bytes) -> tuple[Entry, bytes] | None:
            unit = units.get(entry.unit)
            if unit is None:
                if entry.kind == OUTPUT:
                    summary.reopen(orjson.loads(line) if b'"stages":' in line else None)
                elif entry.kind == DEAD:
                    summary.reopen(orjson.loads(line))
                return None
            # Behind --resume-by id the line may tell another place than the one it was taken over at.
            moved = renumbered(line, unit, "result" if entry.kind == DEAD else job.emit)
            same = unit == entry.unit and moved == line
            return (entry, line) if same else (entry._replace(unit=unit, length=len(moved)), moved)

        opened.header = header_of(opened.run_id, job, places, source.format)
        with todo.open("rb") as letters:
            passes.begin(
                journal,
                letters,
                keep,
                summary,
                source.prints(end),
                rewrite=("output", "dead"),
                watermark=source.records,
                position=end,
                shape=source.format,
                job={},
                header=opened.header,
            )
    opened.state = journal.open()


async def _match(
    source: JsonlSource,
    todo: Path,
    known: dict[Key, deque[int]],
    key: Callable[[Record], Key],
    answered: Callable[[Record], dict[str, Any] | None],
) -> dict[int, int]:
    """Which settled unit is which now; records that are none of them go to the file `todo`.

    With them goes what stages have `answered` for them.
    """
    units: dict[int, int] = {}
    with writing(), todo.open("wb", buffering=1 << 20) as file:
        async for chunk in source.chunks():
            for item in chunk:
                waiting = known.get(key(item.record if isinstance(item, Dead) else item))
                if waiting:
                    units[waiting.popleft()] = item.record.seq if isinstance(item, Dead) else item.seq
                else:
                    file.write(_letter(item, answered))
    return units


@contextmanager
def _temporary(journal: Journal) -> Iterator[Path]:
    """A file of the run folder that is gone behind the block."""
    path = journal.folder.path / "matching.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _letters(journal: Journal) -> Iterator[tuple[Entry, bytes]]:
    """Every dead letter's entry and line, in the order of the file."""
    return ((entry, line) for entry, _, _, line in verified(journal) if entry.kind == DEAD)


def _known(journal: Journal, by: str | None, job: Job) -> dict[Key, deque[int]]:
    """The units that are settled, by content or by id, oldest first."""
    known: dict[Key, deque[int]] = {}
    for entry, _, _, line in verified(journal):
        if entry.kind in (OUTPUT, DEAD):
            key: Key = entry.digest
            if by == "id":
                key = _id_in(line, "result" if entry.kind == DEAD else job.emit, job.id_field)
            known.setdefault(key, deque()).append(entry.unit)
    return known


def _id_in(line: bytes, emit: str, id_field: str) -> Key:
    name = {"merged": id_field, "openai-batch": "custom_id"}.get(emit, "id")
    return exact.ordered(exact.loads(line).get(name))


def _key_of(record: Record, by: str | None, job: Job, meaning: bytes) -> Key:
    if by != "id":
        return digest_of(record.line, digest_of_meaning(meaning))
    name = "custom_id" if record.data is not None and job.input_format == "openai-batch" else job.id_field
    if record.data is None or record.data.get(name) is None:
        raise ConfigError(
            f"record {record.seq} has no {name!r}, and --resume-by id needs one in every record",
            "name another field with --id-field, or resume by position",
        )
    return exact.ordered(record.id)


def _answered(opened: Opened, job: Job, meaning: bytes) -> Callable[[Record], dict[str, Any] | None]:
    """What stages have answered for a record that was not settled, found by its id, or else by its bytes.

    By its bytes only where the same is asked as before.
    """
    same = meaning_digest(opened.header["meaning"]) == meaning if opened.header else False
    by_id = opened.replan == "id"
    found: dict[Key, deque[dict[str, Any]]] = {}
    if job.stage and same:
        for notes in read_notes(opened.journal, opened.state).answers.values():
            key = exact.ordered(notes[0]["id"]) if by_id else notes[0]["line"]
            answers = {note["stage"]: note["value"] for note in notes}
            found.setdefault(key, deque()).append(answers)

    def answered(record: Record) -> dict[str, Any] | None:
        if not found:
            return None
        key = exact.ordered(record.id) if by_id else crc32(record.line)
        waiting = found.get(key)
        return waiting.popleft() if waiting else None

    return answered


def _letter(item: Record | Dead, answered: Callable[[Record], dict[str, Any] | None]) -> bytes:
    if isinstance(item, Dead):
        return dead_line(item)
    return dead_line(Dead(item, Failure("", "", ""), Trail(answers=answered(item)), 0.0))
