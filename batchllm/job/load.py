"""The merge: option > environment > job file > default, each value with where it came from.

Reads the job file and the files that settings name (`@FILE`, a schema); calls nobody. Whatever is wrong
is a ConfigError that names the layer, and for a job file its line.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchllm.errors import ConfigError
from batchllm.fields import frozen
from batchllm.job import tables, values
from batchllm.job.code import anchored, model_schema, names_code
from batchllm.job.file import Given, from_file
from batchllm.job.importing import WAYS
from batchllm.job.settings import Job, settings
from batchllm.job.table import Setting


@frozen
class Loaded:
    """The job, and for each setting that was given where: `--rpm`, `BATCHLLM_RPM`, `batchllm.toml line 4`."""

    job: Job
    origins: dict[str, str]

    def origin(self, name: str) -> str:
        """Where the setting came from, for messages."""
        return self.origins.get(name, "the default")


def load(
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    folder: Path,
    *,
    base: Mapping[str, Any] | None = None,
) -> Loaded:
    """Merge `options` (name → what the command line held; None where nothing was said) with the rest.

    `folder` is the working folder: relative paths of options and environment start there, those of a job
    file at the job file's folder. The option `job` names the job file. `base` holds the settings of an
    earlier run, already read, that all layers win over; then a job file counts only if it is named.
    """
    table = settings()
    layers = [
        from_file(options.get("job"), environ, table, folder, implicit=base is None),
        _from_environment(environ, table, folder),
        _from_options(options, table, folder),
    ]
    given: dict[str, Any] = dict(base or {})
    origins: dict[str, str] = {}
    for layer in layers:
        for name, found in layer.items():
            value = _read(table[name], found)
            if name == "param":
                value = given.get(name, {}) | value
            given[name] = value
            origins[name] = found.origin
    given.setdefault("param", {})
    return Loaded(Job(**given), origins)


_PREFIX = "BATCHLLM_"
_KNOWN = frozenset({"BATCHLLM_JOB", "BATCHLLM_BENCH_DATA"})
"""Variables that are heeded elsewhere."""
_TOLD = "BATCHLLM_FINISHED_"
"""What a command of [finish] is told; it may run batchllm."""


def strays(environ: Mapping[str, str], job: Job) -> list[str]:
    """A line for each variable that looks like one of ours and is heeded by nobody; never its value."""
    table = {setting.variable: setting for setting in settings().values()}
    given = {variable for variable, setting in table.items() if not (setting.once or setting.file_only)}
    heeded = given | _KNOWN
    names = {variable.removeprefix(_PREFIX): variable for variable in heeded}
    lines = []
    for variable in sorted(environ):
        if (
            not variable.startswith(_PREFIX)
            or variable.startswith(_TOLD)
            or variable in heeded
            or variable == job.api_key_env
        ):
            continue
        if variable in table and table[variable].once:
            flag = table[variable].flags[-1]
            lines.append(f"{variable} is not heeded: it is for the command line only, as {flag}")
            continue
        close = difflib.get_close_matches(variable.removeprefix(_PREFIX), sorted(names), n=1)
        guess = f": did you mean {names[close[0]]}?" if close else ""
        lines.append(f"{variable} names no setting{guess}")
    return lines


def _from_options(options: Mapping[str, Any], table: Mapping[str, Setting], folder: Path) -> dict[str, Given]:
    found = {}
    for name, setting in table.items():
        value = options.get(name)
        if value is None or value == [] or value == ():
            continue
        flag = setting.flags[-1] if setting.flags else "INPUT" if name == "input" else name
        if "/" in flag:
            flag = flag.split("/")[0 if value else 1]
        found[name] = Given(value, flag, folder)
    return found


def _from_environment(
    environ: Mapping[str, str], table: Mapping[str, Setting], folder: Path
) -> dict[str, Given]:
    return {
        name: Given(environ[setting.variable], setting.variable, folder)
        for name, setting in table.items()
        if not (setting.once or setting.file_only) and environ.get(setting.variable)
    }


def _read(setting: Setting, found: Given) -> Any:
    value = found.value
    try:
        if setting.name == "schema":
            return _schema(value, found.folder)
        if setting.name in ("variant", "stage"):
            return _tables(setting.name, found)
        value = setting.read(value)
        if setting.name in ("prompt", "system") and value.startswith("@"):
            value = _file(value[1:], found.folder)
        if setting.name == "message":
            value = [_with_content(message, found.folder) for message in value]
        if setting.name == "finish":
            value["folder"] = str(found.folder.absolute())
        if setting.name in ("input", "output", "dead_letter", "quota_file", "cache", "image_root"):
            value = _anchored(value, found)
        elif setting.name == "check" and " line " in found.origin:
            value = anchored(value, found.folder)
        elif not _is_utf8(value):
            raise ValueError("expected UTF-8 text")
    except values.Unshown as error:
        raise ConfigError(f"{_named(setting, found)}: {error}", _hint(setting)) from None
    except ValueError as error:
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        if len(shown) > 60:
            shown = shown[:57] + "…"
        raise ConfigError(f"{_named(setting, found)}: {error}, not {shown}", _hint(setting)) from None
    except _Unreadable as error:
        raise ConfigError(f"{_named(setting, found)}: {error}", "check the path") from None
    return value


def _tables(name: str, found: Given) -> list[dict[str, Any]]:
    """The tables under a setting's name, each of their values read as the setting that it stands in for."""
    table = settings()
    asked = frozenset(n for n, row in table.items() if row.panel == "What is asked" and n not in _TABLES)

    def read(setting: str, value: Any) -> Any:
        return _read(table[setting], Given(value, found.origin, found.folder))

    found_tables = _TABLES[name](found.value, asked, read)
    for each in found_tables:
        if "run" in each:
            each["folder"] = str(found.folder.absolute())
    return found_tables


