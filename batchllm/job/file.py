"""The job file: TOML into settings, each with its line; what one that merely lies there may not hold.

It checks keys and reads no value; `load` does.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchllm.errors import ConfigError
from batchllm.fields import frozen
from batchllm.job.code import names_code
from batchllm.job.table import Setting

IMPLICIT = "batchllm.toml"


@frozen
class Given:
    """What a layer holds for a setting: `folder` is where relative paths start."""

    value: Any
    origin: str
    folder: Path


def from_file(
    option: str | None,
    environ: Mapping[str, str],
    table: Mapping[str, Setting],
    folder: Path,
    *,
    implicit: bool,
) -> dict[str, Given]:
    """What the job file holds that `option` or the environment names, else, if `implicit`, that in `folder`.

    Raises ConfigError that names the line.
    """
    named = option or environ.get("BATCHLLM_JOB") or None
    path = folder / (named or IMPLICIT)
    if named is None and not (implicit and path.is_file()):
        return {}
    try:
        content = path.read_text(encoding="utf-8-sig")
        document = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{named or IMPLICIT} is no TOML: {error}", "mend the line that it names") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{named or IMPLICIT} is no UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(
            f"can't read the job file {named}: {error.strerror}", "check the path after -j"
        ) from None
    shown = named or IMPLICIT
    found: dict[str, Given] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        origin = f"{shown} line {_line_of(content, key)}"
        if name not in table or table[name].once:
            raise _unknown_key(key, origin, table)
        found[name] = Given(value, origin, path.parent)
    if named is None:
        _check_implicit(found)
    return found


_CODE = frozenset({"run", "command", "check", "open", "finish"})


def _check_implicit(found: Mapping[str, Given]) -> None:
    """A job file that merely lies in the working folder may neither run code nor send a key anywhere."""
    for name, given in found.items():
        if code := _code_in({name: given.value}):
            raise ConfigError(
                f"{given.origin}: a job file that is found, not named, may not name code to run ({code})",
                f"name it, if you trust it: -j {IMPLICIT}",
            )
        if path := _path_outside({name: given.value}, given.folder):
            raise ConfigError(
                f"{given.origin}: a job file that is found, not named, may not lead out of its folder, "
                f"as {path} does",
                f"name it, if you trust it: -j {IMPLICIT}",
            )
    held = {name: given.origin for name, given in found.items()}
    for given in (found[name] for name in ("variant", "stage") if name in found):
        tables = given.value if isinstance(given.value, list) else []
        held |= {key.replace("-", "_"): given.origin for table in tables for key in table}
    if "base_url" in held and "api_key_env" in held:
        raise ConfigError(
            f"{held['base_url']}: a job file that is found, not named, may not set base_url and "
            "api_key_env together",
            f"name it, if you trust it: -j {IMPLICIT}",
        )


def _code_in(table: Mapping[str, Any]) -> str | None:
    """The key of a table, or of the tables in it, that names Python code or a command."""
    for key, value in table.items():
        name = key.replace("-", "_")
        several = value if isinstance(value, list) else [value]
        if name in _CODE:
            return key
        if name in ("model", "fallback") and any(str(each).startswith("python/") for each in several):
            return key
        if name == "schema" and any(names_code(each) for each in several):
            return key
        if name in ("stage", "variant"):
            inner = (_code_in(each) for each in several if isinstance(each, dict))
            if code := next(filter(None, inner), None):
                return f"{code} of a {name}"
    return None


def _path_outside(table: Mapping[str, Any], folder: Path) -> str | None:
    """A file or folder above or beside `folder` whose content a table, or those in it, would have sent."""
    for key, value in table.items():
        name = key.replace("-", "_")
        inner = value if isinstance(value, list) else [value]
        for each in inner:
            if isinstance(each, dict) and (found := _path_outside(each, folder)):
                return found
            if not isinstance(each, str) or not (name == "image_root" or each.startswith("@")):
                continue
            if not (folder / each.removeprefix("@")).resolve().is_relative_to(folder.resolve()):
                return each
    return None


def _unknown_key(key: str, origin: str, table: Mapping[str, Setting]) -> ConfigError:
    known = [name for name, setting in table.items() if not setting.once]
    name = key.replace("-", "_")
    if name in table:
        return ConfigError(
            f"{origin}: {key} is for the command line only", f"give it as {table[name].flags[-1]}"
        )
    if "key" in name or "token" in name or "secret" in name:
        return ConfigError(
            f"{origin}: unknown key {key!r}",
            "secrets stay in the environment: name the variable that holds the key with api_key_env",
        )
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "the keys are the long options of batchllm run --help"
    return ConfigError(f"{origin}: unknown key {key!r}", hint)


def _line_of(content: str, key: str) -> int:
    """The line of a top-level key or table, from 1; what stands in a text over several lines is none."""
    name = re.escape(key)
    pattern = re.compile(rf"""^\s*(\[+\s*)?["']?{name}["']?\s*([=.\]]|$)""")
    lines = content.split("\n")
    for number, line in enumerate(lines):
        if pattern.match(line) and _is_whole("\n".join(lines[:number])):
            return number + 1
    return 1


def _is_whole(content: str) -> bool:
    try:
        tomllib.loads(content)
    except tomllib.TOMLDecodeError:
        return False
    return True
