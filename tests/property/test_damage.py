"""What a power loss, a cut or a flipped bit leaves is mended without losing a line, or refused untouched."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.errors import ConfigError, LedgerFailed
from batchllm.ledger.index import SIZE
from batchllm.lines import Shape
from batchllm.model import Outcome
from tests.ledgers import Files
from tests.outcomes import outcome

Draw = st.DataObject
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where syncing costs nothing."""
FIELDS = (0, 8, 16, 24, 26, 28, SIZE - 4)
"""Where in an entry unit, number, digest, kind, calls, length and CRC begin."""


class Damaged:
    """A run of `count` records with a synced snapshot in it and some groups behind that, then a kill."""

    def __init__(self, folder: str, data: Draw) -> None:
        self.files = Files(Path(folder))
        self.shape = Shape(merge_failed=data.draw(st.booleans(), label="merge_failed"))
        self.count = data.draw(st.integers(1, 24), label="count")
        self.fails = data.draw(st.sets(st.integers(0, self.count - 1)), label="fails")
        order = data.draw(st.permutations(range(self.count)))
        at = data.draw(st.integers(0, self.count), label="synced")
        size = data.draw(st.integers(1, 8), label="group")
        self.synced = order[:at]
        if self.synced:
            self.files.session(self.groups(self.synced, size), shape=self.shape, durability="batch")
        self.lengths = {path: length(path) for path in self.parts}
        self.files.session(self.groups(order[at:], size), shape=self.shape, finish=False)

    @property
    def parts(self) -> list[Path]:
        """The files that a commit writes to."""
        return [self.files.run / "index", self.files.output, self.files.dead]

    def groups(self, seqs: list[int], size: int = 8) -> list[list[Outcome]]:
        """The outcomes of these records in groups."""
        parts = [seqs[at : at + size] for at in range(0, len(seqs), size)]
        return [[outcome(seq, seq in self.fails) for seq in part] for part in parts]

    def lines(self) -> set[bytes]:
        """Every whole line of the two sinks."""
        return {
            line
            for path in (self.files.output, self.files.dead)
            if path.exists()
            for line in path.read_bytes().split(b"\n")[:-1]
        }

    def recovers_consistently(self) -> bool:
        """Open; False where that was refused, and then nothing may have changed."""
        before = self.files.content()
        try:
            journal, state = self.files.open(self.shape)
        except ConfigError:
            assert self.files.content() == before
            return False
        journal.close()
        settled = [seq for seq in range(self.count) if seq in state.settled]
        failed = [seq for seq in settled if seq in self.fails]
        beside = failed if self.shape.merge_failed else []
        assert sorted(self.files.seqs()) == sorted(settled + beside)
        assert set(self.synced) <= set(settled)
        summary = state.summary
        if settled:
            assert [summary["succeeded"], summary["failed"]] == [len(settled) - len(failed), len(failed)]
        kept = b"".join(path.read_bytes() for path in self.files.run.glob("cut-*"))
        now = self.files.content()
        for path in (self.files.output, self.files.dead):
            whole = before.get(str(path), b"").split(b"\n")[:-1]
            for line in whole:
                assert line in now.get(str(path), b"") or line in kept, "a line was destroyed"
        return True

    def resuming_equals_the_straight_run(self) -> None:
        """Settle what is missing, and compare with a run that nothing happened to."""
        settled = self.files.state(self.shape).settled
        missing = [seq for seq in range(self.count) if seq not in settled]
        stop = self.files.session(self.groups(missing), shape=self.shape, complete=True, ordered=True)
        assert not stop
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            straight = Files(Path(name))
            straight.session(
                self.groups(list(range(self.count))), shape=self.shape, complete=True, ordered=True
            )
            for mine, other in ((self.files.output, straight.output), (self.files.dead, straight.dead)):
                assert bytes_of(mine) == bytes_of(other)
        assert self.files.state(self.shape).finished


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def damage(path: Path, start: int, data: Draw) -> None:
    """Cut, zero or scramble some of what is behind `start`, as a disk without power does."""
    size = length(path)
    how = data.draw(st.sampled_from(["nothing", "cut", "zeros", "garbage", "longer"]), label=path.name)
    if how == "nothing" or size == start == 0:
        return
    begin = data.draw(st.integers(start, size))
    end = data.draw(st.integers(begin, size))
    content = path.read_bytes()
    if how == "cut":
        content = content[:begin]
    elif how == "zeros":
        content = content[:begin] + bytes(end - begin) + content[end:]
    elif how == "garbage":
        content = content[:begin] + data.draw(st.binary(max_size=2 * SIZE)) + content[end:]
    else:
        content += bytes(data.draw(st.integers(1, 4096)))
    path.write_bytes(content)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_power_loss_costs_nothing_but_what_was_not_synced(data: Draw) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        run = Damaged(name, data)
        for path in run.parts:
            damage(path, run.lengths[path], data)
        run.files.power_loss()
        assert run.recovers_consistently()
        run.resuming_equals_the_straight_run()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_without_a_power_loss_is_mended_or_refused_untouched(data: Draw) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        run = Damaged(name, data)
        for path in run.parts:
            damage(path, run.lengths[path], data)
        if run.recovers_consistently():
            run.resuming_equals_the_straight_run()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_behind_the_snapshot_is_taken_for_an_entry(data: Draw) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        run = Damaged(name, data)
        index = run.files.run / "index"
        if flip(index, run.lengths[index], data):
            if data.draw(st.booleans(), label="power loss"):
                run.files.power_loss()
            if run.recovers_consistently():
                run.resuming_equals_the_straight_run()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_before_the_snapshot_moves_a_line(data: Draw) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        run = Damaged(name, data)
        run.files.state(run.shape)  # recovery takes a snapshot of everything
        index = run.files.run / "index"
        before = run.lines()
        if flip(index, 0, data):
            stop = run.files.session([], shape=run.shape, complete=True, ordered=True)
            assert run.lines() == before
            assert stop.reason is None or isinstance(stop.reason, LedgerFailed)
            assert not list(run.files.output.parent.rglob("*.batchllm-next"))


def flip(path: Path, start: int, data: Draw) -> bool:
    """Flip a bit behind `start`; False where there is none."""
    content = bytearray(path.read_bytes())
    if len(content) == start:
        return False
    entry = data.draw(st.integers(start // SIZE, len(content) // SIZE - 1), label="entry")
    place = data.draw(st.sampled_from(FIELDS) | st.integers(0, SIZE - 1), label="byte")
    content[entry * SIZE + place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    path.write_bytes(content)
    return True
