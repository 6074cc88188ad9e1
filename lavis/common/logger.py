"""Where a run writes: the console, `log.txt` as JSON lines, TensorBoard, and means of running values."""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lavis.common import dist, moved
from lavis.common.files import append_jsonl

__getattr__ = moved.names_of(__name__)

_ROOT = "lavis"
T = TypeVar("T")


def setup_logger(level: int = logging.INFO) -> logging.Logger:
    """Let the library's messages reach the console; ranks other than 0 show warnings only.

    Does nothing to the handlers if the program has set up logging itself. Safe to call again.

    Returns:
        The library's logger.
    """
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level if dist.is_main() else max(level, logging.WARNING))
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
    return logger


def plain(value: Any) -> Any:
    """A value as JSON can hold it: non-finite numbers become null, arrays and tensors plain numbers."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value


def short(record: Mapping[str, Any]) -> str:
    """One line for people: `epoch 0  step 50  loss 2.31  lr 1e-05`."""
    parts = []
    for key, value in record.items():
        if isinstance(value, float):
            parts.append(f"{key} {value:.4g}")
        elif isinstance(value, (int, str)):
            parts.append(f"{key} {value}")
    return "  ".join(parts)


class RunLog:
    """JSON lines in `log.txt`, mirrored to TensorBoard if asked; on ranks other than 0 it writes nothing.

    Args:
        path: the file.
        tensorboard: folder for TensorBoard events, or None.

    Raises:
        ValueError: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        self.path = path
        self._writer: Any = None
        if tensorboard is not None and dist.is_main():
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as e:
                raise ValueError(
                    "run.tensorboard is true and TensorBoard is not installed; "
                    "pip install tensorboard, or set run.tensorboard=false"
                ) from e
            self._writer = SummaryWriter(str(tensorboard))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record: numbers stay numbers; `step`, `split` and `event` label it."""
        if not dist.is_main():
            return
        record = plain(record)
        append_jsonl(self.path, record)
        if self._writer is not None:
            labels = ("step", "split", "event", "epoch")
            for key, value in record.items():
                if key not in labels and isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._writer.add_scalar(f"{record.get('split', 'run')}/{key}", value, record.get("step"))

    def size(self) -> int:
        """Bytes written so far: a checkpoint keeps it, so that a resumed run continues from there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class SmoothedValue:
    """Running statistics of a number: median and mean over a window, mean over everything.

    Args:
        window_size: how many values the window has.
        fmt: how `str` shows it, of `median`, `avg`, `global_avg`, `max` and `value`.
    """

    def __init__(self, window_size: int = 20, fmt: str = "{median:.4f} ({global_avg:.4f})") -> None:
        self.window: deque[float] = deque(maxlen=window_size)
        self.total = 0.0
        self.count = 0
        self.fmt = fmt

    def update(self, value: float, n: int = 1) -> None:
        self.window.append(float(value))
        self.total += float(value) * n
        self.count += n

    def synchronize_between_processes(self) -> None:
        """Take all ranks' values into `global_avg`; the window stays this rank's."""
        parts = dist.all_gather_objects((self.total, self.count))
        self.total, self.count = sum(total for total, _ in parts), sum(count for _, count in parts)

    @property
    def median(self) -> float:
        """Lower median of the window (0 when empty)."""
        values = sorted(self.window)
        return values[(len(values) - 1) // 2] if values else 0.0

    @property
    def avg(self) -> float:
        return sum(self.window) / len(self.window) if self.window else 0.0

    @property
    def global_avg(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def max(self) -> float:
        return max(self.window, default=0.0)

    @property
    def value(self) -> float:
        return self.window[-1] if self.window else 0.0

    def __str__(self) -> str:
        return self.fmt.format(
            median=self.median, avg=self.avg, global_avg=self.global_avg, max=self.max, value=self.value
        )


class MetricLogger:
    """The paper's collection of `SmoothedValue`s, for loops of one's own: `update(loss=…)`, `log_every`, `str(...)`."""

    def __init__(self, delimiter: str = "  ") -> None:
        self.meters: dict[str, SmoothedValue] = {}
        self.delimiter = delimiter

    def add_meter(self, name: str, meter: SmoothedValue) -> None:
        self.meters[name] = meter

    def update(self, **values: Any) -> None:
        for name, value in values.items():
            self.meters.setdefault(name, SmoothedValue()).update(plain(value))

    def log_every(self, iterable: Iterable[T], print_freq: int, header: str = "") -> Iterator[T]:
        """The items of an iterable; every `print_freq`th time a line with the meters goes to the log."""
        for number, item in enumerate(iterable):
            yield item
            if number % print_freq == 0:
                logging.getLogger(_ROOT).info("%s [%d] %s", header, number, self)

    def synchronize_between_processes(self) -> None:
        """Take all ranks' values into the means."""
        for meter in self.meters.values():
            meter.synchronize_between_processes()

    def global_avg(self) -> str:
        return self.delimiter.join(f"{n}: {m.global_avg:.4f}" for n, m in self.meters.items())

    def __getattr__(self, name: str) -> SmoothedValue:
        meters = self.__dict__.get("meters", {})
        if name not in meters:
            raise AttributeError(f"there is no meter {name!r}")
        return meters[name]  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return self.delimiter.join(f"{n}: {m}" for n, m in self.meters.items())
