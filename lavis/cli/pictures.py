"""Pictures or clips in, rows out: what commands that go through them share.

A picture that cannot be read, or of which the model computes NaN, is reported, the others go on, and the exit code is
1.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import typer

from lavis.cli import common
from lavis.common.files import printable, to_line, write_bytes

Row = dict[str, Any]
Predict = Callable[[list[Any], list[Path]], Iterable[Row]]


def file_of(row: Row) -> str:
    """What a row is about, a picture's or a clip's file."""
    return str(row["image"] if "image" in row else row["video"])


@dataclass
class Pictures:
    """The pictures (or clips, if `sees` is "video") of a call, and how many could not be used."""

    paths: list[Path]
    failed: int
    sees: str = "image"

    @classmethod
    def of(cls, paths: Sequence[str], null: bool = False, sees: str = "image") -> Pictures:
        """See `common.find_media`; what is wrong with a path is said.

        Raises:
            FileNotFoundError: there is nothing at all.
        """
        found, problems = common.find_media(paths, null, sees)
        if not found:
            raise FileNotFoundError("; ".join(problems) or f"no {common.NAMES[sees]}s were given")
        for problem in problems:
            common.note(problem)
        return cls(found, len(problems), sees)

    @property
    def name(self) -> str:
        """ "picture" or "clip"."""
        return common.NAMES[self.sees]

    def run(
        self,
        predict: Predict,
        read: Callable[[Path], Any],
        batch_size: int,
        out: Path | None,
        plain: Callable[[Row], str] | None = None,
    ) -> None:
        """Predict for all, print results as they come, and set the exit code.

        Args:
            predict: what was read of files, and their paths, to rows.
            read: `Loaded.read`, or what is done with each file in a thread.
            out: a file to write to; None: standard output.
            plain: a row for people; None: JSON lines.
        """
        from lavis.inference.reading import read_batches
        from lavis.nn.finite import usable

        done = 0
        with writing(out) as target, progress(len(self.paths), self.name, out is None) as bar:
            for batch in read_batches(self.paths, read, batch_size):
                for path, picture in batch:
                    if isinstance(picture, Exception):
                        self.report(path, str(picture))
                good = [(path, p) for path, p in batch if not isinstance(p, Exception)]
                rows, good, bad = usable(
                    lambda some: list(predict([p for _, p in some], [path for path, _ in some])), good
                )
                for (path, _), error in bad:
                    self.report(path, str(error))
                if rows:
                    for row in rows:
                        print(printable(plain(row)) if plain else to_line(row), file=target)
                    target.flush()
                    done += len(good)
                bar(len(batch))
        self.finish(done)

    def report(self, path: Path | str, reason: str) -> None:
        """One line for a picture that could not be used."""
        self.failed += 1
        common.note(reason if str(path) in reason else f"{path}: {reason}")

    def finish(self, done: int) -> None:
        """Set the exit code.

        Raises:
            OSError: nothing could be used.
            typer.Exit: some could not.
        """
        if done == 0:
            raise OSError(f"none of the {len(self.paths)} {self.name}s could be read and used")
        if self.failed:
            common.note(f"{self.failed} of {self.failed + done} inputs could not be used; see above")
            raise typer.Exit(1)


@contextmanager
def writing(out: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file whose folder is made."""
    if out is None:
        yield sys.stdout
        return
    out = out.expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as f:
        yield f


@contextmanager
def progress(total: int, unit: str, prints: bool = False) -> Iterator[Callable[[int], Any]]:
    """A bar on standard error, to be told of every step.

    None is shown where that is no terminal, or where results are printed to the same terminal (`prints`).
    """
    from tqdm import tqdm

    quiet = not sys.stderr.isatty() or (prints and sys.stdout.isatty())
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=total, unit=unit, disable=quiet))
        yield bar.update


@contextmanager
def counter(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, to be told (done, all)."""
    from tqdm import tqdm

    with tqdm(total=None, unit=unit, disable=not sys.stderr.isatty()) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


def save_png(picture: Any, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    write_bytes(path.expanduser(), out.getvalue())