_TABLES = {"variant": tables.variants, "stage": tables.stages}


def _is_utf8(value: Any) -> bool:
    """Whether all text in a value is; what the shell gave as other bytes holds lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(setting: Setting, found: Given) -> str:
    in_file = " line " in found.origin
    return f"{found.origin}: {setting.name}" if in_file else found.origin


def _hint(setting: Setting) -> str:
    text = setting.help.split(" (default")[0]
    return f"{setting.name}: {text}"


class _Unreadable(Exception):
    """A file that a setting names can't be read."""


def _file(name: str, folder: Path) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise _Unreadable(f"can't read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _Unreadable(f"{name} is no UTF-8 text") from None


def _with_content(message: dict[str, str], folder: Path) -> dict[str, str]:
    content = message["content"]
    return message | {"content": _file(content[1:], folder)} if content.startswith("@") else message


def _schema(value: Any, folder: Path) -> dict[str, Any]:
    if names_code(value) and not (folder / value).is_file():
        try:
            found = model_schema(value, folder)
        except ConfigError as error:
            if error.hint == WAYS:  # that is of functions
                raise ConfigError(error.message, _SCHEMA_WAYS) from error
            raise
        return _plain_json(found, value)
    named = "the table"
    if isinstance(value, str):
        text, named = _file(value, folder).removeprefix("\ufeff"), value
        if not text.strip():
            raise _Unreadable(f"{named} is empty")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _Unreadable(f"{named} is no JSON that can be read: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("expected a JSON Schema: the path of its file, or a table")
    return _plain_json(value, named)


_SCHEMA_WAYS = "name the schema's file, or a pydantic model as package.module:Model or ./path/file.py:Model"


def _plain_json(schema: dict[str, Any], named: str) -> dict[str, Any]:
    """The schema, if JSON can hold it: Python reads NaN, infinities and 1e999, TOML has dates, too."""
    try:
        json.dumps(schema, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise _Unreadable(f"{named} holds what JSON lacks, such as NaN, an infinity or a date") from None
    return schema


def _anchored(value: Any, found: Given) -> Any:
    """Paths of a job file start at its folder; those of the command line stay as they were written."""
    if " line " not in found.origin:
        return value

    def anchor(path: str) -> str:
        return path if path == "-" else str(found.folder / path)

    return anchor(value) if isinstance(value, str) else tuple(anchor(path) for path in value)
