"""What several commands share: which model is meant, which pictures, which answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lavis.common.files import MEDIA, is_debris, media_in

if TYPE_CHECKING:
    from lavis.inference import Loaded


NAMES = {"image": "picture", "video": "clip"}  # of what a model sees, in words


def one_of(*names: str) -> Callable[[str], list[str]]:
    """What shell completion offers for an option."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


DEVICE = typer.Option(
    help="auto, cpu, cuda, cuda:<number> or mps.", autocompletion=one_of("auto", "cpu", "cuda", "mps")
)
PRECISION = typer.Option(
    help="auto, fast (bf16 on CPUs that are quick in it), fp32, bf16 or fp16.",
    autocompletion=one_of("auto", "fast", "fp32", "bf16", "fp16"),
)


def note(message: str) -> None:
    """One line for the person at the terminal; never in the results. Of several processes one says it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"lavis: {message}", file=sys.stderr, flush=True)


def load(spec: str, checkpoint: str | None, device: str, precision: str) -> Loaded:
    """The model of the options, ready for use; says so if its weights are random."""
    from lavis.inference import load

    loaded = load(spec, checkpoint, device, precision)
    if loaded.is_random:
        note(
            f"{spec} has random starting weights, so its results mean nothing; give --checkpoint or another --model"
        )
    return loaded


def sees(spec: str, default: str) -> str:
    """What a model is for, "image" or "video"; a command's default is for pictures, which is known without torch."""
    if spec == default:
        return "image"
    from lavis import inference

    return inference.sees(spec)


def note_default(
    model: str, checkpoint: str | None, default: str, knows: str, better: str, size: str = ""
) -> None:
    """Say what the small packaged model is, where it is used because no other was named."""
    if model == default and checkpoint is None:
        size = f"{size}, " if size else ""
        note(
            f"using the small packaged model {default}, which only knows {knows}; "
            f"for photographs add --model {better} ({size}downloaded once)"
        )


def read_paths(null: bool = False) -> list[str]:
    """Paths from standard input, one per line, or separated by NUL."""
    data = sys.stdin.buffer.read()
    parts = data.split(b"\0") if null else data.splitlines()
    return [os.fsdecode(part) for part in parts if part.strip()]


def _matching(pattern: Path) -> list[Path]:
    """Files that fit a pattern such as photos/**/*.jpg, sorted."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    found = Path(*parts[:first]).glob("/".join(parts[first:]))
    return sorted(p for p in found if p.is_file() and not any(map(is_debris, p.parts[first:])))


def find_media(paths: Sequence[str], null: bool = False, sees: str = "image") -> tuple[list[Path], list[str]]:
    """Pictures or clips of files, folders (searched to any depth) and patterns, in order, each once.

    Args:
        paths: "-" stands for the paths that standard input has, see `read_paths`.
        sees: which of both folders are searched for, "image" or "video".

    Returns:
        The files, and one message per path that gave none.
    """
    found: dict[Path, None] = {}
    problems = []
    if "-" in paths:
        listed = read_paths(null)
        at = list(paths).index("-")
        paths = [*paths[:at], *listed, *(p for p in paths[at + 1 :] if p != "-")]
        if not listed:
            problems.append("-: standard input has no paths")
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = sorted(media_in(path, sees))
            if not inside:
                problems.append(
                    f"{text}: no {NAMES[sees]}s in this folder (looked for {', '.join(MEDIA[sees])})"
                )
        elif path.exists():
            inside = [path]
        elif any(c in text for c in "*?["):
            inside = _matching(path)
            if not inside:
                problems.append(f"{text}: no file matches this pattern")
        else:
            inside = []
            problems.append(f"{text}: there is no such file or folder")
        found.update(dict.fromkeys(inside))
    return list(found), problems


def read_answers(text: str | None) -> list[str] | None:
    """The value of --answers, see `read_names`."""
    return None if text is None else read_names(text, "--answers", "answer")


def read_names(text: str, option: str, what: str) -> list[str]:
    """`a,b,c`, or a file with one name per line, a JSON list, or JSON {name: number} with numbers from 0; each once.

    Args:
        text: the option's value. option, what: how messages call it, and one of the names.

    Raises:
        ValueError: there is no name in it.
        FileNotFoundError: it looks like a file and there is none.
    """
    path = Path(text).expanduser()
    if path.is_file():
        content = path.read_text(encoding="utf-8-sig")
        try:
            answers = json.loads(content) if path.suffix == ".json" else content.splitlines()
        except json.JSONDecodeError as e:
            raise ValueError(f"{path} is no JSON: {e}") from e
        if isinstance(answers, dict):
            if sorted(map(str, answers.values())) != sorted(map(str, range(len(answers)))):
                raise ValueError(
                    f"{path}: expected a JSON list of {what}s, or their numbers from 0 on, each once: "
                    '{"yes": 0, "no": 1}'
                )
            numbers = answers
            answers = sorted(numbers, key=lambda name: int(numbers[name]))
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise ValueError(f'{path}: expected a JSON list of {what}s, such as ["yes", "no"]')
    elif path.suffix in (".json", ".txt") and "," not in text:
        raise FileNotFoundError(f"{option}: there is no file {text}")
    else:
        answers = text.split(",")
    answers = [a.strip() for a in answers if a.strip()]
    if not answers:
        raise ValueError(
            f"{option} {text!r}: there is no {what} in it; give a,b,c or a file with one per line"
        )
    return list(dict.fromkeys(answers))


def split_last(
    arguments: Sequence[str], given: Sequence[str] | None, command: str, what: str
) -> tuple[list[str], list[str]]:
    """PATH... and the text that follows them, unless texts were given by an option.

    Args:
        arguments: of the command. given: the option's values. command: "ask". what: "question", also the option's name.

    Returns:
        paths, and texts.

    Raises:
        ValueError: there is no text, or a file in its place.
    """
    paths, texts = list(arguments), list(given or [])
    if texts:
        return paths, texts
    example = "what is this?" if what == "question" else "a red circle"
    if len(paths) < 2:
        raise ValueError(
            f"{command} needs at least one picture or clip and a {what}: "
            f'lavis {command} photo.jpg "{example}", or lavis {command} photo.jpg --{what} "{example}"'
        )
    texts = [paths.pop()]
    if Path(texts[0]).is_file():
        raise ValueError(f"the last argument, {texts[0]!r}, is a file; put the {what} last or give --{what}")
    return paths, texts


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as the terminal (or 160 columns into a file)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else 160
    out = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        out.add_row(*row)
    Console(width=width, highlight=False, markup=False).print(out)
