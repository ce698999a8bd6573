from __future__ import annotations

import gzip
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchllm.model import Dead, Position, Record
from batchllm.sources import JsonlSource
from batchllm.sources.splitting import KEPT_BYTES, Lines

MAX_LINE = 60
BOM = b"\xef\xbb\xbf"

objects = st.fixed_dictionaries(
    {"n": st.integers(-9, 9)}, optional={"id": st.none() | st.integers(0, 3), "text": st.text(max_size=5)}
).map(orjson.dumps)
lines = st.one_of(
    objects,
    objects.map(lambda line: b" \t" + line + b"  "),
    st.sampled_from([b"", b" ", b"\t \r", b"\r"]),
    st.sampled_from([b"nonsense", b'{"cut": ', b'"words"', b"17", b"[1]", b"\xff\xfe", b'{"a":"\x00"}', BOM]),
    st.integers(MAX_LINE - 12, MAX_LINE + 8).map(lambda n: b'{"x":"' + b"x" * n + b'"}'),
)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """One file: any lines with either line end, maybe a byte-order mark, maybe without a last line end."""
    parts = [draw(lines) + draw(st.sampled_from([b"\n", b"\r\n"])) for _ in range(draw(st.integers(0, 12)))]
    last = draw(st.just(b"") | lines)
    return draw(st.sampled_from([b"", BOM])) + b"".join(parts) + last


@dataclass(frozen=True)
class Seen:
    seq: int
    id: object
    line: bytes
    cause: str | None


def naive(files: list[tuple[str, bytes]]) -> tuple[list[Seen], tuple[str, int] | None]:
    """What the contract says of these inputs, with everything in memory at once."""
    seen: list[Seen] = []
    for name, content in files:
        physical = content.removeprefix(BOM).split(b"\n")
        for number, raw in enumerate(physical, 1):
            line = raw.removesuffix(b"\r")
            if not line.strip():
                continue
            fallback = f"line-{number}" if len(files) == 1 else f"{Path(name).name}:line-{number}"
            cause, id = naive_verdict(line, fallback)
            if number == len(physical) and cause not in (None, "not_an_object"):
                return seen, (name, number)
            seen.append(Seen(len(seen), id, line if cause else line.strip(), cause))
    return seen, None


def naive_verdict(line: bytes, fallback: str) -> tuple[str | None, object]:
    if len(line) > MAX_LINE:
        return "line_too_long", fallback
    try:
        value = orjson.loads(line.decode().strip())
    except UnicodeDecodeError:
        return "not_utf8", fallback
    except orjson.JSONDecodeError:
        return "not_json", fallback
    if not isinstance(value, dict):
        return "not_an_object", fallback
    id = value.get("id")
    return None, fallback if id is None else id


def view(item: Record | Dead) -> Seen:
    if isinstance(item, Record):
        assert item.data == orjson.loads(item.line)
        return Seen(item.seq, item.id, item.line, None)
    assert item.record.data is None
    return Seen(item.record.seq, item.record.id, item.record.line, item.error.cause)


async def drain(source: JsonlSource) -> list[Seen]:
    return [view(item) async for chunk in source.chunks() for item in chunk]


def sourced(paths: list[str], start: Position, block_bytes: int) -> JsonlSource:
    return JsonlSource(
        paths, max_line=MAX_LINE, input_format="records", start=start, block_bytes=block_bytes, mark_records=2
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(contents(), st.booleans()), min_size=1, max_size=3),
    st.sampled_from([16, 64, 1000, 2**20]),
)
def test_records_and_every_resume_from_a_place_equal_a_naive_reading(
    inputs: list[tuple[bytes, bool]], block_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths: list[str] = []
        for number, (content, packed) in enumerate(inputs):
            path = Path(folder, f"in-{number}.jsonl")
            path.write_bytes(gzip.compress(content, 1) if packed else content)
            paths.append(str(path))
        expected, unfinished = naive(list(zip(paths, (content for content, _ in inputs), strict=True)))

        async def main() -> None:
            source = sourced(paths, Position(), block_bytes)
            assert await drain(source) == expected
            assert (source.unfinished, source.records, source.ended) == (unfinished, len(expected), True)
            places = [source.position(seq) for seq in range(len(expected) + 1)]
            assert all(place.seq <= seq < place.seq + 3 for seq, place in enumerate(places))
            for place in set(places):
                rest = sourced(paths, place, block_bytes)
                assert await drain(rest) == expected[place.seq :]
                assert rest.unfinished == unfinished
                assert rest.position(len(expected)) == places[-1]

        anyio.run(main)


@settings(max_examples=40, deadline=None)
@given(contents(), st.lists(st.integers(1, 40), min_size=1))
@example(b"\n\xef\xbb\xbf\n[1]\n", [1])
@example(b"\xef\xbb\xbf\xef\xbb\xbf\n\n[1]\n", [1])
def test_a_pipe_gives_the_same_records_however_its_bytes_come(content: bytes, sizes: list[int]) -> None:
    first = content.removeprefix(BOM).lstrip()
    if first.replace(BOM, b"").lstrip()[:1] in (b"[", b"\xff"):
        return  # refused as a whole, whatever marks of byte order stand before it
    out, into = os.pipe()
    path = f"/dev/fd/{out}"
    expected, unfinished = naive([(path, content)])

    def write() -> None:
        at = 0
        for size in itertools.cycle(sizes):
            if at >= len(content):
                break
            os.write(into, content[at : at + size])
            at += size
        os.close(into)

    async def main() -> None:
        writer = threading.Thread(target=write)
        writer.start()
        source = sourced([path], Position(), 2**20)
        assert await drain(source) == expected
        assert source.unfinished == unfinished
        writer.join()

    anyio.run(main)
    os.close(out)


def split(content: bytes, borders: list[int], max_line: int) -> Iterator[tuple[bytes, int, int, bool, bool]]:
    lines = Lines(max_line)
    cuts = [0, *sorted(border % (len(content) + 1) for border in borders), len(content)]
    for start, end in itertools.pairwise(cuts):
        lines.feed(content[start:end])
        while (line := lines.next()) is not None:
            yield line.data, line.number, line.start, line.whole, line.too_long
    lines.finish()
    if (line := lines.next()) is not None:
        yield line.data, line.number, line.start, line.whole, line.too_long


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 30) | st.integers(KEPT_BYTES - 5, KEPT_BYTES + 9), max_size=5),
    st.lists(st.integers(0, 10**6), max_size=12),
    st.integers(0, 10**6),
    st.sampled_from([10, KEPT_BYTES - 2, KEPT_BYTES + 2]),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_borders_of_blocks_never_show_in_the_lines(
    sizes: list[int], borders: list[int], back: int, max_line: int, line_end: bytes
) -> None:
    content = line_end.join(b"y" * size for size in sizes)
    found = list(split(content, borders, max_line))
    assert found == list(split(content, [], max_line))
    bare = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    if bare[-1] == b"":
        bare.pop()
    assert [data for data, *_ in found] == [
        line[:KEPT_BYTES] if len(line) > max_line else line for line in bare
    ]
    assert [too_long for *_, too_long in found] == [len(line) > max_line for line in bare]
