"""How commands with many options show and take them, without what makes that slow in Typer.

Help is plain text in sections, since Typer's panels need Rich's markdown; and values are taken as they were
typed, since Typer converts them through pydantic. Either takes longer to import than all the rest of a start.
What a value means is the business of the table of settings.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from typer.core import TyperCommand, TyperGroup

_REST = "Other options"


class Root(TyperGroup):
    """The program itself, whose options are flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, taken as they were typed."""
        return _as_typed(super().get_params(ctx))


class Sectioned(TyperCommand):
    """A command whose help lists its arguments, then its options panel by panel, in the order of the table.

    Its parameters must be texts, lists of texts, flags and counts.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, taken as they were typed."""
        return _as_typed(super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections into click's `formatter`."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is None:
                continue
            is_argument = parameter.param_type_name == "argument"
            panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or _REST
            sections.setdefault(panel, []).append(row)
        rest = sections.pop(_REST, [])
        for panel, rows in [*sections.items(), (_REST, rest)]:
            if rows:
                with formatter.section(panel):
                    formatter.write_dl(rows, col_max=28)


def _as_typed(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if not parameter.required:
            parameter.process_value = partial(_value, parameter)
    return parameters


def _value(parameter: Any, ctx: Any, value: Any) -> Any:
    """The value for the command; an empty tuple for none of several."""
    several = getattr(parameter, "multiple", False) or parameter.nargs == -1
    value = () if value is None and several else value
    return value if parameter.callback is None else parameter.callback(ctx, parameter, value)
