"""`lavis dialogue`: questions about a picture or clip, one after another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lavis.cli import common, options
from lavis.common.files import is_file, to_line

_ENDS = ("quit", "exit")


def register(app: typer.Typer) -> None:
    app.command("dialogue")(dialogue)


def dialogue(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", help="A picture (or a clip, with a model of clips).")
    ],
    caption: Annotated[
        str | None,
        typer.Option(help="What it shows; a dialogue model may need it."),
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(help="Choose among these: a,b,c or a file with one per line or a JSON list."),
    ] = None,
    prompt: options.QuestionPrompt = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer.")] = False,
    pretty: Annotated[bool, typer.Option("--pretty", help="The question before each answer.")] = False,
    model: options.Model = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Ask about a picture or clip, one question after another.

    Questions are typed, or read from standard input, one per line; an empty line is skipped, "quit" or the end of
    input ends. A model of dialogues, or with a language model, heeds the rounds before; a question answering model
    takes each question by itself. With --json: {"image" (or "video"), "round", "question", "answer", "score"}.

    \b
    Examples:
      lavis dialogue photo.jpg --model NAME/TYPE
      lavis dialogue photo.jpg --model my_dialogue --caption "a street at night" --answers answers.txt
      lavis dialogue photo.jpg --json < questions.txt
    """
    if not is_file(picture):
        raise FileNotFoundError(f"there is no file {common.shortened(str(picture))}")
    picture = picture.expanduser()
    if caption is not None:
        common.checked_text(caption, "--caption")
    choices = common.read_answers(answers)
    spec = common.chosen(model, checkpoint, "ask")
    from lavis.inference.dialogue import Conversation

    loaded = common.load(spec, checkpoint, device, precision, part)
    talk = Conversation(loaded, loaded.read(picture), caption, choices, prompt)
    failed = 0
    for question in _questions():
        try:
            turn = talk.ask(common.checked_text(question, "the question"))
        except ValueError as e:
            common.note(f"{common.shortened(question)!r}: {e}")
            failed += 1
            continue
        if as_json:
            row = {
                loaded.sees: str(picture), "round": len(talk.turns), "question": turn.question,
                "answer": turn.answer, "score": round(turn.score, 6),
            }  # fmt: skip
            print(to_line(row), flush=True)
        else:
            print(f"{turn.question}\n  {turn.answer}" if pretty else turn.answer, flush=True)
    if failed:
        raise typer.Exit(1)


def _questions() -> Iterator[str]:
    """What is typed, or standard input's lines, without the empty ones, until the end."""
    typed = sys.stdin.isatty()
    if typed:
        common.note('ask about the picture; "quit" ends')
    while True:
        if typed:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip().lower() in _ENDS:
            return
        if line.strip():
            yield line.strip()
