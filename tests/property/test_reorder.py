"""The reorder window of stdout: whatever order answers come in, lines leave in the input's, each once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchllm.ledger import Reorder

LINES = st.lists(st.one_of(st.just(b""), st.binary(min_size=1, max_size=9)), max_size=60)


@given(LINES, st.randoms(use_true_random=False), st.lists(st.integers(1, 20)))
def test_lines_leave_in_order_as_soon_as_all_before_them_are_there(
    lines: list[bytes], random: object, groups: list[int]
) -> None:
    order = list(range(len(lines)))
    random.shuffle(order)  # type: ignore[attr-defined]
    reorder = Reorder()
    out: list[bytes] = []
    here: set[int] = set()
    while order:
        for number in order[: (size := groups.pop() if groups else 3)]:
            reorder.put(number, lines[number])
            here.add(number)
        del order[:size]
        out += reorder.take()
        ahead = next(n for n in range(len(lines) + 1) if n not in here)
        assert out == [line for line in lines[:ahead] if line]
        assert reorder.bytes == sum(len(lines[number]) for number in here if number >= ahead)

    assert reorder.rest() == []
    assert reorder.bytes == 0


@given(LINES, st.sets(st.integers(0, 59)))
def test_a_stop_leaves_gaps_and_no_line_behind(lines: list[bytes], lost: set[int]) -> None:
    reorder = Reorder()
    for number in reversed(range(len(lines))):
        if number not in lost:
            reorder.put(number, lines[number])

    out = reorder.take() + reorder.rest()

    assert out == [line for number, line in enumerate(lines) if line and number not in lost]


@given(LINES, st.integers(1, 30), st.integers(1, 50))
def test_the_reader_is_held_by_records_and_by_bytes_and_always_let_go_again(
    lines: list[bytes], records: int, most: int
) -> None:
    reorder = Reorder(records, most)
    read: list[int] = []
    number = 0
    while number < len(lines) or read:
        while number < len(lines) and not reorder.full(number):
            read.append(number)
            number += 1
        assert read, "the record that all wait for has been read"
        newest = read.pop()  # the oldest comes last, as badly as it can be
        reorder.put(newest, lines[newest])
        assert len(reorder.take()) <= records
