"""What every data set is: records on one side, samples on the other, and where its files lie.

A registered class is the whole data set: it names its annotation files (`sources`), its media folder
(`media`), its options (a frozen dataclass) and turns a record into a sample. The two families below
it, `CaptionDataset` (captioning.py) and `VQADataset` (vqa.py), leave little to write for a new one.
"""

from __future__ import annotations

import inspect
import sys
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch.utils.data
from PIL import Image

from lavis.common import hub
from lavis.common.images import MissingMediaError as MissingMediaError
from lavis.common.images import UnreadableMediaError as UnreadableMediaError
from lavis.common.images import open_image
from lavis.datasets.collate import Sample, collate
from lavis.datasets.sources import Download, Links, Source, how_to_get, shards_folder
from lavis.datasets.tables import Record, read_records

if TYPE_CHECKING:
    from lavis.datasets.shard_reader import Packed

open_picture = open_image  # its earlier name

ON_ERROR = ("raise", "skip")  # what to do about a picture that cannot be read


def error_policy(given: str | None, training: bool) -> str:
    """One of `ON_ERROR`: the given one, else "skip" in training and "raise" in evaluation."""
    return given or ("skip" if training else "raise")


def too_many(n: int) -> int:
    """How many unreadable samples of n end a run that skips them: more than 1 %, and 20 or half of them."""
    return min(max(20, n // 100 + 1), (n + 1) // 2)


@dataclass(frozen=True)
class NoOptions:
    """For data sets without settings of their own."""


@dataclass(frozen=True)
class Plan:
    """A data set's description after a recipe's overrides: what `Dataset.load` builds a split from."""

    name: str
    type: str = "default"
    sources: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    vis_root: Path | None = None
    options: Any = field(default_factory=NoOptions)
    on_error: str | None = None
    as_listed: bool = (
        False  # the records of the annotation file, also where a download has put images into shards
    )


class Dataset(torch.utils.data.Dataset[Sample]):
    """One split of a data set.

    Args:
        records: plain dicts, one per item of the annotation file (any sequence, lazy ones too).
        split: "train", "val", "test" or a name of the data set's own.
        vis_root: the folder that the records' media paths are relative to.
        vis_processor, text_processor: callables applied to picture and text; None leaves them raw.
        options: the data set's own settings, an instance of its `Options`.

    Attributes:
        on_error: what a run does about pictures that cannot be read: "raise", or "skip" (the default in
            training), where the next readable sample takes the place. `sample` itself always raises.
        packed: the shards that hold the images; None where they are files below `vis_root`.
    """

    name: ClassVar[str] = ""
    data_type: ClassVar[str] = "images"
    sources: ClassVar[Mapping[str, Source | Sequence[Source]]] = {}
    typed_sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # `sources` of types other than "default"
    media: ClassVar[str | None] = None  # relative to the cache root
    downloads: ClassVar[Sequence[Download]] = ()  # how the media get there
    Options: ClassVar[type] = NoOptions
    train_splits: ClassVar[tuple[str, ...]] = ("train",)
    plain_images: ClassVar[bool] = True  # as published numbers were made: see `plain` of `open_image`

    def __init__(
        self,
        records: Sequence[Record],
        split: str,
        *,
        vis_root: str | Path | None = None,
        vis_processor: Callable[..., Any] | None = None,
        text_processor: Callable[..., Any] | None = None,
        options: Any = None,
        annotation_paths: Sequence[Path] = (),
    ) -> None:
        self.records = records
        self.split = split
        self.training = split in self.train_splits
        self.vis_root = None if vis_root is None else Path(vis_root)
        self.options = self.Options() if options is None else options
        self.annotation_paths = tuple(annotation_paths)
        self.on_error = error_policy(None, self.training)
        self.packed: Packed | None = None
        self.set_processors(vis_processor, text_processor)

    # ------------------------------------------------------------------ building
    @classmethod
    def card(cls) -> str:
        """What people should know of the data set: the text at the top of its module."""
        return (sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").strip()

    @classmethod
    def types(cls) -> tuple[str, ...]:
        """The choices of annotation files, "default" first."""
        return ("default", *cls.typed_sources)

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        """The splits that this plan has."""
        return tuple(plan.sources)

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        """Build one split: find or fetch its annotation files, read the first as records.

        Where `lavis download --shards` has put the images of a list, they are read from there, with the list beside
        them in place of an annotation file that doesn't say where they are.
        """
        packed = cls._in_shards(split, plan)
        if packed is not None:
            return packed
        paths = [locate(source, f"{plan.name}/{split}") for source in plan.sources[split]]
        return cls(
            read_records(paths[0]),
            split,
            vis_root=plan.vis_root,
            options=plan.options,
            annotation_paths=paths,
        )

    @classmethod
    def _in_shards(cls, split: str, plan: Plan) -> Dataset | None:
        """The split with its images in shards; None where there are none."""
        folder = None if plan.as_listed else shards_place(cls, split, plan)
        if folder is None:
            return None
        from lavis.datasets.shard_reader import Packed, is_packed

        if not is_packed(folder):
            return None
        sources = [hub.under_cache_root(source.storage) for source in plan.sources[split]]
        packed = Packed(folder, sources[0] if sources and sources[0].is_file() else None)
        dataset = cls(packed.records, split, options=plan.options, annotation_paths=packed.lists)
        dataset.packed = packed
        return dataset

    def set_processors(
        self, vis_processor: Callable[..., Any] | None, text_processor: Callable[..., Any] | None
    ) -> None:
        """Replace both processors; None leaves pictures or texts raw."""
        self.vis_processor, self.text_processor = vis_processor, text_processor
        self._vis, self._text = _with_stream(vis_processor), _with_stream(text_processor)

    # ------------------------------------------------------------------ samples
    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int, rng: np.random.Generator | None = None) -> Sample:
        """The sample at `index`.

        Args:
            index: 0 … len - 1 (negative indices count from the end).
            rng: the stream that every random choice is drawn from; None takes a fresh one.

        Raises:
            IndexError: outside the range.
            MissingMediaError, UnreadableMediaError: a missing or broken picture, named with its path.
        """
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"{self.name}/{self.split} has {n} samples; there is no sample {index}")
        return self.make_sample(index % n, np.random.default_rng() if rng is None else rng)

    @property
    def annotation(self) -> Sequence[Record]:
        """`records`, under the original's name."""
        return self.records

    def displ_item(self, index: int) -> dict[str, Any]:
        """What there is to show of a sample: its record, `file`, and its images or video as the sample has them."""
        sample = self.sample(index)
        record = self.records[self._first_record(index)]
        media: dict[str, Any] = {
            key: sample[key] for key in ("image", "image0", "image1", "video") if key in sample
        }
        return {"file": next(iter(self.media_names(record)), ""), **record, **media}

    def _first_record(self, index: int) -> int:
        """The position of a sample's first record."""
        return index

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Turn item `index` into a sample; a data set or its family writes this."""
        raise NotImplementedError(f"{type(self).__name__} has no make_sample")

    def collater(self, samples: Sequence[Mapping[str, Any] | None]) -> Sample:
        """Samples to a batch; see `lavis.datasets.collate.collate`."""
        return collate(samples)

    # ------------------------------------------------------------------ media and text
    def media_names(self, record: Mapping[str, Any]) -> list[str]:
        """Where a record's pictures or clips lie, relative to the media folder."""
        found = [record[key] for key in ("image", "video", "images") if record.get(key) is not None]
        return [str(name) for value in found for name in ([value] if isinstance(value, str) else value)]

    def picture(self, record: Mapping[str, Any]) -> Image.Image:
        """The record's image, RGB (no processor)."""
        if self.packed is not None:
            data, name = self.packed.read(record)
            return open_image(data, name=name, plain=self.plain_images)
        path = self._media_path(str(record["image"]))
        return open_image(path, self._what_to_do(), plain=self.plain_images)

    def image(self, record: Mapping[str, Any], rng: np.random.Generator) -> Any:
        """The record's picture after the vision processor."""
        picture = self.picture(record)
        return picture if self._vis is None else self._vis(picture, rng)

    def text(self, text: str, rng: np.random.Generator) -> Any:
        """A text after the text processor."""
        return text if self._text is None else self._text(text, rng)

    def _media_path(self, relative: str) -> Path:
        path = Path(relative)
        return path if path.is_absolute() or self.vis_root is None else self.vis_root / path

    def _what_to_do(self) -> str:
        if self.packed is not None:
            return f"the images of {self.name!r} are in the shards of {self.packed.folder}"
        what = "clips" if self.data_type == "videos" else "pictures"
        way = how_to_get(self.name, self.downloads, self.split) or "put them there"
        return (
            f"the {what} of {self.name!r} are expected under {self.vis_root}; {way}, or name their folder with "
            f"vis_path (in a recipe: build_info.{self.data_type}.storage)"
        )

    def check(self) -> None:
        """Look for the media folder before a long run starts.

        Raises:
            FileNotFoundError: it does not exist.
        """
        if self.vis_root is not None and not self.vis_root.is_dir():
            raise FileNotFoundError(f"the folder {self.vis_root} does not exist; {self._what_to_do()}")

    def extra_metrics(self, predictions: Mapping[Any, str]) -> dict[str, float]:
        """Metrics that only this data set can compute.

        Args:
            predictions: the predicted text by image_id (captions) or question_id (answers).

        Returns:
            Numbers with the unit in their name; empty for most data sets.
        """
        return {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}/{self.split}: {len(self)} samples>"


# ---------------------------------------------------------------------- helpers
def _with_stream(processor: Callable[..., Any] | None) -> Callable[[Any, np.random.Generator], Any] | None:
    """Call `processor(item, rng=rng)` where it takes a stream, `processor(item)` where it doesn't."""
    if processor is None:
        return None
    try:
        parameters = inspect.signature(processor).parameters.values()
    except ValueError:  # some builtins have no signature; none of them takes a stream
        parameters = ()  # type: ignore[assignment]
    takes_stream = any(p.name == "rng" or p.kind is p.VAR_KEYWORD for p in parameters)
    return _Called(processor, takes_stream)


@dataclass(frozen=True)
class _Called:  # not a lambda: workers that are started by spawn get a copy
    processor: Callable[..., Any]
    takes_stream: bool

    def __call__(self, item: Any, rng: np.random.Generator) -> Any:
        return self.processor(item, rng=rng) if self.takes_stream else self.processor(item)


def shards_place(cls: type[Dataset], split: str, plan: Plan) -> Path | None:
    """Where a download with --shards puts the images of a split; None for a data set without lists of addresses."""
    for links in cls.downloads:
        if isinstance(links, Links) and (not links.splits or split in links.splits):
            to = shards_folder(links, split, cls.downloads, cls.split_names(plan))
            if plan.vis_root is not None and cls.media and PurePath(to).is_relative_to(cls.media):
                return plan.vis_root / PurePath(to).relative_to(cls.media)
            return hub.under_cache_root(to)
    return None


def locate(source: Source, what: str) -> Path:
    """The local path of an annotation file, fetched on first use.

    Raises:
        FileNotFoundError: it isn't there and there is no URL to fetch it from.
    """
    path = hub.under_cache_root(source.storage)
    if path.is_file():
        return path
    if source.url is None:
        raise FileNotFoundError(f"{what}: there is no annotation file {path}, and no URL to fetch it from")
    if "://" not in source.url:
        local = Path(source.url).expanduser()
        if not local.is_file():
            raise FileNotFoundError(f"{what}: there is no annotation file {path}, nor {local}")
        return local

    return Path(hub.fetch(source.url, sha256=source.sha256, md5=source.md5, to=path))


def picture_of(record: Mapping[str, Any]) -> Any:
    """What tells a record's picture or clip from others: its id, else its path."""
    return record.get("image_id", record.get("image", record.get("video")))


class Grouping(Dataset):
    """A data set whose items are records or, where `grouped`, pictures with all of their records."""

    def __init__(self, records: Sequence[Record], split: str, **kwargs: Any) -> None:
        super().__init__(records, split, **kwargs)
        self._items: Sequence[Sequence[int]] | None = self._pictures() if self.grouped else None

    @property
    def grouped(self) -> bool:
        """Whether items are pictures."""
        raise NotImplementedError

    def pictured(self, record: Record) -> Hashable:
        """What records about the same picture, pictures or clip have in common."""
        key: Hashable = picture_of(record)
        return key

    def _first_record(self, index: int) -> int:
        return index if self._items is None else int(self._items[index][0])

    def _pictures(self) -> Sequence[Sequence[int]]:
        """The positions of each picture's records."""
        return group_by(map(self.pictured, self.records))

    def __len__(self) -> int:
        return len(self.records) if self._items is None else len(self._items)

    def _drawn(self, index: int, rng: np.random.Generator, number: int) -> list[int]:
        """The positions of some records of a picture, in random order; see `draw`."""
        assert self._items is not None
        positions = self._items[index]
        return [positions[i] for i in draw(rng, len(positions), number)]


class Groups(Sequence[Sequence[int]]):
    """Groups of positions, in two arrays: a loader's workers share them, where lists would be copied.

    Args:
        numbers: of each position, the number of its group, 0 … groups - 1.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._positions = np.argsort(numbers, kind="stable")
        self._ends = np.cumsum(np.bincount(np.asarray(numbers, dtype=np.int64)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return self._positions[start : self._ends[index]].tolist()


def numbered(keys: Iterable[Hashable]) -> array[int]:
    """0, 1, … for different keys in the order of first appearance; an array, which workers share."""
    number: dict[Hashable, int] = {}
    return array("q", (number.setdefault(key, len(number)) for key in keys))


def group_by(keys: Iterable[Hashable]) -> Groups:
    """Positions of equal keys, in the order of first appearance."""
    return Groups(numbered(keys))


def draw(rng: np.random.Generator, n: int, k: int) -> list[int]:
    """k of the numbers 0 … n - 1 in random order, each at most once unless k > n."""
    if k == 1:
        return [int(rng.integers(n))]
    chosen = [int(i) for i in rng.permutation(n)[:k]]
    return chosen + [int(i) for i in rng.integers(n, size=max(0, k - n))]
