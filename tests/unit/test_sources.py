from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from batchllm.errors import ConfigError, InputFailed
from batchllm.lines import dead_line
from batchllm.model import Attempt, Dead, Failure, Position, Record, Trail
from batchllm.sources import JsonlSource, check_inputs, differs, fingerprint, stretch

GOOD = b'{"id":"a","text":"one"}\n{"id":"b","text":"two"}\n'


def drained(source: JsonlSource) -> list[Record | Dead]:
    async def main() -> list[Record | Dead]:
        return [item async for chunk in source.chunks() for item in chunk]

    return anyio.run(main)


def read(path: Path, content: bytes, **options: Any) -> list[Record | Dead]:
    path.write_bytes(content)
    return drained(JsonlSource([str(path)], **options))


def ids(items: list[Record | Dead]) -> list[Any]:
    return [item.id if isinstance(item, Record) else item.record.id for item in items]


@contextlib.contextmanager
def pipe() -> Iterator[tuple[str, int]]:
    """A pipe: the path of its end to read from, and the descriptor to write to."""
    out, into = os.pipe()
    try:
        yield f"/dev/fd/{out}", into
    finally:
        for fd in (out, into):
            with contextlib.suppress(OSError):
                os.close(fd)


# What a line is


@pytest.mark.parametrize(
    ("line", "cause", "words"),
    [
        (b"{broken", "not_json", "line 2 of in.jsonl is not JSON: "),
        (b'{"a":NaN}', "not_json", "is not JSON"),
        (b'{"a":-Infinity}', "not_json", "is not JSON"),
        (b'{"a":"\x00"}', "not_json", "control character"),
        (b'{"a":1}\x00', "not_json", "at character 8"),
        (b'{"a":' * 100_000, "not_json", "depth limit"),
        (b'{"a":1234567890123456,"b":' + b"[" * 1020 + b"]" * 1020 + b"}", "not_json", "recursion"),
        (b'{"a":"\\ud800"}', "not_json", "surrogate"),
        (b'"a bare string"', "not_an_object", "is a string, not a JSON object"),
        (b"17", "not_an_object", "is a number, not"),
        (b"true", "not_an_object", "is true or false, not"),
        (b"null", "not_an_object", "is null, not"),
        (b"[1]", "not_an_object", "is an array, not"),
        (b'{"a":"caf\xe9"}', "not_utf8", "is not UTF-8: byte 0xe9 at byte 10"),
        (b'{"a":"' + b"x" * 2_000_000 + b'"}', "line_too_long", "is longer than --max-line, 1,000,000 bytes"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_a_line_that_is_no_record_is_a_letter_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, cause: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(b'{"id":"a"}\n' + line + b'\r\n{"id":"c"}\n')
    source = JsonlSource(["in.jsonl"], max_line=1_000_000, clock=lambda: 5.0)
    first, dead, last = drained(source)
    assert isinstance(dead, Dead)
    assert (dead.error.kind, dead.error.cause, dead.at) == ("bad_input", cause, 5.0)
    assert words in dead.error.message
    assert dead.error.message.startswith("line 2 of in.jsonl ")
    assert dead.record == Record(1, "line-2", None, line[: 2**16] if cause == "line_too_long" else line)
    assert ids([first, last]) == ["a", "c"]
    assert isinstance(last, Record)
    assert last.seq == 2


def test_blank_lines_count_as_lines_but_are_no_records(tmp_path: Path) -> None:
    items = read(tmp_path / "in", b'\xef\xbb\xbf\r\n{"n":1}\r\n\n \t \n{"n":2}\n\n')
    assert [(item.seq, item.id, item.line) for item in items if isinstance(item, Record)] == [
        (0, "line-2", b'{"n":1}'),
        (1, "line-5", b'{"n":2}'),
    ]


def test_long_integers_and_duplicate_keys_are_kept_as_they_stand(tmp_path: Path) -> None:
    line = b'{"id" : 123456789012345678901234567890, "a":1, "a":0.10}'
    (record,) = read(tmp_path / "in", b"  " + line + b" \n")
    assert isinstance(record, Record)
    assert record.id == 123456789012345678901234567890
    assert record.data == {"id": 123456789012345678901234567890, "a": 0.1}
    assert record.line == line


LINES = {
    "plain": lambda i: b'{"id":%d}' % i,
    "without an id": lambda i: b'{"n":%d}' % i,
    "long integers": lambda i: b'{"id":1234567890123456789012%d}' % i,
    "carriage returns": lambda i: b'{"id":%d}\r' % i,
    "blank lines between": lambda i: b'{"id":%d}\n  ' % i,
    "each second one broken": lambda i: b'{"id":%d}' % i if i % 2 else b'{"id":',
    "each twentieth one broken": lambda i: b'{"id":%d}' % i if i % 20 else b"[]",
    "longer than a reach": lambda i: b'{"id":%d,"t":"%b"}' % (i, bytes(6000).replace(b"\0", b"x")),
}


@pytest.mark.parametrize("kind", LINES)
def test_the_work_grows_with_the_input_whatever_its_lines_are_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Lines that are looked at together are seldom looked at again."""
    looked_at, taken = 0, stretch.stretch_of

    def counting(lines: list[bytes], *rest: Any) -> Any:
        nonlocal looked_at
        looked_at += sum(map(len, lines))
        return taken(lines, *rest)

    monkeypatch.setattr(stretch, "stretch_of", counting)
    content = b"".join([LINES[kind](i) + b"\n" for i in range(2000)])
    items = read(tmp_path / "in.jsonl", content)
    assert len(items) == 2000
    assert looked_at < 2 * len(content) + 2000 * 5 * stretch.SHORTEST
    if kind in ("plain", "without an id", "long integers", "carriage returns", "blank lines between"):
        assert looked_at < 2 * len(content)


def test_the_id_is_the_named_field_or_the_line_and_may_repeat(tmp_path: Path) -> None:
    content = b'{"key":7}\n{"key":7}\n{"key":null}\n{"id":"x"}\n{"key":[1]}\n'
    assert ids(read(tmp_path / "in", content, id_field="key")) == [7, 7, "line-3", "line-4", [1]]


def test_with_several_inputs_lines_are_named_by_file_and_numbered_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n":1}\nbad\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'\n{"n":2}\n', mtime=0))
    (tmp_path / "empty").write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("a.jsonl", "empty", "b.jsonl.gz")]
    check_inputs(paths)
    source = JsonlSource(paths)
    items = drained(source)
    assert ids(items) == ["a.jsonl:line-1", "a.jsonl:line-2", "b.jsonl.gz:line-2"]
    assert [item.seq if isinstance(item, Record) else item.record.seq for item in items] == [0, 1, 2]
    assert source.total_bytes == source.read_bytes == sum(Path(path).stat().st_size for path in paths)


@pytest.mark.parametrize("last", [b'{"id":"z"', b"nonsense", b'{"a":"\xc3', b'{"a":"' + b"x" * 200])
def test_an_unterminated_last_line_that_does_not_parse_is_no_letter(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "in"
    path.write_bytes(GOOD + last)
    source = JsonlSource([str(path)], max_line=100)
    assert ids(drained(source)) == ["a", "b"]
    assert source.unfinished == (str(path), 3)
    assert source.records == 2
    assert source.position(2) == Position(0, len(GOOD), 2, 2)


def test_an_unterminated_last_line_that_parses_is_a_record_and_may_still_get_its_end(tmp_path: Path) -> None:
    path = tmp_path / "in"
    first = JsonlSource([str(path)])
    path.write_bytes(GOOD + b'{"n":3}')
    assert ids(drained(first)) == ["a", "b", "line-3"]
    assert first.unfinished is None
    place = first.position(3)
    path.write_bytes(GOOD + b'{"n":3}\n{"n":4}\n')
    assert ids(drained(JsonlSource([str(path)], start=place, settled=lambda unit: unit < 3))) == ["line-4"]


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")
    check_inputs([str(tmp_path / "in")])
    source = JsonlSource([str(tmp_path / "in")])
    assert drained(source) == []
    assert (source.ended, source.records, source.total_bytes, source.format) == (True, 0, 0, None)


def test_a_huge_line_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "in"
    with path.open("wb") as file:
        file.write(b'{"id":"a"}\n')
        file.seek(300 * 2**20)
        file.write(b'\n{"id":"c"}\n')
    code = """
import anyio, resource, sys
from batchllm.sources import JsonlSource
async def main():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async for chunk in JsonlSource([sys.argv[1]]).chunks():
        for item in chunk:
            print(getattr(item, "id", None) or item.error.cause)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    *items, grown = done.stdout.split()
    assert items == ["a", "line_too_long", "c"]
    assert int(grown) < 80


# Chunks, positions, progress


def test_chunks_hold_at_most_1024_records_and_8_mib(tmp_path: Path) -> None:
    path = tmp_path / "in"
    big = b'{"x":"' + b"x" * 3 * 2**20 + b'"}\n'
    huge = b'{"x":"' + b"x" * 9 * 2**20 + b'"}\n'
    path.write_bytes(b'{"n":1}\n' * 2500 + big * 5 + huge + big)

    async def main() -> list[tuple[int, int]]:
        source = JsonlSource([str(path)], block_bytes=64 * 2**20)
        sizes = []
        async for chunk in source.chunks():
            lines = [item.line for item in chunk if isinstance(item, Record)]
            sizes.append((len(lines), sum(map(len, lines))))
        return sizes

    sizes = anyio.run(main)
    assert [count for count, _ in sizes] == [1024, 1024, 454, 2, 1, 1, 1]
    assert all(size <= 8 * 2**20 or count == 1 for count, size in sizes)


def test_settled_records_are_left_out_and_the_limit_counts_from_the_start(tmp_path: Path) -> None:
    content = b"".join(b'{"n":%d}\n' % n for n in range(10))
    items = read(tmp_path / "in", content, settled=lambda unit: unit % 2 == 0, limit=6)
    assert ids(items) == ["line-2", "line-4", "line-6"]
    assert read(tmp_path / "in", content, limit=0) == []
    again = read(tmp_path / "in", content, limit=6, start=Position(0, 0, 0, 0), settled=lambda unit: unit < 6)
    assert again == []


def test_a_place_is_kept_every_thousand_records_or_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "in"
    lines = [b'{"n":%d}\n' % n for n in range(5000)] + [b'{"x":"' + b"x" * 10**6 + b'"}\n'] * 5
    path.write_bytes(b"".join(lines))
    source = JsonlSource([str(path)])
    drained(source)
    assert source.position(0) == Position()
    assert source.position(3000) == Position(0, sum(map(len, lines[:2048])), 2048, 2048)
    assert source.position(5003).seq in (5002, 5003)
    assert source.position(5005) == Position(0, path.stat().st_size, 5005, 5005)


@pytest.mark.parametrize("packed", [False, True])
def test_progress_in_bytes_follows_the_records_that_were_handed_on(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "in"
    content = b"".join(b'{"n":%04d}\n' % (n % 10 + 1000) for n in range(4096))
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    size = path.stat().st_size

    async def main() -> list[float]:
        source = JsonlSource([str(path)])
        assert (source.total_bytes, source.read_bytes) == (size, 0)
        shares = [source.read_bytes / size async for _ in source.chunks()]
        assert source.read_bytes == size
        return shares

    assert anyio.run(main) == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.02)


# Pipes


def test_a_line_is_handed_on_as_soon_as_it_is_whole() -> None:
    async def main() -> None:
        with pipe() as (path, into), anyio.fail_after(20):
            source = JsonlSource([path])
            assert source.total_bytes is None
            chunks = source.chunks()
            os.write(into, b'{"id":1}\n{"id":')
            assert ids(await anext(chunks)) == [1]
            os.write(into, b"2}\n")
            assert ids(await anext(chunks)) == [2]
            os.close(into)
            assert [chunk async for chunk in chunks] == []
            assert source.read_bytes == 18

    anyio.run(main)


def test_a_fifo_is_waited_for_and_read_like_stdin(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    check_inputs([str(path)])
    writer = threading.Thread(target=lambda: path.write_bytes(GOOD))

    async def main() -> list[Any]:
        source = JsonlSource([str(path)])
        found: list[Any] = []

        async def reading() -> None:
            found.extend(ids([item async for chunk in source.chunks() for item in chunk]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reading)
            await anyio.lowlevel.checkpoint()
            writer.start()
        return found

    assert anyio.run(main) == ["a", "b"]
    writer.join()


STDIN_CODE = """
import anyio, os, sys
from batchllm.errors import BatchError
from batchllm.sources import JsonlSource, check_inputs
async def main():
    check_inputs(["-"])
    source = JsonlSource(["-"])
    async for chunk in source.chunks():
        print(*[item.id for item in chunk])
    print(source.total_bytes, source.read_bytes)
try:
    anyio.run(main)
except BatchError as error:
    print(type(error).__name__, error.message, "|", error.hint)
"""


def as_stdin(stdin: Any, content: bytes | None = None) -> str:
    """What a process says that reads its stdin through the source."""
    options: dict[str, Any] = {"input": content} if content is not None else {"stdin": stdin}
    done = subprocess.run([sys.executable, "-c", STDIN_CODE], capture_output=True, check=True, **options)
    return str(done.stdout, "utf-8")


def test_stdin_is_read_from_a_pipe_or_a_redirected_file(tmp_path: Path) -> None:
    assert as_stdin(None, GOOD) == "a b\nNone 48\n"
    packed = tmp_path / "in.gz"
    packed.write_bytes(gzip.compress(GOOD, mtime=0))
    size = packed.stat().st_size
    with packed.open("rb") as file:
        assert as_stdin(file) == f"a b\n{size} {size}\n"
    (tmp_path / "in").write_bytes(b"a line that was read before\n" + GOOD)
    with (tmp_path / "in").open("rb", buffering=0) as file:
        file.seek(28)
        assert as_stdin(file) == "a b\n48 48\n"


def test_stdin_that_is_neither_pipe_nor_file_is_refused() -> None:
    assert as_stdin(subprocess.DEVNULL).startswith("ConfigError stdin is neither a file nor a pipe | ")
    ours, theirs = os.openpty()
    try:
        assert as_stdin(theirs).startswith("ConfigError stdin is a terminal, not a file or a pipe | ")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_pipe_is_skipped_to_the_start_by_reading_it() -> None:
    with pipe() as (path, into):
        os.write(into, GOOD + b'{"n":3}\n')
        os.close(into)
        assert ids(drained(JsonlSource([path], start=Position(0, 24, 1, 1)))) == ["b", "line-3"]


def test_a_pipe_that_is_known_again_piece_by_piece_loses_no_record() -> None:
    lines = b"".join(b'{"id":%d}\n' % number for number in range(10, 40))
    head = {"start": 0, "bytes": 100, "blake2b": hashlib.blake2b(lines[:100], digest_size=16).hexdigest()}
    with pipe() as (path, into):
        os.write(into, lines)
        os.close(into)
        source = JsonlSource([path], block_bytes=16, known=[{"path": path, "head": head}])
        assert ids(drained(source)) == list(range(10, 40))


@pytest.mark.parametrize("kind", ["plain", "gzip", "pipe"])
def test_an_input_that_ends_before_the_start_is_an_error(tmp_path: Path, kind: str) -> None:
    with pipe() as (path, into):
        os.write(into, GOOD)
        os.close(into)
        if kind != "pipe":
            path = str(tmp_path / "in")
            Path(path).write_bytes(GOOD if kind == "plain" else gzip.compress(GOOD, mtime=0))
        with pytest.raises(InputFailed, match="ends before the place where the earlier run left off"):
            drained(JsonlSource([path], start=Position(0, 100, 9, 9)))


# Looking ahead


def test_peek_stops_at_the_first_chunk_that_is_enough_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"bad\n" + b'{"n":1}\n' * 3000)

    async def main() -> None:
        source = JsonlSource([str(path)])
        seen = await source.peek(lambda records: len(records) >= 50, records=2000)
        assert len(seen) == 1023
        assert len(await source.peek(lambda records: False)) == 100
        seqs = [
            item.seq if isinstance(item, Record) else item.record.seq
            async for chunk in source.chunks()
            for item in chunk
        ]
        assert seqs == list(range(3001))

    anyio.run(main)


def test_peek_waits_for_the_first_record_but_not_for_the_next_and_loses_no_bytes() -> None:
    async def main() -> None:
        with pipe() as (path, into), anyio.fail_after(20):
            source = JsonlSource([path])
            async with anyio.create_task_group() as tasks:
                seen: list[Record] = []

                async def peeking() -> None:
                    seen.extend(await source.peek(lambda records: False, seconds=0))

                tasks.start_soon(peeking)
                await anyio.wait_all_tasks_blocked()
                assert seen == []
                os.write(into, b'bad\n{"id":1}\n{"id"')
            assert ids(list(seen)) == [1]
            os.write(into, b":2}\n")
            os.close(into)
            assert ids([item async for chunk in source.chunks() for item in chunk]) == ["line-1", 1, 2]

    anyio.run(main)


def test_a_defect_met_while_peeking_is_raised_behind_what_came_before_it(tmp_path: Path) -> None:
    path = tmp_path / "in.gz"
    path.write_bytes(gzip.compress(GOOD, mtime=0)[:-8])

    async def main() -> None:
        source = JsonlSource([str(path)])
        assert ids(list(await source.peek(lambda records: False))) == ["a", "b"]
        chunks = source.chunks()
        assert ids(await anext(chunks)) == ["a", "b"]
        with pytest.raises(InputFailed):
            await anext(chunks)

    anyio.run(main)


# Inputs that break off


def test_a_truncated_gzip_file_is_an_error_behind_what_came_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [orjson.dumps({"id": n, "text": str(n * 7919)}) + b"\n" for n in range(20_000)]
    packed = gzip.compress(b"".join(lines), mtime=0)
    Path("tickets.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    check_inputs(["tickets.jsonl.gz"])

    async def main() -> tuple[list[Any], InputFailed]:
        found: list[Any] = []
        source = JsonlSource(["tickets.jsonl.gz"])
        try:
            async for chunk in source.chunks():
                found += ids(chunk)
        except InputFailed as failure:
            return found, failure
        raise AssertionError("it was taken for the end of the input")

    found, failure = anyio.run(main)
    assert found == list(range(len(found)))
    assert 5_000 < len(found) < 15_000
    assert failure.message == (
        f"tickets.jsonl.gz ends in the middle of its gzip data after line {len(found)}"
    )
    assert failure.hint == "get the whole file and run the same command again"


def test_damaged_gzip_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputFailed, match="is damaged in its gzip data after line 2"):
        read(tmp_path / "in.gz", gzip.compress(GOOD, mtime=0) + b"trailing garbage")


def test_members_of_a_gzip_file_follow_each_other_and_its_name_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    assert ids(read(path, gzip.compress(GOOD[:30], mtime=0) + gzip.compress(GOOD[30:]) + b"\0\0")) == [
        "a",
        "b",
    ]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(GOOD * 10)

    async def main() -> None:
        chunks = JsonlSource([str(path)], block_bytes=len(GOOD)).chunks()
        assert ids(await anext(chunks)) == ["a", "b"]
        os.truncate(path, 2 * len(GOOD))
        with pytest.raises(InputFailed, match="became shorter while it was read after line 4"):
            assert ids([item async for chunk in chunks for item in chunk]) == ["a", "b"]

    anyio.run(main)


def test_a_file_that_is_gone_when_its_turn_comes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputFailed, match="no such file"):
        drained(JsonlSource([str(tmp_path / "gone")]))


# Shapes


def letter(line: bytes, data: dict[str, Any] | None, id: Any = "x", cause: str = "timeout") -> bytes:
    error = Failure("exhausted" if data else "bad_input", cause, "line 3 of old.jsonl is what it is")
    trail = Trail(attempts=[Attempt(1.0, 0.5, error="timed out")])
    return dead_line(Dead(Record(7, id, data, line), error, trail, 9.0))


def test_a_dead_letter_file_gives_the_records_inside_byte_for_byte(tmp_path: Path) -> None:
    inner = b'{"id":"t\\u0031" ,"n":1.50, "n":12345678901234567890123, "record":{"a":[1,{}]}}'
    content = (
        letter(inner, {"n": 1})
        + letter(b'{"text":"no id"}', {"text": "no id"}, "line-44")
        + letter(b"caf\xe9", None, "line-3", "not_utf8")
        + letter(b"nonsense", None, "line-4", "not_json")
        + b'{"id":"odd","seq":1,"error":{}}\n'
    )
    path = tmp_path / "dead.jsonl"
    path.write_bytes(content)
    source = JsonlSource([str(path)])
    first, second, *bad = drained(source)
    assert source.format == "dead"
    assert isinstance(first, Record)
    assert (first.seq, first.id, first.line) == (0, "t1", inner)
    assert first.data is not None
    assert first.data["n"] == 12345678901234567890123
    assert isinstance(second, Record)
    assert second.id == "line-44"
    assert [
        (item.record.id, item.record.line, item.error.cause) for item in bad if isinstance(item, Dead)
    ] == [
        ("line-3", b"caf\xe9", "not_utf8"),
        ("line-4", b"nonsense", "not_json"),
        ("odd", b'{"id":"odd","seq":1,"error":{}}', "not_a_dead_letter"),
    ]


def test_a_letter_whose_packed_line_is_damaged_is_a_bad_line(tmp_path: Path) -> None:
    good = {"id": 1, "seq": 0, "error": {"kind": "bad_input"}, "attempts": []}
    content = orjson.dumps(good | {"raw_line_base64": "%%%"}) + b"\n"
    content += orjson.dumps(good | {"raw_line_base64": base64.b64encode(b"\xff").decode()}) + b"\n"
    broken, kept = read(tmp_path / "in", content)
    assert isinstance(broken, Dead)
    assert isinstance(kept, Dead)
    assert (broken.error.cause, kept.error.cause) == ("not_a_dead_letter", "not_json")
    assert kept.record.line == b"\xff"


def test_the_openai_batch_format_is_told_by_its_exact_keys(tmp_path: Path) -> None:
    line = b'{"custom_id":"c1","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}'
    path = tmp_path / "in"
    path.write_bytes(line + b'\n{"custom_id":"c2"}\n')
    source = JsonlSource([str(path)])
    record, bad = drained(source)
    assert source.format == "openai-batch"
    assert isinstance(record, Record)
    assert (record.id, record.data, record.line) == ("c1", orjson.loads(line), line)
    assert isinstance(bad, Dead)
    assert bad.error.cause == "not_a_batch_line"
    plain = JsonlSource([str(path)], input_format="records")
    assert ids(drained(plain)) == ["line-1", "line-2"]
    more = read(path, line[:-1] + b',"extra":1}\n')
    assert ids(more) == ["line-1"]


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_record_of_all_tells_the_shape_also_of_a_resumed_input(
    tmp_path: Path, packed: bool
) -> None:
    content = letter(b'{"id":1}', {"id": 1}) + letter(b'{"id":2}', {"id": 2})
    odd = b'{"id":3}\n'
    start = Position(0, len(content), 2, 2)
    path = tmp_path / "in"
    (item,) = read(path, gzip.compress(content + odd, mtime=0) if packed else content + odd, start=start)
    assert isinstance(item, Dead)
    with pipe() as (name, into):
        os.write(into, content + odd)
        os.close(into)
        (item,) = drained(JsonlSource([name], start=start))
    assert isinstance(item, Dead)


def test_an_unknown_input_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="no input format is called csv"):
        JsonlSource([], input_format="csv")


# What is refused as a whole


def refused(path: Path | str) -> ConfigError:
    with pytest.raises(ConfigError) as told:
        check_inputs([str(path)])
    assert "\n" not in told.value.message
    assert told.value.hint
    return told.value


def test_paths_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "missing.jsonl").message
    assert "is a directory" in refused(tmp_path).message
    assert "neither a file nor a pipe" in refused(os.devnull).message
    assert "file name too long" in refused("x" * 5000).message
    with pytest.raises(ConfigError, match="stdin is named twice"):
        check_inputs(["-", "-"])


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        assert "permission denied" in refused(path).message
    finally:
        if root:
            os.seteuid(0)


COLUMNS = b'\xef\xbb\xbfid,text\r\n1,"hello, you"\r\n2,"two\nlines"\r\n'
OBJECTS = [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]


@pytest.mark.parametrize(
    ("name", "content", "words", "converted"),
    [
        ("array.json", json.dumps(OBJECTS).encode(), "is a JSON array", OBJECTS),
        ("pretty array.json", b" \n" + json.dumps(OBJECTS, indent=1).encode(), "is a JSON array", OBJECTS),
        ("pretty.json", json.dumps(OBJECTS[0], indent=2).encode(), "over several lines", OBJECTS[:1]),
        (
            "it's.csv",
            COLUMNS,
            "looks like CSV",
            [{"id": "1", "text": "hello, you"}, {"id": "2", "text": "two\nlines"}],
        ),
        ("t.tsv", b"a\tb b\n1\t2\n", "looks like CSV", [{"a": "1", "b b": "2"}]),
        ("s.csv", b'"a";"b"\n1;2\n', "looks like CSV", [{"a": "1", "b": "2"}]),
        ("blank.csv", b"a, b\n1, 2\n", "looks like CSV", [{"a": "1", " b": " 2"}]),
        ("wide.jsonl", json.dumps(OBJECTS[0]).encode("utf-16"), "is UTF-16", OBJECTS[:1]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_another_format_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, name: str, content: bytes, words: str, converted: list[Any], packed: bool
) -> None:
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    told = refused(path)
    assert words in told.message
    assert told.hint is not None
    subprocess.run(told.hint, shell=True, check=True)
    result = tmp_path / (name + ".jsonl")
    check_inputs([str(result)])
    records = drained(JsonlSource([str(result)]))
    assert [record.data for record in records if isinstance(record, Record)] == converted


@pytest.mark.parametrize(
    "content",
    [
        b"not json, not CSV\n" + GOOD,
        b"words,commas\n" + GOOD,
        b"a sentence, with a comma\n",
        b'{"broken, line": \n' + GOOD,
        b'"a","b"\n' + GOOD,
        b"1,2\n3,4\n",
        b"\xff,\xfd\n",
        b"text\n",
        b"{\x00\n",
        b"",
        b"\n\n",
    ],
)
def test_bad_first_lines_are_left_to_be_dead_letters(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").write_bytes(content)
    check_inputs([str(tmp_path / "in")])


def test_a_file_that_is_not_packed_though_its_name_says_so_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(GOOD)
    told = refused(path)
    assert told.hint is not None
    subprocess.run(told.hint.partition(": ")[2], shell=True, check=True)
    check_inputs([str(tmp_path / "in.jsonl")])


@pytest.mark.parametrize(
    ("content", "words", "converted"),
    [
        (json.dumps(OBJECTS).encode(), "is a JSON array", "1 2\n"),
        (json.dumps(OBJECTS[0], indent=1).encode(), "over several lines", "1\n"),
        (COLUMNS, "looks like CSV", "1 2\n"),
        (gzip.compress(GOOD, mtime=0), "is gzip data", "a b\n"),
    ],
)
def test_a_pipe_of_another_format_is_refused_before_its_first_record(
    tmp_path: Path, content: bytes, words: str, converted: str
) -> None:
    said = as_stdin(None, content)
    assert said.startswith("ConfigError stdin ")
    assert words in said
    command = said.partition("pipe it through: ")[2].strip()
    through = subprocess.run(["sh", "-c", command], input=content, capture_output=True, check=True)
    assert as_stdin(None, through.stdout).startswith(converted)


def test_a_refusal_in_a_pipe_behind_other_records_stops_the_run_resumably(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(GOOD)
    with pipe() as (path, into):
        os.write(into, b"[1,2]\n")
        os.close(into)
        with pytest.raises(InputFailed, match="is a JSON array"):
            drained(JsonlSource([str(tmp_path / "in"), path]))


# Identity


def test_a_file_that_only_grew_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(GOOD * 5000)
    old = json.loads(json.dumps(fingerprint(str(path), 150_000)))
    assert (old["head"]["bytes"], old["tail"]["start"], old["tail"]["bytes"]) == (65536, 84464, 65536)
    path.write_bytes(GOOD * 6000)
    assert differs(str(path), old) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(b" " + path.read_bytes()), "changed between byte 0 and byte 65,536"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is shorter than it was"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:140_000] + b"X" * 100_000),
            "changed between byte 84,464",
        ),
        (lambda path: path.unlink(), "is gone"),
        (lambda path: (path.unlink(), path.mkdir()), "is no file any more"),
    ],
)
def test_a_file_that_changed_is_told_in_one_line(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "in"
    path.write_bytes(GOOD * 5000)
    old = fingerprint(str(path), 150_000)
    change(path)
    told = differs(str(path), old)
    assert told is not None
    assert words in told
    assert "\n" not in told


def test_packed_files_have_a_head_only_and_pipes_no_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "in.gz"
    path.write_bytes(gzip.compress(GOOD, mtime=0))
    packed = fingerprint(str(path), 10)
    assert packed["head"]["bytes"] == packed["size"] == path.stat().st_size
    assert packed["tail"] is None
    assert differs(str(path), packed) is None
    assert fingerprint("-", 10) == {"path": "-", "size": None, "head": None, "tail": None}
    assert differs("-", fingerprint("-", 10)) is None
    path.write_bytes(GOOD)
    assert fingerprint(str(path), -1)["tail"]["bytes"] == len(GOOD)
    path.write_bytes(b"")
    assert differs(str(path), fingerprint(str(path), 0)) is None
