"""A row of the table of settings: flags, help, reader and kind; `settings` writes the rows with it."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from batchllm.fields import frozen
from batchllm.job import values

Kind = Literal["meaning", "operation", "place"]


@frozen
class Setting:
    """One row of the table.

    `once`: an option for this time only, not in environment or job file. `file_only`: tables of the job file,
    such as `[[stage]]`, that neither options nor the environment can say.
    """

    name: str
    kind: Kind
    read: values.Reader
    flags: tuple[str, ...]
    help: str
    metavar: str | None
    default: Any
    once: bool
    many: bool
    panel: str
    file_only: bool = False

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "BATCHLLM_" + self.name.upper()


def row(
    default: Any,
    kind: Kind,
    read: values.Reader,
    flags: str,
    metavar: str | None,
    help: str,
    *,
    once: bool = False,
    many: bool = False,
    panel: str = "What is asked",
) -> Any:
    """A setting of what is asked, or of the `kind` and `panel` given."""
    row = {"kind": kind, "read": read, "flags": tuple(flags.split()), "metavar": metavar, "help": help}
    return field(default=default, metadata=row | {"once": once, "many": many, "panel": panel})


def how(default: Any, read: values.Reader, flags: str, metavar: str | None, help: str, **more: Any) -> Any:
    """A setting of how the run goes, free to change."""
    return row(default, "operation", read, flags, metavar, help, **({"panel": "How it runs"} | more))


def tables(kind: Kind, default: Any, read: values.Reader, help: str) -> Any:
    """Tables of the job file, under their setting's name."""
    made = row(default, kind, read, "", None, help)
    return field(default=default, metadata=made.metadata | {"file_only": True})


def files(kind: Kind, default: Any, read: values.Reader, flags: str, metavar: str | None, help: str) -> Any:
    """A setting of which files, and how they look."""
    return row(default, kind, read, flags, metavar, help, panel="Files")
