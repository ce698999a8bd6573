"""The journal of a run: index and snapshot beside the sinks, in one place for whoever changes them.

Writes entries before their lines, takes snapshots, and says on opening what is settled. Recovery, ordering
and later passes are rooms of their own that work on it; it decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

import orjson

from batchllm import exact
from batchllm.errors import ConfigError, LedgerFailed
from batchllm.fields import mutable
from batchllm.ledger.folder import RunFolder, identity
from batchllm.ledger.index import DEAD, FAILED, OUTPUT, Entry, pack
from batchllm.ledger.passes import Later, clean
from batchllm.ledger.recovery import FailedLine, outcome_of, recover
from batchllm.ledger.settled import Settled
from batchllm.ledger.swap import finish_swap
from batchllm.model import Position
from batchllm.summary import Summary

NO_UNIT = (1 << 64) - 1
"""Of a line that belongs to no record."""


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


@mutable
class State:
    """What is settled. `position` is where to go on reading, at the watermark or before it.

    `notes_from` is the byte of the notes before which none is about a record that isn't settled.
    With `later`, all of it is about a pass over that pass's own source.
    """

    generation: int = 0
    settled: Settled = field(default_factory=Settled)
    position: Position = field(default_factory=Position)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    unfinished_line: str | None = None
    later: Later | None = None
    notes_from: int = 0


class Journal:
    """Index, snapshot and sinks of one run; `sinks` by name: output, dead, notes.

    A change of several files that an earlier session was killed in is finished at once.
    """

    def __init__(self, folder: RunFolder, index: SinkFile, sinks: dict[str, SinkFile]) -> None:
        self.folder = folder
        self.index = index
        self.sinks = sinks
        self.generation = 0
        self._known: dict[str, tuple[int, int] | None] = {}
        finish_swap(self)

    def open(self, failed_line: FailedLine | None = None) -> State:
        """Recover: the state after everything that is whole, with what was torn taken off.

        `failed_line` makes the line among the output that each dead letter has, where it has one.
        Raises ConfigError where the files are not what the journal says and a crash doesn't explain it,
        LedgerFailed where they can't be mended.
        """
        document = self.folder.read("snapshot") or {}
        self.generation = document.get("generation", 0)
        self._known.clear()
        document = recover(self, document, failed_line)
        state = State(
            generation=self.generation,
            settled=Settled(document.get("watermark", 0), document.get("above", "")),
            position=Position(*document.get("position", (0, 0, 0, 0))),
            inputs=document.get("inputs", []),
            summary=document.get("summary", {}),
            finished=document.get("finished", False),
            unfinished_line=document.get("unfinished_line"),
            later=Later.from_dict(document["later"]) if document.get("later") else None,
            notes_from=document.get("notes_from", document.get("sinks", {}).get("notes", 0)),
        )
        clean(self, state.later)
        return state

    def adopt(self, failed_id: Callable[[bytes], Any]) -> State:
        """Take over an output and dead letters that have no run folder: every line is settled.

        `failed_id` tells the id in an output line that only says that its record failed, None in others; one
        that belongs to no letter settles nothing. Raises ConfigError where a line is not whole or no JSON.
        """
        self.index.truncate(0)
        state, summary = State(), Summary()
        letters: dict[str, deque[int]] = {}
        for name in ("dead", "output"):
            for line in _lines(self.sinks[name]):
                unit, kind = state.settled.watermark, DEAD if name == "dead" else OUTPUT
                if kind == DEAD:
                    _check_letter(self.sinks[name].path, line)
                    letters.setdefault(_key(exact.loads(line).get("id")), deque()).append(unit)
                elif (id := failed_id(line)) is not None:
                    of_this_id = letters.get(_key(id))
                    kind, unit = FAILED, of_this_id.popleft() if of_this_id else NO_UNIT
                entry = Entry(unit, unit, 0, kind, calls=1, length=len(line))
                self.index.append([pack(entry, line, self.generation)])
                if kind != FAILED:
                    state.settled.add(unit)
                    summary.add(outcome_of(entry, line))
        state.summary = summary.to_dict()
        return state

    def append(self, entries: bytes) -> None:
        """Entries of a group, before its lines."""
        self.index.append([entries])

    def check(self) -> None:
        """Raise LedgerFailed if one of the files was removed or replaced, so that lines would go nowhere."""
        for file in (self.index, *self.sinks.values()):
            if not file.length:
                continue
            found = identity(Path(file.path))
            if found is None or self._known.setdefault(file.path, found) != found:
                raise LedgerFailed(
                    f"{file.path} was removed or replaced while the run wrote to it",
                    "put it back and run the same command again, or start over with --fresh",
                )
        if not self.folder.held():
            raise LedgerFailed(
                f"{self.folder.path} was removed or replaced while the run wrote to it",
                "put it back and run the same command again, or start over with --fresh",
            )

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
        head = {
            "generation": self.generation,
            "index_length": self.index.length,
            "sinks": lengths,
            "synced": sync,
        }
        self.folder.write("snapshot", head | document, sync=sync)

    def close(self) -> None:
        """Close the files and give the lock back."""
        self.close_files()
        self.folder.release()

    def close_files(self) -> None:
        """Close the files and keep the lock."""
        self.index.close()
        for sink in self.sinks.values():
            sink.close()


def restore(state: State) -> Summary:
    """The Summary of everything settled."""
    return Summary.from_dict(state.summary) if state.summary else Summary()


def _key(id: Any) -> str:
    """An id as the shape openai-batch writes it too."""
    return id if isinstance(id, str) else exact.ordered(id).decode()


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


def _check_letter(path: str, line: bytes) -> None:
    """Raise ConfigError for a line that doesn't say how its record failed, as every dead letter does."""
    letter = orjson.loads(line)
    error = letter.get("error")
    whole = isinstance(letter.get("seq"), int) and letter.keys() & {"record", "raw_line", "raw_line_base64"}
    if not whole or not (
        isinstance(error, dict)
        and all(isinstance(error.get(part), str) for part in ("kind", "cause", "message"))
    ):
        raise ConfigError(
            f"{path} holds a line that is no dead letter: {line[:60].decode(errors='replace').strip()}",
            "name the run's own dead letters with -d FILE, or start over with --fresh",
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
