"""The report from files alone: figures, accuracy and pairs against numbers that were put in."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from decimal import Decimal, getcontext
from math import comb
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchllm import ui
from batchllm.errors import ConfigError
from batchllm.expected import NOTHING, Expectation
from batchllm.lines import Shape, dead_line, failed_line, output_line
from batchllm.model import Attempt, Dead, Done, Failure, Record, Reply, Trail, Usage
from batchllm.report import Comparison, compare
from batchllm.report.labels import label
from batchllm.report.pairing import Pairing
from batchllm.ui.comparing import comparison_blocks, confusion_blocks, plain

AT = 1_767_225_600.0


def trail(calls: int = 1, seconds: float = 0.5) -> Trail:
    return Trail(attempts=[Attempt(AT, seconds, Usage(10, 2))] * calls)


def answer(
    seq: int,
    output: Any = "a",
    expected: Any = None,
    *,
    variant: str | None = None,
    right: bool | None = None,
    calls: int = 1,
    seconds: float = 0.5,
    **more: Any,
) -> bytes:
    """An output line; with `expected`, judged by equality unless `right` says how."""
    reply = Reply("", output, Usage(10, 2), "stop", "m", "q")
    done = Done(Record(seq, f"r{seq}", {}, b"{}"), reply, trail(calls, seconds), AT + seq)
    row = json.loads(output_line(done, Shape()))
    head = {"id": row.pop("id"), "seq": row.pop("seq")}
    if variant is not None:
        head["variant"] = variant
    if expected is not None:
        more |= {"expected": expected, "correct": output == expected if right is None else right}
    return orjson.dumps(head | row | more) + b"\n"


def failed(seq: int) -> Dead:
    failure = Failure("invalid", "schema", "no such word", 200)
    return Dead(Record(seq, f"r{seq}", {"text": "x"}, b'{"text":"x"}'), failure, trail(2), AT + seq)


def letter(seq: int, variant: str | None = None, kind: str = "invalid", cause: str = "schema") -> bytes:
    row = json.loads(dead_line(failed(seq)))
    row["error"] |= {"kind": kind, "cause": cause}
    return orjson.dumps(row | ({"variant": variant} if variant is not None else {})) + b"\n"


def compared(
    folder: Path, lines: Iterable[bytes], letters: Iterable[bytes] = (), expect: str | None = None
) -> Comparison:
    output, dead = folder / "a.out.jsonl", folder / "a.dead.jsonl"
    output.write_bytes(b"".join(lines))
    dead.write_bytes(b"".join(letters))
    return compare(str(output), str(dead), expect=expect)


def wilson_in_decimals(right: int, n: int) -> tuple[float, float]:
    """Wilson's formula with 40 digits: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
    getcontext().prec = 40
    z, p = Decimal("1.959963984540054235524594430520551527955"), Decimal(right) / n
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)).sqrt()
    return tuple(float((p + z * z / (2 * n) + sign * half) / (1 + z * z / n)) for sign in (-1, 1))  # type: ignore[return-value]


# --- variants


def labelled(rights: dict[str, set[int]], dead: dict[str, set[int]]) -> tuple[list[bytes], list[bytes]]:
    """500 labelled rows under each variant: those that are right, those that died, the rest wrong."""
    lines, letters = [], []
    for seq in range(500):
        label = f"label {seq % 77}"
        for name, right in rights.items():
            if seq in dead[name]:
                letters.append(letter(seq, name))
            else:
                output = {"category": label if seq in right else "label 76"}
                lines.append(answer(seq, output, label, variant=name, right=seq in right))
    return lines, letters


RIGHT = {
    "short": {n for n in range(500) if n % 77 != 76 and n % 5},
    "long": {n for n in range(500) if n % 77 != 76 and n % 7},
}
DEAD = {"short": {3, 14, 159}, "long": {3, 26}}


