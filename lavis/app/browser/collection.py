"""A data set that is open in the browser: its splits, and what of them fits a search."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lavis.app.browser.counting import Files, Later, Sizes, count_files, measure_pictures
from lavis.app.browser.index import Index, Progress, build, existing_index, is_drawn, place_of, reopened
from lavis.app.browser.predictions import VERDICTS, Predictions, find_results, load_predictions, run_section
from lavis.app.browser.words import Query
from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.datasets.base import Dataset, Plan, Record
from lavis.datasets.builders import make_plan
from lavis.datasets.sources import how_to_get

logger = logging.getLogger(__name__)

FILES = ("missing", "there")
Positions = Sequence[int] | np.ndarray
_LONGEST_SEARCH = 500  # characters
_SEEDS = 2**32
_AT_ONCE = 10_000  # records that are drawn and indexed before anything is shown


@dataclass(frozen=True)
class Filters:
    """What is asked for; empty values ask for nothing.

    Args:
        q: words, see `words`. answer: the most frequent answer, or the label. kind: of question or statement.
        files: one of `FILES`. verdict: one of `VERDICTS`. shuffle: a seed, "" for the order of the file.
    """

    q: str = ""
    answer: str = ""
    kind: str = ""
    files: str = ""
    verdict: str = ""
    shuffle: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Filters:
        """From the parameters of a page.

        Raises:
            ValueError: one is not what it should be.
        """
        known = {k: given.get(k, "").strip() for k in cls.__dataclass_fields__}
        for key, allowed in (("files", FILES), ("verdict", VERDICTS)):
            if known[key] and known[key] not in allowed:
                raise ValueError(f"{key} is {known[key]!r}; it should be {' or '.join(allowed)}")
        if known["shuffle"] and not (
            known["shuffle"].isascii() and known["shuffle"].isdecimal() and int(known["shuffle"]) < _SEEDS
        ):
            raise ValueError(f"shuffle is {known['shuffle']!r}; it should be a whole number, 0 or more")
        if len(known["q"]) > _LONGEST_SEARCH:
            raise ValueError(
                f"a search may have {_LONGEST_SEARCH} characters; this one has {len(known['q'])}"
            )
        return cls(**known)

    def parameters(self) -> dict[str, str]:
        """Those that ask for something."""
        return {k: str(getattr(self, k)) for k in self.__dataclass_fields__ if getattr(self, k)}


class Split:
    """One split, open.

    Attributes:
        index, dataset: records and what shows them. predictions: of a run, or None. files, sizes: what is counted
        in the background.
    """

    def __init__(
        self, name: str, index: Index, dataset: Dataset, predictions: Predictions | None = None
    ) -> None:
        self.name, self.index, self.dataset, self.predictions = name, index, dataset, predictions
        root = dataset.vis_root
        self.files: Later[Files] = Later(lambda: count_files(index, root))
        self.sizes: Later[Sizes] = Later(lambda: measure_pictures(index, root))
        self._find = functools.lru_cache(maxsize=16)(self._search)

    def __len__(self) -> int:
        return self.index.count

    def record(self, position: int) -> Record:
        record: Record = self.dataset.records[position]
        return record

    def find(self, filters: Filters) -> Positions:
        """The positions that fit, in the order asked for."""
        return self._find(filters)

    def _search(self, filters: Filters) -> Positions:
        found = self.index.positions(Query.parse(filters.q), filters.answer, filters.kind)
        masks = []
        if filters.files:
            counted = self.files.wait()
            if counted is None:
                raise ValueError(f"files could not be looked for: {self.files.failed}")
            masks.append(counted.missing if filters.files == "missing" else ~counted.missing)
        if filters.verdict:
            if self.predictions is None:
                raise ValueError("there are no predictions here; start with --predictions RUN_FOLDER")
            masks.append(self.predictions.mask(filters.verdict))
        for mask in masks:
            found = np.flatnonzero(mask).astype(np.int32) if found is None else found[mask[found]]
        if not filters.shuffle:
            return range(len(self)) if found is None else found
        order = np.random.default_rng(int(filters.shuffle)).permutation(len(self)).astype(np.int32)
        if found is None:
            return order
        # the order of a seed doesn't depend on what is searched for
        place = np.empty(len(self), dtype=np.int32)
        place[order] = np.arange(len(self), dtype=np.int32)
        return found[np.argsort(place[found])]

    def jump(self, text: str) -> int | None:
        """The position that somebody means: `#12` is a position, other texts an id or, failing that, a position."""
        text = text.strip()
        place = text.removeprefix("#")
        if not text.startswith("#"):
            found = self.index.with_id(text)
            if found is not None:
                return found
        if place.isascii() and place.isdecimal() and len(place) < 12 and int(place) < len(self):
            return int(place)
        return None


@dataclass
class Pending:
    """A split that is indexed while others are shown.

    Attributes:
        dataset, path: what is indexed, and where. done: records so far. failed: why it stopped, "" if it hasn't.
    """

    dataset: Dataset
    path: Path
    done: int = 0
    failed: str = ""

    @property
    def total(self) -> int:
        return len(self.dataset.records)


class _Stopped(Exception):  # noqa: N818 (it is wanted)
    pass


class Indexer(threading.Thread):
    """Indexes splits one after another, the smallest first.

    Args:
        todo: by split. ready: told of each index.
    """

    def __init__(self, todo: Mapping[str, Pending], ready: Callable[[str, Index], None]) -> None:
        super().__init__(daemon=True)
        self._todo, self._ready = todo, ready
        self._stop_asked = threading.Event()

    def run(self) -> None:
        for split, pending in sorted(self._todo.items(), key=lambda item: item[1].total):
            try:
                index = build(pending.dataset, pending.path, functools.partial(self._counted, pending))
                self._ready(split, index)
            except _Stopped:
                return
            except (OSError, ValueError) as e:
                pending.failed = str(e)

    def _counted(self, pending: Pending, records: Iterable[Any], total: int) -> Iterable[Any]:
        for pending.done, record in enumerate(records):
            if self._stop_asked.is_set():
                raise _Stopped
            yield record

    def stop(self) -> None:
        """End soon; what isn't finished leaves nothing behind."""
        self._stop_asked.set()


