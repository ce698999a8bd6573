"""Which records a later pass is for: dead letters that are tried again, or what changed since.

Dead letters are chosen by kind. Changes are found by matching the whole input with what is settled, by
content or by id; that takes memory for each settled record. The pass itself is opened by `ledger.passes`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import orjson

from batchllm.errors import ConfigError
from batchllm.job import Job
from batchllm.ledger import Journal, passes, restore
from batchllm.ledger.index import DEAD, FAILED, OUTPUT, Entry
from batchllm.ledger.ledger import digest_of
from batchllm.ledger.ordering import entries
from batchllm.lines import dead_line
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
            error = orjson.loads(line)["error"]
            summary.reopen(error["kind"], error["cause"])

    def keep(entry: Entry, read: passes.Read) -> Entry | None:
        return None if entry.kind in (DEAD, FAILED) and entry.unit in chosen else entry

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


async def replan(opened: Opened, job: Job, places: Places) -> None:
    """Match the whole input with what is settled, and open a pass over what has no match.

    Lines whose record is no longer there, or has changed, are taken out and kept in the run folder.
    """
    journal = opened.journal
    meaning = meaning_digest(meaning_of(job, places))
    known = _known(journal, opened.replan, job)
    source = JsonlSource(
        places.inputs, id_field=job.id_field, max_line=job.max_line, input_format=job.input_format
    )
    units: dict[int, int] = {}
    todo = journal.folder.path / "matching.tmp"
    with todo.open("wb", buffering=1 << 20) as file:
        async for chunk in source.chunks():
            for item in chunk:
                record = item.record if isinstance(item, Dead) else item
                waiting = known.get(_key_of(record, opened.replan, job, meaning))
                if waiting:
                    units[waiting.popleft()] = record.seq
                else:
                    file.write(_letter(item))
    end = source.position(source.records)
    summary = restore(opened.state)

    def keep(entry: Entry, read: passes.Read) -> Entry | None:
        unit = units.get(entry.unit)
        if unit is None:
            if entry.kind == OUTPUT:
                summary.reopen()
            elif entry.kind == DEAD:
                error = orjson.loads(read())["error"]
                summary.reopen(error["kind"], error["cause"])
            return None
        return entry if unit == entry.unit else replace(entry, unit=unit)

    header = header_of(opened.run_id, job, places, source.format)
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
            header=header,
        )
    opened.header = header
    todo.unlink(missing_ok=True)
    opened.state = journal.open()


def _letters(journal: Journal) -> Iterator[tuple[Entry, bytes]]:
    """Every dead letter's entry and line, in the order of the file."""
    at = 0
    for entry, _ in entries(journal):
        if entry.kind == DEAD:
            yield entry, journal.sinks["dead"].read(at, entry.length)
            at += entry.length


def _known(journal: Journal, by: str | None, job: Job) -> dict[Key, deque[int]]:
    """The units that are settled, by content or by id, oldest first."""
    known: dict[Key, deque[int]] = {}
    offsets = dict.fromkeys(("output", "dead"), 0)
    for entry, _ in entries(journal):
        name = {OUTPUT: "output", FAILED: "output", DEAD: "dead"}.get(entry.kind)
        if name is None:
            continue
        if entry.kind != FAILED:
            key: Key = entry.digest
            if by == "id":
                line = journal.sinks[name].read(offsets[name], entry.length)
                key = _id_in(line, "result" if entry.kind == DEAD else job.emit, job.id_field)
            known.setdefault(key, deque()).append(entry.unit)
        offsets[name] += entry.length
    return known


def _id_in(line: bytes, emit: str, id_field: str) -> Key:
    name = {"merged": id_field, "openai-batch": "custom_id"}.get(emit, "id")
    found = orjson.loads(line).get(name)
    return orjson.dumps(found, option=orjson.OPT_SORT_KEYS)


def _key_of(record: Record, by: str | None, job: Job, meaning: bytes) -> Key:
    if by != "id":
        return digest_of(record.line, meaning)
    name = "custom_id" if record.data is not None and job.input_format == "openai-batch" else job.id_field
    if record.data is None or record.data.get(name) is None:
        raise ConfigError(
            f"record {record.seq} has no {name!r}, and --resume-by id needs one in every record",
            "name another field with --id-field, or resume by position",
        )
    return orjson.dumps(record.id, option=orjson.OPT_SORT_KEYS)


def _letter(item: Record | Dead) -> bytes:
    if isinstance(item, Dead):
        return dead_line(item)
    return dead_line(Dead(item, Failure("", "", ""), Trail(), 0.0))
