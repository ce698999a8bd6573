"""`batchllm run`: the main job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from batchllm.cli.options import job_file, parameter, take
from batchllm.job import load, strays

_INPUT = typer.Argument(
    help="JSONL files, .gz and .zst too; - is stdin.", metavar="INPUT", show_default=False
)


@take(parameter("input", Annotated[list[str] | None, _INPUT]), job_file())
def run(**options: Any) -> None:
    """Send every record of INPUT to a model and write every answer, or why there is none.

    INPUT is one or more JSONL files (.gz and .zst too), or - for stdin. Run the same command again to go on
    where it stopped. Settings also come from BATCHLLM_… variables and from batchllm.toml in the working
    folder.
    """
    from batchllm.cli.session import start
    from batchllm.ui import warn

    loaded = load(options, os.environ, Path())
    for line in () if loaded.job.quiet else strays(os.environ, loaded.job):
        warn(line)
    raise typer.Exit(start(loaded))