@pytest.mark.parametrize("ordered", [True, False])
def test_accuracy_interval_and_p_of_500_labelled_rows_are_right_to_the_digit(
    tmp_path: Path, ordered: bool
) -> None:
    lines, letters = labelled(RIGHT, DEAD)
    if not ordered:  # as they are settled: near each other
        random.Random(5).shuffle(lines)

    found = compared(tmp_path, lines, letters, "label=output.category").to_dict()

    answered = {name: set(range(500)) - DEAD[name] for name in RIGHT}
    rights = {name: RIGHT[name] & answered[name] for name in RIGHT}
    sides = {side["name"]: side for side in found["variants"]}
    for name, right in rights.items():
        side, n = sides[name], len(answered[name])
        assert (side["records"], side["ok"], side["failed"]) == (500, n, 500 - n)
        assert side["schema_rate"] == n / 500
        accuracy = side["accuracy"]
        assert (accuracy["n"], accuracy["correct"]) == (n, len(right))
        assert accuracy["accuracy"] == len(right) / n
        low, high = wilson_in_decimals(len(right), n)
        assert (accuracy["low"], accuracy["high"]) == (
            pytest.approx(low, rel=1e-14),
            pytest.approx(high, rel=1e-14),
        )
        assert sum(map(sum, accuracy["confusion"]["counts"])) == n
    [pair] = found["pairs"]
    both = answered["short"] & answered["long"]
    only = {
        name: len((rights[name] - rights[other]) & both)
        for name, other in (("short", "long"), ("long", "short"))
    }
    assert pair["n"] == len(both)
    assert {pair["first"]: pair["b"], pair["second"]: pair["c"]} == only
    assert pair["both"] == len(rights["short"] & rights["long"])
    assert pair["both"] + pair["b"] + pair["c"] + pair["neither"] == len(both)
    differing = only["short"] + only["long"]
    tail = sum(comb(differing, i) for i in range(min(only.values()) + 1))
    assert pair["p"] == 2 * tail / 2**differing
    assert (found["records"], found["failed"], found["accuracy"]) == (1000, 5, None)


def test_the_table_shows_variants_side_by_side_in_80_columns(tmp_path: Path) -> None:
    lines, letters = labelled(RIGHT, DEAD)
    comparison = compared(tmp_path, lines, letters, "label=output.category")
    shown = list(plain([*comparison_blocks(comparison), *confusion_blocks(comparison)]))
    assert max(map(len, shown)) <= 80
    rows = {line[:15].strip(): line[15:].split() for line in shown[:17]}
    assert rows["variant"] == ["short", "long"]
    assert rows["records"] == ["500", "500"]
    assert rows["failed"] == ["3", "2"]
    assert rows["cost"] == ["unknown", "unknown"]
    right, n = len(RIGHT["short"] - DEAD["short"]), 497
    low, high = wilson_in_decimals(right, n)
    assert [rows[name][0] for name in ("right", "accuracy", "95% from", "95% to")] == [
        str(right), f"{right / n:.2%}", f"{low:.2%}", f"{high:.2%}",
    ]  # fmt: skip
    assert any("McNemar" in line for line in shown)
    assert any("wrong answers" in line for line in shown)


def test_many_variants_with_long_names_stand_in_several_blocks(tmp_path: Path) -> None:
    names = [f"a prompt with a name of {n} words" for n in range(6)]
    comparison = compared(tmp_path, [answer(seq, "a", "a", variant=n) for seq in range(4) for n in names])
    blocks = comparison_blocks(comparison)
    assert max(map(len, plain(blocks))) <= 80
    assert sum(len(block.rows[0]) - 1 for block in blocks[:-1]) == 6
    assert len(blocks[-1].rows) == 1 + 15
    assert {pair.p for pair in comparison.pairs} == {1.0}


