"""`batchllm retry`: the dead letters of a finished run, once more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from batchllm.cli.options import job_file, parameter, take
from batchllm.errors import ConfigError
from batchllm.job import load, settings

_OUTPUT = typer.Argument(help="The output of the run.", metavar="OUTPUT", show_default=False)
_ONLY = typer.Option(
    "--only", metavar="KIND", help="Only letters of this kind; repeatable", show_default=False
)
_KINDS = frozenset({"bad_input", "too_large", "refused", "invalid", "exhausted", "internal"})
_RUNS_OWN = frozenset(
    row.name
    for row in settings().values()
    if row.panel == "Files" or row.name in ("fresh", "limit", "rounds", "pilot", "yes", "variant")
)

_ASKED = {row.name: row.default for row in settings().values() if row.panel == "What is asked"}
"""What a retry may ask otherwise, with the defaults."""


@take(
    parameter("output", Annotated[str, _OUTPUT], default=...),
    parameter("only", Annotated[list[str] | None, _ONLY]),
    job_file(),
    leave_out=_RUNS_OWN,
)
def retry(output: str, only: list[str] | None, **options: Any) -> None:
    """Run the dead letters of OUTPUT again, with its own job or with what the options change.

    Successes join the same output; what fails again is a dead letter again.
    """
    from batchllm.cli.session import start
    from batchllm.wire import Again, stored_job

    if unknown := sorted(set(only or ()) - _KINDS):
        raise ConfigError(
            f"--only: no letters are of the kind {unknown[0]}", f"one of: {', '.join(sorted(_KINDS))}"
        )
    base = stored_job(output)
    loaded = load(options, {}, Path(), base=base)
    now = {name: getattr(loaded.job, name) for name in _ASKED}
    changes = {name: value for name, value in now.items() if value != base.get(name, _ASKED[name])}
    raise typer.Exit(start(loaded, Again(tuple(only or ()), changes)))
