"""Values → labels of a confusion table: one label for values that `expected.fits` takes as equal, else two.

Pure. A text stands as it is, all else as JSON; `comparing` calls it for every wrong answer.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

from batchllm import exact
from batchllm.expected import NOTHING
from batchllm.lines import dumps

LONGEST = 60
"""Characters of a label that stands whole; a longer one is cut and gets a number of its own."""

_CUT = 50
_NOTHING_LABEL = "(nothing)"
_LIKE_ANOTHER = re.compile(
    r'["\[{]|(?:-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null|\(nothing\)|\(other\)|)\Z'
)
"""A text that would stand for another value, or for none: it is quoted."""


def label(value: Any) -> str:
    """What stands for a value, at most 61 characters; bytes are JSON too deep to be read.

    What is cut is longer than what is not, and ends in a hash of all of it: so no two are taken for one.
    """
    if value is NOTHING:
        return _NOTHING_LABEL
    if isinstance(value, bytes):
        text = value.decode()
    elif isinstance(value, str):
        text = value.strip()
        text = dumps(text).decode() if _LIKE_ANOTHER.match(text) else text
    else:
        text = dumps(_alike(value)).decode()
    if len(text) <= LONGEST:
        return text
    return f"{text[:_CUT]}…{blake2b(text.encode(), digest_size=5).hexdigest()}"


def as_compared(answered: Any, expected: Any) -> Any:
    """What an answer was compared as: a text is read as JSON where no text is expected."""
    if isinstance(answered, str) and not isinstance(expected, str):
        try:
            return exact.loads(answered)
        except ValueError:
            pass
    return answered


def _alike(value: Any) -> Any:
    """The value, changed in place so that equal ones have the same JSON; it may be nested deep."""
    whole = [value]
    left: list[Any] = [whole]
    while left:
        part = left.pop()
        items = sorted(part.items()) if isinstance(part, dict) else enumerate(part)
        if isinstance(part, dict):
            part.clear()
        for name, item in items:
            part[name] = int(item) if isinstance(item, float) and item.is_integer() else item
            if isinstance(item, dict | list):
                left.append(item)
    return whole[0]
