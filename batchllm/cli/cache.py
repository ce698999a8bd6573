"""`batchllm cache`: what a file of kept answers (`run --cache`) holds, and how to make it smaller."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchllm.errors import ConfigError

if TYPE_CHECKING:
    from batchllm.cache import CacheFile

_FILE = typer.Argument(help="What --cache names.", metavar="FILE", show_default=False)

cache_app = typer.Typer(no_args_is_help=True, help="Look into a cache of answers, or prune it.")


@cache_app.command()
def stats(
    file: Annotated[str, _FILE],
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON")] = False,
) -> None:
    """How many answers FILE holds, how large it is, and how old they are."""
    from batchllm.lines import dumps, stamp

    with _opened(file) as cache:
        held = cache.contents()
    ages = {"oldest": held.oldest, "newest": held.newest}
    facts: dict[str, Any] = {"file": file, "entries": held.entries, "bytes": held.bytes}
    facts |= {name: None if at is None else stamp(at) for name, at in ages.items()}
    if as_json:
        typer.echo(dumps(facts))
        return
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else "--" if value is None else value
        typer.echo(f"{name:<8} {shown}")


@cache_app.command()
def prune(
    file: Annotated[str, _FILE],
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="DURATION", help="Remove answers older than this, such as 30d"),
    ] = None,
    max_entries: Annotated[
        str | None, typer.Option("--max-entries", metavar="N", help="Remove the oldest beyond so many")
    ] = None,
) -> None:
    """Remove old answers from FILE and give the space back; runs may use it meanwhile."""
    from batchllm.job import values

    age = _read("--older-than", values.duration, older_than)
    most = _read("--max-entries", values.whole(0), max_entries)
    if age is None and most is None:
        raise ConfigError("nothing says what to remove", "give --older-than DURATION or --max-entries N")
    with _opened(file) as cache:
        before = cache.contents()
        removed = cache.prune(before=None if age is None else time.time() - age, most=most)
        after = cache.contents()
    typer.echo(f"answers removed: {removed:,}; kept: {after.entries:,}")
    typer.echo(f"bytes: {after.bytes:,}, {before.bytes:,} before")


def _read(option: str, read: Any, given: str | None) -> Any:
    try:
        return None if given is None else read(given)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}, not {given}", "batchllm cache prune --help") from None


@contextmanager
def _opened(file: str) -> Iterator[CacheFile]:
    """The cache, for as long as it is looked into; what is wrong with it is a ConfigError."""
    from batchllm.cache import open_cache, unusable

    cache = open_cache(file, create=False)
    try:
        yield cache
    except sqlite3.Error as error:
        raise unusable(file, error) from None
    finally:
        cache.close()
