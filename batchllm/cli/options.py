"""The options of commands that run a job, made from the table of settings, so that each is declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from batchllm.job import Setting, settings

ASKED, FILES = "What is asked", "Files"
"""Panels of the table."""


def take(*leading: inspect.Parameter, leave_out: frozenset[str] = frozenset()) -> Callable[[Any], Any]:
    """Give a command these parameters and an option for each row of the table but those left out."""

    def decorate(command: Any) -> Any:
        rows = [row for row in settings().values() if row.flags and row.name not in leave_out]
        options = [parameter(row.name, _annotation(row)) for row in rows]
        command.__signature__ = inspect.Signature([*leading, *options])
        return command

    return decorate


def parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """A parameter of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def job_file() -> inspect.Parameter:
    """The option that names the job file."""
    option = typer.Option(
        "-j",
        "--job",
        metavar="FILE",
        help="Job file, TOML (default batchllm.toml here)",
        rich_help_panel=FILES,
    )
    return parameter("job", Annotated[str | None, option])


def _annotation(setting: Setting) -> Any:
    is_flag = setting.metavar is None
    option = typer.Option(
        *setting.flags,
        metavar=setting.metavar or "",
        help=setting.help,
        rich_help_panel=setting.panel,
        show_default=False,
        count=setting.name == "verbose",
    )
    if setting.name == "verbose":
        return Annotated[int | None, option]
    if is_flag or setting.name == "ordered":
        return Annotated[bool | None, option]
    if setting.many:
        return Annotated[list[str] | None, option]
    return Annotated[str | None, option]