def test_variants_without_expected_values_are_compared_all_the_same(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [answer(0, variant="a"), answer(0, variant="b")], [letter(1, "c")])
    found = comparison.to_dict()
    assert [(v["name"], v["ok"], v["failed"], v["accuracy"]) for v in found["variants"]] == [
        ("a", 1, 0, None),
        ("b", 1, 0, None),
        ("c", 0, 1, None),
    ]
    assert found["pairs"] == []
    assert "accuracy" not in {row[0] for block in comparison_blocks(comparison) for row in block.rows}


def test_pairs_are_kept_in_bounded_memory_and_found_however_they_interleave() -> None:
    pairing = Pairing(window=64)
    coming = [(seq, variant) for seq in range(5_000) for variant in range(3)]
    coming.sort(key=lambda one: (one[0] + random.Random(f"{one}").randrange(60), one))
    for seq, variant in coming:
        pairing.add(seq, variant, right=seq % (variant + 2) == 0)
        assert len(pairing._slots) == 64
    first, second, third = pairing.pairs(["a", "b", "c"])
    assert (first.n, second.n, third.n) == (5_000, 5_000, 5_000)
    multiples = {n: {seq for seq in range(5_000) if seq % n == 0} for n in (2, 3, 4)}
    assert first.both == len(multiples[2] & multiples[3])
    assert second.only_first == len(multiples[2] - multiples[4])
    assert second.only_second == 0
    assert third.neither == 5_000 - len(multiples[3] | multiples[4])


def test_an_answer_far_behind_its_partner_is_left_out_of_the_pairs() -> None:
    pairing = Pairing(window=4)
    for seq, variant in [(0, 0), (1, 0), (4, 0), (0, 1), (4, 1), (1, 1)]:
        pairing.add(seq, variant, right=True)
    [pair] = pairing.pairs(["a", "b"])
    assert (pair.n, pair.both) == (2, 2)


def test_the_end_of_a_run_shows_its_variants_and_tells_them_to_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, letters = labelled(RIGHT, DEAD)
    comparison = compared(tmp_path, lines, letters, "label=output.category")
    facts = ui.Facts("a.out.jsonl", 1.0, comparison=comparison)
    ui.final(comparison.total.summary, facts, kind="log")
    shown = capsys.readouterr().err.splitlines()
    assert [*plain(comparison_blocks(comparison))] == shown[-len([*plain(comparison_blocks(comparison))]) :]
    ui.final(comparison.total.summary, facts, kind="json")
    told = json.loads(capsys.readouterr().err)
    assert (told["accuracy"], [v["name"] for v in told["variants"]]) == (None, ["short", "long"])
    assert told["pairs"] == [pair.to_dict() for pair in comparison.pairs]


# --- totals


def test_totals_are_those_of_the_lines(tmp_path: Path) -> None:
    lines = [answer(0, calls=2, seconds=1.0), answer(1, seconds=2.0), answer(10, seconds=3.0)]
    letters = [letter(4), letter(5), letter(6, kind="exhausted", cause="timeout")]
    found = compared(tmp_path, lines, letters).to_dict()
    assert (found["records"], found["ok"], found["failed"]) == (6, 3, 3)
    assert (found["success_rate"], found["schema_rate"]) == (0.5, 1 - 2 / 6)
    assert [(f["kind"], f["cause"], f["count"]) for f in found["failures"]] == [
        ("invalid", "schema", 2),
        ("exhausted", "timeout", 1),
    ]
    assert (found["calls"], found["retried"]) == (10, 4)
    assert (found["input_tokens"], found["output_tokens"]) == (10 * 10, 10 * 2)
    assert found["latency_s"]["mean"] == 2.0
    assert found["latency_s"]["p50"] == pytest.approx(2.0, rel=0.02)
    assert (found["first_at"], found["last_at"], found["seconds"], found["rate"]) == (AT, AT + 10, 10.0, 0.6)
    assert (found["cost_usd"], found["accuracy"], found["variants"]) == (None, None, [])


