"""Lists of pictures: tables of captions and addresses, and the `Links` of data sets (SBU, CC3M, CC12M).

    fetch_table("pairs.tsv", "pairs/", columns=("caption", "url"))

Afterwards the annotation file names only what could be got.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis.common import hub
from lavis.common.files import locked, write_json
from lavis.common.members import STATE, safe_parts
from lavis.common.registry import registry
from lavis.datasets.fetching import (
    WORKERS,
    FetchSettings,
    Files,
    Job,
    Packed,
    Tally,
    fetch_pictures,
    write_rows,
)
from lavis.datasets.shard_reader import is_packed
from lavis.datasets.sources import TRAINING_SIDE, Links, shards_folder
from lavis.datasets.tables import read_json, read_table

if TYPE_CHECKING:
    from lavis.datasets.download import Item, Settings, Todo

logger = logging.getLogger(__name__)


def read_addresses(table: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a list, one after the other.

    Args:
        table: .tsv or .csv (of any length), .jsonl or .json, in UTF-8.
        columns: the columns' names, where the first line of a .tsv or .csv does not hold them. Quotes have no
            meaning in a .tsv then, as in those of Conceptual Captions.

    Raises:
        ValueError: a row has another number of fields.
    """
    suffix = table.suffix.lower()
    if suffix not in (".tsv", ".csv") or not columns:
        for _, row in read_table(table):
            yield row
        return
    with table.open(encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as f:
        rows = csv.reader(f) if suffix == ".csv" else (line.rstrip("\n").split("\t") for line in f)
        for number, fields in enumerate(rows, 1):
            if len(fields) != len(columns):
                raise ValueError(
                    f"{table}, row {number}: {len(fields)} fields, and the columns are {', '.join(columns)}"
                )
            yield dict(zip(columns, fields))


def _jobs_of_rows(table: Path, columns: Sequence[str], url_key: str) -> Iterator[Job]:
    """Pictures of a table get numbers as names, a thousand per folder."""
    for place, row in enumerate(read_addresses(table, columns)):
        if url_key not in row:
            raise ValueError(
                f"{table} has the columns {', '.join(row)}, and none named {url_key!r}; name them with --columns"
            )
        name = f"{place // 1000:06d}/{place:09d}.jpg"
        yield Job(place, str(row[url_key] or "").strip(), name, {**row, "image": name})


def fetch_table(
    table: str | Path,
    folder: str | Path,
    columns: Sequence[str] = (),
    settings: FetchSettings | None = None,
    *,
    url_key: str = "url",
    shards: bool = False,
    annotation: str | Path | None = None,
) -> Tally:
    """Fetch the pictures of a table with captions and addresses.

    Args:
        table, columns: see `read_addresses`.
        folder: where the pictures go.
        url_key: the column of addresses.
        shards: write WebDataset shards in place of files.
        annotation: where the records of what was got go, as JSON lines with `image` and the table's columns (in
            shards: `shard` and `key`); by default `annotations.jsonl` in the folder.

    Raises:
        ValueError: the table has no such column.
        OSError, KeyboardInterrupt: see `fetch_pictures`.
    """
    table, folder = Path(table), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def jobs() -> Iterator[Job]:
        return _jobs_of_rows(table, columns, url_key)

    place = Path(annotation) if annotation is not None else folder / "annotations.jsonl"
    identity = f"{table.name}, {table.stat().st_size} bytes"
    return _run(jobs, folder, identity, settings or FetchSettings(), shards, place, by_place=True)


def _run(
    jobs: Callable[[], Iterator[Job]],
    folder: Path,
    identity: str,
    settings: FetchSettings,
    shards: bool,
    annotation: Path,
    total: int | None = None,
    by_place: bool = False,
) -> Tally:
    """`by_place`: files are named by their places in the list, so a folder is of one list."""

    def wait() -> None:
        logger.warning("another process is fetching into %s; this one goes on when it has ended", folder)

    with locked(folder / STATE / "lock", on_wait=wait):
        if by_place and not shards:
            _refuse_other_list(folder, next(jobs(), None))
        keeper = Packed(folder, identity, settings.retry_failed) if shards else Files(folder)
        tally = fetch_pictures(jobs(), keeper, settings, total)
        if isinstance(keeper, Packed):
            write_rows(annotation, keeper.shards.records())
        else:
            write_rows(annotation, (job.record for job in jobs() if job.name in keeper.there))
    tally.annotation = str(annotation)
    return tally


def _refuse_other_list(folder: Path, first: Job | None) -> None:
    """A list may grow at its end; another one would take this one's files for its own.

    Raises:
        ValueError: the folder holds the files of a list that begins with another address.
    """
    mark = folder / STATE / "list.json"
    url = None if first is None else first.url
    if mark.is_file():
        before = read_json(mark)
        if isinstance(before, dict) and before.get("first") != url:
            raise ValueError(
                f"{folder} holds the files of another list, which begins with {before.get('first')}, not {url}; name "
                "another folder"
            )
    write_json(mark, {"first": url})


# ---------------------------------------------------------------------- as part of `lavis download`
def settings_of(given: Settings, side: int = TRAINING_SIDE) -> FetchSettings:
    """The settings of a download for lists of pictures."""
    return FetchSettings(
        side=side if given.side is None else given.side,
        workers=given.workers or WORKERS,
        retry_failed=given.retry_failed,
        progress=given.progress,
    )


def fetch_links(todo: Todo, item: Item, given: Settings) -> list[tuple[str, Tally]]:
    """Fetch the pictures of a data set's `Links`: into files, or into shards where these were asked for or begun.

    Returns:
        By split (or for the whole table) what became of it. `Tally.annotation` is the file to use in place of
        the published one where that names pictures that can't be got.

    Raises:
        ValueError: the table must be fetched by hand, or the records have no addresses.
    """
    from lavis.datasets.download import placed_plan

    links = item.what
    assert isinstance(links, Links)
    cls = registry.get_dataset_class(todo.name)
    placed = placed_plan(cls, todo.name, todo.type, todo.root)
    trains = set(item.splits) <= set(cls.train_splits)
    side = links.side if links.side is not None else TRAINING_SIDE if trains else 0
    settings = settings_of(given, side)
    if links.table is not None:
        table = todo.root / links.table.storage
        if not table.is_file():
            if links.table.url is None:
                raise ValueError(f"{links.how.rstrip('.')}; put it at {table} and run it again")
            hub.fetch(links.table.url, sha256=links.table.sha256, md5=links.table.md5, to=table)
        made = Path(placed.sources[item.splits[0]][0].storage)
        tally = fetch_table(
            table,
            item.place,
            links.columns,
            settings,
            url_key=links.url_key,
            shards=given.shards or is_packed(item.place),
            annotation=made,
        )
        return [(", ".join(item.splits), tally)]
    out = []
    for split in item.splits:
        dataset = cls.load(split, replace(placed, as_listed=True))
        jobs = _jobs_of_records(dataset.records, links.url_key, f"{todo.name}/{split}")
        storage = Path(placed.sources[split][0].storage)
        packed = todo.root / shards_folder(links, split, cls.downloads, cls.split_names(placed))
        shards = given.shards or is_packed(packed)
        out.append((split, _run(
            jobs, packed if shards else item.place, f"{todo.name}/{split}", settings, shards,
            storage.with_name(f"{storage.stem}.got.jsonl"), len(dataset.records),
        )))  # fmt: skip
    return out


def _jobs_of_records(
    records: Sequence[Mapping[str, Any]], url_key: str, where: str
) -> Callable[[], Iterator[Job]]:
    """Pictures of records keep the names that the records give them; each is fetched once."""
    for place, record in enumerate(records):
        if url_key not in record or "image" not in record:
            raise ValueError(f"{where}, record {place}: it should have the keys image and {url_key}")

    def jobs() -> Iterator[Job]:
        for place, record in enumerate(records):
            name = "/".join(safe_parts(str(record["image"])))
            yield Job(place, str(record[url_key] or "").strip(), name, record)

    return jobs
