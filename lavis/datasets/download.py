"""`lavis download`: what a data set needs, from where, how big, what is there already; then all of it fetched.

    todo = plan("coco_caption", splits=["val"])
    report = fetch(todo)

Annotation files and archives go through `lavis.common.hub` (continued, verified, mirrored), archives through
`lavis.common.archives`, and lists of addresses through `lavis.datasets.lists`. What needs a person (a login, a
form) is explained instead.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lavis.common import archives, hub, transfer
from lavis.common.members import STATE
from lavis.common.parallel import Board, StoppedError, run_parallel
from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.datasets.base import Dataset, Plan
from lavis.datasets.builders import make_plan
from lavis.datasets.checking import complete_splits
from lavis.datasets.sources import Archive, ByHand, Links, Source

if TYPE_CHECKING:
    from lavis.datasets.fetching import Tally

THERE, BEGUN, TO_FETCH, BY_HAND = "there", "begun", "to fetch", "by hand"
WORKERS = 4  # files at a time; more gains nothing with one host, and is rude
_UNPACKED = 1.05  # bytes on disk per byte of an archive of pictures or clips


@dataclass(frozen=True)
class Item:
    """One thing that the data set needs.

    Args:
        what: the Source, Archive, Links or ByHand that it comes from.
        splits: which of the wanted splits need it.
        place: the file that it becomes, or the folder that it is put into.
        size: bytes to fetch, None if unknown.
        state: THERE, BEGUN (it will be continued), TO_FETCH or BY_HAND.
    """

    what: Source | Archive | Links | ByHand
    splits: tuple[str, ...]
    place: Path
    size: int | None
    state: str

    @property
    def title(self) -> str:
        """The name of the file or folder."""
        if isinstance(self.what, Archive):
            return Path(urllib.parse.urlsplit(self.what.url).path).name
        return self.place.name

    @property
    def url(self) -> str | None:
        """Where it comes from."""
        if isinstance(self.what, Links):
            return None if self.what.table is None else self.what.table.url
        return self.what.page if isinstance(self.what, ByHand) else self.what.url


@dataclass(frozen=True)
class Todo:
    """A plan: everything that some splits of a data set need, below `root`."""

    name: str
    root: Path
    splits: tuple[str, ...]
    items: tuple[Item, ...]
    licence: str
    kind: str = "pictures"
    type: str = "default"
    again: bool = False

    @property
    def unfinished(self) -> list[Item]:
        """What remains to be fetched by program."""
        return [item for item in self.items if item.state in (BEGUN, TO_FETCH)]

    def room(self) -> tuple[int, int]:
        """(bytes needed, bytes free): what is known of the archives, packed and unpacked side by side."""
        sizes = sorted((i.size or 0 for i in self.unfinished if isinstance(i.what, Archive)), reverse=True)
        files = sum(i.size or 0 for i in self.unfinished if isinstance(i.what, Source))
        needed = int(sum(sizes) * _UNPACKED) + sum(sizes[:WORKERS]) + files
        return needed, shutil.disk_usage(_existing(self.root)).free


@dataclass
class Report:
    """What `fetch` did.

    Attributes:
        done, failed: items that are there now, and those that failed with the reason.
        pictures: what became of lists of pictures, by split.
    """

    done: list[Item] = field(default_factory=list)
    failed: list[tuple[Item, str]] = field(default_factory=list)
    pictures: list[tuple[str, Tally]] = field(default_factory=list)


# ---------------------------------------------------------------------- the plan
def plan(
    name: str,
    *,
    splits: Sequence[str] = (),
    to: str | Path | None = None,
    type: str = "default",
    media: bool = True,
    sizes: bool = True,
    again: bool = False,
) -> Todo:
    """Find out what has to be fetched for a data set.

    Args:
        name: the registered name.
        splits: which splits; none: all.
        to: the folder in place of the cache root.
        type: which choice of annotation files.
        media: pictures and clips too, not the annotation files only.
        sizes: ask the servers for the sizes that aren't known.
        again: archives that were unpacked before, too.

    Raises:
        ValueError: an unknown data set, type or split.
    """
    cls = registry.get_dataset_class(name)
    root = hub.cache_root() if to is None else Path(to).expanduser().absolute()
    kind = "clips" if cls.data_type == "videos" else "pictures"
    empty = Todo(name, root, tuple(splits), (), card_paragraph(cls, "Licence"), kind, type, again)
    if not (cls.sources or cls.typed_sources or cls.downloads):
        return empty  # made on the way, from a package, or the user's own
    placed = placed_plan(cls, name, type, root)
    known = cls.split_names(placed)
    for split in splits:
        if split not in known:
            raise ValueError(f"the data set {name!r} has no split {split!r}.{suggest(split, known)}")
    wanted = tuple(splits or known)
    needed_by: dict[Source, list[str]] = {}
    for split in wanted:
        for source in placed.sources.get(split, ()):
            needed_by.setdefault(source, []).append(split)
    made = {Path(p) for p in _made_files(cls, placed)}
    items = [
        Item(source, tuple(by), Path(source.storage), None, _file_state(Path(source.storage), source))
        for source, by in needed_by.items()
        if Path(source.storage) not in made
    ]
    complete = complete_splits(cls, placed, wanted) if media else {}
    for what in cls.downloads if media else ():
        by = tuple(s for s in wanted if not what.splits or s in what.splits)
        if by:
            whole = not again and all(complete.get(s, False) for s in by)
            items.append(_media_item(what, by, root, whole, again))
    if sizes and not hub.is_offline():
        items = _with_sizes(items)
    return dataclasses.replace(empty, splits=wanted, items=tuple(items))


def placed_plan(cls: type[Dataset], name: str, kind: str, root: Path) -> Plan:
    """The data set's own plan with every place below `root`."""
    found = make_plan(cls, name, {"type": kind})
    sources = {
        split: tuple(dataclasses.replace(s, storage=str(root / s.storage)) for s in some)
        for split, some in found.sources.items()
    }
    media = None if cls.media is None else root / cls.media
    return dataclasses.replace(found, sources=sources, vis_root=media)


