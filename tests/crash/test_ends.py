"""Every other end: signals, no room, changes by hand, folders gone. The same command goes on, or says why."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.jobs import FAULTS, JOBS, Lines, check, check_leavings, jsonl, records, written
from tests.crash.launcher import Launcher, launcher
from tests.running import ended, started

JOB = JOBS["plain"]
ARGS = JOB.args
OUT, DEAD, RUN = "out.jsonl", "out.dead.jsonl", "out.jsonl.run"


@pytest.fixture(scope="module")
def launched() -> Iterator[Launcher]:
    with launcher() as running:
        yield running


def content(folder: Path) -> dict[str, bytes]:
    """Every file, the lock aside."""
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"
    }


def begun(folder: Path) -> Lines:
    """The job's input in a folder of its own."""
    folder.mkdir()
    return JOB.write(folder)


def killed(launched: Launcher, folder: Path) -> Lines:
    """The job, killed in its middle: some lines were written and not all."""

    def kill(child: int) -> None:
        while len(written(folder)) < 8:
            os.kill(child, 0)
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)

    for _ in range(10):
        lines = begun(folder)
        if launched.run(folder, (*ARGS, "-c", "1"), after=kill).killed and len(written(folder)) < len(lines):
            return lines
        shutil.rmtree(folder)
    raise AssertionError("it was never killed in its middle")


def finishes(launched: Launcher, folder: Path, lines: Lines) -> None:
    """The same command ends by itself, and the files are as they should be."""
    end = launched.run(folder, ARGS)
    assert end.code == 1, end
    check(JOB, folder, lines)


def refuses(launched: Launcher, folder: Path, *, saying: str) -> None:
    """The same command ends with code 2, says what and what to do, and changes nothing."""
    before = content(folder)
    end = launched.run(folder, ARGS)
    assert end.code == 2, end
    assert saying in end.errors
    assert "hint: " in end.errors
    assert content(folder) == before


def test_signals_at_random_moments_leave_a_job_that_goes_on(launched: Launcher, tmp_path: Path) -> None:
    rng = random.Random(5)
    for number, sent in enumerate([signal.SIGINT, signal.SIGTERM, signal.SIGHUP] * 3):
        folder = tmp_path / str(number)
        lines = begun(folder)
        twice, wait = rng.random() < 0.5, rng.uniform(0.03, 0.12)

        def send(child: int, sent: int = sent, twice: bool = twice, wait: float = wait) -> None:
            time.sleep(wait)
            for _ in range(1 + twice):
                os.kill(child, sent)

        end = launched.run(folder, ARGS, after=send)
        assert end.code in (1, 128 + sent), end
        if (folder / RUN).exists():
            check_leavings(JOB, folder)
        kept = written(folder)
        finishes(launched, folder, lines)
        assert kept <= written(folder)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes; skips where we may not mount one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free", [0, 4096, 20480, 32768, 45056])
def test_a_full_disk_stops_the_run_and_with_room_it_goes_on(
    free: int, launched: Launcher, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        folder = disk / "job"
        lines = begun(folder)
        filler = disk / "filler"
        with filler.open("wb") as file:
            file.write(bytes(shutil.disk_usage(disk).free - free))
        full = launched.run(folder, ARGS)
        again = launched.run(folder, ARGS)
        for end in (full, again):
            assert end.code in (2, 3), end
            assert "no space left" in end.errors.lower(), end
            assert "hint: " in end.errors
        assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".batchllm-next")]
        kept = written(folder)
        filler.unlink()
        finishes(launched, folder, lines)
        assert kept <= written(folder)


def test_a_file_that_may_not_grow_stops_the_run_anywhere_and_then_it_goes_on(
    launched: Launcher, tmp_path: Path
) -> None:
    for number, largest in enumerate((50, 700, 2500, 6000, 12000)):
        folder = tmp_path / str(number)
        lines = begun(folder)
        end = launched.run(folder, ARGS, largest=largest)
        assert end.code in (2, 3), end
        assert "too large" in end.errors, end
        kept = written(folder)
        finishes(launched, folder, lines)
        assert kept <= written(folder)


