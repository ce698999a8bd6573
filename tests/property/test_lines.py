"""What every line promises, whatever records and answers hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.lines import Shape, dead_line, dumps, failed_line, failed_line_of, members, output_line, stamp
from batchllm.model import Dead, Done, Failure, Record, Reply, Trail, Usage

EMITS = st.sampled_from(["result", "merged", "openai-batch"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)
ids = (texts | st.integers() | st.floats(allow_nan=False, allow_infinity=False)).filter(
    lambda id: id is not None
)
names = (
    st.sampled_from(["a", "b", "id", "output", "model", "output_a", "input_a", "error_kind", "seq"]) | texts
)
spaces = st.sampled_from(["", " ", "\t", "  "])


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A JSON object as people write them: any spacing, escapes, numbers, names twice."""
    parts = []
    for name, value in draw(st.lists(st.tuples(names, values), max_size=6)):
        ascii_only = draw(st.booleans())
        written = json.dumps(name, ensure_ascii=ascii_only), json.dumps(value, ensure_ascii=not ascii_only)
        parts.append(draw(spaces).join(("", written[0], ":", written[1], "")))
    return draw(spaces) + "{" + draw(spaces) + ",".join(parts) + draw(spaces) + "}" + draw(spaces)


@st.composite
def records(draw: st.DrawFn) -> Record:
    line = draw(lines()).strip()
    return Record(draw(st.integers(0, 2**40)), draw(ids), json.loads(line), line.encode())


def one_line(made: bytes) -> dict[str, Any]:
    assert made.endswith(b"\n")
    assert made.count(b"\n") == 1
    value: dict[str, Any] = json.loads(made)
    return value


def done(record: Record, value: Any) -> Done:
    return Done(record, Reply("", value, Usage(), "stop", "m", None, {"body": value}), Trail(), 0.0)


@given(records(), values, EMITS, st.lists(names, max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_outcome_is_one_line_of_json_that_any_reader_takes(
    record: Record, value: Any, emit: str, keep: list[str]
) -> None:
    made = output_line(done(record, value), Shape(emit, tuple(keep)))
    one_line(made)
    if abs(record.id if isinstance(record.id, int) else 0) < 2**63:
        orjson.loads(made)


@given(records(), values)
@settings(max_examples=60, deadline=None)
def test_merged_keeps_the_input_s_bytes_and_adds_the_whole_answer(record: Record, value: Any) -> None:
    made = output_line(done(record, value), Shape("merged"))
    assert record.data is not None
    if value != {}:
        assert made.startswith(record.line.rstrip()[:-1])
    merged, fields = one_line(made), value if isinstance(value, dict) else {"output": value}
    assert {name: merged[name] for name in record.data} == record.data
    assert list(merged) == [*record.data, *(name for name in merged if name not in record.data)]
    added = [merged[name] for name in merged if name not in record.data]
    assert added == list(fields.values())


THE_RUNS_OWN = {
    *("variant", "expected", "correct", "stages", "skipped", "cached", "fallback"),
    *("error_kind", "error_message"),
}
"""What some lines hold and others don't: an input's field of that name is always told apart."""


@given(records(), st.lists(names, max_size=4))
@settings(max_examples=60, deadline=None)
def test_kept_fields_have_their_value_and_hide_none_of_the_result(record: Record, keep: list[str]) -> None:
    plain = one_line(output_line(done(record, "fine"), Shape()))
    made = one_line(output_line(done(record, "fine"), Shape(keep=tuple(keep))))
    assert record.data is not None
    assert {name: made[name] for name in plain} == plain
    for name in set(keep) & set(record.data):
        shown = f"input_{name}" if name in plain or name in THE_RUNS_OWN else name
        if shown != name or f"input_{name}" not in record.data:
            assert shown in made


@given(lines())
@settings(max_examples=60, deadline=None)
def test_members_are_what_a_parser_finds(line: str) -> None:
    found = [(name, json.loads(value)) for name, value in members(line.encode())]
    assert found == json.loads(line, object_pairs_hook=lambda pairs: Pairs(pairs)).pairs


class Pairs(dict[str, Any]):
    """An object that remembers all its members, of equal names too."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


@given(records(), texts, EMITS, st.lists(names, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_letter_holds_its_record_and_makes_the_same_failed_line_again(
    record: Record, message: str, emit: str, keep: list[str]
) -> None:
    dead = Dead(record, Failure("refused", "filter", message), Trail(), 0.0)
    letter = dead_line(dead)
    read, shape = one_line(letter), Shape(emit, tuple(keep), merge_failed=True)
    assert (read["record"], read["id"], read["seq"]) == (record.data, record.id, record.seq)
    assert failed_line_of(letter, shape) == failed_line(dead, shape)


@given(st.binary(max_size=200), st.sampled_from(["not_json", "not_utf8", "line_too_long"]))
def test_any_bytes_make_a_letter(line: bytes, cause: str) -> None:
    dead = Dead(Record(0, "line-1", None, line), Failure("bad_input", cause, "bad"), Trail(), 0.0)
    read = one_line(dead_line(dead))
    assert ("raw_line" in read) != ("raw_line_base64" in read)
    if cause != "line_too_long" and "raw_line" in read:
        assert read["raw_line"].encode() == line


@given(values)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert json.loads(dumps(value)) == value


@given(st.text(st.characters(), max_size=20))
def test_any_text_can_be_written(text: str) -> None:
    assert isinstance(orjson.loads(dumps({text: text})), dict)


@given(st.integers(0, 4_000_000_000_000))
def test_a_stamp_is_the_calendar_s(millis: int) -> None:
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)
    assert stamp(millis / 1000) == expected.strftime("%Y-%m-%dT%H:%M:%S.") + f"{millis % 1000:03d}Z"
