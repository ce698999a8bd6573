from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from batchllm.errors import ConfigError, LedgerFailed
from batchllm.sinks import JsonlFile, Stdout


def test_lines_are_appended_and_the_length_told(tmp_path: Path) -> None:
    sink = JsonlFile(str(tmp_path / "out.jsonl"))
    assert sink.length == 0
    assert sink.append([b"one\n", b"two\n"]) == 8
    assert sink.append([b"three\n"]) == 14
    sink.sync()
    sink.sync()
    sink.close()
    assert (tmp_path / "out.jsonl").read_bytes() == b"one\ntwo\nthree\n"


def test_an_existing_file_is_continued_and_can_be_read_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"one\ntwo\nthr")
    sink = JsonlFile(str(path))
    assert sink.length == 11
    assert sink.read(4, 4) == b"two\n"
    assert sink.read(8, 100) == b"thr"
    assert sink.read(50, 1) == b""
    sink.truncate(8)
    assert sink.length == 8
    assert sink.append([b"three\n"]) == 14
    sink.close()
    sink.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_cutting_to_more_than_there_is_never_adds_zeros(tmp_path: Path) -> None:
    sink = JsonlFile(str(tmp_path / "out.jsonl"))
    sink.append([b"one\n"])
    with pytest.raises(ValueError, match="4 bytes"):
        sink.truncate(5)
    sink.close()


def test_a_lazy_file_is_made_with_its_first_line_only(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    sink = JsonlFile(str(path), lazy=True)
    assert (sink.length, sink.read(0, 10)) == (0, b"")
    sink.sync()
    sink.truncate(0)
    assert not path.exists()
    assert sink.append([b"one\n"]) == 4
    sink.sync()
    sink.close()
    assert path.read_bytes() == b"one\n"


def test_a_lazy_file_that_is_there_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    path.write_bytes(b"one\n")
    sink = JsonlFile(str(path), lazy=True)
    assert sink.length == 4
    assert sink.append([b"two\n"]) == 8
    sink.close()


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        JsonlFile(str(tmp_path / "out.jsonl")).close()
    finally:
        os.umask(before)
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_symlink_is_followed_even_to_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "out.jsonl"
    link.symlink_to(tmp_path / "real" / "out.jsonl")
    sink = JsonlFile(str(link), lazy=True)
    sink.append([b"one\n"])
    sink.sync()
    sink.close()
    assert link.is_symlink()
    assert (tmp_path / "real" / "out.jsonl").read_bytes() == b"one\n"


@pytest.mark.parametrize("lazy", [False, True])
def test_a_missing_folder_is_told_before_the_start(tmp_path: Path, lazy: bool) -> None:
    with pytest.raises(ConfigError, match="there is no folder") as told:
        JsonlFile(str(tmp_path / "no where" / "out.jsonl"), lazy=lazy)
    assert told.value.hint is not None
    subprocess.run(told.value.hint, shell=True, check=True)
    JsonlFile(str(tmp_path / "no where" / "out.jsonl"), lazy=lazy).close()


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, lazy: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path), os.devnull, str(tmp_path / "pipe")):
        with pytest.raises(ConfigError, match="can't be written"):
            JsonlFile(path, lazy=lazy)


def test_a_full_disk_leaves_no_part_of_the_group_behind(tmp_path: Path) -> None:
    # A file size limit stands in for the disk: it too lets a part through before it refuses.
    code = f"""
import resource, signal
from batchllm.errors import LedgerFailed
from batchllm.sinks import JsonlFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, {resource.RLIM_INFINITY}))
sink = JsonlFile({str(tmp_path / "out.jsonl")!r})
sink.append([b"one\\n"])
try:
    sink.append([b"two\\n", b"three\\n"])
except LedgerFailed as error:
    print(error.message, "|", error.hint, "|", sink.length)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "file too large" in done.stdout
    assert done.stdout.endswith("run the same command again | 4\n")
    assert (tmp_path / "out.jsonl").read_bytes() == b"one\n"


def test_stdout_gets_whole_lines_though_it_is_non_blocking_and_slow() -> None:
    out, into = os.pipe()
    os.set_blocking(into, False)
    lines = [b"%07d\n" % n for n in range(100_000)]
    got: list[bytes] = []

    def drain() -> None:
        while block := os.read(out, 1000):
            got.append(block)

    reader = threading.Thread(target=drain)
    reader.start()
    sink = Stdout(into)
    assert sink.append(lines) == sink.length == 800_000
    sink.sync()
    sink.close()
    os.close(into)
    reader.join()
    os.close(out)
    assert b"".join(got) == b"".join(lines)


def test_a_reader_that_went_away_is_a_broken_pipe() -> None:
    out, into = os.pipe()
    os.close(out)
    with pytest.raises(BrokenPipeError):
        Stdout(into).append([b"one\n"])
    os.close(into)


def test_stdout_that_cannot_be_written_is_told() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(LedgerFailed, match="no space left"):
        Stdout(full).append([b"one\n"])
    os.close(full)


def test_stdout_cannot_be_cut_back_and_is_synced_where_it_is_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        sink = Stdout(file.fileno())
        sink.append([b"one\n"])
        sink.sync()
        with pytest.raises(io.UnsupportedOperation):
            sink.truncate(0)
    assert (tmp_path / "out").read_bytes() == b"one\n"
