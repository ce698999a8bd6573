"""How the value of a setting is read, whichever layer it comes from.

A reader takes what a layer holds (text from options and environment, TOML values from a job file) and
returns the value, or raises ValueError with what was expected. It reads no files and knows no names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit


class Unshown(ValueError):
    """What was given may hold a secret, or says nothing more: the message must not repeat it."""


Reader = Callable[[Any], Any]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


def text(value: Any) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError("expected text in quotes")
    return value


def anything(value: Any) -> Any:
    """What another reader takes apart."""
    return value


def template(value: Any) -> str:
    """A text that says something."""
    if not text(value).strip():
        raise ValueError("expected a text with something in it")
    return str(value)


def address(value: Any) -> str:
    """An http(s) URL without a user or password in it: such would end in files and logs."""
    expected = "expected an address such as http://127.0.0.1:8000/v1, with no user or password in it"
    try:
        parts = urlsplit(text(value))
    except ValueError:
        raise Unshown(expected) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise Unshown(expected)
    return str(value)


def word(*words: str) -> Reader:
    """One of `words`."""

    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return str(value)

    return read


def flag(value: Any) -> bool:
    """true or false."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ValueError("expected true or false")


def _digits(value: Any) -> Any:
    """The value, for Python to read; ValueError for what only Python takes for a number: 1_0, full-width."""
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        raise ValueError
    return value


LARGEST = 2**63 - 1
"""What JSON writers carry as an integer."""


def whole(least: int, most: int | None = None) -> Reader:
    """A whole number within bounds, both included."""

    def read(value: Any) -> int:
        expected = f"expected a whole number of at least {least}" + (f" and at most {most}" if most else "")
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(expected)
        try:
            number = int(_digits(value))
        except ValueError:
            raise ValueError(expected) from None
        if number < least or number > (LARGEST if most is None else most):
            raise ValueError(expected)
        return number

    return read


def number(least: float, *, above: bool = False) -> Reader:
    """A finite number of at least `least`, or above it."""

    def read(value: Any) -> float:
        expected = f"expected a number {'above' if above else 'of at least'} {least:g}"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(expected)
        try:
            result = float(_digits(value))
        except ValueError:
            raise ValueError(expected) from None
        if not (result > least if above else result >= least) or result == float("inf"):
            raise ValueError(expected)
        return result

    return read


MOST_CALLS = 100_000
"""In flight at once."""


def concurrency(value: Any) -> int | str:
    """A number of calls, or `auto`."""
    if value == "auto":
        return "auto"
    try:
        return int(whole(1, MOST_CALLS)(value))
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


LEAST_LIMIT = 0.001
"""A minute; less is no limit that anybody means."""


def limit(value: Any) -> float:
    """A limit a minute or a second."""
    return float(number(LEAST_LIMIT)(value))


def duration(value: Any) -> float:
    """Seconds, from a number of seconds or a text such as `90`, `15m`, `1h30m`."""
    expected = "expected seconds or a duration such as 90, 15m or 1h30m"
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if plain or (isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII)):
        seconds = float(value)
    elif isinstance(value, str) and value and not _DURATION.sub("", value):
        seconds = sum(float(n) * _UNITS[unit] for n, unit in _DURATION.findall(value))
    else:
        raise ValueError(expected)
    if seconds <= 0 or seconds == float("inf"):
        raise ValueError(expected)
    return seconds


def count_or_share(value: Any) -> int | float:
    """A count as an int (`50`), or a share as a float between 0 and 1 (`5%`)."""
    expected = "expected a count such as 50 or a share such as 5%"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"\d+", value, re.ASCII):
        return int(value)
    share = isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value, re.ASCII)
    if share and float(value[:-1]) <= 100:
        return float(value[:-1]) / 100
    raise ValueError(expected)


def answer(value: Any) -> str:
    """A whole answer, as JSON text: any JSON value, or text that is no JSON and stands for itself."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("expected a value that JSON can carry") from None


def models(value: Any) -> list[str]:
    """Models, each PROVIDER/NAME; text with blanks between, or a list."""
    read = value.split() if isinstance(value, str) else value
    if not isinstance(read, list | tuple) or not all(
        isinstance(each, str) and "/" in each.strip("/") for each in read
    ):
        raise ValueError("expected PROVIDER/NAME, or a list of such")
    return list(read)


def names(value: Any) -> tuple[str, ...]:
    """A list of names, or text with commas between."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError("expected a list of names")
    return tuple(part.strip() for item in value for part in item.split(","))


def name_list(value: Any) -> list[str]:
    """The same as a list, as JSON gives it back."""
    return list(names(value))


def expectation(value: Any) -> str:
    """`FIELD=output.path`, as it was written."""
    from batchllm.expected import Expectation  # few runs have one

    Expectation(text(value))
    return str(value)


def paths(value: Any) -> tuple[str, ...]:
    """One path or a list of them."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v for v in value):
        raise ValueError("expected a path or a list of paths")
    return tuple(value)


def params(value: Any) -> dict[str, Any]:
    """A table, a list of `KEY=VALUE`, or such text with commas between; values are JSON, else text."""
    read = _params(value)
    try:
        json.dumps(read, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"expected values that JSON can carry ({error})") from None
    return read


def finish(value: Any) -> dict[str, Any]:
    """What is done with the finished files: a function to `run` or a `command`, and its `timeout`."""
    if not isinstance(value, dict) or ("run" in value) == ("command" in value):
        raise ValueError('expected run = "python/module:function" or command = ["program", "argument"]')
    if unknown := sorted(set(value) - {"run", "command", "timeout"}):
        raise ValueError(f"expected run or command, and timeout, but found {unknown[0]}")
    read = dict(value)
    if "timeout" in read:
        read["timeout"] = duration(read["timeout"])
    if "run" in read and not (isinstance(read["run"], str) and read["run"].startswith("python/")):
        raise ValueError('expected run = "python/module:function"')
    command = read.get("command", [""])
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise ValueError('expected command = ["program", "argument"]')
    if "command" in read and not command[0]:
        raise ValueError("expected a program as the first part of command")
    return read


def _params(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, str):
        try:
            whole_text = json.loads(value)
        except (ValueError, RecursionError):
            whole_text = None
        if isinstance(whole_text, dict):
            return whole_text
        value = value.split(",")
    read: dict[str, Any] = {}
    for item in value if isinstance(value, list | tuple) else [value]:
        key, equals, content = item.partition("=") if isinstance(item, str) else ("", "", "")
        if not equals or not key.strip():
            raise ValueError("expected KEY=VALUE, such as temperature=0")
        try:
            read[key.strip()] = json.loads(content)
        except (ValueError, RecursionError):
            read[key.strip()] = content
    return read
