"""The ledger: what is committed is there on restart, and what a crash tore is not taken for a line."""

from __future__ import annotations

import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchllm.errors import ConfigError, InUse, Stopped
from batchllm.ledger import RunFolder, Settled, move_aside, ordering, restore, sorting, verifying
from batchllm.ledger.index import SIZE, agrees, pack, unpack
from batchllm.ledger.ordering import order
from batchllm.ledger.settled import WINDOW
from batchllm.ledger.sorting import RUN, Sorter
from batchllm.lines import Shape
from batchllm.model import Done, Note, Outcome, Trail, Usage
from tests.ledgers import Files
from tests.outcomes import dead, done, outcome


def test_what_was_committed_is_settled_on_restart(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(0), dead(1)], [done(3)]])
    state = files.state()
    assert [unit in state.settled for unit in range(5)] == [True, True, False, True, False]
    assert state.settled.watermark == 2
    assert sorted(files.seqs()) == [0, 1, 3]


def test_a_kill_before_the_last_snapshot_loses_nothing_that_was_written(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(0), dead(1), done(2)]], finish=False)
    state = files.state()
    assert state.settled.watermark == 3
    summary = restore(state)
    assert (summary.succeeded, summary.failed, summary.by_kind()) == (2, 1, {"refused": 1})
    assert summary.usage.input_tokens == 6


@pytest.mark.parametrize("of_stages", [False, True])
def test_the_summary_is_the_same_whether_snapshot_or_index_tells_it(tmp_path: Path, of_stages: bool) -> None:
    groups = [[outcome(i, i % 3 == 0) for i in range(k, k + 10)] for k in range(0, 50, 10)]
    if of_stages:
        groups = [[staged(each) for each in group] for group in groups]
    told = []
    for name, finish in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        files = Files(tmp_path / name)
        files.session(list(groups), finish=finish)
        told.append(restore(files.state()).to_dict())
    assert told[0] == told[1]


def staged(settled: Outcome) -> Outcome:
    """The same after a stage `a` that answered and a stage `b` that did or did not."""
    last = settled.trail.attempts[0]
    calls = [replace(last, usage=Usage(1, 1), error=None, stage="a"), replace(last, stage="b")]
    if isinstance(settled, Done):
        return replace(settled, trail=Trail(attempts=calls, answers={"a": 1, "b": 2}, skipped=["c"]))
    error = replace(settled.error, stage="b")
    return replace(settled, error=error, trail=Trail(attempts=calls, answers={"a": 1}, skipped=[]))


def test_a_torn_output_line_is_cut_kept_aside_and_written_again(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(0), done(1), dead(2)]], finish=False)
    whole = files.output.read_bytes()
    files.output.write_bytes(whole[:-5])
    state = files.state()
    assert [unit in state.settled for unit in range(3)] == [True, False, True]
    assert whole.split(b"\n")[1][:-4] in (files.run / "cut-0").read_bytes()
    files.session([[done(1)]])
    assert sorted(files.seqs()) == [0, 1, 2]
    assert files.output.read_bytes() == whole


def test_entries_without_their_lines_settle_nothing(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(0), done(1)]], finish=False)
    files.output.write_bytes(b"")
    assert files.state().settled.watermark == 0
    assert (files.run / "index").stat().st_size == 0


def test_a_torn_index_entry_is_dropped(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(0)]], finish=False)
    with (files.run / "index").open("ab") as index:
        index.write(b"\x01" * (SIZE - 1))
    assert files.state().settled.watermark == 1
    assert (files.run / "index").stat().st_size == SIZE


@pytest.mark.parametrize("finish", [True, False])
def test_an_output_edited_by_hand_is_refused_and_left_alone(tmp_path: Path, finish: bool) -> None:
    files = Files(tmp_path)
    files.session([[done(0), done(1)]], finish=finish)
    whole = files.output.read_bytes()
    edits = (
        [whole + b'{"mine":1}\n', whole[:10]] if finish else [whole + b"x\n", whole.replace(b"fine", b"good")]
    )
    for edited in edits:
        files.output.write_bytes(edited)
        with pytest.raises(ConfigError, match="was changed"):
            files.open()
        assert files.output.read_bytes() == edited