def _made_files(cls: type[Dataset], placed: Plan) -> list[str]:
    """Annotation files that only `Links` with a table make."""
    tables = [d for d in cls.downloads if isinstance(d, Links) and d.table is not None]
    return [
        source.storage
        for split, some in placed.sources.items()
        for source in some
        if source.url is None and any(not d.splits or split in d.splits for d in tables)
    ]


def _file_state(place: Path, source: Source) -> str:
    if place.is_file():
        return THERE
    if source.url is None:
        return BY_HAND
    return BEGUN if place.with_name(place.name + ".part").is_file() else TO_FETCH


def _media_item(
    what: Archive | Links | ByHand, by: tuple[str, ...], root: Path, complete: bool, again: bool
) -> Item:
    folder = root / what.to
    if isinstance(what, ByHand):
        return Item(what, by, folder, None, THERE if complete else BY_HAND)
    if isinstance(what, Links):
        begun = folder.is_dir()
        return Item(what, by, folder, None, THERE if complete else BEGUN if begun else TO_FETCH)
    if complete or (not again and archives.unpacked(folder, identity_of(what)) is not None):
        state = THERE  # put there by hand, or by an earlier download
    else:
        packed = packed_place(what, root)
        begun = packed.is_file() or packed.with_name(packed.name + ".part").is_file()
        state = BEGUN if begun or archives.begun(folder, identity_of(what)) else TO_FETCH
    return Item(what, by, folder, what.size, state)


def identity_of(archive: Archive) -> str:
    """What the mark of an unpacked archive is filed under: another checksum is another archive."""
    return " ".join(filter(None, (archive.url, archive.sha256, archive.md5)))


def packed_place(archive: Archive, root: Path) -> Path:
    """Where an archive lies until it is unpacked."""
    return root / hub.place_of(archive.url).relative_to(hub.cache_root())


def _with_sizes(items: list[Item]) -> list[Item]:
    """Ask for the sizes that are not known; a server that doesn't answer leaves them unknown."""

    def ask(item: Item) -> Item:
        url = item.url
        if item.size is not None or item.state not in (TO_FETCH, BEGUN) or not url or "://" not in url:
            return item
        actual = hub.mirrored(url)
        if actual.startswith(("http://", "https://")):
            return dataclasses.replace(item, size=transfer.size_of(actual))
        return item

    asked = run_parallel(ask, items, 8, threading.Event())
    return [old if isinstance(new, Exception) else new for old, new in zip(items, asked)]


