"""Shows the answers of a run on samples/tickets.jsonl beside what was expected, and counts those that agree.

python samples/show.py samples/tickets.jsonl out/triage.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jsonschema import Draft202012Validator

SHOWN = 12


def main(tickets: str, answers: str) -> int:
    """Print the first answers and the count; 1 where an answer is missing or against the schema."""
    expected = {ticket["id"]: ticket for ticket in _lines(tickets)}
    given = _lines(answers)
    schema = json.loads((Path(__file__).parent / "triage.schema.json").read_text(encoding="utf-8"))
    valid = sum(Draft202012Validator(schema).is_valid(answer["output"]) for answer in given)
    right = sum(answer["output"]["category"] == expected[answer["id"]]["expected"] for answer in given)
    print(f"\nthe first {SHOWN} of {len(given)} answers:\n")
    for answer in given[:SHOWN]:
        ticket = expected[answer["id"]]
        mark = "ok " if answer["output"]["category"] == ticket["expected"] else "not"
        print(f"  {mark} {answer['output']['category']:<10} {ticket['text'][:60]!r}")
    print(f"\n{valid} of {len(given)} answers satisfy the schema; {right} name the expected category.")
    print("The model is a stand-in of 135 million parameters: point -m at a real one for real work.")
    return 0 if valid == len(given) == len(expected) else 1


def _lines(path: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
