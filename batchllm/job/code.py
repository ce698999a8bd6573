"""Python objects that a job names: `package.module:name`, or `./path/file.py:name`.

Naming one runs its module in this process, which is why a job file that is merely found may not. `load` reads
models with it, `providers` and `wire` functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from batchllm.errors import ConfigError


def names_code(value: Any) -> bool:
    """Whether a text has the form of a named Python object."""
    place, colon, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not all(part.isidentifier() for part in name.split(".")):
        return False
    return place.endswith(".py") or all(part.isidentifier() for part in place.split("."))


def anchored(spec: str, folder: Path) -> str:
    """The same object, its file seen from the working folder instead of `folder`."""
    return str(folder / spec) if spec.rpartition(":")[0].endswith(".py") else spec


def model_schema(spec: str, folder: Path | None = None) -> dict[str, Any]:
    """The JSON Schema of the pydantic model that `spec` names; raises ConfigError."""
    model = named_object(spec, folder)
    if not callable(getattr(model, "model_json_schema", None)):
        raise ConfigError(f"{spec} is no pydantic model", "name a class that derives from pydantic.BaseModel")
    try:
        schema: dict[str, Any] = model.model_json_schema()
    except Exception as error:  # pydantic's own, which has no name here
        raise ConfigError(f"{spec} has no JSON Schema: {error}", "leave out types that JSON lacks") from error
    return schema


def named_object(spec: str, folder: Path | None = None) -> Any:
    """The object that `spec` names; files start at `folder`, modules of the working folder are found.

    Raises ConfigError where there is none, or where its module can't be imported.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{spec} names no Python object", _ways("name"))
    found: Any = _imported(place, folder)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ConfigError(f"{place} has no {name!r}", _ways(name))
    return found


def _ways(name: str) -> str:
    return f"write package.module:{name} or ./path/file.py:{name}"


def _imported(place: str, folder: Path | None) -> ModuleType:
    """The module of a dotted name or a file; raises ConfigError."""
    try:
        if place.endswith(".py"):
            return _from_file((folder or Path()) / place)
        here = str(Path.cwd())
        if here not in sys.path and "" not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(place)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or place
        if f"{place}.".startswith(f"{missing}."):
            raise ConfigError(f"there is no module {place}", _ways("name")) from error
        hint = f"pip install {missing.partition('.')[0]}, where that is its package's name"
        raise ConfigError(f"importing {place} failed: there is no module {missing}", hint) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"importing {place} failed: {type(error).__name__}: {error}", _ways("name")
        ) from error


def _from_file(path: Path) -> ModuleType:
    name = f"batchllm_function_{path.stem}"  # never that of another module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"there is no file {path}", _ways("name"))
    known = sys.modules.get(name)
    if known is not None and known.__spec__ is not None and known.__spec__.origin == spec.origin:
        return known  # named twice, run once
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit):
        del sys.modules[name]
        raise
    return module
