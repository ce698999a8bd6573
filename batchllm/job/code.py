"""Python objects that a job names: `package.module:name`, or `./path/file.py:name`.

Naming one runs its module in this process, which is why a job file that is merely found may not. `load` reads
models with it, `providers` and `wire` functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchllm.errors import ConfigError
from batchllm.job.importing import attribute


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
    found = attribute(place, name, folder)
    if found is None:
        raise ConfigError(f"{place} has no {name!r}", _ways(name))
    return found


def _ways(name: str) -> str:
    return f"write package.module:{name} or ./path/file.py:{name}"
