"""`lavis explain`: where in a picture, a pair of them or a clip each word has its evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lavis.cli import common, options
from lavis.cli.pictures import save_png
from lavis.common.files import is_clip, is_file, to_line


def register(app: typer.Typer) -> None:
    app.command("explain")(explain)


def explain(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", help="A picture; with a model of clips also a clip.")
    ],
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEXT]",
            help="The text to explain, or a question for a model that answers; none: a captioner's own caption.",
        ),
    ] = None,
    right: Annotated[
        Path | None,
        typer.Option("--right", help="The right picture, for a model that judges statements about two."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The PNG file to write: a heat map per word.")
    ] = None,
    word: Annotated[
        list[str] | None, typer.Option("--word", "-w", help="Only this word's map. May be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the maps as well, as numbers.")] = False,
    layer: Annotated[
        int | None, typer.Option(min=0, help="The layer to look at (default: one that shows places well).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A model with a matching head, a captioner, one that answers questions, or a classifier of texts "
            "(default: the small packaged captioner).",
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Show where in a picture each word of a text has its evidence (Grad-CAM).

    Prints one JSON object: {"image", "text", "score", "words"} ("video" of a model of clips; of a pair also "right"),
    with --json also "maps", a square of numbers per word (of a pair or a clip a list of squares, one per picture).
    A word's map is stretched to the full range of colours, so it shows where the word looks, not how sure the model is.

    \b
    Examples:
      lavis explain photo.jpg "a dog on a beach" --out dog.png --model NAME/TYPE
      lavis explain photo.jpg --out caption.png
      lavis explain photo.jpg "what is the dog chasing?" --model NAME/TYPE --out why.png
      lavis explain drawing.png "a red circle above a blue star" --word star --out star.png
      lavis explain left.jpg --right right.jpg "both show a dog" --model NAME/TYPE --out pair.png
      lavis explain clip.mp4 "a dog runs" --model NAME/TYPE --out frames.png
    """
    if out is None and not as_json:
        raise ValueError("where should the maps go? Name a file, --out maps.png, or print them with --json")
    from lavis.common.images import open_image

    # what can't be read is said before a large model is loaded
    for path in (picture, right):
        if path is not None and not is_file(path):
            raise FileNotFoundError(f"there is no image {common.shortened(str(path))}")
    if text is not None:
        common.checked_text(text, "the text")
    files = [path.expanduser() for path in (picture, right) if path is not None]
    clip = is_clip(files[0], common.sees(model))
    shown = [] if clip else [open_image(file) for file in files]
    spec = common.chosen(model, checkpoint, "explain")
    from lavis import inference
    from lavis.inference.explain import explanation_sheet
    from lavis.inference.protocols import Answers

    loaded = common.load(spec, checkpoint, device, precision, part)
    if clip:
        shown = loaded.pictures(files[0])
    pair = loaded.pairs
    if pair != (right is not None):
        needs = (
            "judges two pictures; give the second, --right PICTURE"
            if pair
            else "takes no second picture, --right"
        )
        raise ValueError(f"{spec} {needs}")
    several = pair or loaded.sees == "video"
    found = inference.explain(loaded, shown if several else shown[0], text, layer)
    places = None if not word else _places(found.words, word)
    row: dict[str, Any] = {
        loaded.sees: str(picture), "text": found.text, "score": round(found.score, 6),
        "words": found.words if places is None else [found.words[i] for i in places],
    }  # fmt: skip
    if right is not None:
        row["right"] = str(right)
    if text is not None and found.text != text:
        row["question" if isinstance(loaded.model, Answers) else "given"] = text
    if as_json:
        maps = found.maps if places is None else found.maps[places]
        row["maps"] = maps.round(8).tolist()
    if out is not None:
        save_png(explanation_sheet(shown if several else shown[0], found, places), out)
        row["out"] = str(out)
    print(to_line(row))


def _places(words: list[str], wanted: list[str]) -> list[int]:
    """Where the wanted words stand, each as often as it occurs."""
    places = []
    for name in wanted:
        found = [
            i for i, word in enumerate(words) if word.strip("?,.!").lower() == name.strip("?,.!").lower()
        ]
        if not found:
            raise ValueError(f"--word {name}: the text has no such word; it has {', '.join(words)}")
        places += found
    return places
