"""Which samples make up which batch, and the loaders that workers fill.

The order is a function of (seed, pass over the data); the random choices of a sample (augmentation,
which caption) a function of (seed, pass, sample). Neither knows ranks or workers: global batch k is the
k-th slice of the pass's permutation, and each rank takes its part of it. So N ranks train on the batches
that one rank with N times the batch size would see, and a run can start anywhere.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from lavis.common import dist
from lavis.common.device import to_device
from lavis.common.registry import registry
from lavis.datasets.base import UnreadableMediaError
from lavis.runners.skipped import Broken, Skipped, candidates, skips

Key = tuple[int, int, int]  # (pass, data set, sample)

# first entries of seeds, so that no two kinds of stream ever share numbers
_ORDER, _MIX, _SAMPLE, _EVAL, _GLOBAL, _BATCH = range(6)


def stream(*numbers: int) -> np.random.Generator:
    """An independent random stream for a tuple of numbers (each 0 or more)."""
    key = np.random.SeedSequence(numbers).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


class Order:
    """The training order.

    Args:
        sizes: number of samples of each data set.
        batch: size of a global batch, over all ranks.
        seed: of the run.
        ratios: how often each data set gives a batch, which then holds samples of this set only. None
            concatenates the sets: a batch mixes them in proportion to their sizes.

    Raises:
        ValueError: there are fewer samples than one batch needs.
    """

    def __init__(
        self, sizes: Sequence[int], batch: int, seed: int, ratios: Sequence[float] | None = None
    ) -> None:
        self.sizes, self.batch_size, self.seed = list(sizes), batch, seed
        self.ratios = None if ratios is None else np.asarray(ratios, dtype=float) / sum(ratios)
        smallest = min(self.sizes) if ratios is not None else sum(self.sizes)
        if smallest < batch:
            raise ValueError(
                f"a training set has {smallest} samples, fewer than one global batch of {batch} "
                "(run.batch_size_train times the number of processes); lower run.batch_size_train"
            )
        self._ends = np.cumsum(self.sizes)
        # an incomplete last batch is left out; the permutation of the next pass mixes its samples in again
        self.batches_per_pass = (
            sum(self.sizes) // batch if ratios is None else sum(size // batch for size in self.sizes)
        )
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}
        self._mix: tuple[int, np.ndarray] | None = None

    def _permutation(self, which: int, pass_: int, size: int) -> np.ndarray:
        cached = self._permutations.get(which)
        if cached is None or cached[0] != pass_:
            cached = (pass_, stream(_ORDER, self.seed, which, pass_).permutation(size))
            self._permutations[which] = cached
        return cached[1]

    def _choices(self, pass_: int) -> np.ndarray:
        if self._mix is None or self._mix[0] != pass_:
            chosen = stream(_MIX, self.seed, pass_).choice(
                len(self.sizes), self.batches_per_pass, p=self.ratios
            )
            self._mix = (pass_, chosen)
        return self._mix[1]

    def batch(self, k: int) -> list[Key]:
        """The samples of global batch k (counted from 0 over the whole run), in order."""
        pass_, slot = divmod(k, self.batches_per_pass)
        if self.ratios is None:
            part = self._permutation(0, pass_, sum(self.sizes))[slot * self.batch_size :][: self.batch_size]
            sets = np.searchsorted(self._ends, part, side="right")
            starts = self._ends - np.asarray(self.sizes)
            return [(pass_, int(s), int(i - starts[s])) for s, i in zip(sets, part)]
        which = int(self._choices(pass_)[slot])
        # A small set may go round several times within one pass of the mixture. Each pass may use up to
        # `rounds` of them, so numbering from pass_ * rounds keeps them apart without looking back.
        per_round = self.sizes[which] // self.batch_size
        rounds = -(-self.batches_per_pass // per_round)
        nth = int(np.count_nonzero(self._choices(pass_)[:slot] == which))
        round_ = pass_ * rounds + nth // per_round
        start = (nth % per_round) * self.batch_size
        part = self._permutation(which, round_, self.sizes[which])[start : start + self.batch_size]
        return [(round_, which, int(i)) for i in part]


class Loaded(NamedTuple):
    """What a loader's worker makes of a batch's keys.

    Attributes:
        indices: the samples of the batch. batch: joined by their data set, None if there is none left.
        broken: the unreadable samples met. lost: how many of the batch are missing because of them.
        refused: why the batch can't be encoded; for the main process to say, whose errors people read.
    """

    indices: list[int]
    batch: Any
    broken: list[Broken]
    lost: int
    refused: str | None = None


class Item(NamedTuple):
    """A sample of a data set: its content, None if it is `broken`, as are those that it was to be replaced by."""

    which: int  # data set
    place: int  # in it
    content: Any
    broken: list[Broken]
    pass_: int


# What a loader's worker makes of a joined batch: its texts as tokens, see `lavis.models.base.BaseModel.batch_encoder`.
Encoder = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside, the global streams of random, numpy and torch are those of a tuple of numbers; after it, as before.

    For processors and data sets that take no stream: theirs would depend on rank and worker, not on the seed.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence((_GLOBAL, *numbers)).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _draws_globally(dataset: Any) -> bool:
    """Whether a data set, or a processor of it, is somebody else's and may draw from the global streams."""
    parts = [dataset, getattr(dataset, "vis_processor", None), getattr(dataset, "text_processor", None)]
    return any(part is not None and not type(part).__module__.startswith("lavis.") for part in parts)


