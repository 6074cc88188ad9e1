"""Records that are made when they are looked at, and what all data sets of shapes share.

A record is a function of (options, split, number). Records that come in groups (a picture's questions, a
statement's true and false example) are made together.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from lavis.datasets.base import Dataset, Plan, Record
from lavis.datasets.shapes.render import MAX_SIZE, MIN_SIZE, render


@dataclass(frozen=True)
class MadeOptions:
    """Settings of every data set of shapes.

    Args:
        size: the pictures' side in pixels, 32 to 256.
        seed: another seed, other pictures.
        n_train, n_val, n_test: pictures (or, where a record has several pictures or a picture several
            records of its own, records) per split.
        cache: keep drawn pictures in memory (3·size² bytes each, times the frames of a clip), so later
            epochs don't draw again. Each loader worker keeps its own.
    """

    size: int = 64
    seed: int = 0
    n_train: int = 20_000
    n_val: int = 1_000
    n_test: int = 1_000
    cache: bool = False

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f"size is {self.size}; it should be {MIN_SIZE} to {MAX_SIZE} pixels")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it should be 0 or more")
        for field in dataclasses.fields(self):
            if field.name.startswith("n_") and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; it should be 1 or more")

    def count(self, split: str) -> int:
        """The number that `n_<split>` gives."""
        return int(getattr(self, f"n_{split}"))


Maker = Callable[[Any, str, int], "list[Record]"]


class Made(Sequence[Record]):
    """A sequence of records of which only the recently used are in memory.

    Args:
        make: a function of a module, (options, split, group) -> the group's `each` records.
        options, split: handed to `make`.
        length: number of records; the last group may be cut short.
        each: records per group.
        keep: groups to remember.
    """

    def __init__(
        self, make: Maker, options: Any, split: str, length: int, each: int = 1, keep: int = 32_768
    ) -> None:
        self._arguments = (make, options, split, length, each, keep)
        self._length, self._each = length, each
        self._group = functools.lru_cache(maxsize=keep)(functools.partial(make, options, split))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} records; there is no record {index}")
        group, which = divmod(int(index) % len(self), self._each)
        return self._group(group)[which]

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> Any:  # the cache can't be pickled; workers started by spawn need this
        return Made, self._arguments


class Drawn(Dataset):
    """Splits without files, pictures that are drawn; comes before the family among the bases."""

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    _kept: dict[Hashable, Any] | None = None

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        return cls.splits

    def drawn(self, key: Hashable, draw: Callable[[], Any]) -> Any:
        """What `draw` gives, remembered under `key` where the option `cache` is set (a copy of it)."""
        if not self.options.cache:
            return draw()
        if self._kept is None:
            self._kept = {}
        if key not in self._kept:
            self._kept[key] = draw()
        return self._kept[key].copy()

    def picture(self, record: Mapping[str, Any]) -> Any:
        picture: Image.Image = self.drawn(
            record["image_id"], lambda: render(record["scene"], self.options.size)
        )
        return picture


class DrawnWithCaptions(Drawn):
    """A record is a picture, or clip, with all its captions."""

    _items: Any

    def _index_records(self) -> None:
        self._items = None

    def image_id(self, position: int) -> int:
        return position


class DrawnWithQuestions(Drawn):
    """A picture, or clip, has the option's `questions` records, side by side."""

    def _pictures(self) -> Sequence[Sequence[int]]:
        pictures, each = self.options.count(self.split), self.options.questions
        return [range(p * each, (p + 1) * each) for p in range(pictures)]


class DrawnWithSentences(Drawn):
    """Groups of pictures (or pairs) share sentences: the first sentence about each of them, the second, …"""

    pictures_per_group: ClassVar[int]
    sentences_per_group: ClassVar[int]

    def _pictures(self) -> Sequence[Sequence[int]]:
        step, length = self.pictures_per_group, len(self.records)
        each = step * self.sentences_per_group
        firsts = (start + i for start in range(0, length, each) for i in range(step) if start + i < length)
        return [range(f, min(f - f % each + each, length), step) for f in firsts]


class DrawnDialogues(Drawn):
    """Every dialogue has the option's number of `rounds`, so none has to be made to count them."""

    def _round_at(self, index: int) -> tuple[int, int]:
        return divmod(index, int(self.options.rounds))

    def _count_rounds(self) -> int:
        return len(self.records) * int(self.options.rounds)
