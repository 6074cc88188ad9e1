"""`lavis features`: vectors of pictures, clips or texts, in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lavis.cli import common, options
from lavis.cli.pictures import Pictures, counter
from lavis.common.files import is_file, is_folder, to_line

if TYPE_CHECKING:
    from lavis.inference.features import Item

_MODES, _FORMATS = ("image", "text", "multimodal", "queries"), ("npy", "safetensors", "parquet")


def register(app: typer.Typer) -> None:
    app.command("features")(features)


def features(
    paths: Annotated[list[str] | None, options.MediaList] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write.")] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="image (of clips, too), text (lines of --texts), multimodal (texts that have read their pictures), or "
            "queries (all vectors of each image, of a model with several).",
            autocompletion=common.one_of(*_MODES),
        ),
    ] = "image",
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Of mode text: a file with one text per line. Of multimodal: a table (JSONL, CSV, TSV) with the "
            "columns image (or video) and text; PATH is then the folder that its pictures lie in."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="npy, safetensors or parquet (needs openlavis[parquet]).",
            autocompletion=common.one_of(*_FORMATS),
        ),
    ] = "npy",
    half: Annotated[bool, typer.Option("--half", help="Store 16-bit floats.")] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Inputs per file.")] = 1024,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace vectors in the folder of another model, kind or list."),
    ] = False,
    model: options.Model = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    null: options.Null = False,
) -> None:
    """Write vectors of pictures, clips or texts to files, in shards.

    Vectors of images and texts have length 1 and lie in one space, so their products are cosines. A model with several
    vectors of an image (a Q-Former) compares a text with the one that fits best: --mode queries stores all of them,
    --mode image their mean. Beside each shard-00000.npy is shard-00000.jsonl, which names its rows; features.json
    describes the whole. Run again after an interruption, or with a longer list, what is complete is checked and kept; a
    folder of another model or list is refused without --overwrite. Under torchrun the processes share the shards; the
    result is the same. Prints a summary as JSON.

    \b
    Examples:
      lavis features photos/ --out vectors --model NAME/TYPE
      lavis features --mode text --texts captions.txt --out text_vectors
      lavis features photos/ --mode multimodal --texts pairs.csv --out fused
      lavis features photos/ --mode queries --out queries --model NAME/TYPE
      lavis features clips/ --out clip_vectors --model NAME/TYPE
      find photos -name "*.jpg" | lavis features - --out vectors --format parquet
      torchrun --nproc_per_node=4 -m lavis features photos/ --out vectors --device cuda
    """
    if out is None:
        raise ValueError("where should the vectors go? Name a folder: --out vectors")
    for name, value, choices in (("--mode", mode, _MODES), ("--format", format, _FORMATS)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be {', '.join(choices)}")
    items, pictures = _inputs(list(paths or []), mode, texts, null, common.sees(model))
    spec = common.chosen(model, checkpoint, "features")
    from lavis.common import dist
    from lavis.inference import Encoder
    from lavis.inference.features import extract

    encoder = Encoder(common.load(spec, checkpoint, device, precision, part))
    with counter("text" if mode == "text" else pictures.name) as tell:
        done = extract(
            encoder, items, out, mode, format, shard_size, batch_size, half,
            tell if dist.is_main() else None, overwrite,
        )  # fmt: skip
    for path, reason in done.failed:
        pictures.report(path, reason)
    if dist.is_main():
        if done.kept:
            common.note(f"{done.kept} of {done.rows} rows were there already and were kept")
        summary = {"out": str(out), "rows": done.rows, "failed": len(done.failed), "width": _width(out)}
        print(to_line(summary))
    pictures.finish(done.rows)


def _width(folder: Path) -> int:
    from lavis.datasets.tables import read_json
    from lavis.inference.features import SUMMARY

    return int(read_json(folder.expanduser() / SUMMARY)["width"])


def _inputs(
    paths: list[str], mode: str, texts: Path | None, null: bool, sees: str
) -> tuple[list[Item], Pictures]:
    from lavis.inference.features import Item

    if mode in ("text", "multimodal") and texts is None:
        raise ValueError(f"--mode {mode} needs --texts FILE")
    if mode in ("image", "queries"):
        if texts is not None:
            raise ValueError("--texts is for --mode text or --mode multimodal")
        if not paths:
            raise ValueError(
                "which pictures? Give files, folders or patterns, or - to read paths from standard input"
            )
        pictures = Pictures.of(paths, null, sees)
        return [_item(sees, path) for path in pictures.paths], pictures
    assert texts is not None
    if mode == "text":
        if paths:
            raise ValueError(f"--mode text takes its texts from {texts}; leave {paths[0]!r} out")
        if not is_file(texts):
            raise FileNotFoundError(f"--texts: there is no file {common.shortened(str(texts))}")
        lines = common.read_lines(texts.expanduser())
        found = [Item(text=common.checked_text(line, "--texts")) for line in lines if line.strip()]
    else:
        found = _pairs(texts, paths, sees)
    if not found:
        raise ValueError(f"{texts} has no texts")
    return found, Pictures([], 0, sees)


def _item(sees: str, path: Path, text: str | None = None) -> Item:
    from lavis.inference.features import Item

    return Item(video=path, text=text) if sees == "video" else Item(image=path, text=text)


def _pairs(table: Path, paths: Sequence[str], sees: str) -> list[Item]:
    from lavis.datasets.tables import read_table

    if len(paths) > 1 or (paths and not is_folder(paths[0])):
        raise ValueError("--mode multimodal takes one PATH, the folder that the table's pictures lie in")
    root = Path(paths[0]).expanduser() if paths else table.expanduser().parent
    found = []
    for line, row in read_table(table):
        if not isinstance(row.get(sees), str) or not isinstance(row.get("text"), str):
            raise ValueError(f"{table}, line {line}: the columns {sees} and text are needed")
        found.append(_item(sees, root / row[sees], row["text"]))
    return found
