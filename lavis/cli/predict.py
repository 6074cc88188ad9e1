"""`lavis caption` and `lavis ask`: pictures in, JSON lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lavis.cli import common

CAPTIONER = "blip_caption/tiny_shapes"
ANSWERER = "blip_vqa/tiny_easy_vqa"
_TRAINED_LENGTHS = {"max_length": 40, "min_length": 5}  # of CAPTIONER's captions

Model = Annotated[
    str,
    typer.Option("--model", help="<name>/<type> as in `lavis models`, or the folder of a checkpoint."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="Weights to use instead of the model's own: a file, folder, URL or Hugging Face id."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at a time.")]
Device = Annotated[str, common.DEVICE]
Precision = Annotated[str, common.PRECISION]
Scores = Annotated[bool, typer.Option("--scores", help="Add score and logprob to each result.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")]
Pretty = Annotated[bool, typer.Option("--pretty", help="Plain text for people instead of JSON lines.")]


def register(app: typer.Typer) -> None:
    app.command("caption")(caption)
    app.command("ask")(ask)


def caption(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Pictures, folders or patterns.")],
    model: Model = CAPTIONER,
    checkpoint: Checkpoint = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 3,
    nucleus: Annotated[bool, typer.Option("--nucleus", help="Sample instead of searching.")] = False,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Of --nucleus.")] = 0.9,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of --nucleus.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of --nucleus, to repeat a draw.")] = None,
    num_captions: Annotated[int, typer.Option(min=1, help="Captions per picture.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a caption, at most.")] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="The same with start token and prompt (default 30)."),
    ] = None,
    min_length: Annotated[int | None, typer.Option(min=0, help="Likewise, at least (default: 10).")] = None,
    repetition_penalty: Annotated[float, typer.Option(min=0, help="Above 1: fewer repetitions.")] = 1.0,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    precision: Precision = "auto",
    scores: Scores = False,
    out: Out = None,
    pretty: Pretty = False,
) -> None:
    """Caption pictures.

    Prints one JSON object per picture, {"image", "caption"}; with --num-captions also "captions". A picture
    that cannot be read is reported, the others go on, and the exit code is 1.

    \b
    Examples:
      lavis caption photo.jpg --model blip_caption/base_coco
      lavis caption photos/ --scores --out captions.jsonl
      lavis caption "photos/**/*.png" --nucleus --num-captions 5 --seed 1
      lavis caption photos/ --model output/20260101_120000/checkpoint_best --pretty
    """
    if num_captions > num_beams and not nucleus:
        raise ValueError(
            f"--num-captions {num_captions} is more than --num-beams {num_beams}; raise it, or use --nucleus"
        )
    pictures = _Pictures.of(paths)
    _explain(model, checkpoint, CAPTIONER, "drawings of coloured shapes", "blip_caption/base_coco", "0.9 GB")
    network, processor, _, autocast = common.load(model, checkpoint, device, precision)
    lengths = {"max_length": max_length, "min_length": min_length}
    arguments: dict[str, Any] = {
        "use_nucleus_sampling": nucleus, "num_beams": num_beams, "num_captions": num_captions, "top_p": top_p,
        "temperature": temperature, "repetition_penalty": repetition_penalty, "seed": seed,
        "max_new_tokens": max_new_tokens, "return_scores": True,
        **(_TRAINED_LENGTHS if model == CAPTIONER else {}),
        **{k: v for k, v in lengths.items() if v is not None},
    }  # fmt: skip

    def predict(images: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        with autocast:
            texts = network.generate({"image": images.to(network.device)}, **arguments)
        for i, name in enumerate(names):
            mine = slice(i * num_captions, (i + 1) * num_captions)
            yield _row({"image": name}, "caption", texts, mine, scores)

    pictures.run(predict, processor, batch_size, out, pretty)


def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH... [QUESTION]",
            help="Pictures, folders or patterns, and the question unless --question is given.",
        ),
    ],
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="A question. May be repeated.")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(help="Choose among these: a,b,c or a file with one per line or a JSON list."),
    ] = None,
    model: Model = ANSWERER,
    checkpoint: Checkpoint = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams, where answers are written freely.")] = 3,
    max_len: Annotated[int, typer.Option(min=2, help="Tokens of a written answer, at most.")] = 10,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    precision: Precision = "auto",
    scores: Scores = False,
    out: Out = None,
    pretty: Pretty = False,
) -> None:
    """Ask questions about pictures.

    Prints one JSON object per picture and question: {"image", "question", "answer"}. Without --answers the
    model writes its answer freely.

    \b
    Examples:
      lavis ask photo.jpg "how many people are there?" --model blip_vqa/vqav2
      lavis ask photos/ -q "is it day or night?" -q "is it raining?" --answers day,night,yes,no
      lavis ask drawing.png "what color is the shape?" --answers answers.txt --scores
    """
    paths, questions = list(arguments), list(question or [])
    if not questions:
        if len(paths) < 2:
            raise ValueError(
                "ask needs at least one picture and a question: "
                'lavis ask photo.jpg "what is this?", or lavis ask photo.jpg --question "what is this?"'
            )
        questions = [paths.pop()]
        if Path(questions[0]).is_file():
            raise ValueError(
                f"the last argument, {questions[0]!r}, is a file; put the question last or give --question"
            )
    choices = common.read_answers(answers)
    pictures = _Pictures.of(paths)
    _explain(model, checkpoint, ANSWERER, "easy-VQA's drawings of one shape", "blip_vqa/vqav2", "1.4 GB")
    network, processor, cleaned, autocast = common.load(model, checkpoint, device, precision)
    asked = [cleaned(q) for q in questions]

    def predict(images: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        samples = {"image": images.to(network.device), "text_input": asked * len(names)}
        with autocast:
            texts = network.predict_answers(
                samples,
                num_beams=num_beams,
                inference_method="rank" if choices else "generate",
                max_len=max_len,
                answer_list=choices,
                return_scores=True,
            )
        for place in range(len(names) * len(questions)):
            i, k = divmod(place, len(questions))
            start = {"image": names[i], "question": questions[k]}
            yield _row(start, "answer", texts, slice(place, place + 1), scores)

    pictures.run(predict, processor, batch_size, out, pretty)


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


def _explain(model: str, checkpoint: str | None, default: str, knows: str, better: str, size: str) -> None:
    if model == default and checkpoint is None:
        common.note(
            f"using the small packaged model {default}, which only knows {knows}; "
            f"for photographs add --model {better} ({size}, downloaded once)"
        )


@dataclass
class _Pictures:
    """The pictures of a call, and how many could not be used."""

    paths: list[Path]
    failed: int

    @classmethod
    def of(cls, paths: Sequence[str]) -> _Pictures:
        found, problems = common.find_pictures(paths)
        if not found:
            raise FileNotFoundError("; ".join(problems) or "no pictures were given")
        for problem in problems:
            common.note(problem)
        return cls(found, len(problems))

    def _open(self, path: Path, processor: Callable[..., Any]) -> Any:
        from lavis.datasets.base import open_picture

        try:
            return processor(open_picture(path, "", upright=True))
        except (OSError, ValueError) as e:
            return e

    def _batches(self, processor: Callable[..., Any], size: int) -> Iterator[list[tuple[Path, Any]]]:
        """Processed pictures; the next batch is read while the model works on this one."""
        parts = [self.paths[i : i + size] for i in range(0, len(self.paths), size)]
        with ThreadPoolExecutor(max_workers=2) as pool:

            def begin(part: list[Path]) -> list[Any]:
                return [pool.submit(self._open, path, processor) for path in part]

            waiting = begin(parts[0])
            for i, part in enumerate(parts):
                now, waiting = waiting, begin(parts[i + 1]) if i + 1 < len(parts) else []
                yield [(path, job.result()) for path, job in zip(part, now, strict=True)]

    def run(
        self,
        predict: Callable[[Any, Sequence[str]], Iterator[dict[str, Any]]],
        processor: Callable[..., Any],
        batch_size: int,
        out: Path | None,
        pretty: bool,
    ) -> None:
        """Predict for all, print results as they come, and set the exit code."""
        import torch
        from tqdm import tqdm

        done = 0
        with ExitStack() as stack:
            target = sys.stdout
            if out is not None:
                out.expanduser().parent.mkdir(parents=True, exist_ok=True)
                target = stack.enter_context(out.expanduser().open("w", encoding="utf-8"))
            quiet = not sys.stderr.isatty() or (out is None and sys.stdout.isatty())
            bar = stack.enter_context(tqdm(total=len(self.paths), unit="picture", disable=quiet))
            for batch in self._batches(processor, batch_size):
                for path, picture in batch:
                    if isinstance(picture, Exception):
                        self.failed += 1
                        text = str(picture)
                        common.note(text if str(path) in text else f"{path}: {text}")
                good = [(path, p) for path, p in batch if not isinstance(p, Exception)]
                if good:
                    names = [str(path) for path, _ in good]
                    for row in predict(torch.stack([p for _, p in good]), names):
                        print(_plain(row) if pretty else json.dumps(row, ensure_ascii=False), file=target)
                    target.flush()
                    done += len(good)
                bar.update(len(batch))
        if done == 0:
            raise OSError(f"none of the {len(self.paths)} pictures could be read")
        if self.failed:
            common.note(f"{self.failed} of {self.failed + done} inputs could not be used; see above")
            raise typer.Exit(1)


def _plain(row: dict[str, Any]) -> str:
    texts = row.get("captions") or [row.get("caption", row.get("answer"))]
    numbers = row.get("scores") or [row.get("score")]
    lines = [
        text if number is None else f"{text}  ({number:.3f})"
        for text, number in zip(texts, numbers if len(numbers) == len(texts) else [None] * len(texts))
    ]
    head = row["image"] + (f"  {row['question']}" if "question" in row else "")
    return f"{head}\n  " + "\n  ".join(lines)
