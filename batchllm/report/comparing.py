"""Output and dead letters → a Comparison: one pass over each, memory flat however long they are.

It reads lines as docs/contract.md has them and refuses others; what a run that still goes on has written in
part is left out and said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from batchllm.errors import ConfigError
from batchllm.expected import NOTHING, Expectation
from batchllm.lines import members
from batchllm.model import Attempt, Dead, Done, Failure, Record, Reply, Trail, Usage, frozen
from batchllm.report.pairing import Pair, Pairing
from batchllm.report.tally import Tally

_LABEL_LENGTH = 60
_NO_RECORD = Record(0, None, None, b"")


@frozen
class Comparison:
    """What the files of a run hold.

    `total` counts everything, a record under a variant as one; its accuracy is that of the only variant.
    `variants` has one unnamed Tally where the run has no variants. `pairs` is empty where no answer has an
    expected value. `torn` says that a file ended within a line.
    """

    total: Tally
    variants: tuple[Tally, ...]
    pairs: tuple[Pair, ...]
    torn: bool

    @property
    def named(self) -> bool:
        """Whether there are variants to compare."""
        return any(tally.name is not None for tally in self.variants)

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can carry: the totals, `variants` with a `name` each, `pairs`."""
        return self.total.to_dict() | {
            "variants": [{"name": t.name} | t.to_dict() for t in self.variants] if self.named else [],
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


def compare(output: str, dead_letter: str | None, *, expect: str | None = None) -> Comparison:
    """Read a run's files. `expect` is the run's own setting: it tells the label in an answer that is no text.

    A file that is not there holds nothing. Raises ConfigError where a line is none that `--emit result`
    writes, and where a file can't be read.
    """
    reader = _Reader(Expectation(expect) if expect is not None else None)
    torn = reader.read(output, reader.answer)
    if dead_letter is not None:
        torn = reader.read(dead_letter, reader.letter) or torn
    return reader.comparison(torn)


class _Reader:
    """Folds lines into a Tally for each variant, in the order in which they first come."""

    def __init__(self, expect: Expectation | None) -> None:
        self._expect = expect
        self._tallies: dict[str | None, Tally] = {}
        self._numbers: dict[str | None, int] = {}
        self._pairing = Pairing()

    def read(self, path: str, take: Callable[[dict[str, Any]], None]) -> bool:
        """Give every whole line of a file to `take`; whether it ends within a line."""
        number = 0
        try:
            for line in _lines(path):
                number += 1
                if not line.endswith(b"\n"):
                    return True
                take(_row(line))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise _odd_line(path, number, error) from None
        except OSError as error:
            raise ConfigError(f"can't read {path}: {(error.strerror or str(error)).lower()}") from None
        return False

    def answer(self, row: dict[str, Any]) -> None:
        """Count an output line; one that only says that its record died (--merge-failed) has a letter."""
        if next(name for name in (*row, "output") if name in ("output", "error_kind")) == "error_kind":
            return
        tally = self._tally(row.get("variant"))
        calls, at = row["attempts"], _seconds(row["finished_at"])
        attempts = []
        if calls:
            last = Attempt(at, row["latency_s"] or 0.0, _usage(row["usage"]))
            attempts = [Attempt(at, 0.0)] * (calls - 1) + [last]
        output = row["output"]
        tally.summary.add(
            Done(_NO_RECORD, Reply("", None, Usage(), None, row["model"]), Trail(attempts=attempts), at)
        )
        tally.pay(row["cost_usd"], calls)
        if "correct" in row:
            self._judge(tally, row["seq"], output, row["expected"], row["correct"])

    def letter(self, row: dict[str, Any]) -> None:
        """Count a dead letter."""
        tally, error, at = self._tally(row.get("variant")), row["error"], _seconds(row["at"])
        attempts = [
            Attempt(at, one["seconds"], _usage(one["usage"]) if one["usage"] else None)
            for one in row["attempts"]
        ]
        failure = Failure(error["kind"], error["cause"], error["message"])
        tally.summary.add(Dead(_NO_RECORD, failure, Trail(attempts=attempts), at))
        tally.pay(row["cost_usd"], len(attempts))

    def comparison(self, torn: bool) -> Comparison:
        """What was read."""
        tallies = tuple(self._tallies.values()) or (Tally(None),)
        total = tallies[0]
        if len(tallies) > 1:
            total = Tally(None)
            for tally in tallies:
                total.summary.merge(tally.summary)
                total.pay(tally.cost, tally.summary.calls)
        judged = any(tally.n for tally in tallies)
        pairs = self._pairing.pairs(list(self._tallies)) if judged else ()
        return Comparison(total, tallies, pairs, torn)

    def _tally(self, name: str | None) -> Tally:
        tally = self._tallies.get(name)
        if tally is None:
            self._numbers[name] = len(self._tallies)
            tally = self._tallies[name] = Tally(name)
        return tally

    def _judge(self, tally: Tally, seq: int, output: Any, expected: Any, right: bool) -> None:
        tally.n += 1
        tally.right += right
        self._pairing.add(seq, self._numbers[tally.name], right)
        if right:
            answered = expected
        elif self._expect is not None:
            answered = self._expect.answered(output)
        elif isinstance(output, str):
            answered = output
        else:
            tally.labelled = False
            return
        tally.confusion.add(_label(expected), _label(answered))


def _lines(path: str) -> Iterator[bytes]:
    """The lines of a file as they stand; none where there is no file."""
    try:
        file = Path(path).open("rb", buffering=1 << 20)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        yield from file


def _row(line: bytes) -> dict[str, Any]:
    """The object on a line; a value that is nested deeper than the reader goes is NOTHING."""
    try:
        row: dict[str, Any] = orjson.loads(line)
    except ValueError:
        row = {name: _value(part) for name, part in members(line)}
    return row


def _value(part: bytes) -> Any:
    try:
        return orjson.loads(part)
    except ValueError:
        return NOTHING


def _usage(told: dict[str, int]) -> Usage:
    return Usage(told["input_tokens"], told["output_tokens"], told["cached_tokens"])


def _odd_line(path: str, number: int, error: Exception) -> ConfigError:
    wrong = f"it has no {error}" if isinstance(error, KeyError) else "it is not as a run writes it"
    return ConfigError(
        f"line {number} of {path} is no line of a run with --emit result: {wrong}",
        "name the output of a run that was made with --emit result, which is the default",
    )


def _label(value: Any) -> str:
    """What stands for a value in a confusion table: a text itself, JSON for the rest, shortened."""
    if value is NOTHING:
        return "(nothing)"
    text = value.strip() if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
