"""`batchllm ctl`: asks a running run how it goes, or steers it, through the socket in its run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from batchllm.errors import ConfigError

_ACTIONS = ("status", "pause", "resume", "drain")


def ctl(
    output: Annotated[
        str, typer.Argument(help="The output of the run.", metavar="OUTPUT", show_default=False)
    ],
    action: Annotated[
        str | None,
        typer.Argument(
            help="status, pause, resume or drain; status where nothing else is asked.",
            metavar="ACTION",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option("-c", "--concurrency", metavar="N", help="Calls in flight from now on")
    ] = None,
    rpm: Annotated[
        str | None, typer.Option("--rpm", metavar="N", help="Requests a minute; 0 or none for no limit")
    ] = None,
    tpm: Annotated[
        str | None, typer.Option("--tpm", metavar="N", help="Tokens a minute; 0 or none for no limit")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as one line of JSON")] = False,
) -> None:
    """Steer the run that writes OUTPUT, or ask how it goes.

    pause lets no new call go out until resume; drain finishes what is in flight and ends the run with exit 3,
    and its own command goes on later. Changes last until the run ends.
    """
    import anyio

    from batchllm import control, ui

    changes = {"concurrency": concurrency, "rpm": rpm, "tpm": tpm}
    requests = _requests(action, {name: value for name, value in changes.items() if value is not None})
    path = control.socket_of(output)
    if output == "-":
        raise ConfigError(
            "a run that writes to stdout has no run folder, so it can't be steered", "give the run -o FILE"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"there is no run folder {path.parent}", "name the output of a run: OUTPUT.jsonl")
    for request in requests:
        answer = anyio.run(control.ask, path, request)
        if as_json:
            typer.echo(json.dumps(answer))
        elif request["do"] == "status":
            for name, value in _rows(answer):
                typer.echo(f"{name:<12} {ui.clean(value)}")
        else:
            for line in answer["done"]:
                ui.say(ui.clean(str(line)))


def _requests(action: str | None, changes: dict[str, str]) -> list[dict[str, Any]]:
    """What to ask of the run, in order."""
    from batchllm.control import read_change

    if action is not None and action not in _ACTIONS:
        raise ConfigError(f"ctl can't {action}", f"one of: {', '.join(_ACTIONS)}; or an option")
    for name, value in changes.items():
        try:
            read_change(name, value)
        except ValueError as error:
            raise ConfigError(f"--{name}: {error}, got {value!r}", "batchllm ctl --help") from None
    asked: list[dict[str, Any]] = [{"do": "set", **changes}] if changes else []
    return [*asked, {"do": action or "status"}] if action or not changes else asked


def _rows(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The status as people read it: what, and its value."""
    from batchllm.ui.figures import duration, speed

    yield "run", f"{status['run_id']} (process {status['pid']})"
    yield "model", status["model"]
    yield "state", f"stopping: {status['stopping']}" if status["stopping"] else status["waiting"] or "running"
    total = "" if status["total"] is None else f"/{'' if status['total_exact'] else '~'}{status['total']:,}"
    yield (
        "records",
        f"{status['processed']:,}{total} settled: {status['succeeded']:,} ok, {status['failed']:,} failed",
    )
    yield "speed", f"{speed(status['rate'])}, eta {duration(status['eta_s'])}"
    yield "in flight", f"{status['in_flight']:,} of {status['concurrency']:,}"
    limits = (f"{limit:,.12g} {name}" for name, limit in status["limits"].items())
    yield "a minute", ", ".join(limits) or "no limit"
