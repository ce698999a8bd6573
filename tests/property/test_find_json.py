"""find_json against anything: exact, bounded, and never more than a ValueError."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchllm.schema import find_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=5)
PROSE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}[]`<>"))


@given(OBJECTS, PROSE, PROSE, st.booleans(), st.sampled_from([None, 2]))
@example({"a": '```\n{"b": 1}\n```'}, "", "", False, None)
@example({"a": "\n</think>\n<think>"}, 'say "', '" 5"', True, 2)
def test_an_object_in_prose_or_a_fence_comes_back_as_it_was(
    value: dict[str, Any], before: str, after: str, fenced: bool, indent: int | None
) -> None:
    written = json.dumps(value, ensure_ascii=False, indent=indent)
    text = f"{before}\n```json\n{written}\n```\n{after}" if fenced else f"{before} {written} {after}"
    assert find_json(text) == value


@given(JSON)
def test_an_answer_that_is_json_comes_back_as_it_was(value: Any) -> None:
    assert find_json(f"\n {json.dumps(value)} \n") == value


@given(
    st.lists(
        st.sampled_from(['{"a": ', "{", "}", "[", "]", '"', "\\", ",", ":", "1", "NaN", "\n", "```json\n"])
        | st.sampled_from(
            ["<think>", "</think>", "x", "9" * 20, "1e999", "\ud800", '{"b": 2}', "\n</think>\n"]
        )
    )
)
def test_hostile_text_gives_a_json_value_or_a_value_error(pieces: list[str]) -> None:
    try:
        value = find_json("".join(pieces), lambda value: value == {"b": 2})
    except ValueError:
        return
    json.dumps(value, allow_nan=False).encode()


def work(text: str) -> int:
    """How many calls find_json makes: every step over the text is one."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in {"c_call", "call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        find_json(text, lambda value: False)
    except ValueError:
        pass
    finally:
        sys.setprofile(before)
    return calls


HOSTILE = [
    *("{", "[", '{"a":', "[1,", '["', '"', '\\"', '["\\"', "{}", "[]", "[1] ", "{ ", "}", '{"a": 1} '),
    *("<think>", "</think>", "<think></think>", "\n<think>", "\n</think>\n", "\n", " \n", "```json\n"),
    *("```json\n{", "[[],", '{"', "]{", "{]", '"{', "9" * 16, "{'a': 1}", '"\n{', "[x](y) "),
]


@pytest.mark.parametrize("start", ["", "[", '{"a": [', '"', '["'])
@pytest.mark.parametrize("piece", HOSTILE)
def test_work_grows_no_faster_than_the_text(piece: str, start: str) -> None:
    text = start + piece * 400
    assert work(text) <= 20 * len(text) + 500
