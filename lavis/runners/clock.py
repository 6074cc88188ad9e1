"""The time of a run, and the speed that its log lines show."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lavis.runners.state import Progress


class Clock:
    """Counts a run's time into `progress.seconds`, and measures the stretch since the last log line.

    Args:
        progress: of the run. batch_size: samples of a global batch.
    """

    def __init__(self, progress: Progress, batch_size: int) -> None:
        self.progress, self.batch_size = progress, batch_size
        self._now = time.perf_counter()
        self.restart()

    def tick(self) -> None:
        """Count the time since the last call towards the run."""
        now = time.perf_counter()
        self.progress.seconds += now - self._now
        self._now = now

    def restart(self) -> None:
        """Begin a stretch: it is `tick`, too."""
        self.tick()
        self._since, self._waited, self._batches = self._now, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before
        self._batches += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what takes time of the run and is not training, such as saving: speed leaves it out."""
        before = self._now
        yield
        self.tick()
        self._since += self._now - before

    def pace(self) -> dict[str, float]:
        """Speed and share of time spent waiting for data, of the stretch up to the last tick."""
        seconds = max(self._now - self._since, 1e-9)
        return {
            "samples_per_second": self._batches * self.batch_size / seconds,
            "data_wait_fraction": self._waited / seconds,
        }
