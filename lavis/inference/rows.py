"""Rows of numbers in a file: appended to, and memory-mapped. What an index keeps of its images' vectors."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from lavis.common.files import naming

BLOCK_BYTES = 16 << 20  # of rows that are copied at once


class RowFile:
    """A file of rows of one shape. A torn last row, which a kill has left, does not count.

    Args:
        path: the file.
        kind: NumPy's name of the type of numbers, such as "<f4".
        shape: of a row; without numbers (one is 0) the file has no rows.
    """

    def __init__(self, path: Path, kind: str, *shape: int) -> None:
        self.path, self.kind, self.shape = path, kind, shape
        self.row_bytes = np.dtype(kind).itemsize * math.prod(shape)

    def __len__(self) -> int:
        """
        Raises:
            OSError: there is no such file.
        """
        size = self.path.stat().st_size
        return size // self.row_bytes if self.row_bytes else 0

    def mapped(self) -> np.ndarray:
        """All rows that are there now, (N, *shape)."""
        rows = len(self)
        if not rows:
            return np.zeros((0, *self.shape), dtype=self.kind)
        return np.memmap(self.path, dtype=self.kind, mode="r", shape=(rows, *self.shape))

    def write(self, first: int, rows: np.ndarray) -> None:
        """Write rows from the place `first` on, over whatever is there, and have them on the disk."""
        with naming(self.path), self.path.open("r+b") as f:
            f.seek(first * self.row_bytes)
            f.write(np.ascontiguousarray(rows, dtype=self.kind).tobytes())
            f.flush()
            os.fsync(f.fileno())

    def copy(self, to: Path, which: np.ndarray) -> None:
        """Write the rows `which` to another file, and have it on the disk."""
        rows, each = self.mapped(), max(1, BLOCK_BYTES // max(1, self.row_bytes))
        with to.open("wb") as f:
            for start in range(0, len(which), each):
                f.write(rows[which[start : start + each]].tobytes())
            f.flush()
            os.fsync(f.fileno())
