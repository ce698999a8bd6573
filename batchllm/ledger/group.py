"""What a group of outcomes becomes: index entries and lines, made before any of it is written.

Pure: it writes nothing. The ledger calls it on the event loop, where what the outcomes hold is still at hand.
"""

from __future__ import annotations

import math
from dataclasses import field
from hashlib import blake2b

from batchllm.fields import mutable
from batchllm.ledger.index import DEAD, FAILED, NOTE, OUTPUT, Entry, pack, seal
from batchllm.lines import Shape, dead_line, dumps, failed_line, output_line
from batchllm.model import Done, Note, Outcome


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
    for item in group:
        if isinstance(item, Done):
            line = output_line(item, shape)
            lines.output.append(line)
            entries.append(_entry(OUTPUT, item, line, meaning, generation, opens=not entries))
        elif isinstance(item, Note):
            line = dumps({"kind": item.kind} | item.body) + b"\n"
            lines.notes.append(line)
            entries.append(pack(Entry(0, 0, 0, NOTE, int(not entries)), line, generation))
        else:
            if shape.merge_failed:
                line = failed_line(item, shape)
                lines.output.append(line)
                entries.append(_entry(FAILED, item, line, meaning, generation, opens=not entries))
            line = dead_line(item)
            lines.dead.append(line)
            entries.append(_entry(DEAD, item, line, meaning, generation, opens=not entries))
    return lines


def _entry(
    kind: int, outcome: Outcome, line: bytes, meaning: bytes, generation: int, *, opens: bool
) -> bytes:
    record, trail = outcome.record, outcome.trail
    attempts, usage = trail.attempts, trail.usage()
    unit = record.unit()
    return seal(
        line,
        generation,
        unit,
        unit if record.turn is None else record.turn,
        digest_of(record.line, meaning),
        kind,
        int(opens),
        len(attempts),
        outcome.at,
        attempts[-1].seconds if attempts else 0.0,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        math.nan,
    )


def digest_of(line: bytes, meaning: bytes) -> int:
    """64 bits over a record's bytes and what was asked of it; `meaning` is of one length throughout a run."""
    return int.from_bytes(blake2b(meaning + line, digest_size=8).digest(), "little")