def test_a_cost_is_known_only_where_every_call_s_is(tmp_path: Path) -> None:
    priced = [answer(0, cost_usd=0.25), answer(1, cost_usd=0.5)]
    assert compared(tmp_path, priced).to_dict()["cost_usd"] == 0.75
    assert compared(tmp_path, [*priced, answer(2)]).to_dict()["cost_usd"] is None
    free = [answer(2, attempts=0, latency_s=None)]
    assert compared(tmp_path, [*priced, *free]).to_dict()["cost_usd"] == 0.75


def test_lines_of_failed_records_among_the_output_count_once(tmp_path: Path) -> None:
    shape = Shape(merge_failed=True, keep=("text",))
    found = compared(tmp_path, [answer(0), failed_line(failed(1), shape)], [letter(1)])
    assert (found.total.summary.succeeded, found.total.summary.failed) == (1, 1)


def test_records_without_an_expected_value_are_in_no_accuracy(tmp_path: Path) -> None:
    accuracy = compared(tmp_path, [answer(0), answer(1, "a", "a"), answer(2, "b", "a")]).total.accuracy
    assert accuracy is not None
    assert (accuracy.n, accuracy.right, accuracy.share) == (2, 1, 0.5)
    assert accuracy.table is not None
    assert (accuracy.table.labels, accuracy.table.counts) == (("a", "b"), ((1, 1), (0, 0)))


def test_without_the_run_s_setting_there_is_no_confusion_table_of_parsed_answers(tmp_path: Path) -> None:
    lines = [answer(0, {"n": 1}, 1, right=True), answer(1, {"n": 2}, 1, right=False)]
    accuracy = compared(tmp_path, lines).total.accuracy
    assert accuracy is not None
    assert (accuracy.share, accuracy.table) == (0.5, None)
    accuracy = compared(tmp_path, lines, expect="x=output.n").total.accuracy
    assert accuracy is not None
    assert accuracy.table is not None
    assert accuracy.table.labels == ("1", "2")


LONG = "a complaint about a card that was charged twice in a foreign currency, "
VALUES = [
    *("3", 3, 3.5, "true", True, 1, False, 0, "null", None, "", '""', '"a"', "a", "A", "E", "-"),
    *("(nothing)", NOTHING, "(other)", [], "[]", {}, [1, 2], [2, 1], ["a"], [" a"], {"a": 1}, {"a": "1"}),
    *(10**20, 10**20 + 1, "100000000000000000000", 1e300, 10**300, 1e-7, 2**53 + 1, 2**53),
    *(LONG + "refund", LONG + "transfer", LONG + "(nothing)", [LONG, 1], [LONG, 2], "x" * 60, "x" * 61),
    *(b"[" * 2_000 + b"]" * 2_000, b"[" * 2_001 + b"]" * 2_001),
]


def test_unlike_values_have_unlike_labels() -> None:
    labels = [label(value) for value in VALUES]
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 61
    assert label(labels[VALUES.index(LONG + "refund")]) not in labels


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("refund", " refund\n", "refund"),
        ("2026-01-31", "2026-01-31 ", "2026-01-31"),
        (3, 3.0, "3"),
        (0, -0.0, "0"),
        (10**20, 1e20, "100000000000000000000"),
        ({"b": [1, {}], "a": 2.0}, {"a": 2, "b": [1.0, {}]}, '{"a":2,"b":[1,{}]}'),
        ("3", " 3", '"3"'),
        (NOTHING, NOTHING, "(nothing)"),
    ],
)
def test_equal_values_have_one_label_that_can_be_read(one: Any, other: Any, shown: str) -> None:
    assert (label(one), label(other)) == (shown, shown)


def test_equal_values_nested_deep_have_one_label() -> None:
    deep: list[Any] = [[{"b": 1.0, "a": 2}], [{"a": 2.0, "b": 1}]]
    for _ in range(2_000):
        deep = [[value] for value in deep]
    assert label(deep[0]) == label(deep[1])


