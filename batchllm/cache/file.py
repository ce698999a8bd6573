"""The cache file: a SQLite database in WAL mode of answers by digest, safe for several processes.

It blocks, so it is used in a thread, by one at a time. No write holds the file's lock for longer than a group
of answers takes. What makes a file unusable when it is opened is a ConfigError with what to do; later errors
are sqlite3's own and the caller's business.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from batchllm.errors import ConfigError
from batchllm.fields import frozen

Row = tuple[bytes, float, bytes]
"""A digest, when its answer came (Unix seconds), and the answer."""

_OURS = 0x62616C6D
"""SQLite's application_id of a cache file: `balm`."""
_VERSION = 1
PATIENCE = 5.0
"""Seconds that a read or a write waits at most for the other processes."""
_AT_ONCE = 200
"""Answers looked up or written by one statement."""
_REMOVED_AT_ONCE = 500
_FREED_AT_ONCE = 1000
"""Answers removed, and empty pages given back, under one lock."""
_NO_FILES = frozenset({"", "-", ":memory:"})
"""Names that SQLite, or people, take for something else than a file."""
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


@frozen
class Contents:
    """What a cache file holds: `bytes` on disk; `oldest` and `newest` in Unix seconds, None if empty."""

    entries: int
    bytes: int
    oldest: float | None
    newest: float | None


def open_cache(path: str, *, create: bool = True, patience: float = PATIENCE) -> CacheFile:
    """The cache at `path`, made where there is none if `create`; `patience` in seconds.

    Raises ConfigError where it can't be used, and changes nothing in a file of another program.
    """
    if path in _NO_FILES:
        named = f"{path} is" if path else "an empty name is"
        raise ConfigError(f"{named} no file that a cache can be kept in", "name a file: --cache FILE")
    if not create and not Path(path).is_file():
        raise ConfigError(f"there is no cache {path}", "name the file that --cache names")
    try:
        connection = sqlite3.connect(path, patience, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise unusable(path, error) from None
    until = time.monotonic() + patience
    while True:
        try:
            _check(connection, path)
            _prepare(connection)
            return CacheFile(path, connection)
        except sqlite3.Error as error:
            if _code(error) not in _BUSY or time.monotonic() > until:
                connection.close()
                raise unusable(path, error) from None
            time.sleep(0.01)  # SQLite doesn't wait by itself where two processes make the file at once
        except ConfigError:
            connection.close()
            raise


def _check(connection: sqlite3.Connection, path: str) -> None:
    """Raise ConfigError for a database that is none of ours."""
    (whose,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if whose != _OURS and (whose or version or tables):
        raise ConfigError(
            f"{path} is a database of another program, not a cache", "name another file: --cache FILE"
        )
    if whose == _OURS and version != _VERSION:
        raise ConfigError(
            f"the cache {path} was made by another release of batchllm (format {version})",
            "name another file: --cache FILE",
        )


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    with _locked(connection):
        connection.execute(
            "CREATE TABLE IF NOT EXISTS answers"
            " (digest BLOB NOT NULL UNIQUE, created REAL NOT NULL, answer BLOB NOT NULL)"
        )
        connection.execute(f"PRAGMA application_id = {_OURS}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")


@contextmanager
def _locked(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes: all of it or, where it fails, nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def unusable(path: str, error: sqlite3.Error) -> ConfigError:
    """What is wrong with a cache that SQLite gave this error for, and what to do."""
    code = _code(error)
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigError(f"{path} is no cache, or a broken one", "name another one: --cache FILE")
    if code == sqlite3.SQLITE_CORRUPT:
        return ConfigError(f"the cache {path} is damaged", "move it away: the next run makes a new one")
    if code in _BUSY:
        return ConfigError(f"the cache {path} is locked by another process", "try again later")
    return ConfigError(
        f"can't use the cache {path}: {error}",
        "name a file that can be written, on a local disk that isn't full: --cache FILE",
    )


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where the error is Python's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _identity(path: str) -> tuple[int, int] | None:
    """What stays the same of a file for as long as it lies there; None where there is none."""
    try:
        facts = Path(path).stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


class CacheFile:
    """An open cache; made by `open_cache`. Its methods raise sqlite3.Error where the file fails."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._file = _identity(path)

    @property
    def there(self) -> bool:
        """Whether the file is still where it was when it was opened."""
        return _identity(self.path) == self._file

    def find(self, digests: Sequence[bytes], since: float) -> dict[bytes, bytes]:
        """The answers to these that are there and came later than `since`, Unix seconds."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(digests), _AT_ONCE):
            wanted = digests[start : start + _AT_ONCE]
            places = ",".join("?" * len(wanted))
            query = f"SELECT digest, answer FROM answers WHERE digest IN ({places}) AND created > ?"
            found.update(self._connection.execute(query, (*wanted, since)).fetchall())
        return found

    def add(self, rows: Sequence[Row]) -> None:
        """Keep these answers, in the place of others to the same; one commit each 200."""
        for start in range(0, len(rows), _AT_ONCE):
            group = rows[start : start + _AT_ONCE]
            # One statement: each lets go of Python's lock and has to get it back from a busy event loop.
            places = ",".join(["(?,?,?)"] * len(group))
            values = [value for row in group for value in row]
            self._connection.execute(f"INSERT OR REPLACE INTO answers VALUES {places}", values)

    def contents(self) -> Contents:
        """What is in it."""
        query = "SELECT count(*), min(created), max(created) FROM answers"
        entries, oldest, newest = self._connection.execute(query).fetchone()
        files = (Path(self.path), Path(f"{self.path}-wal"))
        size = sum(file.stat().st_size for file in files if file.exists())
        return Contents(entries, size, oldest, newest)

    def prune(self, *, before: float | None = None, most: int | None = None) -> int:
        """Remove what is older than `before` (Unix seconds) and the oldest beyond `most`; how many answers.

        The space goes back to the system. Others may use the file meanwhile.
        """
        removed = 0
        if before is not None:
            removed += self._remove("SELECT rowid FROM answers WHERE created < ?", before)
        if most is not None:
            oldest = "SELECT rowid FROM answers ORDER BY created DESC, rowid DESC LIMIT -1 OFFSET ?"
            removed += self._remove(oldest, most)
        (pages,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        for _ in range(0, pages, _FREED_AT_ONCE):
            # It gives a row of no columns for each page, at the first of which `execute` stops.
            self._connection.executescript(f"PRAGMA incremental_vacuum({_FREED_AT_ONCE})")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return removed

    def _remove(self, query: str, value: float) -> int:
        rows = [row for (row,) in self._connection.execute(query, (value,))]
        removed = 0
        for start in range(0, len(rows), _REMOVED_AT_ONCE):
            group = rows[start : start + _REMOVED_AT_ONCE]
            places = ",".join("?" * len(group))
            removed += self._connection.execute(
                f"DELETE FROM answers WHERE rowid IN ({places})", group
            ).rowcount
        return removed

    def close(self) -> None:
        """Close the file; the last process to do so leaves it as one file."""
        self._connection.close()
