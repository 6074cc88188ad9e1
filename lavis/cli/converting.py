"""`lavis convert`: any checkpoint that can be read, in the form of this library, of transformers or of the original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lavis.cli import common, options
from lavis.common.files import is_file, to_line


def register(app: typer.Typer) -> None:
    app.command("convert")(convert)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An official .pth, OpenAI's archive, OpenCLIP's files, a folder of transformers, OpenCLIP or this "
            "library, a URL, or a Hugging Face id.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write; it must not exist yet.")
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="The form: lavis; transformers, a folder that its classes load; or official, a .pth for the "
            "original library.",
            autocompletion=common.one_of("lavis", "transformers", "official"),
        ),
    ] = "lavis",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="<name>/<type> that the weights are of; not needed for a folder of this library."
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            help="gelu or quick_gelu, of a model of OpenCLIP's whose open_clip_config.json does not lie beside it.",
            autocompletion=common.one_of("gelu", "quick_gelu"),
        ),
    ] = None,
    half: Annotated[
        bool,
        typer.Option("--half", help="Store matrices as 16-bit floats: half the size, read as 32-bit ones."),
    ] = False,
    for_training: Annotated[
        bool, typer.Option("--for-training", help="Keep momentum copies and queues, where there are any.")
    ] = False,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Leave nothing out: frozen parts, and the weights that adapters (LoRA) belong to, too.",
        ),
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add adapters (LoRA) to the weights and write these as a whole.")
    ] = False,
    part: options.Parts = None,
) -> None:
    """Convert a checkpoint to config.json and model.safetensors, to a folder of transformers, or to an official file.

    What was written is read again and compared with the source, tensor by tensor. Prints a summary as JSON.

    \b
    Examples:
      lavis convert official.pth --model NAME/TYPE --out my_model
      lavis convert official.pt --model NAME/TYPE --out my_model --half
      lavis convert organisation/repository --model NAME/TYPE --out my_model
      lavis convert official.pth --model NAME/TYPE --to transformers --out my_model
      lavis convert official.pth --model NAME/TYPE --part llm_model=models/vicuna-7b --whole --out my_model
      lavis convert open_clip_pytorch_model.bin --model NAME/TYPE --activation gelu --out my_model
    """
    from lavis.inference import split_model
    from lavis.inference.convert import FORMS
    from lavis.inference.convert import convert as run

    form = next((form for form in FORMS if form == to), None)
    if form is None:
        raise ValueError(
            f"--to {common.shortened(to)!r} is no form; it must be {', '.join(FORMS[:-1])} or {FORMS[-1]}. The folder "
            "to write is named by --out"
        )
    if out is None:
        raise ValueError("where should the model go? Name a folder: --out my_model")

    name, model_type = (None, None) if model is None else split_model(model)
    if name is None and not is_file(Path(source) / "config.json"):
        raise ValueError(
            f"which model are the weights {common.shortened(source)} of? Name it: --model NAME/TYPE (see "
            "`lavis models`)"
        )
    parts = common.read_parts(part)
    done = run(source, out, name, model_type, half, for_training, activation, whole, merge, form, parts)
    summary = {
        "out": str(out), "model": done.arch + (f"/{done.model_type}" if done.model_type else ""),
        "tensors": done.tensors, "bytes": done.bytes, "half": done.half,
        "largest_difference": done.largest_difference, "licence": done.licence,
    }  # fmt: skip
    print(to_line(summary))
    if done.left_out:
        common.note(
            f"{len(done.left_out)} entries are left out, {to} has no place for them, such as {done.left_out[0]}"
        )
    common.note(f"licence of this preset's weights: {done.licence}")
