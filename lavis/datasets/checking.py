"""What of a data set is there: annotation files, records, and the pictures or clips that the records name.

`check` reads and never fetches. Folders are listed once and files are not touched one by one, so a
hundred thousand pictures take about a second; `deep` also decodes every picture or clip.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lavis.common import hub
from lavis.common.images import open_image
from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.datasets.base import Dataset, Plan, UnreadableMediaError
from lavis.datasets.builders import make_plan
from lavis.datasets.clips import Clip
from lavis.datasets.sources import Source, how_to_get

SHOWN = 5  # names of each kind in a report


@dataclass(frozen=True)
class AnnotationState:
    """One annotation file: "ok", "unverified" (no checksum is known), "missing" or "damaged"."""

    split: str
    path: str
    state: str
    detail: str = ""


@dataclass
class SplitState:
    """One split: its records and the different pictures or clips that they name.

    Attributes:
        missing, broken: how many of them aren't there, or can't be decoded (None: not looked).
        missing_names, broken_names: the first of them; all broken ones.
        problem: why the split could not be read, "" if it could.
    """

    split: str
    records: int = 0
    media: int = 0
    missing: int = 0
    missing_names: list[str] = field(default_factory=list)
    broken: int | None = None
    broken_names: list[str] = field(default_factory=list)
    problem: str = ""


@dataclass
class Check:
    """What `check` found.

    Attributes:
        kind: "pictures" or "clips".
        extra: files that no record names, None where not all splits could be read.
        note: what the figures don't say. advice: how to get what is missing.
    """

    name: str
    kind: str
    folder: str | None
    annotations: list[AnnotationState]
    splits: list[SplitState]
    extra: int | None = None
    extra_names: list[str] = field(default_factory=list)
    note: str = ""
    advice: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, damaged or broken."""
        return all(a.state in ("ok", "unverified") for a in self.annotations) and not any(
            s.problem or s.missing or s.broken for s in self.splits
        )


# ---------------------------------------------------------------------- names
def media_names(dataset: Dataset) -> dict[str, None]:
    """The different pictures or clips of a split as its records name them, in order of appearance."""
    names: dict[str, None] = {}
    for record in dataset.records:
        names.update(dict.fromkeys(dataset.media_names(record)))
    return names


def scan(folder: Path) -> set[str]:
    """The files below a folder, to any depth, as relative paths with slashes; our own state left out."""
    found: set[str] = set()
    stack, seen = [(str(folder), "")], {os.path.realpath(folder)}
    while stack:
        path, prefix = stack.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue  # state of downloads, and what systems leave behind
                if not entry.is_dir():
                    found.add(prefix + entry.name)
                    continue
                if entry.is_symlink():
                    real = os.path.realpath(entry.path)
                    if real in seen:
                        continue  # a link back up
                    seen.add(real)
                stack.append((entry.path, f"{prefix}{entry.name}/"))
    return found


def missing_of(names: Iterable[str], root: Path | None, there: set[str]) -> list[str]:
    """Which pictures or clips aren't there.

    Args:
        names: as the records have them.
        root: the folder that they are below.
        there: what `scan` found in it.
    """
    # tidying a name costs more than all the rest, so it is done only for those not there as they stand
    return [n for n in names if n not in there and not _lies(n, root, there)]


def _lies(name: str, root: Path | None, there: set[str]) -> bool:
    tidy = os.path.normpath(name).replace(os.sep, "/")
    if root is None or tidy.startswith(("/", ".")) or "/." in tidy or ":" in tidy:
        return (root or Path()).joinpath(tidy).exists()  # outside the folder, or what `scan` leaves out
    return tidy in there


# ---------------------------------------------------------------------- annotation files
def annotation_state(split: str, source: Source) -> AnnotationState:
    """Whether an annotation file is there, and is the one that was published or first fetched."""
    path = hub.under_cache_root(source.storage)
    if not path.is_file() and source.url is not None and "://" not in source.url:
        path = Path(source.url).expanduser()
    if not path.is_file():
        return AnnotationState(split, str(path), "missing")
    wanted = {k: v for k, v in (("sha256", source.sha256), ("md5", source.md5)) if v}
    for kind, expected in (wanted or hub.recorded_digests(path)).items():
        found = hub.digest(path, kind)
        if found != expected.lower():
            detail = f"its {kind} is {found}, expected {expected}"
            return AnnotationState(split, str(path), "damaged", detail)
        return AnnotationState(split, str(path), "ok")
    return AnnotationState(split, str(path), "unverified")


