"""Variants side by side: what is in the tables, and the tables as plain text of 80 columns.

Shown at the end of a run on stderr and by `batchllm report` on stdout; the numbers are the report's.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TextIO

from batchllm.fields import frozen
from batchllm.report import Accuracy, Comparison, Pair, Tally
from batchllm.stats import Table
from batchllm.ui.figures import per_cent, precise
from batchllm.ui.messages import capable, clean, write

_WIDTH = 80
_GAP = 2
_NAME_LENGTH = 24
_MISTAKES = 10
_OTHER = "(other)"


@frozen
class Block:
    """A table: `rows` of equal length, the first of them heads; the first column stands to the left.

    `note` is a line of what the figures mean.
    """

    rows: tuple[tuple[str, ...], ...]
    note: str | None = None


def accuracy_rows(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Rows of the final table for a run without variants; none where nothing was expected."""
    accuracy = comparison.total.accuracy
    if accuracy is not None:
        yield "accuracy", f"{_share(accuracy.share)} of {accuracy.n:,} answers: {accuracy.right:,} are right"
        low, high = _share(accuracy.interval.low), _share(accuracy.interval.high)
        yield "", f"95% interval {low} to {high} (Wilson), without failed records"


def comparison_blocks(comparison: Comparison) -> list[Block]:
    """The figures of all variants, as many beside each other as fit, and how they differ."""
    columns = [_column(tally) for tally in comparison.variants]
    judged = any(tally.n for tally in comparison.variants)
    if not judged:
        columns = [column[:_UNJUDGED] for column in columns]
    note = (
        "accuracy is that of the answers; failed records are not in it. interval: Wilson" if judged else None
    )
    blocks = [
        Block(tuple(zip(_HEADS[: len(columns[0])], *part, strict=True))) for part in _parts(_HEADS, columns)
    ]
    blocks[-1] = Block(blocks[-1].rows, note)
    if comparison.pairs:
        heads = ("right under", "both", "1st only", "2nd only", "neither", "p")
        rows = (heads, *(_pair(pair) for pair in comparison.pairs))
        blocks.append(Block(rows, "of the records answered under both; p: McNemar's exact test, two-sided"))
    return blocks


def confusion_blocks(comparison: Comparison) -> list[Block]:
    """What was answered for what, by variant: the whole table where it fits, else the commonest errors."""
    blocks = []
    for tally in comparison.variants:
        accuracy = tally.accuracy
        if accuracy is not None and accuracy.table is not None:
            blocks.append(_confusion(tally, accuracy, accuracy.table))
    return blocks


def show_blocks(blocks: Sequence[Block], stream: TextIO | None) -> None:
    """Print tables, with Rich on a terminal; nothing is raised where nobody reads."""
    if stream is None or not blocks:
        return
    if capable(stream):
        from batchllm.ui.table import draw_blocks

        draw_blocks([(block.rows, block.note) for block in blocks], stream)
    else:
        write(stream, "\n" + "".join(f"{line}\n" for line in plain(blocks)))


def plain(blocks: Sequence[Block]) -> Iterator[str]:
    """The lines of tables, an empty one between two."""
    for number, block in enumerate(blocks):
        if number:
            yield ""
        widths = [max(map(len, column)) for column in zip(*block.rows, strict=True)]
        for first, *rest in block.rows:
            cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
            yield (" " * _GAP).join((f"{first:<{widths[0]}}", *cells)).rstrip()
        if block.note:
            yield block.note


_HEADS = (
    *("variant", "records", "ok", "success rate", "failed", "schema rate"),
    *("latency mean", "latency p50", "latency p95", "tokens in", "tokens out", "cost"),
    *("answers judged", "right", "accuracy", "95% from", "95% to"),
)
_UNJUDGED = 12


