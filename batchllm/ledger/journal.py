"""The journal of a run: index and snapshot beside the two sinks, and recovery after any end.

Writes entries before their lines, takes snapshots, and on opening walks what came after the last snapshot:
what agrees is settled, what a crash cut short is taken off. It never destroys a paid line: what it cuts is
kept in the run folder, and what it can't explain is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson

from batchllm.errors import ConfigError
from batchllm.ledger.folder import RunFolder
from batchllm.ledger.index import DEAD, FAILED, OUTPUT, SINK_OF, SIZE, Entry, agrees, pack, unpack
from batchllm.ledger.passes import Later, clean
from batchllm.ledger.settled import Settled
from batchllm.ledger.swap import finish_swap
from batchllm.model import Attempt, Dead, Done, Failure, Outcome, Position, Record, Reply, Trail, Usage
from batchllm.summary import Summary


class SinkFile(Protocol):
    """A sink that can be read back: a file."""

    path: str

    @property
    def length(self) -> int: ...
    def append(self, lines: list[bytes]) -> int: ...
    def read(self, offset: int, size: int) -> bytes: ...
    def sync(self) -> None: ...
    def truncate(self, length: int) -> None: ...
    def reopen(self) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class State:
    """What is settled, as far as snapshot and index tell. `position` is where to go on reading.

    With `later`, all of it is about a pass over that pass's own source.
    """

    generation: int = 0
    settled: Settled = field(default_factory=Settled)
    position: Position = field(default_factory=Position)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    unfinished_line: str | None = None
    tail: list[tuple[Entry, bytes]] = field(default_factory=list)
    later: Later | None = None


@dataclass(slots=True)
class _Walked:
    """What a walk found: where each sink's whole lines end, and the entries that agree with them."""

    ends: dict[str, int]
    valid: list[tuple[Entry, bytes]] = field(default_factory=list)
    packed: list[bytes] = field(default_factory=list)
    torn: set[str] = field(default_factory=set)


class Journal:
    """Index, snapshot and sinks of one run; `sinks` by name: output, dead, notes."""

    def __init__(self, folder: RunFolder, index: SinkFile, sinks: dict[str, SinkFile]) -> None:
        self.folder = folder
        self.index = index
        self.sinks = sinks
        self.generation = 0

    def open(self, failed_line: Callable[[bytes], bytes] | None = None) -> State:
        """Recover: the state after everything that is whole, with what was torn taken off.

        With `failed_line`, each dead letter has a line among the output, made from it; one that a crash kept
        from being written is written now.
        Raises ConfigError where the files are not what the journal says and a crash doesn't explain it.
        """
        finish_swap(self)
        document = self.folder.read("snapshot") or {}
        self.generation = document.get("generation", 0)
        base = document.get("index_length", 0)
        lengths = {name: document.get("sinks", {}).get(name, 0) for name in self.sinks}
        self._check_lengths(base, lengths)
        self._apply_tail(base, base64.b64decode(document.get("tail", "")))
        walked = self._walk(base, lengths)
        lost = _without_failed_line(walked, failed_line, self.generation) if failed_line else []
        valid = walked.valid
        state = State(
            generation=self.generation,
            settled=Settled(document.get("watermark", 0), document.get("above", "")),
            position=Position(*document.get("position", (0, 0, 0, 0))),
            inputs=document.get("inputs", []),
            summary=document.get("summary", {}),
            finished=document.get("finished", False) and not valid,
            unfinished_line=document.get("unfinished_line"),
            tail=valid,
            later=Later.from_dict(document["later"]) if document.get("later") else None,
        )
        clean(self, state.later)
        if self._keep_torn(walked, base) or lost:
            document |= {
                "index_length": base,
                "sinks": lengths,
                "generation": self.generation,
                "finished": False,
            }
            packed = b"".join(walked.packed)
            self.folder.write("snapshot", document | {"tail": base64.b64encode(packed).decode()})
            self.index.truncate(base)
            self.index.append([packed])
            for name, sink in self.sinks.items():
                sink.truncate(walked.ends[name])
            if lost:
                self.sinks["output"].append(lost)
        for entry, _ in valid:
            if entry.kind in (OUTPUT, DEAD):
                state.settled.add(entry.number)
        return state

    def adopt(self) -> State:
        """Take over an output and dead letters that have no run folder: every line is settled.

        Raises ConfigError where a line is not whole or no JSON.
        """
        self.index.truncate(0)
        state = State()
        for name, kind in (("output", OUTPUT), ("dead", DEAD)):
            for line in _lines(self.sinks[name]):
                number = state.settled.watermark
                entry = Entry(number, number, 0, kind, calls=1, length=len(line))
                self.index.append([pack(entry, line, self.generation)])
                state.settled.add(number)
                state.tail.append((entry, line if kind == DEAD else b""))
        return state

    def append(self, entries: bytes) -> None:
        """Entries of a group, before its lines."""
        self.index.append([entries])

    def sync(self) -> None:
        """Everything written so far would survive a power loss."""
        for sink in self.sinks.values():
            sink.sync()
        self.index.sync()

    def snapshot(self, document: dict[str, Any], sync: bool) -> None:
        """Write a snapshot of now; `document` holds what the ledger knows beside the lengths."""
        if sync:
            self.sync()
        lengths = {name: sink.length for name, sink in self.sinks.items()}
        head = {"generation": self.generation, "index_length": self.index.length, "sinks": lengths}
        self.folder.write("snapshot", head | document, sync=sync)

    def close(self) -> None:
        """Close the files and give the lock back."""
        self.index.close()
        for sink in self.sinks.values():
            sink.close()
        self.folder.release()

    def _check_lengths(self, base: int, lengths: dict[str, int]) -> None:
        for name, sink in [*self.sinks.items(), ("index", self.index)]:
            expected = base if name == "index" else lengths[name]
            if sink.length < expected:
                raise _changed(sink.path, f"it holds {sink.length} bytes, the run had written {expected}")

    def _apply_tail(self, base: int, tail: bytes) -> None:
        """Make the index go on with `tail` behind `base`, if a recovery before this one didn't get to it."""
        if tail and self.index.read(base, len(tail)) != tail:
            self.index.truncate(base)
            self.index.append([tail])

    def _walk(self, base: int, lengths: dict[str, int]) -> _Walked:
        """Read what came behind the snapshot, each sink by itself, as far as its lines are whole."""
        block = self.index.read(base, self.index.length - base)
        walked = _Walked(dict(lengths))
        for number, entry in enumerate(unpack(block)):
            name = SINK_OF.get(entry.kind)
            if name is None or entry.length == 0:
                break
            if name in walked.torn:
                continue
            sink, start = self.sinks[name], walked.ends[name]
            line = sink.read(start, entry.length)
            if len(line) < entry.length:
                walked.torn.add(name)
                continue
            packed = block[number * SIZE : (number + 1) * SIZE]
            if not agrees(packed, line, self.generation):
                raise _changed(sink.path, f"the line at byte {start} is not the one that the run wrote")
            walked.ends[name] = start + entry.length
            walked.valid.append((entry, line))
            walked.packed.append(packed)
        return walked

    def _keep_torn(self, walked: _Walked, base: int) -> bool:
        """Whether anything must be cut; keeps those bytes, and refuses what no crash explains."""
        extra = {name: sink.length - walked.ends[name] for name, sink in self.sinks.items()}
        for name, count in extra.items():
            if count and name not in walked.torn:
                raise _changed(self.sinks[name].path, f"it has {count} bytes behind the last line of the run")
        if self.index.length == base + len(walked.valid) * SIZE:
            return False
        with (self.folder.path / f"cut-{self.generation}").open("ab") as kept:
            for name, count in extra.items():
                if count:
                    kept.write(self.sinks[name].read(walked.ends[name], count) + b"\n")
        return True


