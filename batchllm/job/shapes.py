"""Readers of the job file's tables about a prompt: `[[message]]` and `[[example]]`.

As readers of `values` they take what a layer holds and return it checked, or raise ValueError; what a message
says of a table is its number and key, never the whole of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from typing import Any

from batchllm.job.values import Unshown

_ROLES = ("system", "developer", "user", "assistant")


def chat(value: Any) -> list[dict[str, str]]:
    """Tables with a `role` and a `content`, a message's template each."""
    read = []
    for place, table in _numbered(value, "message", {"role", "content"}):
        if table.get("role") not in _ROLES:
            raise Unshown(f"{place}: role is one of {', '.join(_ROLES)}")
        if not _says_something(table.get("content")):
            raise Unshown(f"{place}: content is a text with something in it")
        read.append(dict(table))
    return read


def examples(value: Any) -> list[dict[str, Any]]:
    """Tables with a `record` or a `user`'s text, and an `answer`."""
    read = []
    for place, table in _numbered(value, "example", {"record", "user", "answer"}):
        if ("record" in table) == ("user" in table):
            raise Unshown(f"{place}: it needs either record or user, what was asked")
        if not isinstance(table.get("record", {}), dict):
            raise Unshown(f"{place}: record is a table of fields")
        if "user" in table and not _says_something(table["user"]):
            raise Unshown(f"{place}: user is a text with something in it")
        if table.get("answer") is None or table["answer"] == "":
            raise Unshown(f"{place}: it needs an answer")
        try:
            json.dumps(table, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise Unshown(f"{place}: it holds what JSON can't carry ({error})") from None
        read.append(dict(table))
    return read


def _numbered(value: Any, name: str, known: Set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each table with its place, from 1, once its keys are known ones."""
    if not isinstance(value, list) or not value or not all(isinstance(table, dict) for table in value):
        raise Unshown(f"expected tables, each under a line [[{name}]]")
    for number, table in enumerate(value, 1):
        unknown = sorted(set(table) - known)
        if unknown:
            raise Unshown(
                f"{name} {number}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}"
            )
        yield f"{name} {number}", table


def _says_something(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
