"""`lavis match` and `lavis classify`: how well texts fit pictures or clips, and which of some labels fits best."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lavis.cli import common, options
from lavis.cli.pictures import Pictures, Row, file_of
from lavis.common.files import existing


def register(app: typer.Typer) -> None:
    app.command("match")(match)
    app.command("classify")(classify)


def match(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH... [TEXT]",
            help="Pictures, folders or patterns (- reads paths from standard input), and the text unless --text is "
            "given.",
        ),
    ],
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="A text. May be repeated.")] = None,
    model: options.Model = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    pretty: options.Pretty = False,
    null: options.Null = False,
) -> None:
    """How well texts fit pictures (or clips, with a model of clips).

    Prints one JSON object per picture and text: {"image", "text", "match", "cosine"}, with "video" in place of "image"
    for a clip. match is the probability that the text fits, from the model's matching head (null for a model without
    one); cosine compares the vectors of both, from -1 to 1, of an image with several vectors the one that fits best.

    \b
    Examples:
      lavis match photo.jpg "a dog on a beach" --model NAME/TYPE
      lavis match photos/ -t "a dog" -t "a cat" --out matches.jsonl
      lavis match drawing.png "a red circle" --pretty
      lavis match clips/ -t "a dog jumps" --model NAME/TYPE
    """
    paths, texts = common.split_last(arguments, text, "match", "text")
    pictures = Pictures.of(paths, null, common.sees(model))
    spec = common.chosen(model, checkpoint, "match")
    from lavis.inference import Encoder

    encoder = Encoder(common.load(spec, checkpoint, device, precision, part))

    def predict(images: list[Any], paths: list[Path]) -> Iterator[Row]:
        chances, cosines = encoder.match_all(images, texts)
        for i, path in enumerate(paths):
            for k, each in enumerate(texts):
                chance = None if chances is None else round(float(chances[i, k]), 6)
                yield {
                    pictures.sees: str(path), "text": each, "match": chance, "cosine": round(float(cosines[i, k]), 6),
                }  # fmt: skip

    settings = {"command": "match", **encoder.loaded.settings(), "precision": precision, "texts": texts}
    plain = _plain_match if pretty else None
    pictures.run(predict, encoder.loaded.read, batch_size, out, plain, settings, overwrite)


def _plain_match(row: Row) -> str:
    chance = "" if row["match"] is None else f"{row['match']:.3f} fits, "
    return f"{file_of(row)}  {row['text']}\n  {chance}cosine {row['cosine']:.3f}"


def classify(
    paths: options.MediaPaths,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names to choose from: a,b,c or a file with one per line or a JSON list, or imagenet (1000). With a "
            "classifier of your own it may be left out: all of its classes."
        ),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--templates",
            "--template",
            help='Texts around a name, such as "a photo of a {}" (may be repeated), a file with one per line, or '
            'imagenet (80). Default: "a picture of a {}".',
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many labels to give.")] = 5,
    prompt: options.Prompt = None,
    head: Annotated[
        str,
        typer.Option(
            help="itc compares vectors; itm asks the matching head about each label, slower.",
            autocompletion=common.one_of("itc", "itm"),
        ),
    ] = "itc",
    model: options.Model = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    pretty: options.Pretty = False,
    null: options.Null = False,
) -> None:
    """Choose among labels that the model was never trained on (zero-shot), or with a classifier that you have trained
    among its classes.

    Prints one JSON object per picture: {"image", "label", "probability", "labels", "probabilities"}, the latter two
    of the best --top-k, with "video" in place of "image" for a clip (with a model of clips). Probabilities are among
    the given labels, so one is always likely. A model with a language model ranks labels by the probability that it
    writes them after --prompt, so a short label has an advantage.

    \b
    Examples:
      lavis classify photos/ --labels cat,dog,horse --model NAME/TYPE
      lavis classify photo.jpg --labels names.txt --template "a photo of a {}" --top-k 3
      lavis classify photos/ --labels imagenet --templates imagenet --model NAME/TYPE
      lavis classify photos/ --labels cat,dog --model NAME/TYPE --prompt "which animal is this?"
      lavis classify drawing.png --labels "red circle,blue star" --pretty
      lavis classify photos/ --model output/20260101_120000/checkpoint_best
    """
    given = None if labels is None else _labels(labels)
    fillable = _templates(templates or [])
    pictures = Pictures.of(paths, null, common.sees(model))
    spec = common.chosen(model, checkpoint, "classify")
    from lavis.inference import Encoder, RankedLabels, TrainedClasses, ZeroShot, has_classes
    from lavis.inference.protocols import EmbedsBoth, Ranks

    if given is None and model is None:
        raise ValueError(
            "Missing option '--labels'; name them: --labels cat,dog,horse, or a file with one per line"
        )
    loaded = common.load(spec, checkpoint, device, precision, part)
    chooser: TrainedClasses | ZeroShot | RankedLabels
    ranks = isinstance(loaded.model, Ranks) and not isinstance(loaded.model, EmbedsBoth)
    if prompt is not None and not ranks:
        raise ValueError(f"{spec} reads no --prompt before labels; write it into --template")
    if has_classes(loaded):
        if templates:
            raise ValueError(f"{spec} has classes of its own, which it reads no --template for; leave it out")
        chooser = TrainedClasses(loaded, given)
    elif given is None:
        raise ValueError(
            f"Missing option '--labels': {spec} has no classes of its own; name them: --labels cat,dog,horse"
        )
    elif ranks:
        if head != "itc":
            raise ValueError(f"--head {head}: {spec} has no matching head; leave it out")
        chooser = RankedLabels(loaded, given, fillable if templates else ("{}",), prompt)
    else:
        chooser = ZeroShot(Encoder(loaded), given, fillable, head)
    names = chooser.labels

    def predict(images: list[Any], paths: list[Path]) -> Iterator[Row]:
        chances, order = chooser(images).sort(dim=1, descending=True, stable=True)
        for path, best, places in zip(paths, chances.tolist(), order.tolist(), strict=True):
            kept = [names[place] for place in places[:top_k]]
            shares = [round(share, 6) for share in best[:top_k]]
            row: Row = {pictures.sees: str(path), "label": kept[0], "probability": shares[0]}
            yield row | ({"labels": kept, "probabilities": shares} if top_k > 1 else {})

    settings = {
        "command": "classify", **loaded.settings(), "precision": precision, "labels": names,
        "templates": [str(each) for each in fillable], "head": head, "top_k": top_k, "prompt": prompt,
    }  # fmt: skip
    plain = _plain_labels if pretty else None
    pictures.run(predict, loaded.read, batch_size, out, plain, settings, overwrite)


def _labels(text: str) -> list[str]:
    if text == "imagenet":
        from lavis.models.zero_shot import imagenet_classnames

        return list(dict.fromkeys(imagenet_classnames()))
    return common.read_names(text, "--labels", "label")


def _templates(given: list[str]) -> list[Any]:
    """Texts with {} of the option's values: such texts, files of them, "imagenet"."""
    from lavis.inference.zero_shot import TEMPLATES
    from lavis.models.zero_shot import imagenet_templates

    out: list[Any] = []
    for value in given:
        if value == "imagenet":
            out += imagenet_templates()
        elif "{}" in value:
            out.append(value)
        else:
            path = existing(value)
            if path is None or not path.is_file():
                raise ValueError(
                    f"--templates {common.shortened(value)!r} is neither a text with {{}}, where the name goes, nor a "
                    "file of such texts"
                )
            lines = [line.strip() for line in common.read_lines(path)]
            out += [line for line in lines if line]
            wrong = next((line for line in lines if line and "{}" not in line), None)
            if wrong is not None:
                raise ValueError(f"{path}: the template {wrong!r} has no {{}}, where the name goes")
    return [common.checked_text(each, "--templates") for each in out] or list(TEMPLATES)


def _plain_labels(row: Row) -> str:
    names, shares = row.get("labels", [row["label"]]), row.get("probabilities", [row["probability"]])
    return "\n".join(
        [file_of(row), *(f"  {100 * s:5.1f} %  {n}" for n, s in zip(names, shares, strict=True))]
    )
