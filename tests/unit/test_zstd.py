"""zstd inputs: read like gzip ones, and never shorter than they are."""

from __future__ import annotations

import struct
from pathlib import Path

import anyio
import pytest
import zstandard

from batchllm.errors import ConfigError, InputFailed
from batchllm.model import Dead, Position, Record
from batchllm.sources import JsonlSource, check_inputs
from tests.running import ROOT, run, tickets, write

LINES = [b'{"id": %d, "text": "%s"}\n' % (n, b"some words " * (n % 7)) for n in range(5000)]
SKIPPED = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"


def read(path: Path, start: Position = Position()) -> list[Record | Dead]:  # noqa: B008 - frozen
    async def main() -> list[Record | Dead]:
        found: list[Record | Dead] = []
        async for chunk in JsonlSource([str(path)], start=start).chunks():
            found += chunk
        return found

    return anyio.run(main)


def packed(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    check_inputs([str(path)])
    return path


def test_all_frames_are_read_and_what_is_no_frame_of_content_is_skipped(tmp_path: Path) -> None:
    half = zstandard.compress(b"".join(LINES[:2500])), zstandard.compress(b"".join(LINES[2500:]))

    items = read(packed(tmp_path / "in.jsonl.zst", SKIPPED, half[0], SKIPPED, half[1]))

    assert [item.line + b"\n" for item in items if isinstance(item, Record)] == LINES


def test_a_resume_skips_by_reading(tmp_path: Path) -> None:
    path = packed(tmp_path / "in.zst", zstandard.compress(b"".join(LINES)))
    start = Position(0, sum(map(len, LINES[:4000])), 4000, 4000)

    items = read(path, start)

    assert [item.seq for item in items if isinstance(item, Record)] == list(range(4000, 5000))


@pytest.mark.parametrize("kept", [5, 1000, -1, -4])
def test_a_truncated_file_is_an_error_and_never_the_end(tmp_path: Path, kept: int) -> None:
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(LINES))
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(whole[:kept])

    with pytest.raises(InputFailed, match="in the middle of its zstd data"):
        read(path)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(zstandard.compress(b"".join(LINES)) + b"no frame")

    with pytest.raises(InputFailed, match="damaged in its zstd data"):
        read(path)


def test_what_is_no_jsonl_inside_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "in.zst"
    path.write_bytes(zstandard.compress(b'[{"id": 1}]'))

    with pytest.raises(ConfigError, match="JSON array") as refused:
        check_inputs([str(path)])

    assert f"zstd -dc {path} | jq" in (refused.value.hint or "")


def test_a_file_that_is_not_packed_though_its_name_says_so_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl.zst", tickets(1))

    with pytest.raises(ConfigError, match="not zstd data, in spite of its name"):
        check_inputs([str(path)])


def test_without_the_package_the_run_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "a"}\n'))
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "zstandard.py").write_text("raise ImportError\n")

    there = run(tmp_path, "in.jsonl.zst", "-m", "fake/echo", "-o", "there.jsonl")
    missing = run(
        tmp_path, "in.jsonl.zst", "-m", "fake/echo", "-o", "missing.jsonl",
        env={"PYTHONPATH": f"{tmp_path / 'without'}:{ROOT}"},
    )  # fmt: skip

    assert [there.code, missing.code] == [0, 2]
    assert "pip install 'batchllm-cli[zstd]'" in missing.hint
    assert not (tmp_path / "missing.jsonl").exists()
