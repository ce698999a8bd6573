"""Output and dead letters → a Comparison: one pass over each, memory flat however long they are.

It reads lines as docs/contract.md has them and refuses others; what a run that still goes on has written in
part is left out and said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchllm.errors import ConfigError
from batchllm.expected import Expectation
from batchllm.fields import frozen
from batchllm.model import Attempt, Dead, Done, Failure, Record, Reply, Trail, Usage, told_attempts
from batchllm.report import rows
from batchllm.report.labels import as_compared, label
from batchllm.report.pairing import Pair, Pairing
from batchllm.report.rows import Unfit
from batchllm.report.tally import Tally

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
        """Give every line of a file to `take`; whether it ends within one, which is left out."""
        number = 0
        try:
            for line in rows.lines(path):
                number += 1
                row = rows.parsed(line) if line.endswith(b"\n") else rows.unended(line, number == 1)
                if row is None:
                    return True
                take(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise _odd_line(path, number, error) from None
        except OSError as error:
            raise ConfigError(f"can't read {path}: {(error.strerror or str(error)).lower()}") from None
        return False

    def answer(self, row: dict[str, Any]) -> None:
        """Count an output line; one that only says that its record died (--merge-failed) has a letter."""
        if next(name for name in (*row, "output") if name in ("output", "error_kind")) == "error_kind":
            rows.text(row, "error_kind")
            rows.whole(row, "seq")
            return
        calls, at = rows.whole(row, "attempts", rows.MOST_CALLS), rows.seconds(row, "finished_at")
        usage, cost, seq, output = rows.usage(row), rows.cost(row), rows.whole(row, "seq"), row["output"]
        stages = row.get("stages")
        seconds = rows.number(row, "latency_s") if calls else 0.0
        attempts = told_attempts(calls, at, seconds, usage, stages if isinstance(stages, dict) else ())
        tally = self._tally(rows.variant(row))
        tally.summary.add(
            Done(_NO_RECORD, Reply("", None, Usage(), None, row["model"]), Trail(attempts=attempts), at)
        )
        tally.pay(cost, calls)
        if "correct" in row:
            self._judge(tally, seq, output, row["expected"], rows.judgement(row))

    def letter(self, row: dict[str, Any]) -> None:
        """Count a dead letter."""
        error, at, cost = row["error"], rows.seconds(row, "at"), rows.cost(row)
        attempts = [
            Attempt(
                at,
                rows.number(one, "seconds"),
                None if one["usage"] is None else rows.usage(one),
                stage=one.get("stage"),
            )
            for one in row["attempts"]
        ]
        failure = Failure(rows.text(error, "kind"), rows.text(error, "cause"), rows.text(error, "message"))
        rows.whole(row, "seq")
        tally = self._tally(rows.variant(row))
        tally.summary.add(Dead(_NO_RECORD, failure, Trail(attempts=attempts), at))
        tally.pay(cost, len(attempts))

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
        wanted = label(expected)
        if right:
            tally.confusion.add(wanted, wanted)
        elif self._expect is not None:
            answered = self._expect.answered(output)
            tally.confusion.add(wanted, label(as_compared(answered, expected)))
        elif isinstance(output, str):
            tally.confusion.add(wanted, label(as_compared(output, expected)))
        else:
            tally.labelled = False


def _odd_line(path: str, number: int, error: Exception) -> ConfigError:
    wrong = "it is not as a run writes it"
    if isinstance(error, KeyError | Unfit):
        wrong = str(error) if isinstance(error, Unfit) else f"it has no {error}"
    return ConfigError(
        f"line {number} of {path} is no line of a run with --emit result: {wrong}",
        "name the output of a run that was made with --emit result, which is the default",
    )