@pytest.mark.parametrize(
    ("expected", "answered"),
    [
        *(("3", 3), (3, "4"), (True, "true "), (1, True), (1, "true"), (["a"], '["b"]'), ("(nothing)", {})),
        *((LONG + "refund", LONG + "transfer"), (10**20, 10**20 + 1), ("(other)", "other"), (3, "three")),
    ],
)
def test_the_confusion_table_agrees_with_the_verdicts(tmp_path: Path, expected: Any, answered: Any) -> None:
    expect = Expectation("label=output.category")
    rows = []
    for seq, output in enumerate(({"category": answered}, {"category": expected}, {})):
        verdict = expect.verdict({"label": expected}, output)
        reply = Reply("", output, Usage(10, 2), "stop", "m", "q")
        record = Record(seq, f"r{seq}", {"label": expected}, b"{}")
        line = output_line(Done(record, reply, trail(), AT), Shape(expect=expect))
        assert json.loads(line)["correct"] is verdict["correct"]
        rows.append(line)

    accuracy = compared(tmp_path, rows, expect="label=output.category").total.accuracy

    assert accuracy is not None
    assert accuracy.table is not None
    assert sum(row[i] for i, row in enumerate(accuracy.table.counts)) == accuracy.right
    assert sum(map(sum, accuracy.table.counts)) == 3


def test_an_answer_read_as_json_is_shown_as_it_was_compared(tmp_path: Path) -> None:
    accuracy = compared(tmp_path, [answer(0, "4", 3), answer(1, "4.0", 3)], expect="n=output").total.accuracy
    assert accuracy is not None
    assert accuracy.table is not None
    assert (accuracy.table.labels, accuracy.table.counts) == (("3", "4"), ((0, 2), (0, 0)))


def test_labels_that_look_alike_when_cut_are_numbered_on_paper(tmp_path: Path) -> None:
    alike = [f"a payment by card, {n} times over, was charged" for n in range(3)]
    lines = [answer(n, alike[n], alike[0]) for n in range(3)]
    blocks = confusion_blocks(compared(tmp_path, lines, expect="label=output"))
    assert [row[0] for row in blocks[0].rows[1:]] == list(blocks[0].rows[0][1:])
    assert len(set(blocks[0].rows[0][1:])) == 3
    assert max(map(len, blocks[0].rows[0][1:])) <= 14
    wide = [answer(n, f"{alike[n % 3]} {n}" if n % 2 else alike[n % 3], alike[0]) for n in range(20)]
    [block] = confusion_blocks(compared(tmp_path, wide, expect="label=output"))
    assert block.rows[0] == ("expected", "answered", "times")
    assert all(expected != answered for expected, answered, _ in block.rows[1:])
    assert len(set(block.rows)) == len(block.rows)


def test_a_line_that_is_not_whole_yet_is_left_out_and_said(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [answer(0), answer(1)[:40]])
    assert (comparison.total.summary.settled, comparison.torn) == (1, True)


@pytest.mark.parametrize("length", [1, 5, 6, 40, -2])
def test_a_first_line_that_a_run_has_begun_is_torn(tmp_path: Path, length: int) -> None:
    comparison = compared(tmp_path, [answer(0)[:length]], [letter(1)[:length]])
    assert (comparison.total.summary.settled, comparison.torn) == (0, True)


def test_whatever_stands_behind_good_lines_is_torn(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [answer(0), b"\0" * 5_000])
    assert (comparison.total.summary.settled, comparison.torn) == (1, True)


def test_a_whole_last_line_counts_without_its_newline(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [answer(0), answer(1)[:-1]], [letter(2)[:-1]])
    assert (comparison.total.summary.settled, comparison.torn) == (3, False)