def card_paragraph(cls: type[Dataset], heading: str) -> str:
    """A paragraph of the data set's card such as "Licence"; "" if there is none."""
    text = sys.modules[cls.__module__].__doc__ or ""
    pattern = heading.replace("Licence", "Licen[cs]e")
    found = re.search(rf"\*\*{pattern}\.\*\*\s*(.*?)(?=\n\s*\n|\Z)", text, re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


# ---------------------------------------------------------------------- doing it
@dataclass(frozen=True)
class Settings:
    """How to fetch.

    Args:
        workers: files at a time; None: `WORKERS`, and for lists of pictures `fetching.WORKERS`.
        keep_archives: leave archives where they are once they are unpacked.
        progress: show a progress line in a terminal.
        say: called with a few words for each file that is done, where no progress line is shown.
        side, shards, retry_failed: see `lavis.datasets.fetching`; side None takes what the data set says.
    """

    workers: int | None = None
    keep_archives: bool = False
    progress: bool = True
    say: Callable[[str], None] = print
    side: int | None = None
    shards: bool = False
    retry_failed: bool = False


def fetch(todo: Todo, settings: Settings | None = None) -> Report:
    """Fetch what a plan names. Items are independent: one that fails doesn't stop the others.

    Raises:
        OSError: the disk has too little room for what is known of the sizes.
        KeyboardInterrupt: passed on; what was fetched is kept, and the same call goes on from there.
    """
    settings = settings or Settings()
    needed, free = todo.room()
    if needed > free:
        raise OSError(
            f"{todo.name} needs about {needed / 1e9:.1f} GB and {_existing(todo.root)} has {free / 1e9:.1f} GB free; "
            "make room, name another disk with --to, or fewer splits with --split"
        )
    report = Report([item for item in todo.items if item.state == THERE])
    files = [i for i in todo.items if isinstance(i.what, Source) and i.state != BY_HAND]
    report.done = [i for i in report.done if i not in files]  # they are verified again
    _together(files, todo, settings, report)
    if any(isinstance(i.what, Archive) for i in todo.unfinished) and files:
        # pictures that someone put there can be recognised only now that the records are there
        todo = plan(
            todo.name, splits=todo.splits, to=todo.root, type=todo.type, sizes=False, again=todo.again
        )
        report.done += [
            i
            for i in todo.items
            if i.state == THERE and not isinstance(i.what, Source) and i not in report.done
        ]
    _together([i for i in todo.unfinished if isinstance(i.what, Archive)], todo, settings, report)
    for item in todo.items:
        if isinstance(item.what, Links) and (item.state != THERE or settings.retry_failed):
            from lavis.datasets.lists import fetch_links

            try:
                report.pictures += fetch_links(todo, item, settings)
                report.done.append(item)
            except (OSError, ValueError) as e:
                report.failed.append((item, str(e)))
    return report


def _together(items: Sequence[Item], todo: Todo, settings: Settings, report: Report) -> None:
    """Fetch files or archives in parallel with one progress line."""
    if not items:
        return
    stop, guard = threading.Event(), threading.Lock()
    totals = {item.title: item.size or 0 for item in items}
    known = sum(totals.values()) or None
    with Board(todo.name, known, "B", settings.progress) as board:

        def work(item: Item) -> None:
            def told(done: int, total: int | None) -> None:
                if stop.is_set():
                    raise StoppedError
                if total is not None and totals[item.title] != total:
                    with guard:
                        totals[item.title] = total
                        board.expect(sum(totals.values()))
                board.at(item.title, done)

            if isinstance(item.what, Source):
                _fetch_file(item, told)
            elif isinstance(item.what, Archive):
                _fetch_archive(item, todo.root, settings, told, stop, board, todo.again)
            if item.state != THERE and not board.shown:
                settings.say(f"{item.title}: done")

        for item, result in zip(items, run_parallel(work, items, settings.workers or WORKERS, stop)):
            if isinstance(result, Exception):
                report.failed.append((item, str(result)))
            else:
                report.done.append(item)


def _fetch_file(item: Item, told: Callable[[int, int | None], None]) -> None:
    source = item.what
    assert isinstance(source, Source)
    if source.url is None or "://" not in source.url:
        if not item.place.is_file() and source.url is not None:
            local = Path(source.url).expanduser()
            if not local.is_file():
                raise FileNotFoundError(f"there is no annotation file {item.place}, nor {local}")
        return
    hub.fetch(source.url, sha256=source.sha256, md5=source.md5, to=item.place, progress=told)


def _fetch_archive(
    item: Item,
    root: Path,
    settings: Settings,
    told: Callable[[int, int | None], None],
    stop: threading.Event,
    board: Board,
    again: bool,
) -> None:
    archive = item.what
    assert isinstance(archive, Archive)
    packed = packed_place(archive, root)

    def unpacking(done: int, total: int) -> None:
        if stop.is_set():
            raise StoppedError
        board.say(f"unpacking {item.title} {100 * done // max(1, total)}%")

    path = hub.fetch(archive.url, sha256=archive.sha256, md5=archive.md5, to=packed, progress=told)
    with hub.locked(archive.url, item.place / STATE / packed.name):
        if again:
            archives.forget(item.place, identity_of(archive))
        archives.unpack(path, item.place, identity=identity_of(archive), progress=unpacking)
    if path == packed and not settings.keep_archives:
        hub.forget(packed)