def test_no_room_for_the_ordered_copy_keeps_everything_and_leaves_no_copy(
    launched: Launcher, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        folder = disk / "job"
        lines = begun(folder) + records(60, 1)
        assert launched.run(folder, (*ARGS, "--unordered")).code == 1
        with (folder / "in.jsonl").open("ab") as file:
            file.write(jsonl(records(60, 1)))
        with (disk / "filler").open("wb") as file:
            file.write(bytes(shutil.disk_usage(disk).free - 20480))
        before = written(folder)
        end = launched.run(folder, ARGS)
        assert end.code == 3, end
        assert "no space left for the output in input order" in end.errors
        check_leavings(JOB, folder)
        kept = written(folder)
        assert before < kept
        (disk / "filler").unlink()
        finishes(launched, folder, lines)
        assert kept == written(folder)


def test_two_runs_at_once_are_one_run_and_an_exit_4(tmp_path: Path) -> None:
    begun(tmp_path / "job")
    slow = ("in.jsonl", "-m", "fake/echo?latency_ms=400", "-c", "60", "-o", OUT, "-q")
    with started(tmp_path / "job", *slow) as first, started(tmp_path / "job", *slow) as second:
        ends = [ended(tmp_path / "job", process) for process in (first, second)]

    assert sorted(end.code for end in ends) == [0, 4]
    assert any("another run holds out.jsonl" in end.stderr for end in ends)
    assert len(written(tmp_path / "job")) == 60


def _emptied(folder: Path) -> None:
    for path in (folder / RUN).iterdir():
        path.unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = folder / RUN / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / RUN / name).unlink()


def _other_version(folder: Path) -> None:
    path = folder / RUN / "snapshot"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":7'))


def _edited(folder: Path) -> None:
    path = folder / OUT
    path.write_bytes(path.read_bytes().replace(b"echo: ", b"said: "))


def _line_gone(folder: Path) -> None:
    path = folder / OUT
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[1:]))


def _line_more(folder: Path) -> None:
    with (folder / OUT).open("ab") as file:
        file.write(b'{"mine":1}\n')


@pytest.mark.parametrize(
    ("hand", "saying"),
    [
        (lambda folder: shutil.rmtree(folder / RUN), "has no run folder"),
        (_emptied, "has no run folder"),
        (_without("job.json"), "has no run folder"),
        (_without("index"), "was changed"),
        (_cut("index"), "was changed"),
        (_cut("snapshot"), "can't read"),
        (_cut("job.json"), "can't read"),
        (_other_version, "format version 7"),
        (_line_gone, "was changed"),
        (_line_more, "was changed"),
        (lambda folder: (folder / OUT).unlink(), "was changed"),
    ],
)
def test_what_was_changed_by_hand_between_kill_and_resume_is_refused_untouched(
    hand: Callable[[Path], None], saying: str, launched: Launcher, tmp_path: Path
) -> None:
    killed(launched, tmp_path / "job")
    hand(tmp_path / "job")
    refuses(launched, tmp_path / "job", saying=saying)


def test_an_edit_that_keeps_the_length_is_found_before_lines_are_moved(
    launched: Launcher, tmp_path: Path
) -> None:
    killed(launched, tmp_path / "job")
    _edited(tmp_path / "job")
    kept = written(tmp_path / "job")
    end = launched.run(tmp_path / "job", ARGS)
    assert end.code in (2, 3), end
    assert "out.jsonl was changed" in end.errors
    assert kept <= written(tmp_path / "job")
    check_leavings(JOB, tmp_path / "job")


