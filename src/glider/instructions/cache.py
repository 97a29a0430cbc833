"""Descriptions and embeddings on disk, by a hash of everything they depend on.

One SQLite file, shared by processes, each write a transaction, so that a kill at any moment leaves it whole. Values are
bytes that the reader checks: nothing in the file can run. Without a usable cache glider works uncached.
"""

import errno
import hashlib
import math
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from glider.config import cache_directory
from glider.errors import GliderWarning
from glider.files.disk import canonical_json

MEGABYTES = 256
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, kind TEXT NOT NULL, value BLOB NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON entries (used);
"""
_FRESH = 3600  # seconds: a use is noted once an hour, so that reading hardly ever writes
_BUSY = 5.0  # seconds to wait for another process
_LONGEST = 1 << 20  # bytes of a value


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds."""

    path: str
    entries: dict[str, int]  # by kind
    bytes: int
    limit: int


def key_of(*parts: Any) -> bytes:
    """The key of a value that depends on these JSON values and on nothing else."""
    return hashlib.sha256(canonical_json(parts).encode("utf8", "surrogatepass")).digest()


class Cache:
    """Bytes by key, least recently used first to go once the file is larger than `megabytes`.

    A file that is no database is replaced; a directory that cannot be written means no cache, with one warning.
    """

    def __init__(self, path: Path | str, megabytes: float = MEGABYTES):
        self.path, self.limit = Path(path), int(megabytes * 1e6)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._off = self.limit <= 0

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of the keys that are present."""
        values: dict[bytes, bytes] = {}
        with self._lock:
            try:
                if (connection := self._open()) is None:
                    return {}
                now, stale = int(time.time()), []
                for key in keys:
                    row = connection.execute("SELECT value, used FROM entries WHERE key = ?", (key,)).fetchone()
                    if row is None or not isinstance(row[0], bytes):
                        continue
                    values[key] = row[0]
                    if not isinstance(row[1], int) or abs(now - row[1]) > _FRESH:
                        stale.append((now, key))
                if stale:
                    with connection:
                        connection.executemany("UPDATE entries SET used = ? WHERE key = ?", stale)
            except (sqlite3.Error, OSError) as fault:
                self._give_up(fault)
        return values

    def put(self, kind: str, values: Mapping[bytes, bytes]) -> None:
        """Store values; one of more than a megabyte is left out."""
        now = int(time.time())
        rows = [(key, kind, value, now) for key, value in values.items() if len(value) <= _LONGEST]
        with self._lock:
            try:
                if not rows or (connection := self._open()) is None:
                    return
                with connection:
                    connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)
                self._shrink(connection)
            except (sqlite3.Error, OSError) as fault:
                self._give_up(fault)

    def info(self) -> CacheInfo:
        """Path, entries by kind, size and limit in bytes; makes no file where there is none."""
        counts: dict[str, int] = {}
        size = 0
        with self._lock:
            try:
                if self.path.exists() and (connection := self._open()) is not None:
                    counts = dict(connection.execute("SELECT kind, count(*) FROM entries GROUP BY kind ORDER BY kind"))
                    size = _size(connection)
            except (sqlite3.Error, OSError) as fault:
                self._give_up(fault)
        return CacheInfo(str(self.path), counts, size, self.limit)

    def clear(self) -> int:
        """Take everything out; returns how many entries there were."""
        with self._lock:
            try:
                if not self.path.exists() or (connection := self._open()) is None:
                    return 0
                with connection:
                    count = connection.execute("DELETE FROM entries").rowcount
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                return count
            except (sqlite3.Error, OSError) as fault:
                self._give_up(fault)
                return 0

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection | None:
        if self._off:
            return None
        if self._connection is None or self._process != os.getpid():  # a connection does not survive a fork
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._connection = self._connect()
            except sqlite3.DatabaseError as fault:
                if isinstance(fault, sqlite3.OperationalError):
                    raise
                self._discard()
                self._connection = self._connect()
            self._process = os.getpid()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        if self.path.exists() and not self.path.is_file():
            raise OSError(errno.EEXIST, "a directory, a pipe or a device is there")
        connection = sqlite3.connect(self.path, timeout=_BUSY, check_same_thread=False)
        try:
            if not self.path.is_symlink():
                with suppress(OSError):
                    self.path.chmod(0o600)  # texts and vectors of a user's queries
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
            connection.execute("SELECT key, kind, value, used FROM entries LIMIT 1")
        except BaseException:
            connection.close()
            raise
        return connection

    def _discard(self) -> None:
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Forget the longest unused entries until nine tenths of the limit are left."""
        while (size := _size(connection)) > self.limit:
            count = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
            if count == 0:
                return
            surplus = max(1, int(count * (1 - 0.9 * self.limit / size)))
            with connection:
                connection.execute(
                    "DELETE FROM entries WHERE key IN (SELECT key FROM entries ORDER BY used LIMIT ?)", (surplus,)
                )

    def _give_up(self, fault: Exception) -> None:
        """Work without the cache from now on. A file that is damaged is removed, so that the next process begins a new
        one."""
        self._off = True
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        damaged = isinstance(fault, sqlite3.DatabaseError) and not isinstance(fault, sqlite3.OperationalError)
        if damaged:
            with suppress(OSError):
                self._discard()
        remedy = "delete the file, or set GLIDER_CACHE to another directory"
        warnings.warn(f"the cache {self.path} is not used: {fault}; {remedy}", GliderWarning, stacklevel=4)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Let others read while one writes.

    SQLite does not wait for another process that makes the same change, whatever the timeout.
    """
    until = time.monotonic() + _BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as fault:
            if "locked" not in str(fault) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def cache() -> Cache:
    """The user's cache: `instructions.sqlite3` in `cache_directory()`, `$GLIDER_CACHE_MB` large (0: none)."""
    try:
        megabytes = float(os.environ.get("GLIDER_CACHE_MB") or MEGABYTES)
    except ValueError:
        megabytes = math.nan
    limit = megabytes if math.isfinite(megabytes) else float(MEGABYTES)
    return _shared(cache_directory() / "instructions.sqlite3", limit)


@lru_cache(maxsize=8)
def _shared(path: Path, megabytes: float) -> Cache:
    return Cache(path, megabytes)


def _size(connection: sqlite3.Connection) -> int:
    """Bytes in use."""
    with closing(connection.cursor()) as cursor:
        pages, free, page = (
            cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * page
