"""What a group of outcomes becomes: index entries and lines, made before any of it is written.

Pure: it writes nothing. The ledger calls it on the event loop, where what the outcomes hold is still at hand.
"""

from __future__ import annotations

import math
from dataclasses import field
from hashlib import blake2b

from batchllm.fields import mutable
from batchllm.ledger.index import (
    DEAD,
    FAILED,
    FIELDS,
    MOST_CALLS,
    MOST_TOKENS,
    NOTE,
    OUTPUT,
    Entry,
    pack,
    seal,
)
from batchllm.lines import Shape, dead_line, dumps, failed_line, output_line
from batchllm.model import Done, Note, Outcome, Usage


@mutable
class GroupLines:
    """The entries of a group in their order, and the lines that they announce, by file."""

    entries: list[bytes] = field(default_factory=list)
    output: list[bytes] = field(default_factory=list)
    dead: list[bytes] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)


def lines_of(group: list[Outcome | Note], shape: Shape, meaning: bytes, generation: int) -> GroupLines:
    """Entries and lines for a group; `meaning` is a digest of what is asked of each record."""
    lines = GroupLines()
    entries = lines.entries
    asked = digest_of_meaning(meaning)
    for item in group:
        if isinstance(item, Done):
            usage = item.trail.usage()
            line = output_line(item, shape, usage)
            lines.output.append(line)
            fields = _fields(OUTPUT, item, usage, len(line), asked, opens=not entries)
        elif isinstance(item, Note):
            line = dumps({"kind": item.kind} | item.body) + b"\n"
            lines.notes.append(line)
            entries.append(pack(Entry(0, 0, 0, NOTE, int(not entries)), line, generation))
            continue
        else:
            usage = item.trail.usage()
            if shape.merge_failed:
                line = failed_line(item, shape)
                lines.output.append(line)
                fields = _fields(FAILED, item, usage, len(line), asked, opens=not entries)
                entries.append(seal(fields, line, generation))
            line = dead_line(item)
            lines.dead.append(line)
            fields = _fields(DEAD, item, usage, len(line), asked, opens=not entries)
        entries.append(seal(fields, line, generation))
    return lines


def _fields(kind: int, outcome: Outcome, usage: Usage, length: int, asked: blake2b, *, opens: bool) -> bytes:
    """The fields of the entry for an outcome's line."""
    record, attempts = outcome.record, outcome.trail.attempts
    unit, calls = record.unit(), len(attempts)
    sent, made, cached = usage.input_tokens, usage.output_tokens, usage.cached_tokens
    if calls > MOST_CALLS or (sent | made | cached) > MOST_TOKENS:
        calls = min(calls, MOST_CALLS)
        sent, made, cached = (min(tokens, MOST_TOKENS) for tokens in (sent, made, cached))
    return FIELDS.pack(
        unit,
        unit if record.turn is None else record.turn,
        digest_of(record.line, asked),
        kind,
        opens,
        calls,
        length,
        outcome.at,
        attempts[-1].seconds if attempts else 0.0,
        sent,
        made,
        cached,
        math.nan,
    )


def digest_of_meaning(meaning: bytes) -> blake2b:
    """What `digest_of` goes on from; `meaning` is of one length throughout a run."""
    return blake2b(meaning, digest_size=8)


def digest_of(line: bytes, asked: blake2b) -> int:
    """64 bits over a record's bytes and what was asked of it."""
    digest = asked.copy()
    digest.update(line)
    return int.from_bytes(digest.digest(), "little")