def test_a_run_folder_of_another_job_is_refused(launched: Launcher, tmp_path: Path) -> None:
    killed(launched, tmp_path / "job")
    other = tmp_path / "other"
    other.mkdir()
    (other / "in.jsonl").write_bytes(jsonl(records(500, 90)))
    assert launched.run(other, ARGS).code == 1
    shutil.rmtree(tmp_path / "job" / RUN)
    shutil.copytree(other / RUN, tmp_path / "job" / RUN)
    refuses(launched, tmp_path / "job", saying="")


def test_an_input_that_was_changed_after_a_kill_before_the_first_group_is_refused(
    launched: Launcher, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    for step in range(30, 0, -1):
        begun(folder)
        launched.run(folder, ARGS, kill_at=step)
        if (folder / RUN / "snapshot").exists() and not written(folder):
            break
        shutil.rmtree(folder)
    (folder / "in.jsonl").write_bytes(jsonl(records(5, 60)))
    end = launched.run(folder, ARGS)
    assert end.code == 2, end
    assert "the input was changed" in end.errors
    assert "--fresh" in end.errors


def test_a_lost_snapshot_costs_nothing(launched: Launcher, tmp_path: Path) -> None:
    """The index alone tells what is settled."""
    lines = killed(launched, tmp_path / "job")
    kept = written(tmp_path / "job")
    (tmp_path / "job" / RUN / "snapshot").unlink()
    finishes(launched, tmp_path / "job", lines)
    assert kept <= written(tmp_path / "job")


def test_a_torn_line_that_was_cut_off_by_hand_is_no_reason_to_refuse(
    launched: Launcher, tmp_path: Path
) -> None:
    lines = killed(launched, tmp_path / "job")
    path = tmp_path / "job" / OUT
    path.write_bytes(path.read_bytes()[:-7])
    whole = b"".join(line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n"))
    path.write_bytes(whole)
    finishes(launched, tmp_path / "job", lines)


@pytest.mark.parametrize("gone", ["folder", "output", "run folder"])
def test_files_removed_under_a_running_run_stop_it(gone: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "in.jsonl").write_bytes(jsonl(records(0, 100_000)))
    out = tmp_path / "out"
    out.mkdir()
    args = ("in.jsonl", "-m", "fake/echo?latency_ms=5", "-c", "4", "-o", str(out / OUT), "-q")
    with started(folder, *args) as process:
        while not (out / OUT).exists() or not (out / OUT).stat().st_size:
            assert process.poll() is None
            time.sleep(0.01)
        if gone == "output":
            (out / OUT).unlink()
        else:
            shutil.rmtree(out if gone == "folder" else out / RUN, ignore_errors=True)
        end = ended(folder, process)

    assert end.code == 3, end
    assert "removed or replaced" in end.stderr
    assert "hint: " in end.stderr


def test_a_read_only_place_is_refused_before_anything_is_asked(launched: Launcher, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        begun(tmp_path / "job")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        end = launched.run(tmp_path / "job", ("run", "in.jsonl", "-m", FAULTS, "-o", str(disk / OUT)))
        assert end.code == 2, end
        assert "hint: " in end.errors
        assert [path.name for path in disk.iterdir()] == []


def test_a_power_loss_in_the_middle_of_a_job_costs_nothing_but_what_was_not_synced(
    launched: Launcher, tmp_path: Path
) -> None:
    lines = killed(launched, tmp_path / "job")
    snapshot = json.loads((tmp_path / "job" / RUN / "snapshot").read_bytes())
    synced = (tmp_path / "job" / OUT).read_bytes()[: snapshot["sinks"]["output"]]
    for name, start in ((OUT, len(synced)), (f"{RUN}/index", snapshot["index_length"])):
        path = tmp_path / "job" / name
        path.write_bytes(path.read_bytes()[: start + 40] + bytes(4096))
    refuses(launched, tmp_path / "job", saying="was changed")
    (tmp_path / "job" / RUN / "session").write_bytes(b'{"version":1,"boot":"before"}')
    finishes(launched, tmp_path / "job", lines)
    assert set(synced.splitlines(True)) <= written(tmp_path / "job")
