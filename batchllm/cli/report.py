"""`batchllm report`: what a run came to, from its files, on stdout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchllm.errors import ConfigError

if TYPE_CHECKING:
    from batchllm.report import Comparison

_STANDINGS = {
    "running": "still going on: these are the figures so far",
    "unfinished": "not finished: run its own command again to go on",
    "finished": "finished",
}


def report(
    output: Annotated[
        str, typer.Argument(help="The output of the run.", metavar="OUTPUT", show_default=False)
    ],
    dead_letter: Annotated[
        str | None,
        typer.Option(
            "-d",
            "--dead-letter",
            metavar="FILE",
            help="Its dead letters, where the run folder doesn't name them",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as one line of JSON")] = False,
) -> None:
    """Show what the run that wrote OUTPUT came to: records, failures, tokens and times.

    Variants are compared side by side; where answers were judged (--expect), with their accuracy, its
    interval, and a test of the difference. A run that still goes on is reported as far as it has come.
    """
    from batchllm.report import compare, standing

    job = _job_of(output)
    letters = dead_letter or job.get("dead_letter") or _letters_beside(output)
    _check(output, job, letters if dead_letter else None)
    _check_whole(output, job, letters)
    comparison = compare(output, letters, expect=job.get("expect"))
    letters_there = letters if Path(letters).exists() else None
    if as_json:
        head = {
            "output": _absolute(output),
            "dead_letter": _absolute(letters) if letters_there else None,
            "state": standing(output),
        }
        _write(json.dumps(head | comparison.to_dict() | {"torn": comparison.torn}) + "\n")
    else:
        _show(comparison, output, letters_there, standing(output))


def _job_of(output: str) -> dict[str, Any]:
    """The settings of the run as its folder has them; nothing where there is none."""
    from batchllm.wire import stored_job

    return stored_job(output) if Path(f"{output}.run", "job.json").exists() else {}


def _letters_beside(output: str) -> str:
    from batchllm.wire import letters_beside

    return letters_beside(output)


def _check(output: str, job: dict[str, Any], letters: str | None) -> None:
    """ConfigError where there is nothing to report."""
    if output == "-":
        raise ConfigError("a report is made from files", "name the output of a run: OUTPUT.jsonl")
    if Path(output).is_dir() or not (job or Path(output).exists()):
        wrong = "is a directory" if Path(output).is_dir() else "does not exist"
        raise ConfigError(f"{output} {wrong}", "name the output of a run: OUTPUT.jsonl")
    if letters is not None and not Path(letters).is_file():
        raise ConfigError(f"{letters} does not exist", "name the run's dead letters, or leave out -d")
    if job.get("emit", "result") != "result":
        raise ConfigError(
            f"{output} was written with --emit {job['emit']}, whose lines hold no tokens and times",
            "a report needs the lines of --emit result, which is the default",
        )


def _check_whole(output: str, job: dict[str, Any], letters: str) -> None:
    """ConfigError where a file of the run is gone: what is left would be taken for all of it."""
    from batchllm.report import had_written, standing

    if not job:
        return
    finished = standing(output) == "finished"
    if not Path(output).exists() and (finished or had_written(output, "output")):
        raise ConfigError(
            f"{output} is missing, though its run folder {output}.run is there",
            "put the file back, or run its own command with --fresh",
        )
    if finished and not Path(letters).exists() and had_written(output, "dead"):
        raise ConfigError(f"{letters} is missing, and the run had dead letters", "name them with -d FILE")


def _show(comparison: Comparison, output: str, letters: str | None, state: str | None) -> None:
    from batchllm.ui.comparing import comparison_blocks, confusion_blocks, cost, plain, show_blocks
    from batchllm.ui.ending import Facts, rows
    from batchllm.ui.messages import capable

    total = comparison.total
    facts = Facts(_seen(output), total.seconds, _seen(letters) if letters else None, comparison=comparison)
    lines = [("state", _STANDINGS[state])] if state else []
    lines += rows(total.summary, facts)
    lines.append(("cost", cost(total.cost)))
    if comparison.torn:
        lines.append(("not counted", "a line at the end that is not whole yet"))
    blocks = comparison_blocks(comparison) if comparison.named else []
    blocks += confusion_blocks(comparison)
    if capable(sys.stdout):
        from batchllm.ui.table import draw

        draw(lines, sys.stdout)
        show_blocks(blocks, sys.stdout)
    else:
        text = [f"{name:<14} {value}" for name, value in lines] + (["", *plain(blocks)] if blocks else [])
        _write("".join(f"{line}\n" for line in text))


def _absolute(path: str) -> str:
    return os.path.normpath(Path(path).absolute())


def _seen(path: str) -> str:
    """The path as it is seen from the working folder, from the root where it lies elsewhere."""
    here, there = Path.cwd(), Path(_absolute(path))
    return str(there.relative_to(here) if there.is_relative_to(here) else there)


def _write(text: str) -> None:
    """To stdout; exit 141 where its reader has gone."""
    try:
        sys.stdout.buffer.write(text.encode(sys.stdout.encoding, "backslashreplace"))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        raise typer.Exit(141) from None