def _column(tally: Tally) -> tuple[str, ...]:
    summary, latency, accuracy = tally.summary, tally.summary.latency, tally.accuracy
    shares: tuple[str, ...] = ("0", "--", "--", "--", "--")
    if accuracy is not None:
        interval = accuracy.interval
        shares = (
            *(f"{accuracy.n:,}", f"{accuracy.right:,}", _share(accuracy.share)),
            *(_share(interval.low), _share(interval.high)),
        )
    return (
        _name(tally.name),
        f"{summary.settled:,}",
        f"{summary.succeeded:,}",
        "--" if summary.success_rate is None else per_cent(summary.success_rate),
        f"{summary.failed:,}",
        "--" if tally.schema_rate is None else per_cent(tally.schema_rate),
        precise(latency.mean),
        precise(latency.quantile(0.5)),
        precise(latency.quantile(0.95)),
        f"{summary.input_tokens:,}",
        f"{summary.output_tokens:,}",
        cost(tally.cost),
        *shares,
    )


def cost(dollars: float | None) -> str:
    """`$1.2345`, or that it is not known."""
    return "unknown" if dollars is None else f"${dollars:,.4f}"


def _parts(heads: Sequence[str], columns: list[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """The columns, as many at a time as fit beside the heads."""
    part: list[tuple[str, ...]] = []
    room = left = _WIDTH - max(map(len, heads))
    for column in columns:
        width = _GAP + max(map(len, column))
        if part and width > left:
            yield part
            part, left = [], room
        part.append(column)
        left -= width
    yield part


def _pair(pair: Pair) -> tuple[str, ...]:
    counts = (pair.both, pair.only_first, pair.only_second, pair.neither)
    p = f"{pair.p:.4f}" if pair.p >= 0.0001 else f"{pair.p:.1e}"
    names = f"{_name(pair.first, 12)}, {_name(pair.second, 12)}"
    return names, *(f"{count:,}" for count in counts), p


def _confusion(tally: Tally, accuracy: Accuracy, table: Table) -> Block:
    """The table of a variant's labels, or its commonest errors where that is too wide."""
    of = "" if tally.name is None else f" ({_name(tally.name)})"
    labels = _labels(table, 14)
    rows = [(label, *map(str, counts)) for label, counts in zip(labels, table.counts, strict=True)]
    whole = (("expected, answered" + of, *labels), *rows)
    if sum(_GAP + max(map(len, column)) for column in zip(*whole, strict=True)) - _GAP <= _WIDTH:
        return Block(whole)
    every = tally.confusion.table(most=sys.maxsize)
    names = _labels(every, _NAME_LENGTH)
    wrong = [
        (count, names[i], names[j])
        for i, counts in enumerate(every.counts)
        for j, count in enumerate(counts)
        if count and i != j
    ]
    wrong.sort(key=lambda one: (-one[0], one[1:]))
    shown = tuple((expected, answered, f"{count:,}") for count, expected, answered in wrong[:_MISTAKES])
    more = f"; kinds of them not shown: {len(wrong) - _MISTAKES:,}" if len(wrong) > _MISTAKES else ""
    heads = ("expected" + of, "answered", "times")
    return Block((heads, *shown), f"wrong answers: {accuracy.n - accuracy.right:,}{more}")


def _labels(table: Table, longest: int) -> list[str]:
    """The labels, cut; those that look the same then are numbered, so that no error looks right."""
    shown = [_name(label, longest) for label in table.labels]
    times = Counter([*shown, _OTHER])
    taken = {name for name in times if times[name] == 1}
    for place, name in enumerate(shown):
        if times[name] > 1:
            marks = (f" #{number}" for number in itertools.count(1))
            numbered = (_name(table.labels[place], longest - len(mark)) + mark for mark in marks)
            shown[place] = next(one for one in numbered if one not in taken)
            taken.add(shown[place])
    return [*shown, *([_OTHER] if table.other else [])]


def _name(name: str | None, longest: int = _NAME_LENGTH) -> str:
    shown = "(none)" if name is None else clean(name)
    if len(shown) <= longest:
        return shown
    end = (longest - 3) // 2  # names often differ at their ends
    return f"{shown[: longest - 3 - end]}...{shown[-end:]}"


def _share(share: float) -> str:
    return f"{share:.2%}"