@pytest.mark.parametrize(
    "content",
    [b"garbage", b"\0" * 200_000, b"3", b"{}", b'{"id":1,"text":"x"}', b'{"text":"x","o', b'{"idx"'],
)
def test_a_foreign_file_without_a_newline_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^line 1 of .*a\.out\.jsonl is no line of a run"):
        compared(tmp_path, [content])
    with pytest.raises(ConfigError, match=r"^line 1 of .*a\.dead\.jsonl is no line of a run"):
        compared(tmp_path, [answer(0)], [content])


ODD = [
    {"variant": 5},
    {"variant": None},
    {"attempts": 1_000_000_000},
    {"attempts": -1},
    {"attempts": True},
    {"attempts": 1.0},
    {"seq": -1},
    {"seq": "0"},
    {"latency_s": -0.5},
    {"latency_s": None},
    {"latency_s": 1e308},
    {"usage": None},
    {"usage": {"input_tokens": -1, "output_tokens": 0, "cached_tokens": 0}},
    {"cost_usd": -1},
    {"cost_usd": "1"},
    {"finished_at": 0},
    {"finished_at": "yesterday"},
    {"finished_at": "20260101"},
    {"correct": 1, "expected": "a"},
    {"correct": None, "expected": "a"},
]


@pytest.mark.parametrize("odd", ODD)
def test_a_value_that_no_run_writes_is_refused_by_its_name(tmp_path: Path, odd: dict[str, Any]) -> None:
    line = orjson.dumps(json.loads(answer(1)) | odd) + b"\n"
    name = "input_tokens" if odd.get("usage") else next(iter(odd))
    with pytest.raises(
        ConfigError, match=rf"^line 2 of .*a\.out\.jsonl is .*: its {name} is none that a run writes$"
    ):
        compared(tmp_path, [answer(0), line])


@pytest.mark.parametrize(
    "odd",
    [
        {"variant": 5},
        {"seq": -1},
        {"attempts": 3},
        {"attempts": [{"seconds": -1.0, "usage": None}]},
        {"attempts": [{"seconds": 1.0, "usage": 3}]},
        {"error": {"kind": ["x"], "cause": "y", "message": "z"}},
        {"error": {"kind": "x", "cause": None, "message": "z"}},
        {"error": "x"},
        {"at": "2026-01-01T00:00:00"},
        {"cost_usd": -0.5},
    ],
)
def test_a_dead_letter_that_no_run_writes_is_refused(tmp_path: Path, odd: dict[str, Any]) -> None:
    line = orjson.dumps(json.loads(letter(1)) | odd) + b"\n"
    with pytest.raises(ConfigError, match=r"^line 2 of .*a\.dead\.jsonl is no line of a run"):
        compared(tmp_path, [answer(0)], [letter(4), line])


def test_files_that_are_not_there_hold_nothing(tmp_path: Path) -> None:
    comparison = compare(str(tmp_path / "none"), None)
    assert comparison.to_dict()["records"] == 0
    assert comparison.to_dict()["latency_s"]["p50"] is None


def test_an_answer_nested_deeper_than_the_reader_goes_is_counted(tmp_path: Path) -> None:
    deep = answer(1, "DEEP", "a").replace(b'"DEEP"', b"[" * 3_000 + b"]" * 3_000)
    accuracy = compared(tmp_path, [answer(0, "a", "a"), deep], expect="x=output").total.accuracy
    assert accuracy is not None
    assert (accuracy.n, accuracy.right) == (2, 1)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text":"hi","output":"merged"}\n',
        b'{"id":"batch_req_0","custom_id":"a","response":{},"error":null}\n',
        b"[1]\n",
        b"3\n",
        b"not json\n",
        b"\0\0\0\n",
        b'{"id":1,"seq":0,"output":1,"attempts":"x","finished_at":0}\n',
        b'{"error_kind":5,"output":1}\n',
        b'{"error_kind":"refused"}\n',
    ],
)
def test_other_lines_are_refused_by_their_number(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(
        ConfigError, match=r"^line 2 of .*a\.out\.jsonl is no line of a run with --emit result"
    ):
        compared(tmp_path, [answer(0), line])
