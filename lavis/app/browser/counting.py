"""What takes longer than a page may: which files are missing, and how large the pictures are.

Both are looked at once, in the background, when somebody asks for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from lavis.app.browser.index import Index
from lavis.app.browser.media import inside
from lavis.common.images import UnreadableMediaError, image_size
from lavis.datasets.checking import missing_of, scan

SAMPLE = 1000  # pictures that are measured
T = TypeVar("T")


class Later(Generic[T]):
    """A result that is worked out in the background from the first look at it.

    Attributes:
        failed: what went wrong, "" if nothing has.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: T | None = None
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self.failed = ""

    def look(self) -> T | None:
        """The result, None while it isn't there."""
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
        return self._result

    def wait(self, seconds: float | None = None) -> T | None:
        """The result; None if it isn't there after some seconds."""
        self.look()
        assert self._thread is not None
        self._thread.join(seconds)
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except (OSError, ValueError) as e:
            self.failed = str(e)


@dataclass(frozen=True)
class Files:
    """Attributes: missing: (N,) whether a record lacks a picture or clip. absent, named: files that aren't there, and
    all that records name. examples: some that aren't there."""

    missing: np.ndarray
    absent: int
    named: int
    examples: tuple[str, ...]


def count_files(index: Index, root: Path | None) -> Files:
    """Look for the files that records name."""
    missing = np.zeros(index.count, dtype=bool)
    if root is None:
        return Files(missing, 0, 0, ())
    there = scan(root) if root.is_dir() else set()
    known: dict[str, bool] = {}  # whether a file is absent
    for position, names in index.media():
        for name in names.split("\n") if names else ():
            if name not in known:
                known[name] = inside(root, name) is None or bool(missing_of([name], root, there))
            if known[name]:
                missing[position] = True
    absent = [name for name, lost in known.items() if lost]
    return Files(missing, len(absent), len(known), tuple(absent[:10]))


@dataclass(frozen=True)
class Sizes:
    """Attributes: widths, heights: (M,) pixels of the sample. unreadable: files of the sample that are no pictures."""

    widths: np.ndarray
    heights: np.ndarray
    unreadable: int


def measure_pictures(index: Index, root: Path | None, seed: int = 0) -> Sizes:
    """Width and height of a sample of the pictures that are there, from the beginning of their files."""
    sizes: list[tuple[int, int]] = []
    unreadable = 0
    if root is not None and root.is_dir():
        rng = np.random.default_rng(seed)
        places = np.unique(rng.integers(0, max(index.count, 1), min(4 * SAMPLE, 4 * index.count)))
        names: dict[str, None] = {}
        for start in range(0, len(places), 500):
            part = [int(p) for p in places[start : start + 500]]
            marks = ",".join("?" * len(part))
            for (found,) in index.rows(f"SELECT media FROM items WHERE position IN ({marks})", part):
                names.update(dict.fromkeys(found.split("\n") if found else ()))
        listed = list(names)
        for number in rng.permutation(len(listed)):
            path = inside(root, listed[number]) if len(sizes) + unreadable < SAMPLE else None
            if path is None or not path.is_file():
                continue
            try:
                sizes.append(image_size(path))
            except UnreadableMediaError:
                unreadable += 1
    array = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return Sizes(array[:, 0], array[:, 1], unreadable)