class Samples(TorchDataset[Any]):
    """Several data sets behind keys (pass, set, sample): what a worker process holds.

    Unreadable samples are handed over, not raised: see `lavis.runners.skipped`.

    Args:
        encode: of batches that are dicts, after their data set has joined them. What it draws from the global streams
            depends on seed, pass and first sample, not on the worker.
    """

    def __init__(
        self, datasets: Sequence[Any], seed: int, kind: int = _SAMPLE, encode: Encoder | None = None
    ) -> None:
        self.datasets, self.seed, self.kind, self.encode = list(datasets), seed, kind, encode

    def __getitem__(self, key: Key) -> Item:
        pass_, which, index = key
        dataset = self.datasets[which]
        numbers = (self.kind, self.seed, pass_, which, index)
        own = getattr(dataset, "sample", None)
        if own is None:  # any torch data set will do
            with seeded(*numbers):
                return Item(which, index, dataset[index], [], pass_)
        replace = self.kind == _SAMPLE and skips(dataset)
        broken = []
        for i in candidates(len(dataset), index) if replace else [index]:
            try:
                with seeded(*numbers) if _draws_globally(dataset) else contextlib.nullcontext():
                    content = own(i, stream(*numbers))
            except UnreadableMediaError as e:
                broken.append(Broken(which, i, e))
            else:
                return Item(which, index, content, broken, pass_)
        return Item(which, index, None, broken, pass_)

    def collate(self, items: list[Item]) -> Loaded:
        """A batch, joined by the `collater` of the first sample's data set."""
        broken = [b for item in items for b in item.broken]
        kept = [item for item in items if item.content is not None or not item.broken]
        if not kept:
            return Loaded([], None, broken, len(items))
        first = kept[0]
        collater = getattr(self.datasets[first.which], "collater", torch.utils.data.default_collate)
        loaded = Loaded(
            [item.place for item in kept],
            collater([item.content for item in kept]),
            broken,
            len(items) - len(kept),
        )
        if self.encode is None or not isinstance(loaded.batch, dict):
            return loaded
        try:
            with seeded(_BATCH, self.seed, first.pass_, first.which, first.place):
                return loaded._replace(batch=self.encode(loaded.batch))
        except ValueError as e:
            return loaded._replace(batch=None, refused=str(e))


