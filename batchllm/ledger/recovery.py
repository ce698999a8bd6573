"""Recovery after any end: what came behind the last snapshot is walked, and what agrees is settled.

What a crash cut short is taken off and kept in the run folder; what no crash explains is refused and left
as it is. A kill can only cut the last group of a sink short, within a line or between two. A power loss can
leave anything in what wasn't synced: then each sink ends at its first line that is not what the index says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import TYPE_CHECKING, Any

import orjson

from batchllm.fields import mutable
from batchllm.ledger.folder import boot_id, writing
from batchllm.ledger.index import DEAD, FAILED, OUTPUT, SINK_OF, SIZE, Entry, agrees, pack, unpack
from batchllm.ledger.settled import Settled
from batchllm.ledger.swap import commit
from batchllm.ledger.verifying import changed, verified
from batchllm.model import Dead, Done, Failure, Outcome, Record, Reply, Trail, Usage, told_attempts
from batchllm.summary import Summary

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal

_BLOCK = 4096 * SIZE
FailedLine = Callable[[bytes], bytes]


@mutable
class Walked:
    """What a walk found behind the snapshot.

    `ends` is where each sink's whole lines end, `torn` the sinks of which something is missing there.
    `spans` are the parts of the index whose lines are there. `letters` and `failed` are the units with a dead
    letter and where it is, and those with a line of their own among the output and where that starts.
    """

    ends: dict[str, int]
    settled: Settled
    summary: Summary
    torn: set[str] = field(default_factory=set)
    spans: list[tuple[int, int]] = field(default_factory=list)
    letters: dict[int, tuple[Entry, int]] = field(default_factory=dict)
    failed: dict[int, int] = field(default_factory=dict)


def recover(journal: Journal, document: dict[str, Any], failed_line: FailedLine | None) -> dict[str, Any]:
    """The snapshot of all that is whole, which is then the run's; `document` is the one that was there.

    With `failed_line`, each dead letter has a line among the output, made from it; one that a crash kept
    from being written is written now. Raises ConfigError where no crash explains the files.
    """
    lenient = _machine_was_restarted(journal)
    base = document.get("index_length", 0)
    lengths = {name: document.get("sinks", {}).get(name, 0) for name in journal.sinks}
    _check_lengths(journal, base, lengths)
    if lenient and not document.get("synced", True):
        for _ in verified(journal, base):
            pass
    walked = _walk(journal, document, base, lengths, lenient, {})
    if failed_line is not None and (alone := walked.failed.keys() - walked.letters.keys()):
        if not lenient:
            raise changed(journal.sinks["dead"].path, "letters of which the output has a line are missing")
        start = min(walked.failed[unit] for unit in alone)
        walked = _walk(journal, document, base, lengths, lenient, {"output": start})
    new = document
    if journal.index.length > base or any(
        sink.length > lengths[name] for name, sink in journal.sinks.items()
    ):
        new = _settle(journal, document, walked, base, lenient, failed_line)
    boot = boot_id()
    if boot is not None and (journal.folder.read("session") or {}).get("boot") != boot:
        journal.folder.write("session", {"boot": boot})
    return new


def _machine_was_restarted(journal: Journal) -> bool:
    """Whether the machine was started after the run was last written: what wasn't synced may be lost."""
    boot, session = boot_id(), journal.folder.read("session")
    return boot is not None and session is not None and session["boot"] != boot


def _check_lengths(journal: Journal, base: int, lengths: dict[str, int]) -> None:
    for name, sink in [*journal.sinks.items(), ("index", journal.index)]:
        expected = base if name == "index" else lengths[name]
        if sink.length < expected:
            raise changed(sink.path, f"it holds {sink.length} bytes, the run had written {expected}")
        if name != "index" and expected and sink.read(expected - 1, 1) != b"\n":
            raise changed(sink.path, f"no line ends at byte {expected}")


def _walk(
    journal: Journal,
    document: dict[str, Any],
    base: int,
    lengths: dict[str, int],
    lenient: bool,
    limits: dict[str, int],
) -> Walked:
    """Read what came behind the snapshot, each sink by itself, as far as its lines are whole.

    `limits` says where some sinks are to end at the latest.
    """
    walked = Walked(
        dict(lengths),
        Settled(document.get("watermark", 0), document.get("above", "")),
        Summary.from_dict(document["summary"]) if document.get("summary") else Summary(),
    )
    for at, entry, packed in entries(journal, base):
        name = SINK_OF.get(entry.kind)
        if name is None or not entry.length:
            break
        if entry.opens and walked.torn and not lenient:
            raise changed(journal.sinks[min(walked.torn)].path, "lines before the last group are missing")
        if name in walked.torn:
            continue
        sink, start = journal.sinks[name], walked.ends[name]
        line = sink.read(start, min(limits.get(name, sink.length) - start, entry.length))
        if agrees(packed, line, journal.generation):
            _take(walked, entry, line, at)
        elif lenient or (len(line) < entry.length and b"\n" not in line):
            walked.torn.add(name)
        else:
            raise changed(sink.path, f"the line at byte {start} is not the one that the run wrote")
    return walked


def entries(journal: Journal, at: int = 0, end: int | None = None) -> Iterator[tuple[int, Entry, bytes]]:
    """The entries of the index or a part of it, unchecked: where each is, it, and its bytes."""
    end = journal.index.length if end is None else end
    while at < end and (block := journal.index.read(at, min(_BLOCK, end - at))):
        for number, entry in enumerate(unpack(block)):
            yield at + number * SIZE, entry, block[number * SIZE : (number + 1) * SIZE]
        at += len(block)


