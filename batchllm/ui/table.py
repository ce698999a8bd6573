"""The final table on a terminal, drawn with Rich; `ending` decides what is in it."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchllm.ui.messages import colourful

_STYLES = {"ok": "green", "failed": "red", "unknown": "yellow", "given up": "yellow", "not settled": "yellow"}


def draw(rows: list[tuple[str, str]], stream: TextIO) -> None:
    """Print rows of name and value; text is shown as it stands, without markup."""
    console = Console(
        file=stream, force_terminal=True, no_color=not colourful(stream), highlight=False, markup=False
    )
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