class _Leaving:
    """Tells loaders' workers whether their main process is ending; what `DataLoader` calls in each of them.

    Batch systems, torchrun and a terminal's Ctrl-C send their signals to every process of a run. The main process
    alone decides when to stop, and needs its workers until then. But at its exit multiprocessing ends them by
    SIGTERM, and then they have to go.
    """

    def __init__(self) -> None:
        self._flag = multiprocessing.RawValue(ctypes.c_bool, False)
        atexit.register(self._set)  # runs before multiprocessing's own, which was registered earlier

    def _set(self) -> None:
        self._flag.value = True

    def close(self) -> None:
        atexit.unregister(self._set)
        self._set()

    def __call__(self, _: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        # torch's own watchdog misses a parent that dies while the worker starts: the worker would stay for ever
        parent = multiprocessing.parent_process()
        if parent is not None:
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def _terminated(self, signum: int, frame: Any) -> None:
        if self._flag.value:
            os._exit(128 + signum)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


_FEW = 512  # samples that are prepared before processes for it would have started
_MOST = 8
_SHARED = 1 << 30  # bytes of /dev/shm, through which batches pass; containers often have 64 MiB


def workers(given: int | None, samples: int) -> int:
    """How many processes prepare samples.

    Args:
        given: `run.num_workers`; None leaves it to the machine: one per core of this rank, up to 8.
        samples: that are to be prepared; a few are not worth a process. None of this changes a sample.
    """
    if given is not None:
        return given
    # a process that is started, not forked, runs the main script again: only a command's is known to bear that
    safe = multiprocessing.get_start_method() == "fork" or registry.get("command", False)
    if samples < _FEW or not safe or not _has_shared_memory():
        return 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST, _cores() // ranks)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _has_shared_memory() -> bool:
    try:
        return shutil.disk_usage("/dev/shm").free >= _SHARED
    except OSError:  # other systems have no such folder, nor such a limit
        return True


class _Range:
    """Batch sampler over this rank's part of global batches start … end - 1."""

    def __init__(self, order: Order) -> None:
        self.order, self.start, self.end = order, 0, 0

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        rank, world = dist.rank(), dist.world_size()
        size = self.order.batch_size // world
        for k in range(self.start, self.end):
            yield self.order.batch(k)[rank * size : (rank + 1) * size]


class TrainLoader:
    """Batches of a training run, from any position; workers live as long as this object.

    Args:
        datasets: the training sets. order: their order. seed: of the run.
        num_workers: processes that prepare samples; 0 prepares them in the main process, None see `workers`.
        iterations: of the run. device: pinned memory is used for CUDA only.
        skipped: is told of unreadable samples.
        encode: see `Samples`.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        order: Order,
        seed: int,
        num_workers: int | None,
        iterations: int,
        device: torch.device,
        skipped: Skipped,
        encode: Encoder | None = None,
    ) -> None:
        self.device, self.skipped = device, skipped
        self._range = _Range(order)
        self._leaving = _Leaving()
        num_workers = workers(num_workers, iterations * order.batch_size // dist.world_size())
        samples = Samples(datasets, seed, encode=encode)
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=self._range,
            num_workers=num_workers,
            collate_fn=samples.collate,
            pin_memory=device.type == "cuda",
            persistent_workers=num_workers > 0,
            worker_init_fn=self._leaving,
            # its own generator: starting an iterator must not draw from the stream that dropout uses
            generator=torch.Generator(),
        )

    def batches(self, start: int, end: int) -> Generator[Any, None, None]:
        """This rank's parts of global batches start … end - 1, on the device.

        Raises:
            OSError: an unreadable sample of a data set that does not skip, or too many of them.
            ValueError: a batch that the model can't take.
        """
        self._range.start, self._range.end = start, end
        for loaded in self._loader:
            self.skipped.add(loaded.broken, loaded.lost)
            if loaded.refused is not None:
                raise ValueError(loaded.refused)
            yield to_device(loaded.batch, self.device)

    def close(self) -> None:
        """End the workers; a loader that is used again starts new ones."""
        self._leaving.close()
        self._loader._iterator = None


class EvalData:
    """A data set to evaluate on: this rank's share (samples rank, rank + world, …) in batches.

    Iterating gives (indices, batch). `dataset` and `split` are there for tasks with their own evaluation.
    `skipped` has the samples that were left out because they cannot be read, where the data set allows it.
    `before_batch` is called equally often on every rank, so that they may agree in it.
    """

    def __init__(
        self,
        dataset: Any,
        split: str,
        batch_size: int,
        num_workers: int | None,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.dataset, self.split, self.device = dataset, split, device
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.skipped = Skipped([dataset])
        self.label = split  # of the progress bar
        self.before_batch: Callable[[], None] | None = None

    def _indices(self) -> list[list[int]]:
        mine = range(dist.rank(), len(self.dataset), dist.world_size())
        return [list(mine[i : i + self.batch_size]) for i in range(0, len(mine), self.batch_size)]

    def __len__(self) -> int:
        return len(self._indices())

    def __iter__(self) -> Iterator[tuple[list[int], Any]]:
        samples = Samples([self.dataset], self.seed, _EVAL)
        batches = [[(0, 0, i) for i in part] for part in self._indices()]
        leaving = _Leaving()
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=min(workers(self.num_workers, sum(map(len, batches))), len(batches)),
            collate_fn=samples.collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leaving,
            generator=torch.Generator(),
        )
        asked = 0
        try:
            for loaded in tqdm(loader, desc=self.label, leave=False) if shown() else loader:
                asked += 1
                if self.before_batch is not None:
                    self.before_batch()
                self.skipped.add(loaded.broken)
                if loaded.indices:
                    yield loaded.indices, to_device(loaded.batch, self.device)
            self._ask_on(asked)
        except GeneratorExit:  # a task that has seen enough
            self._ask_on(asked)
            raise
        finally:
            leaving.close()

    def _ask_on(self, asked: int) -> None:
        """Call `before_batch` for the batches that the first rank has and this one does not."""
        most = -(-len(range(0, len(self.dataset), dist.world_size())) // self.batch_size)
        for _ in range(most - asked):
            if self.before_batch is not None:
                self.before_batch()


def shown() -> bool:
    """Whether progress bars are: on a terminal, by rank 0."""
    return dist.is_main() and sys.stderr.isatty()


def mixing_ratios(names: Sequence[str], ratios: Mapping[str, float] | None) -> list[float] | None:
    """The ratios in the order of the data sets.

    Raises:
        ValueError: the names differ, or a ratio is not above zero.
    """
    if ratios is None:
        return None
    if set(ratios) != set(names):
        raise ValueError(
            f"run.train_dataset_ratios names {', '.join(sorted(ratios))}; "
            f"it must name each training set once: {', '.join(sorted(names))}"
        )
    for name, ratio in ratios.items():
        if not ratio > 0:
            raise ValueError(f"run.train_dataset_ratios.{name} is {ratio}; it must be above 0")
    return [float(ratios[name]) for name in names]
