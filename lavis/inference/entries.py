"""What an index keeps in SQLite: keys of paths, and the listing of what is to be in it.

Paths are stored as the bytes that the system has for them, because not every name is text.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

_LISTED = 10_000  # files that are looked at between two writes of the listing


def key_of(path: Path) -> bytes:
    return os.fsencode(Path(path).absolute())


def path_of(key: bytes) -> Path:
    return Path(os.fsdecode(key))


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as db:
            yield db
            db.commit()
    except sqlite3.DatabaseError as e:
        raise OSError(f"{path} can't be used ({e})") from e


def list_pictures(db: sqlite3.Connection, pictures: Iterable[Path], failed: list[tuple[Path, str]]) -> None:
    """Write what is to be in the index, with sizes and times, into a temporary table."""
    db.execute(
        "CREATE TEMP TABLE listed (number INTEGER PRIMARY KEY, path BLOB UNIQUE, size INTEGER, changed INTEGER)"
    )

    def rows(paths: Iterable[Path]) -> Iterator[tuple[bytes, int, int]]:
        for path in paths:
            try:
                stat = Path(path).stat()
            except OSError as e:
                failed.append((Path(path), f"{path}: {e.strerror}"))
                continue
            yield key_of(path), stat.st_size, stat.st_mtime_ns

    source = iter(pictures)
    while some := list(islice(source, _LISTED)):
        db.executemany("INSERT OR IGNORE INTO listed (path, size, changed) VALUES (?, ?, ?)", rows(some))
    db.commit()


def not_encoded(db: sqlite3.Connection) -> Iterator[Path]:
    """What is to be encoded, in the order of the listing; entries that are added meanwhile don't matter."""
    last = -1
    while True:
        some = db.execute(
            "SELECT number, path FROM listed WHERE number > ? AND path NOT IN (SELECT path FROM entries)"
            " ORDER BY number LIMIT ?",
            (last, _LISTED),
        ).fetchall()
        if not some:
            return
        for number, path in some:
            last = number
            yield path_of(path)