def last_settled(journal: Journal, count: int) -> Summary:
    """What the last so many settled records came to, as far as entries and letters tell."""
    summary = Summary()
    ends = {name: sink.length for name, sink in journal.sinks.items()}
    at = journal.index.length
    while count > 0 and at > 0:
        start = max(0, at - _BLOCK)
        for _, entry, _ in reversed(list(entries(journal, start, at))):
            name = SINK_OF[entry.kind]
            ends[name] -= entry.length
            if entry.kind in (OUTPUT, DEAD) and count > 0:
                line = journal.sinks[name].read(ends[name], entry.length) if entry.kind == DEAD else b""
                summary.add(outcome_of(entry, line))
                count -= 1
        at = start
    return summary


def _take(walked: Walked, entry: Entry, line: bytes, place: int) -> None:
    """Count an entry at `place` in the index, whose line is there."""
    name = SINK_OF[entry.kind]
    if entry.kind == DEAD:
        walked.letters[entry.unit] = entry, walked.ends[name]
    elif entry.kind == FAILED:
        walked.failed[entry.unit] = walked.ends[name]
    if entry.kind in (OUTPUT, DEAD):
        walked.settled.add(entry.number)
        walked.summary.add(outcome_of(entry, line))
    walked.ends[name] += entry.length
    if walked.spans and walked.spans[-1][1] == place:
        walked.spans[-1] = walked.spans[-1][0], place + SIZE
    else:
        walked.spans.append((place, place + SIZE))


def _settle(
    journal: Journal,
    document: dict[str, Any],
    walked: Walked,
    base: int,
    lenient: bool,
    failed_line: FailedLine | None,
) -> dict[str, Any]:
    """Make what was walked the run's state, with the tails cut off that it lacks; the new snapshot."""
    extra = {name: sink.length - walked.ends[name] for name, sink in journal.sinks.items()}
    for name, count in extra.items():
        if count and name not in walked.torn and not lenient:
            path = journal.sinks[name].path
            raise changed(path, f"it has {count} bytes behind the last line of the run")
    lines, added = _missing_lines(journal, walked, failed_line) if failed_line is not None else ([], [])
    spans = (journal.index.read(start, end - start) for start, end in walked.spans)
    tail = b"".join([*spans, *added])
    ends = dict(walked.ends)
    ends["output"] += sum(map(len, lines))
    new = document | {
        "generation": journal.generation,
        "index_length": base + len(tail),
        "sinks": ends,
        "watermark": walked.settled.watermark,
        "above": walked.settled.above(),
        "summary": walked.summary.to_dict(),
        "finished": document.get("finished", False) and not tail,
        "synced": True,
    }
    _keep(journal, {name: count for name, count in extra.items() if count})
    journal.sync()
    if journal.index.length == base + len(tail) and not any(extra.values()) and not lines:
        journal.folder.write("snapshot", new)
    else:
        tails = {name: (end, b"") for name, end in walked.ends.items()}
        tails["output"] = walked.ends["output"], b"".join(lines)
        commit(journal, {"snapshot": new}, tails | {"index": (base, tail)})
    return new


def _missing_lines(
    journal: Journal, walked: Walked, failed_line: FailedLine
) -> tuple[list[bytes], list[bytes]]:
    """The lines that dead letters lack among the output, and their entries."""
    lines: list[bytes] = []
    added: list[bytes] = []
    for unit, (entry, start) in walked.letters.items():
        if unit not in walked.failed:
            line = failed_line(journal.sinks["dead"].read(start, entry.length))
            lines.append(line)
            added.append(pack(entry._replace(kind=FAILED, length=len(line)), line, journal.generation))
    return lines, added


def _keep(journal: Journal, extra: dict[str, int]) -> None:
    """Put what is about to be cut off the ends of sinks into the run folder."""
    if not extra:
        return
    with writing(), (journal.folder.path / f"cut-{journal.generation}").open("ab") as kept:
        for name, count in extra.items():
            sink = journal.sinks[name]
            at = sink.length - count
            while block := sink.read(at, 1 << 20):
                kept.write(block)
                at += len(block)
            kept.write(b"\n")
        kept.flush()
        os.fsync(kept.fileno())


def outcome_of(entry: Entry, line: bytes) -> Outcome:
    """As much of the outcome as entry and letter tell: what a Summary counts."""
    usage = Usage(entry.input_tokens, entry.output_tokens, entry.cached_tokens)
    told = orjson.loads(line) if entry.kind == DEAD or b'"stages":' in line else {}
    error = told.get("error") or {}
    stages = [*told.get("stages", ()), *filter(None, [error.get("stage")])]
    trail = Trail(attempts=told_attempts(entry.calls, entry.at, entry.latency, usage, stages))
    record = Record(entry.unit, entry.unit, None, b"")
    if "stages" in told:
        trail.answers, trail.skipped = told["stages"], told.get("skipped")
    if entry.kind == OUTPUT:
        instead = b'"fallback":true' in line
        reply = Reply("", None, usage, None, "", cached=not entry.calls and not instead, fallback=instead)
        return Done(record, reply, trail, entry.at)
    failure = Failure(error["kind"], error["cause"], error["message"], stage=error.get("stage"))
    return Dead(record, failure, trail, entry.at)
