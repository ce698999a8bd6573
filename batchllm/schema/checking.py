"""A validator of the user's own, `--check module:function`: what it says becomes a list of complaints.

`wire` makes one from the function, `layers/structured` asks it about each value that the schema has accepted.
It judges nothing itself.
"""

from __future__ import annotations

import inspect
import marshal
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from batchllm.errors import ConfigError, Internal

_MOST = 5
_LONGEST = 500
_RAISED = (Exception, SystemExit, GeneratorExit, KeyboardInterrupt)
"""What a function may raise that is its own doing; signals are heeded elsewhere, a cancellation is none."""


class Check:
    """Calls `function` with a value, and with its record if it takes two arguments; each a copy of its own.

    A plain function is called on the run's event loop, since a hop to a thread costs more than most checks;
    one that waits for something has to be an `async def`, which is given up after `timeout` seconds.
    """

    def __init__(self, function: Any, name: str, timeout: float) -> None:
        if not callable(function):
            raise ConfigError(f"{name} is no function", "name a function that takes the answer's value")
        self._function: Callable[..., Any] = function
        self._name = name
        self._timeout = timeout
        self.wants_record = takes_two(function)

    async def __call__(self, value: Any, record: dict[str, Any] | None) -> Sequence[str]:
        """The complaints about a value, none for a good one; Internal where the check itself fails."""
        given = marshal.loads(marshal.dumps((value, record) if self.wants_record else (value,)))
        try:
            verdict = self._function(*given)
            if inspect.isawaitable(verdict):
                with anyio.move_on_after(self._timeout) as scope:
                    verdict = await verdict
                if scope.cancelled_caught:
                    raise Internal(f"the check {self._name} gave no verdict within {self._timeout:g} s")
        except (ValueError, AssertionError) as error:
            return (_line(error) or "the check said no",)
        except Internal:
            raise
        except _RAISED as error:
            cause = type(error).__name__
            said = _whole(f"the check {self._name} failed: {cause}: {error}")
            raise Internal(said, cause=cause) from error
        return self._complaints(verdict)

    def _complaints(self, verdict: Any) -> Sequence[str]:
        if verdict is None or verdict is True:
            return ()
        if verdict is False:
            return ("the check said no",)
        said = [verdict] if isinstance(verdict, str) else verdict
        if not isinstance(said, list | tuple) or not all(isinstance(each, str) for each in said):
            what = type(verdict).__name__
            wanted = "text, a list of texts, True, False or None"
            raise Internal(f"the check {self._name} returned {what}, not {wanted}", cause="TypeError")
        complaints = [line for each in said if (line := _line(each))]
        if len(complaints) > _MOST:
            return (*complaints[:_MOST], f"and {len(complaints) - _MOST} more")
        return tuple(complaints)


def _line(said: object) -> str:
    """A complaint on one line, 500 characters at most."""
    line = " ".join(_whole(str(said)).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _whole(text: str) -> str:
    """The text with U+FFFD for half a surrogate pair, which can't be written anywhere."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def takes_two(function: Callable[..., Any]) -> bool:
    """Whether a second argument can be given by its place."""
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True
