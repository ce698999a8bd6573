"""What stages had answered for records that are not settled yet, read from the run's notes.

The snapshot tells from where on notes may still matter, so that what is read stays as small as what was in
work. The ledger keeps that place, `wire` hands the answers to the pipeline.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

from batchllm import exact
from batchllm.fields import mutable

if TYPE_CHECKING:
    from batchllm.ledger.journal import Journal, State

_BLOCK = 1 << 20


@mutable
class Noted:
    """Notes of unsettled records: `answers` by unit, `places` where each record's first begins, by number."""

    answers: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)

    def add(self, note: dict[str, Any], place: int) -> None:
        """Keep a note that begins at byte `place`."""
        self.answers.setdefault(note["unit"], []).append(note)
        self.places.setdefault(note["number"], place)


def read_notes(journal: Journal, state: State) -> Noted:
    """The notes of stages that concern this pass and no settled record."""
    noted = Noted()
    sink, place, rest = journal.sinks["notes"], state.notes_from, b""
    while block := sink.read(place + len(rest), _BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            note = exact.loads(line)
            if note["kind"] == "stage" and note["number"] not in state.settled:
                noted.add(note, place)
            place += len(line) + 1
    return noted
