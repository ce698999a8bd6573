"""The JSON value in a model's answer, which mostly is all there is; `prose` digs out what isn't.

Pure; the work grows linearly with the text, however hostile that is. `layers/structured` calls it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson

from batchllm.exact import holds_long_number


def find_json(text: str, accept: Callable[[Any], bool] | None = None) -> Any:
    """The JSON value in a model's answer.

    The whole text, if it parses. Else, with `<think>` blocks taken out, the outermost balanced `{…}` and
    `[…]` that parse: one that `accept` accepts before others, then one at the start of a code fence
    before prose, an object before an array, a later one before an earlier. Pieces of broken JSON are
    never taken for an answer, nor is a scalar that isn't all there is. Integers are exact at any size;
    NaN and infinities are refused. Work grows linearly with the text. Raises ValueError, and nothing else.
    """
    whole = text.strip().removeprefix("\ufeff")
    try:
        return parse(whole)
    except ValueError:
        pass
    from batchllm.schema.prose import dug_out  # its patterns take a while to compile

    return dug_out(whole, accept)


def parse(text: str) -> Any:
    """The JSON that a text is, integers exact; raises ValueError."""
    value = orjson.loads(text)
    if not holds_long_number(text.encode("utf-8", "replace")):
        return value
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
