"""`lavis index` and `lavis search`: pictures or clips by text, by picture, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lavis.cli import common, options
from lavis.cli.pictures import Row, counter, file_of, save_png, write_whole
from lavis.common.files import existing, is_file, printable, to_line

if TYPE_CHECKING:
    from lavis.inference import Index
    from lavis.inference.index import Hit

_STDIN = "-"
_THUMBNAIL = 320  # pixels, longer side


def register(app: typer.Typer) -> None:
    app.command("index")(index)
    app.command("search")(search)


def index(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH...]",
            help="Folders (or files, or patterns) to index; - reads paths from standard input. None: those that the "
            "index is of.",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The index: a folder, made if it is not there.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Take a folder out of the index. May be repeated.")
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Allow to forget more than half of the index, or of one of its folders."
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="<name>/<type> or a folder (default: the index's, or a small packaged one)."
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    null: options.Null = False,
) -> None:
    """Build a searchable index of pictures (or clips, with a model of clips), or update one.

    New and changed files (by size and time) are encoded; those that are gone are forgotten, more than half of them only
    with --prune. An interrupted update goes on when it is run again. An index can be searched while it is updated.
    Prints a summary as JSON.

    \b
    Examples:
      lavis index photos/ --to photos.index --model NAME/TYPE
      lavis index --to photos.index
      lavis index more_photos/ --to photos.index
      lavis index --remove more_photos/ --to photos.index
      lavis index clips/ --to clips.index --model NAME/TYPE
    """
    if to is None:
        raise ValueError("where should the index go? Name a folder: --to photos.index")
    from lavis.inference import Encoder, Index

    there = Index.open(to) if Index.exists(to) else None
    given = list(paths or [])
    if there is None and not given:
        raise ValueError(f"{to} is no index yet; name the folders that it should be of")
    roots = _roots(there, given, list(remove or []))
    named = model or (None if there is None else there.spec)
    sees = common.sees(named)
    files, problems = common.find_media([*roots, *([_STDIN] if _STDIN in given else [])], null, sees)
    if there is None and not files:
        raise FileNotFoundError("; ".join(problems))
    if checkpoint is None and there is not None and model is None:
        checkpoint = there.checkpoint
    spec = common.chosen(named, checkpoint, "match")
    encoder = Encoder(common.load(spec, checkpoint, device, precision, part))
    if there is None:
        there = Index.create(to, spec, checkpoint)
    for problem in problems:
        common.note(problem)
    name = common.NAMES[sees]
    with counter(name) as tell:
        done = there.update(
            files, encoder, tell, batch_size, prune, [*roots, *([_STDIN] if _STDIN in given else [])]
        )
    for path, reason in done.failed:
        common.note(reason if str(path) in reason else f"{path}: {reason}")
    summary = {
        "index": str(to), f"{name}s": len(there), "added": done.added, "changed": done.changed,
        "removed": done.removed, "unchanged": done.unchanged, "failed": len(done.failed),
    }  # fmt: skip
    print(to_line(summary))
    if done.failed:
        common.note(f"{len(done.failed)} {name}s could not be used; see above")
        raise typer.Exit(1)


def _roots(there: Index | None, given: Sequence[str], remove: Sequence[str]) -> list[str]:
    """What the index is to be of, without standard input: absolute paths and patterns.

    Raises:
        ValueError: a list on standard input is missing; a folder to remove is not in the index.
        FileNotFoundError: a folder is not there, and what it holds would be forgotten.
    """
    known = [] if there is None else list(there.roots)
    if _STDIN in known and _STDIN not in given:
        raise ValueError(
            f"{there.folder if there else ''} was built of a list on standard input; give the whole list again, with -"
        )
    roots = [r for r in known if r != _STDIN]
    for text in remove:
        root = _absolute(text)
        if root not in roots:
            raise ValueError(
                f"--remove {text}: the index is not of it, but of {', '.join(roots) or 'nothing'}"
            )
        roots.remove(root)
    added = [_absolute(text) for text in given if text != _STDIN]
    for root in [*roots, *added]:
        if existing(root) is not None or any(c in root for c in "*?["):
            continue
        if root in added:
            raise FileNotFoundError(f"{common.shortened(root)}: there is no such file or folder")
        # what it holds would be forgotten, which is not what a disk that is not mounted should do
        raise FileNotFoundError(
            f"{root}, which the index is of, is not there; if it is gone for good, take it out with --remove {root}"
        )
    return list(dict.fromkeys([*roots, *added]))


def _absolute(text: str) -> str:
    return str(Path(text).expanduser().absolute())


@dataclass(frozen=True)
class _Query:
    """What is looked for."""

    text: str | None
    picture: Path | None

    def __str__(self) -> str:
        return " + ".join(
            ([f"“{self.text}”"] if self.text else []) + ([str(self.picture)] if self.picture else [])
        )


def search(
    place: Annotated[Path, typer.Argument(metavar="INDEX", help="What `lavis index` made.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What they should show.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="A picture (or clip) they should look like.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, help="How many to give.")] = 20,
    rerank: Annotated[
        int,
        typer.Option(min=0, help="Read so many of the nearest again and order them by the matching head."),
    ] = 0,
    text_weight: Annotated[float, typer.Option(help="Of the text, where both are given.")] = 1.0,
    picture_weight: Annotated[float, typer.Option(help="Of the picture, likewise.")] = 1.0,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the index's model lies, if it has been moved.")
    ] = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    out: options.Out = None,
    pretty: options.Pretty = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Also a contact sheet: this PNG file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also a page with thumbnails: this file.")
    ] = None,
) -> None:
    """Search an index by text, by picture, or by both added.

    Prints one JSON object per picture, the best first: {"image", "score"} ("video" for a clip), score being the cosine
    with the query (of an image with several vectors the largest with a text; two images are compared by the means of
    theirs); with --rerank also "match", the probability that the text fits.

    \b
    Examples:
      lavis search photos.index "a dog on a beach"
      lavis search photos.index --picture holiday.jpg -k 50 --html found.html
      lavis search photos.index "at night" --picture street.jpg --text-weight 0.5
      lavis search photos.index "two people on one bicycle" --rerank 100 --sheet found.png
    """
    if text is None and picture is None:
        raise ValueError(
            'what should be looked for? Give a text, --picture FILE, or both: lavis search INDEX "a dog"'
        )
    if picture is not None and not is_file(picture):
        raise FileNotFoundError(f"--picture: there is no file {picture}")
    if text is not None:
        common.checked_text(text, "the text")
    from lavis.inference import Encoder, Index

    there = Index.open(place)
    spec = model or there.spec
    loaded = common.load(spec, checkpoint or (None if model else there.checkpoint), device, precision, part)
    like = None if picture is None else loaded.read(picture.expanduser())
    hits = there.search(Encoder(loaded), text, like, k, rerank, (text_weight, picture_weight))
    if not hits:
        common.note(f"the index {place} has no {common.NAMES[loaded.sees]}s")
    lost = [hit for hit in hits[: rerank or 0] if hit.match is None]
    for hit in lost:
        common.note(f"{hit.path} could not be read for --rerank; update the index: lavis index --to {place}")
    rows = [_row(hit, loaded.sees) for hit in hits]
    lines = "".join((printable(_plain(row)) if pretty else to_line(row)) + "\n" for row in rows)
    if out is None:
        print(lines, end="", flush=True)
    else:
        write_whole(out, lines)
    missing = _show(hits, loaded.sees, _Query(text, picture), sheet, html)
    if lost or missing:
        raise typer.Exit(1)


def _row(hit: Hit, sees: str) -> Row:
    row: Row = {sees: str(hit.path), "score": round(hit.score, 6)}
    return row if hit.match is None else {**row, "match": round(hit.match, 6)}


def _plain(row: Row) -> str:
    chance = f"  {row['match']:.3f} fits" if "match" in row else ""
    return f"{row['score']:.3f}{chance}  {file_of(row)}"


def _show(hits: Sequence[Hit], sees: str, query: _Query, sheet: Path | None, html: Path | None) -> int:
    """Write sheet and page, if they are wanted and there is something; how many files could not be read."""
    if (sheet is None and html is None) or not hits:
        return 0
    from lavis.cli.search_page import search_page
    from lavis.common.files import write_text
    from lavis.datasets.shown import preview
    from lavis.inference.sheet import Tile, contact_sheet

    missing = 0
    pictures: list[Any] = []
    for hit in hits:
        try:
            pictures.append(preview(hit.path, sees, _THUMBNAIL))
        except OSError as e:
            common.note(str(e))
            pictures.append(None)
            missing += 1
    captions = [f"{h.score:.3f}" + ("" if h.match is None else f"   fits {h.match:.2f}") for h in hits]
    if sheet is not None:
        from PIL import Image

        blank = Image.new("RGB", (4, 4), "#dddddd")
        tiles = [Tile(p or blank, [str(h.path), c]) for h, p, c in zip(hits, pictures, captions, strict=True)]
        save_png(contact_sheet(tiles), sheet)
    if html is not None:
        write_text(html.expanduser(), search_page(str(query), hits, pictures))
    return missing
