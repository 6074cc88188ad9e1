"""Options that mean the same in every command that uses a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lavis.cli import common

_PATHS = "{}, folders or patterns; - reads paths from standard input."
Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help=_PATHS.format("Pictures"))]
MediaList = typer.Argument(
    metavar="PATH...", help=_PATHS.format("Pictures (or clips, with a model of clips)")
)
MediaPaths = Annotated[list[str], MediaList]
Null = Annotated[bool, typer.Option("--null", "-0", help="The paths that - reads are separated by NUL.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="<name>/<type> as in `lavis models`, or the folder of a checkpoint (default: a small packaged model, "
        "which knows drawings).",
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="Weights to use instead of the model's own: a file, folder, URL or Hugging Face id."),
]
Parts = Annotated[
    list[str] | None,
    typer.Option(
        "--part",
        metavar="NAME=SOURCE",
        help="Where a part of the model comes from: a folder, file, URL or Hugging Face id, such as "
        "opt_model=models/opt-2.7b. With ,dtype=bfloat16 (or float16, float32) behind it, or NAME=dtype=bfloat16 "
        "alone, its number format. May be repeated.",
    ),
]
_PROMPT = "Of a model with a language model: what it reads before it writes{}."
Prompt = Annotated[str | None, typer.Option(help=_PROMPT.format(', such as "a photo of"'))]
QuestionPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help=_PROMPT.format(', with {} for the question, such as "Question: {} Short answer:"'),
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at a time.")]
Device = Annotated[str, common.DEVICE]
Precision = Annotated[str, common.PRECISION]
Scores = Annotated[bool, typer.Option("--scores", help="Add score and logprob to each result.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Write to this file instead of the terminal. Run again with the same options, what is there is kept.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write the file of --out anew, whatever it holds.")
]
Pretty = Annotated[bool, typer.Option("--pretty", help="Plain text for people instead of JSON lines.")]
