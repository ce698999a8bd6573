"""`map`: a function of the program's over items, with the limits, retries, order and resume of a run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, overload

from batchllm import model
from batchllm.api.outcome import Outcome, outcome_of
from batchllm.api.session import Session
from batchllm.api.settings import CallSettings, Unpack, read_calls
from batchllm.api.streaming import checked, handing_for, outcomes
from batchllm.lines import dumps
from batchllm.sources.handed import Handed, line_of
from batchllm.wire.calling import calling

Item = TypeVar("Item")
Value = TypeVar("Value")
Transient = tuple[type[Exception], ...]

_ITEM = "item"


@overload
def map(
    function: Callable[[Item], Awaitable[Value]],
    items: Iterable[Item] | AsyncIterable[Item],
    /,
    *,
    ordered: bool = True,
    raise_errors: bool = False,
    retry_on: Transient = ...,
    **settings: Unpack[CallSettings],
) -> AsyncGenerator[Outcome[Item, Value], None]: ...


@overload
def map(
    function: Callable[[Item], Value],
    items: Iterable[Item] | AsyncIterable[Item],
    /,
    *,
    ordered: bool = True,
    raise_errors: bool = False,
    retry_on: Transient = ...,
    **settings: Unpack[CallSettings],
) -> AsyncGenerator[Outcome[Item, Value], None]: ...


def map(
    function: Callable[[Any], Any],
    items: Iterable[Any] | AsyncIterable[Any],
    /,
    *,
    ordered: bool = True,
    raise_errors: bool = False,
    retry_on: Transient = (ConnectionError, TimeoutError),
    **settings: Unpack[CallSettings],
) -> AsyncGenerator[Outcome[Any, Any], None]:
    """Call `function(item)` for each item, and yield each outcome once: in the items' order, or as they come.

    An async function is awaited on the event loop; any other is called in a thread, and one that is given up
    (`timeout`, or the end of the loop) goes on there. Settings are keywords alone: neither the environment
    nor a job file counts. Reading ahead, leaving the loop and `output` are as with `stream`.

    Without `output`, items and results are any Python objects and pass through as they are. With it, both
    have to be what JSON can carry, the function gets items as JSON reads them, and an item that is no object
    is written as `{"item": …}`.

    What the function raises is an outcome; with `raise_errors` it is raised, and ends the iteration. The
    exceptions `retry_on`, and batchllm's Overloaded, TimedOut and Disconnected, are tried again `max_retries`
    times. RateLimited(…, retry_after=5) lets everyone wait and try again; a FatalError ends the iteration.

    Raises ConfigError, InUse, TypeError, FatalError and what `items` raises, as `stream` does.
    """
    if not callable(function):
        raise TypeError(f"expected a function, not {type(function).__name__}")
    if not isinstance(retry_on, tuple) or not all(_is_exception(kind) for kind in retry_on):
        raise TypeError(f"retry_on: expected a tuple of exception classes, not {retry_on!r}")
    name = f"function/{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', 'call')}"
    loaded = read_calls({**settings, "ordered": ordered}, name)
    passing: _Held | _Written = _Held() if loaded.job.output is None else _Written()
    session = Session(
        loaded,
        {},
        handed=Handed(checked(items), passing.line),
        handing=handing_for(loaded.job, ordered),
        asks=calling(function, passing.item_of, retry_on),
    )
    return outcomes(session, passing.shown, raise_errors=raise_errors)


def _is_exception(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


class _Held:
    """Items pass through by number, and stay as they are."""

    def __init__(self) -> None:
        self._items: dict[int, Any] = {}
        self._taken = 0

    def line(self, item: Any) -> bytes:
        """The record that stands for an item."""
        number = self._taken
        self._taken += 1
        self._items[number] = item
        return dumps({"id": number, _ITEM: number})

    def item_of(self, data: dict[str, Any]) -> Any:
        """The item that a record stands for."""
        return self._items[data[_ITEM]]

    def shown(self, settled: model.Outcome) -> Outcome[Any, Any]:
        """The outcome with item and result as they are."""
        item = self._items.pop(settled.record.seq)
        return replace(_with_result(settled), record=item)


class _Written:
    """Items are written: an object as it is, anything else in one."""

    def line(self, item: Any) -> bytes:
        """The record that holds an item."""
        plain = isinstance(item, dict) and item.keys() != {_ITEM}
        return line_of(item if plain else {_ITEM: item})

    def item_of(self, data: dict[str, Any]) -> Any:
        """The item in a record."""
        return data[_ITEM] if data.keys() == {_ITEM} else data

    def shown(self, settled: model.Outcome) -> Outcome[Any, Any]:
        """The outcome with the item as JSON reads it."""
        outcome = _with_result(settled)
        return outcome if outcome.record is None else replace(outcome, record=self.item_of(outcome.record))


def _with_result(settled: model.Outcome) -> Outcome[Any, Any]:
    """The outcome with what the function returned, as it is."""
    outcome = outcome_of(settled)
    return replace(outcome, output=settled.trail.kept) if outcome.ok else outcome
