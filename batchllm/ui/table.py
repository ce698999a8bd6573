"""Tables on a terminal, drawn with Rich; `ending` and `comparing` decide what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchllm.ui.messages import colourful

_STYLES = {"ok": "green", "failed": "red", "unknown": "yellow", "given up": "yellow", "not settled": "yellow"}


def draw(rows: list[tuple[str, str]], stream: TextIO) -> None:
    """Print rows of name and value; text is shown as it stands, without markup."""
    console = _console(stream)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        style = "" if name == "failed" and value == "0" else _STYLES.get(name, "")
        table.add_row(Text(name, "bold" if not name.startswith(" ") else "dim"), Text(value, style))
    try:
        console.print()
        console.print(table)
    except (OSError, ValueError):
        return


def draw_blocks(blocks: Sequence[tuple[Sequence[Sequence[str]], str | None]], stream: TextIO) -> None:
    """Print tables whose first row holds the heads, each with the note that is below it."""
    console = _console(stream)
    try:
        for (heads, *rows), note in blocks:
            table = Table.grid(padding=(0, 2))
            for number, _ in enumerate(heads):
                table.add_column(justify="right" if number else "left", overflow="fold")
            table.add_row(*(Text(head, "bold") for head in heads))
            for first, *rest in rows:
                table.add_row(Text(first, "bold"), *map(Text, rest))
            console.print()
            console.print(table)
            if note:
                console.print(Text(note, "dim"))
    except (OSError, ValueError):
        return


def _console(stream: TextIO) -> Console:
    return Console(
        file=stream, force_terminal=True, no_color=not colourful(stream), highlight=False, markup=False
    )
