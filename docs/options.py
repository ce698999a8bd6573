"""Writes the table of options into README.md from the table of settings; with --check, only compares.

python docs/options.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from batchllm.job import settings

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- options: written by docs/options.py -->", "<!-- /options -->"


def table() -> str:
    """The table as Markdown, in the order of `--help`."""
    rows = ["| option | what it does |", "|---|---|"]
    rows.append("| `-j, --job FILE` | Job file, TOML (default batchllm.toml here) |")
    for setting in settings().values():
        if setting.flags:
            flags = ", ".join(setting.flags) + (f" {setting.metavar}" if setting.metavar else "")
            rows.append(f"| `{flags.replace('|', chr(92) + '|')}` | {setting.help} |")
    return "\n".join(rows)


def main(*arguments: str) -> int:
    """1 where README.md differs and only a check was asked."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    fresh = f"{before}{START}\n{table()}\n{END}{after}"
    if "--check" not in arguments:
        README.write_text(fresh, encoding="utf-8")
        return 0
    return 0 if fresh == text else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
