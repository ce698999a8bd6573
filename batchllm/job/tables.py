"""The tables `[[variant]]` and `[[stage]]` of a job file: a name, and settings in place of the run's own.

It knows what such a table may hold and reads each value as the run's own setting of that name is read. `load`
calls it; `wire` makes jobs of what it returns.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from batchllm.job import values

ReadOne = Callable[[str, Any], Any]
"""A setting's name and what a table holds for it → its value."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
OF_CALLS = frozenset(
    {
        *("base_url", "api_key_env", "concurrency", "rpm", "rps", "tpm", "input_tpm", "output_tpm"),
        *("timeout", "max_retries", "backoff", "repair", "http"),
    }
)
"""Settings of how calls are made that a table may hold beside what is asked."""
OF_STAGES: Mapping[str, values.Reader] = {
    "run": values.template,
    "when": values.template,
    "open": values.template,
    "process": values.flag,
    "on_timeout": values.word("kill", "continue"),
    "threads": values.whole(1, 1000),
}
"""What only a stage may hold."""
_OF_PROMPTS = ("model", "prompt", "system", "schema", "base_url", "repair", "param")


def variants(value: Any, asked: frozenset[str], read: ReadOne) -> list[dict[str, Any]]:
    """The variants, in order: from tables, or from texts like `name=PROMPT`; `asked` may stand in them.

    Raises ValueError with what was expected.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise values.Unshown("expected tables [[variant]], or name=@prompt.txt")
    found = [
        _from_text(each, read) if isinstance(each, str) else _table(each, "variant", asked | OF_CALLS, read)
        for each in value
    ]
    return _distinct(found, "variant")


def stages(value: Any, asked: frozenset[str], read: ReadOne) -> list[dict[str, Any]]:
    """The stages, in order. Raises ValueError with what was expected."""
    if not isinstance(value, list):
        raise values.Unshown("expected tables [[stage]]")
    found = [_table(each, "stage", asked | OF_CALLS | OF_STAGES.keys(), read) for each in value]
    for stage in found:
        mixed = [name for name in _OF_PROMPTS if name in stage]
        if "run" in stage and mixed:
            raise values.Unshown(f"stage {stage['name']}: run is a function, which takes no {mixed[0]}")
        alone = [name for name in OF_STAGES if name in stage and name not in ("run", "when")]
        if alone and "run" not in stage:
            raise values.Unshown(f"stage {stage['name']}: {alone[0]} goes with run = a Python function")
    return _distinct(found, "stage")


def _from_text(text: str, read: ReadOne) -> dict[str, Any]:
    name, equals, prompt = text.partition("=")
    if not equals or not prompt:
        raise values.Unshown("expected name=PROMPT or name=@prompt.txt")
    return {"name": _name(name.strip(), "variant"), "prompt": read("prompt", prompt)}


def _table(value: Any, kind: str, allowed: frozenset[str], read: ReadOne) -> dict[str, Any]:
    if not isinstance(value, dict) or "name" not in value:
        raise values.Unshown(f"expected every [[{kind}]] to have a name")
    found = {"name": _name(value["name"], kind)}
    for key, item in value.items():
        setting = key.replace("-", "_")
        if setting == "name":
            continue
        if setting not in allowed:
            close = difflib.get_close_matches(setting, allowed, n=1)
            guess = f", did you mean {close[0]}" if close else ""
            raise values.Unshown(f"{kind} {found['name']} can't hold {key!r}{guess}")
        try:
            found[setting] = OF_STAGES[setting](item) if setting in OF_STAGES else read(setting, item)
        except ValueError as error:
            raise values.Unshown(f"{kind} {found['name']}: {key}: {error}") from None
    return found


def _name(value: Any, kind: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise values.Unshown(f"expected the name of a {kind} to be of letters, digits, _, . and -")
    return value


def _distinct(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    names = [each["name"] for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise values.Unshown(f"expected {kind}s of different names, {twice!r} is there twice")
    return found
