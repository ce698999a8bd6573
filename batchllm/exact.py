"""JSON read with its integers as they stand: ids and answers may be longer than 64 bits.

orjson makes floats of those, so that different ones become equal. Pure, at the ground; whoever reads what
people or models wrote, or what a run wrote of that, reads it through here.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

# Finding digits so is several times faster than with a pattern, and `find` than `in`, which first tries
# whether bytes are a number and words an error that they aren't.
_DIGITS_TO_0 = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 16


def holds_long_number(text: bytes) -> bool:
    """Whether JSON may hold an integer beyond 64 bits, of which orjson makes a float."""
    return text.translate(_DIGITS_TO_0).find(_LONG_NUMBER) >= 0


def loads(text: bytes | str) -> Any:
    """The value, integers exact unless it is nested too deep for that; raises ValueError."""
    value = orjson.loads(text)
    if holds_long_number(text.encode() if isinstance(text, str) else text):
        try:
            return json.loads(text)
        except RecursionError:
            pass
    return value


def dumps(value: Any) -> bytes:
    """JSON that `json.loads` reads as the same value, half a surrogate pair included; orjson takes none."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()


def ordered(value: Any) -> bytes:
    """JSON that is the same for equal values, in whatever order their names stand: a key to find them by."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
