"""For any outcomes and any moment of death, recovery finds what is whole, and resuming completes it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledgers import Files
from tests.outcomes import outcome


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_resume_after_a_death_anywhere_in_a_commit_equals_the_straight_run(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    order = data.draw(st.permutations(range(count)))
    fails = data.draw(st.sets(st.integers(0, count - 1)))
    committed = data.draw(st.integers(0, count))
    with tempfile.TemporaryDirectory() as name:
        files = Files(Path(name))
        first, last = order[:committed], order[committed:]
        files.session(
            [[outcome(i, i in fails) for i in first]] if first else [], finish=data.draw(st.booleans())
        )
        before = {path: path.stat().st_size if path.exists() else 0 for path in (files.output, files.dead)}
        index = files.run / "index"
        had = index.stat().st_size if index.exists() else 0
        files.session([[outcome(i, i in fails) for i in last]] if last else [], finish=False)
        _die(files, before, had, data)
        settled = files.state().settled
        assert all(unit in settled for unit in first)
        assert sorted(files.seqs()) == [unit for unit in range(count) if unit in settled]
        missing = [outcome(i, i in fails) for i in range(count) if i not in settled]
        files.session([missing] if missing else [], complete=True, ordered=True)
        assert files.seqs() == [i for i in range(count) if i not in fails] + sorted(fails)
        assert files.state().settled.watermark == count


def _die(files: Files, before: dict[Path, int], had: int, data: st.DataObject) -> None:
    """Leave what a kill leaves inside a commit: entries first, then dead letters, then output."""
    index = files.run / "index"
    sizes = {path: path.stat().st_size if path.exists() else 0 for path in (index, files.dead, files.output)}
    step = data.draw(st.sampled_from(["index", "dead", "output"]))
    steps = [index, files.dead, files.output]
    starts = {index: had, files.dead: before[files.dead], files.output: before[files.output]}
    cut = ["index", "dead", "output"].index(step)
    for number, path in enumerate(steps):
        if not path.exists() or number < cut:
            continue
        keep = data.draw(st.integers(starts[path], sizes[path])) if number == cut else starts[path]
        with path.open("r+b") as file:
            file.truncate(keep)
