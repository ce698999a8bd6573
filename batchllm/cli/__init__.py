"""The command line: one file a command. Typer lives here; a command is imported when it is wanted, and heavy
rooms when it runs.

`main` turns whatever ends a command into an exit code and, where people must know, two lines on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from inspect import cleandoc

import typer

from batchllm.cli.help import Root, Sectioned
from batchllm.cli.leaving import leave
from batchllm.errors import BatchError, ConfigError, InUse


def _prose(text: str | None) -> str:
    """A docstring's paragraphs, each on one line, so that the terminal's width decides where they break."""
    paragraphs = cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _run(app: typer.Typer) -> None:
    from batchllm.cli.run import run

    summary = "Send every record to a model, write every answer."
    app.command(help=_prose(run.__doc__), short_help=summary, cls=Sectioned)(run)


def _retry(app: typer.Typer) -> None:
    from batchllm.cli.retry import retry

    summary = "Run the dead letters of a finished run again."
    app.command(help=_prose(retry.__doc__), short_help=summary, cls=Sectioned)(retry)


def _report(app: typer.Typer) -> None:
    from batchllm.cli.report import report

    summary = "Show what a run came to, and compare its variants."
    app.command(help=_prose(report.__doc__), short_help=summary, cls=Sectioned)(report)


def _ctl(app: typer.Typer) -> None:
    from batchllm.cli.ctl import ctl

    summary = "Steer a running run: status, limits, pause, drain."
    app.command(help=_prose(ctl.__doc__), short_help=summary, cls=Sectioned)(ctl)


def _cache(app: typer.Typer) -> None:
    from batchllm.cli.cache import cache_app

    app.add_typer(cache_app, name="cache", short_help="Look into a cache of answers, or prune it.")


def _init(app: typer.Typer) -> None:
    from batchllm.cli.init import init

    summary = "Write a job file and a prompt for your records."
    app.command(help=_prose(init.__doc__), short_help=summary)(init)


def _simulate(app: typer.Typer) -> None:
    from batchllm.cli.simulate import simulate

    summary = "Serve a rehearsal endpoint on this machine."
    app.command(help=_prose(simulate.__doc__), short_help=summary)(simulate)


def _models(app: typer.Typer) -> None:
    from batchllm.cli.models import models_app

    app.add_typer(models_app, name="models", short_help="List providers, their keys and what is installed.")


COMMANDS: dict[str, Callable[[typer.Typer], None]] = {
    "run": _run,
    "retry": _retry,
    "report": _report,
    "ctl": _ctl,
    "cache": _cache,
    "init": _init,
    "simulate": _simulate,
    "models": _models,
}
"""What adds each command to the program, in the order of the help."""


def application(wanted: str | None = None) -> typer.Typer:
    """The program with the command that is wanted, or with all where that is none of them."""
    app = typer.Typer(
        name="batchllm",
        cls=Root,
        help="A file of records and an LLM endpoint in; every record answered or accounted for out.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, add in COMMANDS.items():
        if wanted not in COMMANDS or name == wanted:
            add(app)
    return app


def _version(asked: bool) -> None:
    if asked:
        from batchllm import __version__

        typer.echo(f"batchllm {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def _fill_closed_descriptors() -> None:
    """Where stdin, stdout or stderr is closed, keep our own files and sockets from taking its number.

    What takes it can neither be read nor written. libuv aborts the process when it has to close such a one.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number, which this is


def main() -> None:
    """Run the command line and exit with the contract's code."""
    _fill_closed_descriptors()
    try:
        _main()
    except SystemExit as end:
        leave(end.code)
        raise


def _main() -> None:
    try:
        application(sys.argv[1] if len(sys.argv) > 1 else None)(prog_name="batchllm")
    except BatchError as error:
        from batchllm.ui import error as say_error

        say_error(error.message, error.hint)
        sys.exit({ConfigError: 2, InUse: 4}.get(type(error), 3))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        from batchllm.cli.bug import report

        sys.exit(report(error))