@dataclass
class Collection:
    """A data set, open.

    Attributes:
        name: registered. card: its card. splits: those that could be opened; problems: why others could not.
        advice: how to get missing files. pending: splits that will be open in a while.
    """

    name: str
    card: str
    splits: dict[str, Split]
    problems: dict[str, str]
    advice: str
    pending: dict[str, Pending] = field(default_factory=dict)
    indexer: Indexer | None = None

    def wait(self, seconds: float | None = None) -> None:
        """Wait until nothing is pending."""
        if self.indexer is not None:
            self.indexer.join(seconds)

    def close(self) -> None:
        """Stop what goes on in the background."""
        if self.indexer is not None:
            self.indexer.stop()
            self.indexer.join(10)

    @property
    def first(self) -> str:
        """The split to begin with: one with predictions, else the first."""
        return next((n for n, s in self.splits.items() if s.predictions is not None), next(iter(self.splits)))


def _plan(
    cls: type[Dataset], name: str, given: dict[str, Any], vis_path: str | Path | None, run: Path | None
) -> Plan:
    """What is to be opened: with predictions, as their run had it, and the given settings over that."""
    if run is not None and (
        name != "own" or not given
    ):  # tables of one's own are named together or not at all
        given = {**run_section(run, name), **given}
    plan = make_plan(cls, name, given)
    if vis_path is not None:
        folder = Path(vis_path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"--vis-path {vis_path}: there is no such folder")
        plan = replace(plan, vis_root=folder)
    return replace(plan, on_error="show")  # what is missing is shown as missing


def open_collection(
    name: str,
    section: Mapping[str, Any] | None = None,
    *,
    vis_path: str | Path | None = None,
    splits: Sequence[str] = (),
    predictions: str | Path | None = None,
    progress: Any = None,
) -> Collection:
    """Open a data set, indexing what isn't. Large splits that are drawn are indexed in the background unless they are
    asked for by name.

    Args:
        name: registered. section: its settings, as in a recipe.
        vis_path: the folder of pictures or clips in place of the default one.
        splits: which; none: all.
        predictions: a run's folder or a file of results.
        progress: called with a split's name, gives what `build` takes as progress.

    Raises:
        ValueError: an unknown data set, split or setting. OSError: no split can be opened; the first reason is given.
    """
    cls: type[Dataset] = registry.get_dataset_class(name)
    run = None if predictions is None else Path(predictions).expanduser()
    plan = _plan(cls, name, dict(section or {}), vis_path, run)
    known = cls.split_names(plan)
    for split in splits:
        if split not in known:
            raise ValueError(f"the data set {name!r} has no split {split!r}.{suggest(split, known)}")
    results = {} if run is None else find_results(run, known, splits)
    out = Collection(name, cls.card(), {}, {}, how_to_get(name, cls.downloads))

    def add(split: str, index: Index) -> None:
        found = load_predictions(results[split], cls.load(split, plan)) if split in results else None
        opened = Split(split, index, reopened(cls, plan, split, index), found)
        # new dicts, because pages may be reading the old ones
        there = {**out.splits, split: opened}
        out.splits = {s: there[s] for s in known if s in there}
        out.pending = {s: p for s, p in out.pending.items() if s != split}

    first: Exception | None = None
    later: dict[str, Dataset] = {}
    for split in splits or known:
        try:
            index = existing_index(cls, plan, split)
            if index is None:
                dataset = cls.load(split, plan)
                if is_drawn(dataset) and len(dataset.records) > _AT_ONCE and split not in (*splits, *results):
                    later[split] = dataset
                    continue
                wrap = None if progress is None else progress(split)
                index = build(dataset, place_of(cls, plan, split), wrap)
                del dataset  # a large one need not stay
            add(split, index)
        except (OSError, ValueError) as e:
            if split in results:
                raise
            first = first or e
            out.problems[split] = str(e)
    if not out.splits and not later:
        raise first or ValueError(f"the data set {name!r} has no split here")
    if not out.splits:  # something has to be shown
        split = min(later, key=lambda s: len(later[s].records))
        path = place_of(cls, plan, split)
        add(split, build(later.pop(split), path, None if progress is None else progress(split)))
    if later:
        out.pending = {s: Pending(d, place_of(cls, plan, s)) for s, d in later.items()}
        out.indexer = Indexer(dict(out.pending), add)
        out.indexer.start()
    return out


def terminal_progress(split: str) -> Progress:
    """A bar in a terminal, or nothing where standard error is none."""

    def wrap(records: Iterable[Any], total: int) -> Iterable[Any]:
        from tqdm import tqdm

        return tqdm(
            records, total=total, desc=f"indexing {split}", unit=" records", unit_scale=True, file=sys.stderr,
            disable=not sys.stderr.isatty(), mininterval=0.3,
        )  # fmt: skip

    return wrap
