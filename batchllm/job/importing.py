"""Python code of the user's by its place: `package.module:function` or `path/file.py:function`.

It imports and looks up, and runs nothing that it finds. A file is one module however often it is named, so
that its functions share their state. `function`, `step` and its workers import through it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from batchllm.errors import ConfigError

WAYS = "write package.module:function or ./path/file.py:function, behind python/ where it is a model"


def found(what: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function that `what` names; raises ConfigError where it can't be had.

    Files are found from `folder` on, modules in it and in the working folder. An import may take long: call
    it in a thread.
    """
    place, colon, name = what.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"python/{what} names no function", WAYS)
    function = attribute(place, name, folder)
    if not callable(function):
        raise ConfigError(f"{place} has no function {name!r}", WAYS)
    return cast("Callable[..., Any]", function)


def attribute(place: str, name: str, folder: Path | None = None) -> Any:
    """What `name`, dotted or not, means in a module; None where it has no such thing. Raises ConfigError."""
    module = imported(place, folder)
    running: _Running | None = vars(module).get(_RUNNING)
    thing = _named_in(module, name, place)
    if thing is None and running is not None and running.thread != threading.get_ident():
        running.over.wait(_PATIENCE_S)
        thing = _named_in(module, name, place)
    return thing


def _named_in(module: ModuleType, name: str, place: str) -> Any:
    thing: Any = module
    try:
        for part in name.split("."):
            thing = getattr(thing, part, None)
    except (Exception, SystemExit) as error:
        words = f"{type(error).__name__}: {error}"
        raise ConfigError(f"looking up {name} in {place} failed: {words}", WAYS) from error
    return thing


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call gives something to await: an `async def`, or an object whose `__call__` is one."""
    called = getattr(function, "__call__", None)  # noqa: B004 - its kind is asked, not whether it is there
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def imported(place: str, folder: Path | None = None) -> ModuleType:
    """The module of a dotted name or a file; raises ConfigError."""
    try:
        if place.endswith(".py"):
            return _from_file(Path(place) if folder is None else folder / place)
        for path in (Path.cwd(), *([folder.resolve()] if folder is not None else [])):
            if str(path) not in sys.path:
                sys.path.insert(0, str(path))
        return importlib.import_module(place)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or place
        if f"{place}.".startswith(f"{missing}."):
            raise ConfigError(f"there is no module {place}", WAYS) from error
        hint = f"pip install {missing.partition('.')[0]}, where that is its package's name"
        raise ConfigError(f"importing {place} failed: there is no module {missing}", hint) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"importing {place} failed: {type(error).__name__}: {error}", WAYS) from error


class _Running:
    """A file that runs as a module now, and the thread that it runs in."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.over = threading.Event()


_RUNNING = "__batchllm_runs__"
"""Where a module holds that of itself, for as long as it runs."""
_making = threading.Lock()
"""Held while a module is looked for and entered, never while code runs."""
_PATIENCE_S = 10.0
"""Seconds that a thread waits for a name in a file that another thread still runs: it may wait for us."""


def _from_file(path: Path) -> ModuleType:
    whole = str(path.resolve())
    # never the name of another module, nor that of another file with this one's name
    name = f"batchllm_function_{path.stem}_{blake2b(whole.encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    with _making:
        if name in sys.modules:
            return sys.modules[name]
        if spec is None or spec.loader is None or not path.is_file():
            raise ConfigError(f"there is no file {path}", WAYS)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        running = vars(module)[_RUNNING] = _Running()
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit):
        del sys.modules[name]  # half a module is none
        raise
    finally:
        vars(module).pop(_RUNNING, None)
        running.over.set()
    return module
