"""How many records die where a model answers badly: the repairs' proof, small in the suite, whole by hand.

python -m tests.repairs [RECORDS [SEED]] runs it over the rehearsal server and prints the figures.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.running import run, tickets, write
from tests.serving import simulated

MIX = "fenced:0.10,enum:0.10,length:0.05,talk:0.05"
"""The other 70 % of all answers are right; each answer is drawn by itself."""
BAD = ("enum", "length", "talk")
REPAIRS = 2
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["billing", "bug", "praise"]},
        "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
        "summary": {"type": "string"},
    },
    "required": ["label", "urgency", "summary"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Figures:
    """What a run came to; `bad` answers and `fenced` ones by the server's count."""

    records: int
    done: int
    letters: list[dict[str, Any]]
    calls: int
    bad: int
    fenced: int

    @property
    def expected(self) -> float:
        """The share of records of which every ask is answered badly."""
        return float(0.2 ** (REPAIRS + 1))

    @property
    def share(self) -> float:
        """The share that died."""
        return len(self.letters) / self.records


def prove(folder: Path, records: int, seed: int) -> Figures:
    """Run so many records through a model that answers badly by MIX."""
    write(folder / "in.jsonl", tickets(records))
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    with simulated("--faults", MIX, "--seed", str(seed)) as server:
        options = ("--schema", "schema.json", "--repair", str(REPAIRS), "--base-url", server.url, "-q")
        room = ("--param", "max_tokens=500")  # without it, a cut answer is not asked again
        ran = run(folder, "in.jsonl", "-m", "openai/any", *options, *room)
        stats = server.stats()
    assert ran.code == 1, ran.stderr
    return Figures(
        records=records,
        done=len(ran.rows("in.out.jsonl")),
        letters=ran.rows("in.dead.jsonl"),
        calls=stats["requests"],
        bad=sum(stats["faults"].get(name, 0) for name in BAD),
        fenced=stats["faults"]["fenced"],
    )


def main() -> None:
    """Print the figures of a run of the size asked for."""
    given = [int(text) for text in sys.argv[1:3]]
    records, seed = [*given, *(10_000, 1)[len(given) :]]
    with tempfile.TemporaryDirectory() as folder:
        found = prove(Path(folder), records, seed)
    print(f"records {found.records}, done {found.done}, dead {len(found.letters)} ({found.share:.3%})")
    print(f"limit {1.25 * found.expected:.3%}; calls {found.calls}, bad {found.bad}, fenced {found.fenced}")


if __name__ == "__main__":
    main()
