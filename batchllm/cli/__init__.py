"""The command line: one file a command. Typer lives here; heavy rooms are imported when a command runs.

`main` turns whatever ends a command into an exit code and, where people must know, two lines on stderr.
"""

from __future__ import annotations

import os
import sys
from inspect import cleandoc

import typer

from batchllm.cli.help import Root, Sectioned
from batchllm.cli.init import init
from batchllm.cli.leaving import leave
from batchllm.cli.models import models_app
from batchllm.cli.retry import retry
from batchllm.cli.run import run
from batchllm.cli.simulate import simulate
from batchllm.errors import BatchError, ConfigError, InUse


def _prose(text: str | None) -> str:
    """A docstring's paragraphs, each on one line, so that the terminal's width decides where they break."""
    paragraphs = cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


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
for command, summary, look in (
    (run, "Send every record to a model, write every answer.", Sectioned),
    (retry, "Run the dead letters of a finished run again.", Sectioned),
    (init, "Write a job file and a prompt for your records.", None),
    (simulate, "Serve a rehearsal endpoint on this machine.", None),
):
    app.command(help=_prose(command.__doc__), short_help=summary, cls=look)(command)
app.add_typer(models_app, name="models")


def _version(asked: bool) -> None:
    if asked:
        from batchllm import __version__

        typer.echo(f"batchllm {__version__}")
        raise typer.Exit


@app.callback()
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
        app(prog_name="batchllm")
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
