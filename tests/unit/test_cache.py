"""The cache file and its store: what is kept is found by all, and what is wrong with a file is said."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchllm.cache import CacheFile, Store, open_cache
from batchllm.errors import ConfigError

A, B, C = (bytes([n]) * 20 for n in range(3))
EVER = -1.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "answers.cache")


@contextlib.contextmanager
def opened(path: str, **more: Any) -> Iterator[CacheFile]:
    cache = open_cache(path, **more)
    try:
        yield cache
    finally:
        cache.close()


def test_what_one_keeps_all_others_find_and_the_last_one_leaves_one_file(path: str) -> None:
    with opened(path) as one, opened(path) as other:
        one.add([(A, 10.0, b"old"), (B, 11.0, b"b")])
        other.add([(A, 12.0, b"new")])
        assert one.find([A, B, C], EVER) == {A: b"new", B: b"b"}
    with opened(path) as again:
        assert again.find([A], EVER) == {A: b"new"}
    assert [file.name for file in Path(path).parent.iterdir()] == ["answers.cache"]


def test_an_answer_that_is_too_old_is_not_found(path: str) -> None:
    with opened(path) as cache:
        cache.add([(A, 10.0, b"a"), (B, 20.0, b"b")])
        assert cache.find([A, B], 10.0) == {B: b"b"}


def test_many_are_kept_and_found_at_once(path: str) -> None:
    digests = [n.to_bytes(20, "big") for n in range(1_001)]
    with opened(path) as cache:
        cache.add([(digest, 1.0, digest) for digest in digests])
        assert cache.find(digests, EVER) == {digest: digest for digest in digests}


def test_pruning_removes_the_oldest_and_gives_the_space_back(path: str) -> None:
    rows = [(n.to_bytes(20, "big"), float(n), b"x" * 5_000) for n in range(1_000)]
    with opened(path) as cache, opened(path) as other:
        cache.add(rows)
        full = cache.contents()
        assert cache.prune(before=100.0) == 100
        assert other.prune(most=10) == 890
        assert cache.prune(before=0.0, most=10) == 0
        left = cache.contents()
    assert (full.entries, full.oldest, full.newest) == (1_000, 0.0, 999.0)
    assert (left.entries, left.oldest, left.newest) == (10, 990.0, 999.0)
    assert full.bytes > 5_000_000
    assert Path(path).stat().st_size < 200_000


def another_program(path: str, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def refusal(path: str, **more: Any) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        open_cache(path, **more)
    assert raised.value.hint
    return raised.value


def test_a_file_that_is_none_of_ours_is_refused_and_left_as_it_is(path: str) -> None:
    Path(path).write_bytes(b'{"id": 1, "text": "a record"}\n' * 50)
    before = Path(path).read_bytes()
    assert "is no cache" in refusal(path).message
    assert Path(path).read_bytes() == before

    Path(path).unlink()
    another_program(path, "CREATE TABLE theirs (a)")
    before = Path(path).read_bytes()
    assert "another program" in refusal(path).message
    assert Path(path).read_bytes() == before


def test_a_file_of_another_release_or_that_is_damaged_is_refused(path: str) -> None:
    with opened(path) as cache:
        cache.add([(n.to_bytes(20, "big"), 1.0, b"x" * 500) for n in range(100)])
    whole = Path(path).read_bytes()

    another_program(path, "PRAGMA user_version = 99")
    assert "another release" in refusal(path).message

    Path(path).write_bytes(whole[:100] + b"\x55" * (len(whole) - 100))
    assert "damaged" in refusal(path).message


def test_a_file_that_can_not_be_made_or_is_not_there_is_refused(tmp_path: Path, path: str) -> None:
    assert "can't use the cache" in refusal(str(tmp_path)).message
    assert "can't use the cache" in refusal(str(tmp_path / "no" / "cache")).message
    assert "there is no cache" in refusal(path, create=False).message
    assert not Path(path).exists()


@pytest.mark.parametrize("name", ["", "-", ":memory:"])
def test_a_name_that_is_no_file_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no file" in refusal(name).message
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Another process that writes for a long time."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def test_a_file_that_stays_locked_is_refused(path: str) -> None:
    with opened(path):
        pass
    with locked(path):
        assert "locked by another process" in refusal(path, patience=0.05).message


class Counting(CacheFile):
    """A cache file that tells how it was used."""

    def __init__(self, file: CacheFile) -> None:
        super().__init__(file.path, file._connection)
        self.lookups: list[int] = []
        self.groups: list[int] = []

    def find(self, digests: Sequence[bytes], since: float) -> dict[bytes, bytes]:
        self.lookups.append(len(digests))
        return super().find(digests, since)

    def add(self, rows: Sequence[tuple[bytes, float, bytes]]) -> None:
        self.groups.append(len(rows))
        super().add(rows)


def run(store: Store, *calls: Any) -> None:
    """Run coroutine functions together, over a store that works."""

    async def main() -> None:
        try:
            async with anyio.create_task_group() as working:
                working.start_soon(store.work)
                async with anyio.create_task_group() as tasks:
                    for call in calls:
                        tasks.start_soon(call)
                working.cancel_scope.cancel()
        finally:
            await store.close()

    anyio.run(main)


def test_look_ups_of_one_turn_go_together_and_answers_are_written_in_one_group(path: str) -> None:
    file = Counting(open_cache(path))
    file.add([(A, 1e12, b"a")])
    store, found = Store(file, None), list[bytes | None]()

    async def look(digest: bytes) -> None:
        found.append(await store.find(digest))
        store.keep(digest, b"new")

    run(store, *[partial(look, digest) for digest in (A, B, C)])

    assert found == [b"a", None, None]
    assert (file.lookups, file.groups) == ([3], [1, 3])
    with opened(path) as cache:
        assert cache.find([A, B, C], EVER) == dict.fromkeys([A, B, C], b"new")


def test_an_answer_is_found_before_it_is_written_and_written_before_the_end(path: str) -> None:
    store = Store(open_cache(path), None)

    async def use() -> None:
        store.keep(A, b"a")
        assert await store.find(A) == b"a"
        with opened(path) as other:
            while not other.find([A], EVER):
                await anyio.sleep(0.01)
        assert await store.find(A) == b"a"

    run(store, use)


def test_an_answer_is_good_for_its_time_to_live(path: str) -> None:
    now = [1_000.0]
    file = open_cache(path)
    file.add([(A, 950.0, b"a")])
    store = Store(file, 60.0, now=lambda: now[0])

    async def use() -> None:
        assert await store.find(A) == b"a"
        now[0] = 1_011.0
        assert await store.find(A) is None

    run(store, use)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "batchllm"]


def test_a_disk_that_is_full_is_said_once_and_what_is_kept_is_still_found(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = open_cache(path)
    file.add([(A, 1e12, b"a")])
    file._connection.execute("PRAGMA max_page_count = 1")
    store = Store(file, None)

    async def use() -> None:
        store.keep(B, b"x" * 2_000_000)
        while not said(caplog):
            await anyio.sleep(0.01)
        store.keep(C, b"x" * 2_000_000)
        assert await store.find(A) == b"a"
        assert await store.find(C) is None

    run(store, use)
    assert len(said(caplog)) == 1
    assert "can't be written" in said(caplog)[0]


def test_a_file_that_fails_in_the_middle_is_said_once_and_nothing_more_is_found(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = open_cache(path)
    file.add([(A, 1e12, b"a")])
    store = Store(file, None)

    async def use() -> None:
        assert await store.find(A) == b"a"
        another_program(path, "DROP TABLE answers")
        assert await store.find(A) is None
        store.keep(B, b"b")
        assert await store.find(B) is None

    run(store, use)
    assert len(said(caplog)) == 1
    assert "the run goes on without" in said(caplog)[0]


def test_a_file_that_is_locked_for_long_is_said_and_the_run_goes_on(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = Store(open_cache(path, patience=0.05), None)

    async def use() -> None:
        store.keep(A, b"a")

    with locked(path):
        run(store, use)
    assert len(said(caplog)) == 1
    assert "locked" in said(caplog)[0]


@pytest.mark.parametrize("instead", [False, True])
def test_a_file_that_is_removed_meanwhile_is_said_once(
    path: str, instead: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = Store(open_cache(path), None)

    async def use() -> None:
        Path(path).unlink()
        if instead:
            Path(path).touch()
        store.keep(A, b"a")
        while not said(caplog):
            await anyio.sleep(0.01)
        store.keep(B, b"b")

    run(store, use)
    assert len(said(caplog)) == 1
    assert "moved or removed" in said(caplog)[0]


def test_damage_behind_the_first_pages_is_said_once_it_is_met(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    digests = [n.to_bytes(20, "big") for n in range(200)]
    with opened(path) as cache:
        cache.add([(digest, 1e12, b"x" * 500) for digest in digests])
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:20_480] + b"\x55" * (len(whole) - 20_480))
    store = Store(open_cache(path), None)

    async def use() -> None:
        assert [await store.find(digest) for digest in digests][-1] is None

    run(store, use)
    assert len(said(caplog)) == 1
    assert "can't be read" in said(caplog)[0]
