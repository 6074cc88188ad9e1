"""Work on several threads that Ctrl-C ends at once, and one line that shows how far all of it is.

`concurrent.futures` waits for its threads when Python ends; a download that hangs would keep the terminal.
These threads are daemons, and whatever they do can be cut at any point.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class StoppedError(Exception):
    """Raised inside a thread to end it, once the whole work is given up."""


def run_parallel(
    work: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    stop: threading.Event,
    failures: tuple[type[Exception], ...] = (OSError, ValueError),
) -> list[R | Exception]:
    """Do some pieces of work on threads.

    Args:
        work: called with each item.
        items: the pieces, in the order in which they are begun.
        workers: threads.
        stop: set when the work is given up; `work` should then raise `StoppedError` soon.
        failures: what counts as the failure of one piece. Anything else ends all of it.

    Returns:
        A result or a failure per item, in their order.

    Raises:
        KeyboardInterrupt: passed on, after `stop` was set.
    """
    items = list(items)
    waiting: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | BaseException]] = queue.SimpleQueue()
    for pair in enumerate(items):
        waiting.put(pair)

    def worker() -> None:
        while not stop.is_set():
            try:
                number, item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, work(item)))
            except BaseException as e:  # noqa: BLE001 (raised again by the caller's thread)
                done.put((number, e))

    for _ in range(min(workers, len(items))):
        threading.Thread(target=worker, daemon=True).start()
    results: dict[int, R | Exception] = {}
    try:
        while len(results) < len(items):
            try:
                number, result = done.get(timeout=0.2)  # a wait without limit hears no Ctrl-C everywhere
            except queue.Empty:
                continue
            if isinstance(result, BaseException) and not isinstance(result, failures):
                raise result
            results[number] = result
    finally:
        stop.set()
    return [results[number] for number in range(len(items))]


class Board:
    """One progress line for work on many threads; where there is no terminal it shows nothing.

    Args:
        title: what is done.
        total: units in all, None if unknown.
        unit: "B" is shown with prefixes.
        show: False never shows anything.
    """

    def __init__(self, title: str, total: int | None, unit: str, show: bool = True) -> None:
        self._bar: Any = None
        self._guard = threading.Lock()
        self._done: dict[str, int] = {}
        self._words, self._said = "", 0.0  # the last ones, and when
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=title, total=total, unit=unit, unit_scale=unit == "B", file=sys.stderr)

    @property
    def shown(self) -> bool:
        """Whether there is a line; other words would run into it."""
        return self._bar is not None

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def at(self, task: str, done: int) -> None:
        """A task is at so many units (it may have gone back, when a transfer began anew)."""
        with self._guard:
            step = done - self._done.get(task, 0)
            self._done[task] = done
            if self._bar is not None:
                self._bar.update(step)

    def expect(self, total: int) -> None:
        """The total has become known, or larger."""
        with self._guard:
            if self._bar is not None:
                self._bar.total = total

    def say(self, what: str) -> None:
        """A few words behind the figures; however often it is called, the line is drawn ten times a second at most."""
        with self._guard:
            if self._bar is not None and what != self._words and time.monotonic() - self._said > 0.1:
                self._words, self._said = what, time.monotonic()
                self._bar.set_postfix_str(what)