def _changed(path: str, what: str) -> ConfigError:
    return ConfigError(
        f"{path} was changed since the run wrote it: {what}",
        "put the file back as it was, or start over with --fresh (the old files are kept aside)",
    )


def _lines(sink: SinkFile) -> Iterator[bytes]:
    """The lines of a sink, each with its newline, each checked to be a JSON object."""
    at, rest = 0, b""
    while block := sink.read(at, 1 << 20):
        at += len(block)
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield _checked(sink.path, line) + b"\n"
    if rest:
        raise ConfigError(
            f"{sink.path} ends in the middle of a line", "cut it off, or start over with --fresh"
        )


def _checked(path: str, line: bytes) -> bytes:
    try:
        if isinstance(orjson.loads(line), dict):
            return line
    except orjson.JSONDecodeError:
        pass
    raise ConfigError(
        f"{path} holds a line that is no JSON object", "start over with --fresh, or another -o FILE"
    )


def _without_failed_line(
    walked: _Walked, failed_line: Callable[[bytes], bytes], generation: int
) -> list[bytes]:
    """The lines that dead letters lack among the output; their entries join the walked ones.

    They stand behind the output's other entries and before the letters', so that each sink's entries keep
    the order of its lines, and a letter's line never stands behind the letter.
    """
    there = {entry.unit for entry, _ in walked.valid if entry.kind == FAILED}
    found: list[tuple[Entry, bytes, bytes]] = []
    for entry, letter in walked.valid:
        if entry.kind == DEAD and entry.unit not in there:
            line = failed_line(letter)
            added = replace(entry, kind=FAILED, length=len(line))
            found.append((added, line, pack(added, line, generation)))
    if found:
        rows = [
            (entry, line, packed) for (entry, line), packed in zip(walked.valid, walked.packed, strict=True)
        ]
        rows = sorted([*rows, *found], key=lambda row: row[0].kind not in (OUTPUT, FAILED))
        walked.valid = [(entry, line) for entry, line, _ in rows]
        walked.packed = [packed for _, _, packed in rows]
    return [line for _, line, _ in found]


def restore(state: State) -> Summary:
    """The Summary of everything settled: the snapshot's, and the index entries behind it."""
    summary = Summary.from_dict(state.summary) if state.summary else Summary()
    for entry, line in state.tail:
        if entry.kind in (OUTPUT, DEAD):
            summary.add(_outcome(entry, line))
    return summary


def _outcome(entry: Entry, line: bytes) -> Outcome:
    """As much of the outcome as entry and letter tell: what a Summary counts."""
    usage = Usage(entry.input_tokens, entry.output_tokens, entry.cached_tokens)
    calls = [Attempt(entry.at, entry.latency)] * (entry.calls - 1)
    trail = Trail(attempts=[*calls, Attempt(entry.at, entry.latency, usage)] if entry.calls else [])
    record = Record(entry.unit, entry.unit, None, b"")
    if entry.kind == OUTPUT:
        return Done(record, Reply("", None, usage, None, ""), trail, entry.at)
    error = orjson.loads(line)["error"]
    return Dead(record, Failure(error["kind"], error["cause"], error["message"]), trail, entry.at)