def test_the_finished_output_is_in_input_order(tmp_path: Path) -> None:
    files = Files(tmp_path)
    order = [5, 3, 0, 9, 1, 2, 8, 4, 7, 6]
    files.session([[outcome(i, i % 4 == 0) for i in order]], complete=True, ordered=True)
    assert files.seqs() == [1, 2, 3, 5, 6, 7, 9, 0, 4, 8]
    state = files.state()
    assert state.finished
    assert state.settled.watermark == 10


def test_the_pass_into_order_can_be_ended_at_any_look_and_changes_nothing_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "STRETCH", 100_000)
    files = Files(tmp_path)
    files.session([[outcome(i, i % 4 == 0) for i in range(3000, 0, -1)]])
    before = (files.output.read_bytes(), files.dead.read_bytes())
    left, looks = 0, 0

    def check() -> None:
        nonlocal left
        if not left:
            raise Stopped
        left -= 1

    while True:
        journal, _ = files.open()
        left = looks
        try:
            order(journal, check)
            break
        except Stopped:
            looks += 1
        finally:
            journal.close()
        assert (files.output.read_bytes(), files.dead.read_bytes()) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "dead.jsonl",
            "out.jsonl",
            "out.jsonl.run",
        ]
    assert looks > 6
    assert files.seqs() == [i for i in range(3001) if i % 4] + list(range(4, 3001, 4))


