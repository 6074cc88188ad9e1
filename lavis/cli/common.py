"""What several commands share: which model is meant, which pictures, which answers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from lavis.common.files import MEDIA, existing, is_debris, is_file, media_in, printable

if TYPE_CHECKING:
    from lavis.inference import Loaded


T = TypeVar("T")
NAMES = {"image": "picture", "video": "clip"}  # of what a model sees, in words
SHAPES = "drawings of coloured shapes"  # what the small packaged models know


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


def known_to_all(find: Callable[[], T]) -> T:
    """What the first of several processes finds, in all of them: standard input has one reader, and a folder may be
    growing."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return find()
    from lavis.common import dist

    dist.init_from_env()
    return dist.from_main(find)


def load(
    spec: str, checkpoint: str | None, device: str, precision: str, parts: Sequence[str] | None = None
) -> Loaded:
    """The model of the options, ready for use; says so if its weights are random."""
    from lavis.inference import load

    try:
        loaded = load(spec, checkpoint, device, precision, read_parts(parts))
    except ValueError as e:
        if parts and str(e).startswith(("model.parts", "parts")):  # as a recipe and Python call them
            raise ValueError(re.sub(r"^(model\.)?parts[.:]?", "--part ", str(e)).replace("  ", " ")) from e
        raise
    if loaded.is_random:
        note(
            f"{spec} has random starting weights, so its results mean nothing; give --checkpoint or another --model"
        )
    return loaded


_FORMAT = re.compile(r"(?:^|,)dtype=(\w+)$")


def read_parts(given: Sequence[str] | None) -> dict[str, dict[str, str]] | None:
    """The values of --part: {part: {"source": …, "dtype": …}} with one of these keys or both; None without any.

    Raises:
        ValueError: a value that is not NAME=SOURCE, NAME=SOURCE,dtype=FORMAT or NAME=dtype=FORMAT; a part twice.
    """
    out: dict[str, dict[str, str]] = {}
    for text in given or ():
        name, equals, rest = text.partition("=")
        found = _FORMAT.search(rest)
        source = rest if found is None else rest[: found.start()]
        values = {"source": source} if source else {}
        if found is not None:
            values["dtype"] = found[1]
        if not name or not equals or not values:
            raise ValueError(
                f"--part {shortened(text)!r}: NAME=SOURCE was expected, such as opt_model=models/opt-2.7b, or "
                "opt_model=models/opt-2.7b,dtype=bfloat16, or opt_model=dtype=bfloat16"
            )
        if name in out:
            raise ValueError(
                f"--part {name} is given twice; put its source and its dtype into one: {name}=SOURCE,dtype=…"
            )
        out[name] = values
    return out or None


def sees(spec: str | None) -> str:
    """What a model is for, "image" or "video"; None: a command's default, which is for images (known without torch)."""
    if spec is None:
        return "image"
    from lavis import inference

    return inference.sees(spec)


def chosen(model: str | None, checkpoint: str | None, task: str) -> str:
    """The model that was named, or the small packaged one that is the default for a task, which is said."""
    if model is not None:
        return model
    from lavis.inference.abilities import default, needed
    from lavis.models import model_zoo

    spec, better = needed(task), default(task, origin="published")
    if checkpoint is None:
        other = ""
        if better is not None:
            size = model_zoo.preset(*better.split("/")).download_gb
            size_said = "" if size is None else f"{size:g} GB, "
            other = f"; for photographs add --model {better} ({size_said}downloaded once)"
        note(f"using the small packaged model {spec}, which only knows {SHAPES}{other}")
    return spec


def read_paths(null: bool = False) -> list[str]:
    """Paths from standard input, one per line, or separated by NUL."""
    data = sys.stdin.buffer.read()
    if not null and b"\0" in data:
        raise ValueError("standard input has NUL characters between or in its paths; say so with --null (-0)")
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
        path = existing(text)
        if path is not None and path.is_dir():
            inside = sorted(media_in(path, sees))
            if not inside:
                problems.append(
                    f"{text}: no {NAMES[sees]}s in this folder (looked for {', '.join(MEDIA[sees])})"
                )
        elif path is not None:
            inside = [path]
        elif any(c in text for c in "*?["):
            inside = _matching(Path(text).expanduser())
            if not inside:
                problems.append(f"{shortened(text)}: no file matches this pattern")
        else:
            inside = []
            problems.append(f"{shortened(text)}: there is no such file or folder")
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
    path = existing(text)
    if path is not None and path.is_file():
        from lavis.datasets.tables import read_json

        if path.suffix == ".json":
            try:
                answers = read_json(path)
            except ValueError as e:
                raise ValueError(f"{path} is no JSON: {e}") from e
        else:
            answers = read_lines(path)
        if isinstance(answers, dict):
            numbers = answers
            if sorted(map(str, numbers.values())) != sorted(map(str, range(len(numbers)))):
                raise ValueError(
                    f"{path}: expected a JSON list of {what}s, or their numbers from 0 on, each once: "
                    '{"yes": 0, "no": 1}'
                )
            answers = sorted(numbers, key=lambda name: int(numbers[name]))
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise ValueError(f'{path}: expected a JSON list of {what}s, such as ["yes", "no"]')
    elif text.endswith((".json", ".txt")) and "," not in text:
        raise FileNotFoundError(f"{option}: there is no file {text}")
    else:
        answers = text.split(",")
    answers = [a.strip() for a in answers if a.strip()]
    if not answers:
        raise ValueError(
            f"{option} {shortened(text)!r}: there is no {what} in it; give a,b,c or a file with one per line"
        )
    return list(dict.fromkeys(checked_text(answer, option) for answer in answers))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8.

    Raises:
        ValueError: it is none.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is no text in UTF-8 ({e.reason}); save it as UTF-8") from e


def checked_text(text: str, what: str) -> str:
    """The text, if a model can read it.

    Raises:
        ValueError: it has a NUL in it, or what is no UTF-8.
    """
    if "\0" in text:
        raise ValueError(f"{what} {shortened(text)!r} has a NUL character in it; take it out")
    if printable(text) != text:
        raise ValueError(f"{what} '{printable(shortened(text))}' is no text in UTF-8; write it in UTF-8")
    return text


def shortened(text: str) -> str:
    """The text for a message, of a few words."""
    return text if len(text) <= 200 else f"{text[:150]} … {text[-30:]}"


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
        return paths, [checked_text(each, f"--{what}") for each in texts]
    example = "what is this?" if what == "question" else "a red circle"
    if len(paths) < 2:
        raise ValueError(
            f"{command} needs at least one picture or clip and a {what}: "
            f'lavis {command} photo.jpg "{example}", or lavis {command} photo.jpg --{what} "{example}"'
        )
    texts = [paths.pop()]
    if is_file(checked_text(texts[0], f"the {what}")):
        raise ValueError(f"the last argument, {texts[0]!r}, is a file; put the {what} last or give --{what}")
    return paths, texts


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as the terminal (or 160 columns into a file)."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    width = None if sys.stdout.isatty() else 160
    whole = [Column(name, overflow="fold") for name in columns]  # long names go on in the next line
    out = Table(*whole, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        out.add_row(*row)
    Console(width=width, highlight=False, markup=False).print(out)