# ---------------------------------------------------------------------- the check
def check(
    name: str,
    *,
    vis_path: str | Path | None = None,
    splits: Sequence[str] | None = None,
    section: Mapping[str, Any] | None = None,
    deep: bool = False,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> Check:
    """Look for everything that a data set needs, without fetching anything.

    Args:
        name: a registered data set.
        vis_path: the folder of the pictures or clips in place of the default one.
        splits: which splits; None: all.
        section: the data set's section as in a recipe (`type`, options …).
        deep: decode every picture, or every frame of every clip.
        progress: wraps the iteration over pictures, given their number.

    Raises:
        ValueError: an unknown data set, split or option.
    """
    cls = registry.get_dataset_class(name)
    plan = make_plan(cls, name, section or {})
    if vis_path is not None:
        folder = Path(vis_path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"--vis-path {vis_path}: there is no such folder")
        plan = replace(plan, vis_root=folder)
    annotations = [annotation_state(split, s) for split, some in plan.sources.items() for s in some]
    try:
        known = cls.split_names(plan)
    except (OSError, ValueError) as e:  # tables of one's own, of which nothing can be said
        return Check(name, "pictures", None, annotations, [SplitState("all", problem=str(e))])
    for split in splits or ():
        if split not in known:
            raise ValueError(f"the data set {name!r} has no split {split!r}.{suggest(split, known)}")
    wanted = tuple(splits or known)
    annotations = [a for a in annotations if a.split in wanted]
    needed = {
        str(hub.under_cache_root(s.storage)) for some in plan.sources.values() for s in some if not s.optional
    }
    lacking = {a.split for a in annotations if a.state == "missing" and a.path in needed}
    kind = "clips" if cls.data_type == "videos" else "pictures"
    out = Check(name, kind, None, annotations, [])
    listings: dict[Path, set[str]] = {}
    named: dict[Path, set[str]] = {}
    for split in wanted:
        if split in lacking:
            out.splits.append(SplitState(split, problem="its annotation file is missing"))
            continue
        try:
            dataset = cls.load(split, plan)
        except (OSError, ValueError, KeyError, TypeError) as e:
            out.splits.append(SplitState(split, problem=f"it cannot be read: {e}"))
            continue
        if dataset.packed is not None:
            out.folder = str(dataset.packed.folder)
            out.splits.append(_check_packed(dataset, split, deep, progress))
            continue
        root = dataset.vis_root
        if root is None:
            out.splits.append(SplitState(split, len(dataset.records)))
            out.note = f"the {kind} of {name!r} are made when they are needed: there is nothing to check"
            continue
        if root not in listings:
            listings[root] = scan(root) if root.is_dir() else set()
        names = media_names(dataset)
        missing = missing_of(names, root, listings[root])
        state = SplitState(split, len(dataset.records), len(names), len(missing), missing[:SHOWN])
        named.setdefault(root, set()).update(os.path.normpath(n).replace(os.sep, "/") for n in names)
        named[root].update(
            p.relative_to(root).as_posix() for p in dataset.annotation_paths if p.is_relative_to(root)
        )
        out.folder = str(root)
        if deep:
            absent = set(missing)
            paths = [root / n for n in names if n not in absent]
            state.broken_names = _broken(paths, open_image if kind == "pictures" else _decode_clip, progress)
            state.broken = len(state.broken_names)
        out.splits.append(state)
    if set(wanted) == set(known) and not any(s.problem for s in out.splits) and listings:
        extra = sorted(n for root, files in listings.items() for n in files - named[root])
        out.extra, out.extra_names = len(extra), extra[:SHOWN]
    lost = any(s.missing or s.problem for s in out.splits)
    urls = any(s.url for some in plan.sources.values() for s in some)
    ways = how_to_get(name, cls.downloads) if lost else ""
    if "lavis download" not in ways and urls and any(a.state in ("missing", "damaged") for a in annotations):
        ways = "; ".join(filter(None, [f"`lavis download {name}` fetches the annotation files", ways]))
    out.advice = ways
    return out


def _check_packed(
    dataset: Dataset,
    split: str,
    deep: bool,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None,
) -> SplitState:
    """Of images in shards none is missing: those that could not be fetched have no record."""
    state = SplitState(split, len(dataset.records), len(dataset.records))
    if deep:
        state.broken_names = _broken(dataset.records, dataset.picture, progress)
        state.broken = len(state.broken_names)
    return state


def _decode_clip(path: Path) -> None:
    """Decode all frames of a clip, one after another."""
    with Clip(path) as clip:
        for _ in clip:
            pass


def _broken(
    items: Sequence[Any],
    decode: Callable[[Any], Any],
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None,
) -> list[str]:
    """What cannot be decoded, by path. Pillow and PyAV decode without Python's lock, so threads help."""

    def problem(item: Any) -> str | None:
        try:
            decode(item)
        except UnreadableMediaError as e:
            return e.path or str(item)
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found: Iterable[str | None] = pool.map(problem, items, chunksize=1)
        if progress is not None:
            found = progress(found, len(items))
        return [path for path in found if path is not None]


def complete_splits(cls: type[Dataset], plan: Plan, splits: Iterable[str]) -> dict[str, bool]:
    """By split whether all its pictures or clips are there; splits that cannot be read yet are left out."""
    out: dict[str, bool] = {}
    listings: dict[Path, set[str]] = {}
    for split in splits:
        needed = [s for s in plan.sources.get(split, ()) if not s.optional]
        if not all(hub.under_cache_root(s.storage).is_file() for s in needed):
            continue
        try:
            dataset = cls.load(split, plan)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is said when the annotation files are fetched or checked
        root = dataset.vis_root
        if root is None or not root.is_dir():
            out[split] = False
            continue
        if root not in listings:
            listings[root] = scan(root)
        names = media_names(dataset)
        out[split] = bool(names) and not missing_of(names, root, listings[root])
    return out