def test_lines_are_verified_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece may hold one line or all of them, of one sink or of several."""
    files = Files(tmp_path)
    files.session([[outcome(i, i % 4 == 0) for i in range(60, 0, -1)]])
    journal, _ = files.open()
    seen = []
    for size in (0, 1, 400, 1000, 1 << 20):
        monkeypatch.setattr(verifying, "STRETCH", size)
        seen.append([(entry._replace(cost=0.0), *rest) for entry, *rest in verifying.verified(journal)])
    journal.close()
    assert [entry.unit for entry, *_ in seen[0]] == list(range(60, 0, -1))
    for entry, packed, place, line in seen[0]:
        file = files.dead if entry.unit % 4 == 0 else files.output
        assert file.read_bytes()[place : place + entry.length] == line
        assert agrees(packed, line, journal.generation)
    assert all(found == seen[0] for found in seen)  # but for the cost, whose NaN equals none


def test_lines_of_several_generations_are_verified(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(i) for i in range(20)]])
    path = files.run / "index"
    entries = list(unpack(path.read_bytes()))
    lines = files.output.read_bytes().splitlines(keepends=True)
    older = [(7 * i) % 3 for i in range(20)]
    path.write_bytes(b"".join(pack(e, line, g) for e, line, g in zip(entries, lines, older, strict=True)))
    journal, _ = files.open()
    journal.generation = 2
    assert [line for _, _, _, line in verifying.verified(journal)] == lines
    journal.generation = 1
    with pytest.raises(ConfigError, match="the line at byte"):
        list(verifying.verified(journal))
    journal.close()


def test_a_piece_of_an_entry_at_the_end_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_BLOCK", SIZE)
    files = Files(tmp_path)
    files.session([[done(i) for i in range(3)]])
    journal, _ = files.open()
    index = (files.run / "index").read_bytes()
    for cut in (0, 1, SIZE - 1):
        (files.run / "index").write_bytes(index[: len(index) - cut])
        assert len(list(verifying.verified(journal, len(index) - cut))) == (2 if cut else 3)
    journal.close()


def test_a_changed_line_is_found_wherever_it_is(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[outcome(i, i % 3 == 0) for i in range(12)]])
    journal, _ = files.open()
    found = list(verifying.verified(journal))
    journal.close()
    for entry, _, place, line in found:
        file = files.dead if entry.unit % 3 == 0 else files.output
        before = file.read_bytes()
        changed = bytearray(before)
        changed[place + len(line) // 2] ^= 1
        file.write_bytes(changed)
        journal, _ = files.open()
        with pytest.raises(ConfigError, match=rf"{file.name}.*the line at byte {place} is not"):
            list(verifying.verified(journal))
        journal.close()
        file.write_bytes(before)


@given(st.lists(st.lists(st.integers(0, 60), max_size=9), max_size=12), st.integers(1, 9))
def test_rows_are_sorted_however_they_come(parts: list[list[int]], run: int) -> None:
    rows = [[number.to_bytes(2, "big") for number in part] for part in parts]
    with tempfile.TemporaryFile() as spool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "RUN", run)
        patch.setattr(sorting, "_FEWEST", 1)
        sorter = Sorter(spool, 2)
        for part in rows:
            sorter.add(part)
        merged = list(sorter.merged())
    assert [row for some in merged for row in some] == sorted(row for part in rows for row in part)
    assert all(merged)


@pytest.mark.parametrize("near", [0, 2 << 20])
def test_more_entries_than_are_sorted_at_once_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: int
) -> None:
    """However near to each other the lines lie that are copied together."""
    monkeypatch.setattr(ordering, "_NEAR", near)
    files = Files(tmp_path)
    units = [(i * 7) % (RUN + 1000) for i in range(RUN + 1000)]  # 7 shares no factor with it: each once
    files.session(
        [[done(unit) for unit in units[k : k + 512]] for k in range(0, len(units), 512)], ordered=True
    )
    assert files.seqs() == sorted(units)


def test_a_signal_ends_the_pass_into_order_and_the_next_session_makes_it(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(1), done(0)]], complete=True, ordered=True, reason=signal.SIGTERM)
    assert files.seqs() == [1, 0]
    assert not files.state().finished
    files.session([], complete=True, ordered=True)
    assert files.seqs() == [0, 1]
    assert files.state().finished


def test_an_ordered_output_can_be_gone_on_with(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[outcome(i, i == 1) for i in (2, 0, 1)]], complete=True, ordered=True)
    files.session([[outcome(i, i == 4) for i in (5, 3, 4)]], complete=True, ordered=True)
    assert files.seqs() == [0, 2, 3, 5, 1, 4]
    assert files.state().settled.watermark == 6


def test_ordering_makes_no_dead_letter_file_where_nothing_failed(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(1), done(0)]], complete=True, ordered=True)
    assert files.seqs() == [0, 1]
    assert not files.dead.exists()


def test_a_swap_that_was_cut_short_is_finished_on_opening(tmp_path: Path) -> None:
    """Whichever of the renames had been done, index and sinks end up together."""
    order = [4, 2, 0, 3, 1]
    for renamed in range(4):
        (tmp_path / str(renamed)).mkdir()
        files = Files(tmp_path / str(renamed))
        files.session([[outcome(i, i % 2 == 1) for i in order]])
        (tmp_path / f"sorted{renamed}").mkdir()
        other = Files(tmp_path / f"sorted{renamed}")
        other.session([[outcome(i, i % 2 == 1) for i in order]], ordered=True)
        copies = [
            (other.run / "index", files.run / "index"),
            (other.output, files.output),
            (other.dead, files.dead),
        ]
        for number, (ordered, target) in enumerate(copies):
            place = target if number < renamed else target.with_name(target.name + ".batchllm-next")
            place.write_bytes(ordered.read_bytes())
        (files.run / "swap").write_bytes(orjson.dumps({"version": 1, "documents": {}}))
        assert files.state().settled.watermark == 5
        assert files.seqs() == [0, 2, 4, 1, 3]
        assert not list(files.run.parent.rglob("*.batchllm-next"))


def test_a_half_written_copy_is_removed_on_opening(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(1), done(0)]])
    half = files.output.with_name("out.jsonl.batchllm-next")
    half.write_bytes(b'{"half"')
    assert files.state().settled.watermark == 2
    assert not half.exists()


def test_a_failed_line_stands_in_the_output_beside_its_dead_letter(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(1), dead(0)]], complete=True, ordered=True, shape=Shape(merge_failed=True))
    assert files.seqs() == [0, 1, 0]
    assert orjson.loads(files.output.read_bytes().split(b"\n")[0])["error_kind"] == "refused"


def test_a_line_that_a_dead_letter_lost_to_a_crash_is_written_on_recovery(tmp_path: Path) -> None:
    files, shape = Files(tmp_path), Shape(merge_failed=True)
    files.session([[done(2), dead(1), dead(0)]], finish=False, shape=shape)
    whole = files.output.read_bytes()
    files.output.write_bytes(whole[: whole.index(b"\n") + 9])
    files.session([], shape=shape, complete=True, ordered=True)
    lines = whole.splitlines(keepends=True)
    assert files.output.read_bytes() == b"".join([lines[2], lines[1], lines[0]])
    assert files.state().settled.watermark == 3


def test_notes_are_kept_and_settle_nothing(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[Note("spent", {"tokens": 3}), done(0)]], finish=False)
    assert files.state().settled.watermark == 1
    assert orjson.loads((files.run / "notes").read_bytes()) == {"kind": "spent", "tokens": 3}


def test_the_lock_is_held_by_one_and_freed_by_its_end(tmp_path: Path) -> None:
    first = RunFolder(str(tmp_path / "o.jsonl"))
    first.acquire()
    with pytest.raises(InUse, match="another run holds"):
        RunFolder(str(tmp_path / "o.jsonl")).acquire()
    first.release()
    second = RunFolder(str(tmp_path / "o.jsonl"))
    second.acquire()
    second.release()


def test_a_run_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(0)]])
    (files.run / "snapshot").write_bytes(b'{"version":99}')
    with pytest.raises(ConfigError, match="version 99"):
        files.open()


def test_a_document_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.session([[done(0)]])
    (files.run / "snapshot").write_bytes(b'{"version":1,"a":' + b"[" * 200_000)
    with pytest.raises(ConfigError, match="can't read"):
        files.open()


def test_moving_aside_keeps_what_was_moved_before(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    for content in ("first", "second"):
        target.write_text(content)
        move_aside([target, tmp_path / "absent"])
    assert (tmp_path / "out.jsonl.old1").read_text() == "first"
    assert (tmp_path / "out.jsonl.old2").read_text() == "second"


@given(
    st.sampled_from([0, WINDOW - 20, WINDOW, 3 * WINDOW - 1]),
    st.lists(st.lists(st.integers(min_value=-3, max_value=60), max_size=20), max_size=20),
)
def test_settled_knows_what_was_settled_in_groups_of_any_order(start: int, groups: list[list[int]]) -> None:
    settled, model = Settled(start), set[int]()
    for group in groups:
        settled.add_all([start + unit for unit in group])
        model |= {start + unit for unit in group if unit >= 0}

        mark = next(unit for unit in range(start, start + 100) if unit not in model)
        assert settled.watermark == mark
        assert settled.count == start + len(model)
        units = range(start - 3, start + 70)
        assert [unit in settled for unit in units] == [unit < start or unit in model for unit in units]


def test_settled_goes_round_its_ring_in_one_step() -> None:
    settled = Settled(5)
    settled.add_all(range(6, WINDOW + 5))
    assert settled.watermark == 5
    settled.add(5)
    assert (settled.watermark, settled.count) == (WINDOW + 5, WINDOW + 5)


def test_settled_survives_a_snapshot_and_refuses_what_is_beyond_its_window() -> None:
    settled = Settled()
    for unit in (0, 1, 5, 7, WINDOW + 1):
        settled.add(unit)
    assert settled.watermark == 2
    again = Settled(settled.watermark, settled.above())
    assert [unit in again for unit in (1, 2, 5, 6, 7, WINDOW + 1)] == [True, False, True, False, True, True]
    with pytest.raises(ValueError, match="beyond the window"):
        settled.add(WINDOW + 2)
