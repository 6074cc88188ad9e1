"""Samples whose pictures cannot be read: raised, or counted, listed, and too many of them refused.

A data set's `on_error` decides. Under "skip" a training sample is replaced by the next readable one of its
data set, with the stream of the sample that it replaces, so the data stay a function of (seed, pass,
sample); an evaluation leaves the sample out. What was skipped arrives with its batch, so what is known
after n batches does not depend on workers, and a resumed run knows what the one before it knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lavis.common import dist
from lavis.common.files import write_text
from lavis.datasets.base import UnreadableMediaError, too_many

_IN_A_ROW = 1000  # unreadable samples after which looking for the next readable one is given up

Place = tuple[int, int]  # (data set, sample)
Found = dict[Place, tuple[str, str]]  # its path, and why it cannot be read


class Broken(NamedTuple):
    """A sample that could not be read; what a loader's worker sends instead of raising."""

    which: int  # data set
    sample: int
    error: UnreadableMediaError


def skips(dataset: Any) -> bool:
    """Whether a data set's unreadable samples are skipped."""
    return bool(getattr(dataset, "on_error", "raise") == "skip")


def candidates(size: int, index: int) -> list[int]:
    """The samples to try for `index` of `size`, itself first, as far as a run would go on without them."""
    return [(index + k) % size for k in range(min(too_many(size), _IN_A_ROW))]


class Skipped:
    """The unreadable samples that a run has met. Owns their list, and `file` once it is set.

    Args:
        datasets: those that the samples come from.

    Attributes:
        file: where the list is written; None does not write it.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = list(datasets)
        self.file: Path | None = None
        self._listed: Found = {}
        self._new: Found = {}  # since the last `take_new`

    def __len__(self) -> int:
        return len(self._listed) + len(self._new)

    def add(self, broken: Sequence[Broken], lost: int = 0) -> None:
        """Take note of what came with a batch.

        Args:
            broken: its unreadable samples. lost: how many of it have found no replacement.

        Raises:
            OSError: a data set does not skip, all were unreadable where one was looked for, or there are
                too many.
        """
        for which, sample, error in broken:
            if not skips(self.datasets[which]):
                raise error
            if (which, sample) not in self._listed:
                self._new[which, sample] = (error.path, str(error))
        if broken:
            self._refuse_too_many()
        if lost:
            self._refuse(broken[-1].which, f"{_IN_A_ROW} samples in a row")

    def agree(self) -> None:
        """Give every rank what any of them has met; called by all of them.

        Raises:
            OSError: together there are too many.
        """
        if dist.is_on():
            new = {place: row for part in dist.all_gather_objects(self._new) for place, row in part.items()}
            self._new = {place: new[place] for place in sorted(new) if place not in self._listed}
            self._refuse_too_many()

    def take_new(self) -> list[str]:
        """Paths met since the last call, each once; writes the list if there are any."""
        paths = sorted({path for path, _ in self._new.values()})
        self._listed.update(self._new)
        self._new = {}
        if paths:
            self.write()
        return paths

    def write(self) -> None:
        """Write `file`: one path a line, with the reason after a tab; no file if there is nothing."""
        if self.file is None:
            return
        rows = sorted({*self._listed.values(), *self._new.values()})
        if rows:
            write_text(self.file, "".join(f"{path}\t{' '.join(why.split())}\n" for path, why in rows))
        else:
            self.file.unlink(missing_ok=True)

    def state(self) -> dict[str, list[list[Any]]]:
        """Both lists as plain data."""
        lists = {"listed": self._listed, "new": self._new}
        return {k: [[*place, *row] for place, row in found.items()] for k, found in lists.items()}

    def load(self, state: dict[str, list[list[Any]]] | None) -> None:
        """Restore what `state` gave; None, of an older checkpoint, is nothing."""
        lists = {k: {(w, i): (p, r) for w, i, p, r in rows} for k, rows in (state or {}).items()}
        self._listed, self._new = lists.get("listed", {}), lists.get("new", {})

    def _refuse_too_many(self) -> None:
        counts: dict[int, int] = {}
        for which, _ in [*self._listed, *self._new]:
            counts[which] = counts.get(which, 0) + 1
        for which, count in counts.items():
            if count >= too_many(len(self.datasets[which])):
                self._refuse(which, f"{count} of {len(self.datasets[which])} samples")

    def _refuse(self, which: int, how_many: str) -> None:
        dataset = self.datasets[which]
        reason = next(why for (w, _), (_, why) in [*self._new.items(), *self._listed.items()] if w == which)
        name = f"{getattr(dataset, 'name', type(dataset).__name__)}/{getattr(dataset, 'split', 'train')}"
        folder = getattr(dataset, "vis_root", None)
        self.write()
        raise OSError(
            f"{how_many} of {name} cannot be read, too many to go on"
            + (f"; its pictures are expected under {folder}" if folder else "")
            + (f"; all that were found are listed in {self.file}" if self.file else "")
            + f". The first: {reason}"
        )
