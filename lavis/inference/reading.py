"""Pictures or clips of files, decoded and prepared in threads while the model works on those before."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

AHEAD = 2  # batches that are being read while one is used
Read = tuple[Path, Any]


def read_batches(
    paths: Iterable[Path], read: Callable[[Path], Any], size: int, threads: int | None = None
) -> Iterator[list[Read]]:
    """Read files in batches and in order.

    Args:
        paths: the files; only as many are taken as are being read.
        read: what is done with each in its thread, such as `Loaded.read`.
        size: files of a batch.
        threads: how many decode at once; None: as many as there are processors, 2 to 8.

    Yields:
        (path, what `read` gave, or the OSError or ValueError with which it could not be read) of each file.
    """
    if size < 1:
        raise ValueError(f"a batch of {size} files was asked for; it must have 1 or more")
    threads = threads or max(2, min(8, os.cpu_count() or 1))

    def attempt(path: Path) -> Any:
        try:
            return read(path)
        except (OSError, ValueError) as e:
            return e

    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-media")
    try:
        waiting: deque[list[tuple[Path, Future[Any]]]] = deque()
        source = iter(paths)
        while True:
            while len(waiting) <= AHEAD:
                part = [(path, pool.submit(attempt, path)) for path in islice(source, size)]
                if not part:
                    break
                waiting.append(part)
            if not waiting:
                return
            yield [(path, job.result()) for path, job in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)  # also where the reader of this has had enough
