"""`lavis download` and `lavis data check`: fetching what a data set needs, and looking whether it is all there."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from lavis.cli import common
from lavis.common.files import is_file

Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set (see `lavis datasets`).")]
Split = Annotated[list[str] | None, typer.Option(help="Only this split. May be repeated.")]


def register(app: typer.Typer) -> None:
    app.command("download")(download)
    data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    data.command("check")(check)
    data.callback()(_data)
    app.add_typer(data, name="data")


def _data() -> None:
    """Look after the data on this machine.

    \b
    Example:
      lavis data check coco_caption
    """


# ---------------------------------------------------------------- download
def download(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A data set (see `lavis datasets`), or a table of captions and addresses."
        ),
    ],
    split: Split = None,
    to: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where to put it (default: the cache).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched, and stop.")] = False,
    annotations_only: Annotated[
        bool, typer.Option("--annotations-only", help="No pictures and clips.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Fetch archives again that were unpacked before.")
    ] = False,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Don't delete archives that are unpacked.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Files at a time (default: 4; of lists of pictures 32).")
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Lists of pictures: store larger ones with this shorter side in pixels; 0 stores them as they are "
            "(default: 384 for training, 0 for evaluation).",
        ),
    ] = None,
    shards: Annotated[
        bool,
        typer.Option(
            "--shards",
            help="Lists of images: into WebDataset shards, not a folder of files; the data set reads them from there.",
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Lists of pictures: also those that failed before; shards are opened again for them.",
        ),
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of a table whose first line doesn't name them, such as caption,url."),
    ] = None,
    kind: Annotated[str, typer.Option("--type", help="Which choice of annotation files.")] = "default",
) -> None:
    """Fetch a data set: annotation files, pictures or clips. What is there already stays.

    What was fetched is verified; interrupted, the same command goes on where it stopped. Exit code 1: some of
    it could not be fetched.

    \b
    Examples:
      lavis download coco_caption --dry-run
      lavis download coco_caption --split val --to /data/lavis
      lavis download sbu_caption --shards
      lavis download pairs.tsv --columns caption,url --to /data/pairs
    """
    from lavis.datasets import download as downloads

    settings = downloads.Settings(
        workers=workers, keep_archives=keep_archives, say=common.note, side=side, shards=shards,
        retry_failed=retry_failed,
    )  # fmt: skip
    if Path(name).suffix.lower() in (".tsv", ".csv", ".json", ".jsonl"):
        _download_table(name, to, columns, settings, dry_run)
        return
    todo = downloads.plan(name, splits=split or (), to=to, type=kind, media=not annotations_only, again=again)
    _show(todo)
    if dry_run or not todo.items:
        return
    try:
        report = downloads.fetch(todo, settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted; what was fetched is kept, and the same command goes on from there"
        ) from None
    _conclude(todo, report, to)


def _download_table(name: str, to: str | None, columns: str | None, settings: Any, dry_run: bool) -> None:
    from lavis.datasets import lists

    if not is_file(name):
        raise FileNotFoundError(f"there is no table {common.shortened(name)}")
    table = Path(name).expanduser()
    if to is None:
        raise ValueError(f"where should the pictures of {name} go? Name a folder with --to DIR")
    names = tuple(c.strip() for c in columns.split(",")) if columns else ()
    if dry_run:
        row = next(lists.read_addresses(table, names), None)
        print(f"{name} -> {to}; the first row: {row}")
        return
    try:
        tally = lists.fetch_table(
            table, Path(to).expanduser(), names, lists.settings_of(settings), shards=settings.shards
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted; what was fetched is kept, and the same command goes on from there"
        ) from None
    print(tally.text())
    if tally.failed:
        raise typer.Exit(1)


def size_text(size: int | None) -> str:
    """Bytes for people; "size unknown" for None."""
    if size is None:
        return "size unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def _show(todo: Any) -> None:
    """Say what is needed, from where, how big, under which licence, and what is there."""
    from lavis.datasets.sources import ByHand, Links, Source

    if not todo.items:
        print(
            f"{todo.name}: nothing to download; it is made on the way, comes with a package or is yours "
            f"(see: lavis card {todo.name})"
        )
        return
    print(
        f"{todo.name}, {'split' if len(todo.splits) == 1 else 'splits'} {', '.join(todo.splits)}, to {todo.root}"
    )
    for item in todo.items:
        what = {Source: "annotations", Links: "pictures one by one"}.get(type(item.what), todo.kind)
        print(f"  {item.title}: {what}; {_state_text(item)}")
        if isinstance(item.what, ByHand):
            print(textwrap.indent(textwrap.fill(f"{item.what.steps}. {item.what.page}", 100), "      "))
        elif item.url:
            print(f"      from {item.url}")
        elif isinstance(item.what, Links) and item.what.table is not None:
            table = todo.root / item.what.table.storage
            lacking = "" if table.is_file() else f", which has to be fetched by hand: {item.what.how}"
            print(textwrap.indent(textwrap.fill(f"from the addresses in {table}{lacking}", 100), "      "))
        print(f"      to {item.place}")
    unknown = sum(i.size is None for i in todo.unfinished)
    known = sum(i.size or 0 for i in todo.unfinished)
    if todo.unfinished:
        _, free = todo.room()
        more = f" and {unknown} of unknown size" if unknown else ""
        print(f"To fetch: {size_text(known) if known else 'nothing of known size'}{more}; free on that disk: "
              f"{size_text(free)}")  # fmt: skip
    print(textwrap.fill(f"Licence: {todo.licence or 'not stated in the card'}", 100))
    sys.stdout.flush()


def _state_text(item: Any) -> str:
    if item.state == "there":
        return "there already"
    if item.state == "by hand":
        return "must be fetched by hand"
    size = size_text(item.size)
    return f"{size}, begun, will be continued" if item.state == "begun" else size


def _conclude(todo: Any, report: Any, to: str | None) -> None:
    from lavis.datasets.shard_reader import is_packed
    from lavis.datasets.sources import ByHand

    for split, tally in report.pictures:
        print(f"{split}: {tally.text()}")
        packed = is_packed(Path(tally.failures).parent)  # the data set reads what is there by itself
        if not packed and tally.annotation.endswith(".got.jsonl") and (tally.failed or tally.refused):
            print(f"To use only what is there: build_info.annotations.{split}.storage={tally.annotation}")
    for item, reason in report.failed:
        common.note(f"{item.title} could not be fetched: {reason}")
    by_hand = [i for i in todo.items if i.state == "by hand"]
    for item in by_hand:
        how = f"{item.what.steps}. {item.what.page}" if isinstance(item.what, ByHand) else "it has no address"
        common.note(f"{item.place} must be fetched by hand: {how}")
    if report.failed and not report.done:
        raise OSError(f"nothing of {todo.name} could be fetched")
    print(f"{todo.name}: {len(report.done)} of {len(todo.items)} there" + (f", below {to}" if to else ""))
    if to is not None:
        print(f"To use it: LAVIS_CACHE={todo.root}" + _vis_path(todo))
    if report.failed or by_hand or any(tally.failed for _, tally in report.pictures):
        raise typer.Exit(1)


def _vis_path(todo: Any) -> str:
    from lavis.common.registry import registry

    media = registry.get_dataset_class(todo.name).media
    return "" if media is None else f", or load_dataset({todo.name!r}, vis_path={str(todo.root / media)!r})"


# ---------------------------------------------------------------- check
def check(
    name: Name,
    vis_path: Annotated[
        str | None, typer.Option("--vis-path", metavar="DIR", help="The folder of the pictures or clips.")
    ] = None,
    split: Split = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every picture, or clip to its end.")] = False,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", "--options", metavar="KEY=VALUE...", help="The data set's own settings."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Look which files of a data set are missing, damaged or extra. Fetches nothing.

    Exit code 0: all is there; 1: something is missing, damaged or broken.

    \b
    Examples:
      lavis data check coco_caption
      lavis data check coco_caption --vis-path /data/coco/images --split val --deep
      lavis data check own --options train=train.jsonl images=photos
    """
    from lavis.common.config import parse_options
    from lavis.datasets.checking import check as look

    found = look(
        name, vis_path=vis_path, splits=split, section=parse_options(list(options or [])), deep=deep,
        progress=None if as_json else _bar,
    )  # fmt: skip
    if as_json:
        print(
            json.dumps(
                {**dataclasses.asdict(found), "complete": found.complete}, indent=2, ensure_ascii=False
            )
        )
    else:
        _print_check(found)
    if not found.complete:
        raise typer.Exit(1)


