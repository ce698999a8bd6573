"""What the lines of the output and the dead letters hold, field by field."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from batchllm.expected import Expectation
from batchllm.lines import LONGEST_RAW, Shape, dead_line, dumps, failed_line, members, output_line, stamp
from batchllm.model import Attempt, Dead, Done, Failure, Record, Reply, Trail, Usage

AT = 1_767_225_600.123


def record(line: str, seq: int = 4, id: Any = "t4") -> Record:
    return Record(seq, id, json.loads(line), line.encode())


def done(line: str = '{"id":"t4","text":"Hi"}', value: Any = "fine", id: Any = "t4", raw: Any = None) -> Done:
    trail = Trail(
        attempts=[
            Attempt(AT - 3, 0.5, None, 503, "q0", "the server failed"),
            Attempt(AT - 1, 0.98765, Usage(30, 20, 10), 200, "q1"),
        ]
    )
    reply = Reply(str(value), value, Usage(30, 20, 10), "stop", "tiny-1", "q1", raw)
    return Done(record(line, id=id), reply, trail, AT)


def dead(line: str = '{"id":"t4","text":"Hi"}', **more: Any) -> Dead:
    failure = Failure(**{"kind": "refused", "cause": "content_filter", "message": "withheld"} | more)
    trail = Trail(attempts=[Attempt(AT - 1, 0.25, Usage(3, 2), 400, "q1", "withheld")])
    return Dead(record(line), failure, trail, AT)


def bad(line: bytes, cause: str = "not_json") -> Dead:
    failure = Failure("bad_input", cause, "line 5 of in.jsonl is not JSON")
    return Dead(Record(4, "line-5", None, line), failure, Trail(), AT)


def read(line: bytes) -> dict[str, Any]:
    """The object on a line, which is whole and alone."""
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    value: dict[str, Any] = json.loads(line)
    return value


def test_a_result_line_has_the_contract_s_fields_in_its_order() -> None:
    assert list(read(output_line(done(), Shape())).items()) == [
        ("id", "t4"),
        ("seq", 4),
        ("output", "fine"),
        ("model", "tiny-1"),
        ("usage", {"input_tokens": 30, "output_tokens": 20, "cached_tokens": 10}),
        ("cost_usd", None),
        ("attempts", 2),
        ("latency_s", 0.9877),
        ("finish_reason", "stop"),
        ("finished_at", "2026-01-01T00:00:00.123Z"),
        ("request_id", "q1"),
    ]


def test_an_expected_value_and_the_verdict_stand_behind_the_result_s_own_fields() -> None:
    line = '{"id":"t4","label":"billing","expected":"theirs"}'
    shape = Shape(keep=("label", "expected"), expect=Expectation("label=output.category"))
    made = read(output_line(done(line, {"category": "refund"}), shape))
    assert list(made.items())[-4:] == [
        ("expected", "billing"),
        ("correct", False),
        ("label", "billing"),
        ("input_expected", "theirs"),
    ]
    assert read(output_line(done(line, {"category": "billing"}), shape))["correct"] is True
    assert {"expected", "correct"}.isdisjoint(read(output_line(done(), shape)))


def test_a_kept_field_is_never_taken_for_a_variant_or_a_verdict() -> None:
    made = read(output_line(done('{"variant":1,"correct":2}'), Shape(keep=("variant", "correct"))))
    assert (made["input_variant"], made["input_correct"]) == (1, 2)
    assert {"variant", "correct"}.isdisjoint(made)


def test_a_parsed_answer_stands_in_the_line_as_json() -> None:
    assert read(output_line(done(value={"category": "billing"}), Shape()))["output"] == {
        "category": "billing"
    }


def test_kept_fields_come_over_byte_for_byte() -> None:
    line = '{"id": "t4", "n": 100000000000000000000000000001, "x": 1.50, "deep": {"b" : 1,"a":2}}'
    made = output_line(done(line), Shape(keep=("n", "x", "deep", "absent")))
    assert made.endswith(b',"n":100000000000000000000000000001,"x":1.50,"deep":{"b" : 1,"a":2}}\n')
    assert "absent" not in read(made)


def test_a_kept_field_never_takes_the_place_of_one_of_the_result() -> None:
    made = read(output_line(done('{"id":"t4","output":"theirs","model":3}'), Shape(keep=("output", "model"))))
    assert (made["output"], made["input_output"], made["model"], made["input_model"]) == (
        "fine",
        "theirs",
        "tiny-1",
        3,
    )


def test_merged_is_the_input_s_bytes_with_the_answer_s_fields_behind() -> None:
    line = '{ "b": 1.0, "a": 123456789012345678901234567890 , "b": 2 }'
    made = output_line(done(line, {"category": "billing"}), Shape("merged"))
    assert made == line[:-1].encode() + b',"category":"billing"}\n'


def test_merged_calls_a_text_answer_output() -> None:
    assert output_line(done('{"text":"Hi"}'), Shape("merged")) == b'{"text":"Hi","output":"fine"}\n'


@pytest.mark.parametrize("line", ["{}", "{ }", " {} "])
def test_merged_into_an_empty_record(line: str) -> None:
    assert read(output_line(done(line), Shape("merged"))) == {"output": "fine"}


def test_merged_with_an_empty_answer_is_the_input_alone() -> None:
    assert output_line(done('{"a":1}', {}), Shape("merged")) == b'{"a":1}\n'


def test_merged_renames_what_is_taken() -> None:
    made = output_line(done('{"a":1,"output_b":2,"b":3}', {"a": "A", "b": "B"}), Shape("merged"))
    assert read(made) == {"a": 1, "output_b": 2, "b": 3, "output_a": "A", "output_output_b": "B"}


def test_openai_batch_is_the_provider_s_line() -> None:
    body = {"id": "chatcmpl-1", "choices": []}
    made = read(output_line(done(raw=body), Shape("openai-batch")))
    assert made == {
        "id": "batch_req_4",
        "custom_id": "t4",
        "response": {"status_code": 200, "request_id": "q1", "body": body},
        "error": None,
    }
    assert read(output_line(done(id=17), Shape("openai-batch")))["custom_id"] == "17"


def test_a_dead_letter_has_the_contract_s_fields() -> None:
    made = read(dead_line(dead(status=400, stage="ask", raw="I can't")))
    assert made == {
        "id": "t4",
        "seq": 4,
        "record": {"id": "t4", "text": "Hi"},
        "error": {
            "kind": "refused",
            "cause": "content_filter",
            "message": "withheld",
            "status": 400,
            "retryable": False,
            "stage": "ask",
        },
        "attempts": [
            {
                "at": "2025-12-31T23:59:59.123Z",
                "seconds": 0.25,
                "status": 400,
                "error": "withheld",
                "usage": {"input_tokens": 3, "output_tokens": 2, "cached_tokens": 0},
                "request_id": "q1",
            }
        ],
        "raw": "I can't",
        "usage": {"input_tokens": 3, "output_tokens": 2, "cached_tokens": 0},
        "cost_usd": None,
        "at": "2026-01-01T00:00:00.123Z",
    }


def test_the_record_stands_in_its_letter_byte_for_byte() -> None:
    line = '{ "b": 1.0, "a": 123456789012345678901234567890 , "b": 2 }'
    assert b'"record":' + line.encode() + b',"error"' in dead_line(dead(line))


def test_a_bad_line_stands_in_its_letter_as_it_came() -> None:
    made = read(dead_line(bad(b'{"a": \x00 "\t')))
    assert made["raw_line"] == '{"a": \x00 "\t'
    assert "record" not in made


def test_a_bad_line_that_is_no_utf8_stands_in_base64() -> None:
    made = read(dead_line(bad(b"caf\xe9", "not_utf8")))
    assert base64.b64decode(made["raw_line_base64"]) == b"caf\xe9"
    assert "raw_line" not in made


def test_a_long_bad_line_is_whole_in_its_letter() -> None:
    line = b"[" + b"x" * 200_000
    assert read(dead_line(bad(line)))["raw_line"] == line.decode()


@pytest.mark.parametrize("shift", range(4))
def test_the_beginning_of_a_line_that_is_too_long_is_text_wherever_it_was_cut(shift: int) -> None:
    cut = (b"x" * shift + "né😀".encode() * 20_000)[: 64 << 10]
    made = read(dead_line(bad(cut, "line_too_long")))
    assert made["raw_line"] == cut.decode(errors="ignore")


def test_a_whole_line_that_ends_within_a_character_is_no_text() -> None:
    assert "raw_line_base64" in read(dead_line(bad("né".encode()[:-1], "not_utf8")))


def test_a_long_answer_is_cut_in_its_letter() -> None:
    assert read(dead_line(dead(raw="é" * 100_000)))["raw"] == "é" * LONGEST_RAW


def test_a_failed_line_names_the_error_in_every_shape() -> None:
    assert read(failed_line(dead(), Shape(merge_failed=True, keep=("text",)))) == {
        "id": "t4",
        "seq": 4,
        "error_kind": "refused",
        "error_message": "withheld",
        "text": "Hi",
    }
    assert failed_line(dead('{"a":1}'), Shape("merged", merge_failed=True)) == (
        b'{"a":1,"error_kind":"refused","error_message":"withheld"}\n'
    )


def test_a_bad_line_has_a_failed_line_without_its_bytes() -> None:
    for emit in ("result", "merged"):
        assert read(failed_line(bad(b"broken"), Shape(emit, keep=("text",)))) == {
            "id": "line-5",
            "seq": 4,
            "error_kind": "bad_input",
            "error_message": "line 5 of in.jsonl is not JSON",
        }


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (AT, "2026-01-01T00:00:00.123Z"),
        (1_767_225_599.9996, "2026-01-01T00:00:00.000Z"),
        (951_782_400.5, "2000-02-29T00:00:00.500Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds(at: float, text: str) -> None:
    assert stamp(at) == text


def test_members_of_any_spacing() -> None:
    line = b' {"a" : 1 ,\t"b":[1, 2] , "\\u0061":{"}":"{"}, "": "\\"," } '
    assert list(members(line)) == [("a", b"1"), ("b", b"[1, 2]"), ("a", b'{"}":"{"}'), ("", b'"\\","')]
    assert list(members(b"{}")) == list(members(b" { } ")) == []


def test_half_a_surrogate_pair_makes_no_line_that_readers_refuse() -> None:
    made = dumps({"a\udc00": "x\ud83d", "whole": "😀", "n": 10**30})
    assert json.loads(made) == {"a\ufffd": "x\ufffd", "whole": "😀", "n": 10**30}
