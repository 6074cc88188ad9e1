"""What an index keeps in SQLite: keys of paths, and the listing of what is to be in it.

Paths are stored as the bytes that the system has for them, because not every name is text.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from lavis.common.files import is_file

_LISTED = 10_000  # files that are looked at between two writes of the listing
_WAIT_S = 600.0  # for a state that another process is reading or writing


def key_of(path: Path) -> bytes:
    return os.fsencode(Path(path).absolute())


def path_of(key: bytes) -> Path:
    if not isinstance(key, bytes | str):
        raise OSError(f"{str(key)[:40]!r} is no path; the index is damaged, build it anew")
    return Path(os.fsdecode(key))


def beneath(root: str) -> tuple[bytes, int]:
    """What the keys of a root's files begin with, and how long that is; of a pattern up to its first wildcard."""
    root = str(Path(root).absolute())
    start = re.split(r"[*?[]", root)[0]
    key = os.fsencode(start)
    if start == root and not is_file(root):
        key = key.rstrip(os.fsencode(os.sep)) + os.fsencode(os.sep)
    return key, len(key)


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """A database to be changed; what is changed counts when this is left without an error.

    Raises:
        OSError: it can't be used.
    """
    try:
        # a search holds its state while it goes through all rows; an update waits for it
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT_S)) as db:
            yield db
            db.commit()
    except sqlite3.Error as e:
        raise OSError(f"{path} can't be used ({e})") from e


@contextlib.contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """The state that a database has now, whatever is written to it until this is left. No file is made.

    Raises:
        OSError: there is none, or it can't be used.
    """
    # mode=rw: unlike ro it can put back what a killed update has left half-written
    address = f"{Path(path).absolute().as_uri()}?mode=rw"
    try:
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=_WAIT_S, isolation_level=None)
        ) as db:
            db.execute("BEGIN")
            db.execute(
                "SELECT count(*) FROM (SELECT 1 FROM entries LIMIT 1)"
            )  # the state is taken at the first look
            yield db
    except sqlite3.Error as e:
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
            "SELECT number, path FROM listed WHERE number > ? AND NOT EXISTS (SELECT 1 FROM entries WHERE"
            " entries.path = listed.path AND entries.size = listed.size AND entries.changed = listed.changed)"
            " ORDER BY number LIMIT ?",
            (last, _LISTED),
        ).fetchall()
        if not some:
            return
        for number, path in some:
            last = number
            yield path_of(path)