def _bar(items: Iterable[Any], total: int) -> Iterable[Any]:
    if not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, desc="decoding", file=sys.stderr)


def _print_check(found: Any) -> None:
    for a in found.annotations:
        detail = f" ({a.detail})" if a.detail else ""
        state = "there, no checksum known" if a.state == "unverified" else a.state
        print(f"annotations, {a.split}: {state}{detail}: {a.path}")
    for s in found.splits:
        if s.problem:
            print(f"{s.split}: {s.problem}")
            continue
        line = f"{s.split}: {s.records:,} records"
        if found.folder is not None:
            line += f", {s.media:,} {found.kind}, {s.missing:,} missing"
        if s.broken is not None:
            line += f", {s.broken:,} broken"
        print(line)
        if s.missing:
            print(f"    missing: {_names(s.missing_names, s.missing)}")
        for path in s.broken_names:
            print(f"    broken: {path}")
    if found.folder is not None:
        print(f"folder: {found.folder}")
    if found.extra is not None:
        more = f": {_names(found.extra_names, found.extra)}" if found.extra else ""
        print(f"extra files, which no record names: {found.extra:,}{more}")
    if found.note:
        print(found.note)
    if found.advice and not found.complete:
        print(found.advice)


def _names(names: list[str], total: int) -> str:
    return ", ".join(names) + (f" and {total - len(names):,} more" if total > len(names) else "")
