"""`lavis caption` and `lavis ask`: pictures or clips in, JSON lines out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lavis.cli import common, options
from lavis.cli.pictures import Pictures, file_of


def register(app: typer.Typer) -> None:
    app.command("caption")(caption)
    app.command("ask")(ask)


def caption(
    paths: options.Paths,
    model: options.Model = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 3,
    nucleus: Annotated[bool, typer.Option("--nucleus", help="Sample instead of searching.")] = False,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Of --nucleus.")] = 0.9,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of --nucleus.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="Of --nucleus, to repeat a draw; each file has its own.")
    ] = None,
    num_captions: Annotated[
        int, typer.Option(min=1, help="Captions per image; the search takes at least as many beams.")
    ] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a caption, at most.")] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="The same with start token and prompt (default 30)."),
    ] = None,
    min_length: Annotated[int | None, typer.Option(min=0, help="Likewise, at least (default: 10).")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(min=0, help="Above 1: fewer repetitions (default: the model's, mostly 1).")
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(help="Of the search: exponent of the length; negative: shorter texts (default: 1)."),
    ] = None,
    prompt: options.Prompt = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    scores: options.Scores = False,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    pretty: options.Pretty = False,
    null: options.Null = False,
) -> None:
    """Caption pictures (or clips, with a model of clips).

    Prints one JSON object per picture, {"image", "caption"} ("video" for a clip); with --num-captions also "captions".
    A picture that cannot be read is reported, the others go on, and the exit code is 1.

    \b
    Examples:
      lavis caption photo.jpg --model NAME/TYPE
      lavis caption photos/ --scores --out captions.jsonl
      lavis caption "photos/**/*.png" --nucleus --num-captions 5 --seed 1
      lavis caption photos/ --model output/20260101_120000/checkpoint_best --pretty
      lavis caption clips/ --model NAME/TYPE
      lavis caption photo.jpg --model NAME/TYPE --prompt "a photo of" --part llm_model=models/vicuna-7b
      find photos -name "*.jpg" -newer last_run -print0 | lavis caption - -0
    """
    pictures = Pictures.of(paths, null, common.sees(model))
    spec = common.chosen(model, checkpoint, "caption")
    import torch

    from lavis.inference.writing import Writer
    from lavis.nn.generation import GenerationOptions, seed_of

    loaded = common.load(spec, checkpoint, device, precision, part)
    lengths = {"max_length": max_length, "min_length": min_length}
    if min_length is None and max_length is not None:
        # a short caption is asked for: no error about the least length
        least = loaded.generation.get("min_length", GenerationOptions.min_length)
        lengths["min_length"] = min(least, max_length)
    penalties = {"repetition_penalty": repetition_penalty, "length_penalty": length_penalty}
    asked = {k: v for k, v in {**lengths, **penalties}.items() if v is not None}
    writing = GenerationOptions(
        use_nucleus_sampling=nucleus, num_beams=num_beams, num_captions=num_captions, top_p=top_p,
        temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, **{**loaded.generation, **asked},
    )  # fmt: skip
    writer = Writer(loaded, writing, prompt=prompt, given=asked)

    def predict(images: list[Any], paths: list[Path]) -> Iterator[dict[str, Any]]:
        # of each file's own, so that neither the order of files nor the batch's size changes a draw
        each = {} if seed is None else {"seed": [seed_of(seed, str(path)) for path in paths]}
        texts = writer(torch.stack(images), **each)
        for i, path in enumerate(paths):
            mine = slice(i * num_captions, (i + 1) * num_captions)
            yield _row({pictures.sees: str(path)}, "caption", texts, mine, scores)

    settings = {
        "command": "caption",
        **loaded.settings(),
        "precision": precision,
        "scores": scores,
        "prompt": prompt,
        **asdict(writing),
    }
    pictures.run(predict, loaded.read, batch_size, out, _plain if pretty else None, settings, overwrite)


def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH... [QUESTION]",
            help="Pictures, folders or patterns (- reads paths from standard input), and the question unless "
            "--question is given.",
        ),
    ],
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="A question. May be repeated.")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            help="Choose among these: a,b,c or a file with one per line, a JSON list or {answer: number}."
        ),
    ] = None,
    model: options.Model = None,
    checkpoint: options.Checkpoint = None,
    part: options.Parts = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams, where answers are written freely.")] = 3,
    max_len: Annotated[int, typer.Option(min=2, help="Tokens of a written answer, at most.")] = 10,
    prompt: options.QuestionPrompt = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    scores: options.Scores = False,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    pretty: options.Pretty = False,
    null: options.Null = False,
) -> None:
    """Ask questions about pictures (or clips, with a model of clips).

    Prints one JSON object per picture and question: {"image", "question", "answer"} ("video" for a clip). Without
    --answers the model writes its answer freely; one that knows answers by number needs their names.

    \b
    Examples:
      lavis ask photo.jpg "how many people are there?" --model NAME/TYPE
      lavis ask photos/ -q "is it day or night?" -q "is it raining?" --answers day,night,yes,no
      lavis ask drawing.png "what color is the star?" --answers answers.txt --scores
      lavis ask photo.jpg "who wrote it?" --model NAME/TYPE --prompt "Question: {} Short answer:"
      lavis ask clips/ -q "what is played?" --model NAME/TYPE --answers train_ans2label.json
    """
    paths, questions = common.split_last(arguments, question, "ask", "question")
    choices = common.read_answers(answers)
    pictures = Pictures.of(paths, null, common.sees(model))
    spec = common.chosen(model, checkpoint, "ask")
    import torch

    from lavis.inference.answering import Answerer
    from lavis.models.answers import WRITTEN

    loaded = common.load(spec, checkpoint, device, precision, part)
    answerer = Answerer(loaded, choices, replace(WRITTEN, num_beams=num_beams, max_length=max_len), prompt)

    def predict(media: list[Any], paths: list[Path]) -> Iterator[dict[str, Any]]:
        texts = answerer(torch.stack(media), questions * len(paths))
        for place in range(len(paths) * len(questions)):
            i, k = divmod(place, len(questions))
            start = {pictures.sees: str(paths[i]), "question": questions[k]}
            yield _row(start, "answer", texts, slice(place, place + 1), scores)

    settings = {
        "command": "ask", **loaded.settings(), "precision": precision, "scores": scores, "questions": questions,
        "answers": choices, "num_beams": num_beams, "max_len": max_len, "prompt": prompt,
    }  # fmt: skip
    pictures.run(predict, loaded.read, batch_size, out, _plain if pretty else None, settings, overwrite)


def _row(start: dict[str, Any], key: str, texts: Any, mine: slice, scores: bool) -> dict[str, Any]:
    """One result: the best text under `key`, all of them under its plural if there are several."""
    found = [t.strip() for t in texts.texts[mine]]
    row: dict[str, Any] = {**start, key: found[0]}
    if scores:
        row["score"], row["logprob"] = texts.scores[mine][0], texts.logprobs[mine][0]
    if len(found) > 1:
        row[f"{key}s"] = found
        if scores:
            row["scores"], row["logprobs"] = texts.scores[mine], texts.logprobs[mine]
    return row


def _plain(row: dict[str, Any]) -> str:
    texts = row.get("captions") or [row.get("caption", row.get("answer"))]
    numbers = row.get("scores") or [row.get("score")]
    lines = [
        text if number is None else f"{text}  ({number:.3f})"
        for text, number in zip(texts, numbers if len(numbers) == len(texts) else [None] * len(texts))
    ]
    head = file_of(row) + (f"  {row['question']}" if "question" in row else "")
    return f"{head}\n  " + "\n  ".join(lines)
