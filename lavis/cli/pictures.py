"""Pictures or clips in, rows out: what commands that go through them share.

A picture that cannot be read, or of which the model computes NaN, is reported, the others go on, and the exit code is
1.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from lavis.cli import common
from lavis.cli.results import Printed, Target, results
from lavis.common.files import printable, to_line, write_bytes, write_text

Row = dict[str, Any]
# rows of a batch by input, (path, reason) of what could not be read, an error of one of several processes
_Part = tuple[list[tuple[Path, str]], list[tuple[Path, str]], Exception | None]
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
        found, problems = common.known_to_all(lambda: common.find_media(paths, null, sees))
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
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Predict for all, print results as they come, and set the exit code.

        Of several processes each computes every n-th batch; the first one writes all rows, in order.

        Args:
            predict: what was read of files, and their paths, to rows.
            read: `Loaded.read`, or what is done with each file in a thread.
            out: a file to write to, or to go on with, see `lavis.cli.results`; None: standard output.
            plain: a row for people; None: JSON lines.
            settings: what decides the rows beside the files.
            overwrite: write `out` anew, whatever it holds.
        """
        from lavis.common import dist
        from lavis.inference.reading import read_batches

        with ExitStack() as stack:
            targets: list[Target] = []

            def begin() -> list[Path]:
                target = (
                    results(out, {**(settings or {}), "plain": plain is not None}, overwrite) if out else None
                )
                targets.append(Printed() if target is None else stack.enter_context(target))
                return targets[0].todo(self.paths)

            todo = dist.from_main(begin)
            done = len(self.paths) - len(todo)
            if done:
                common.note(f"{done} of {len(self.paths)} {self.name}s were in {out} already and were kept")
            ranks, starts = dist.world_size(), range(0, len(todo), batch_size)
            mine = [
                path for start in starts[dist.rank() :: ranks] for path in todo[start : start + batch_size]
            ]
            batches = read_batches(mine, read, batch_size)
            bar = stack.enter_context(progress(len(todo), self.name, out is None))
            for _ in range(0, len(starts), ranks):
                part = self._part(next(batches, []), predict, plain)
                for rows, problems, error in dist.all_gather_objects(part):
                    for path, reason in problems:
                        self.report(path, reason)
                    for target in targets if rows else []:
                        target.write(rows)
                    if error is not None:
                        raise error
                    done += len(rows)
                    bar(len(rows) + len(problems))
            for target in targets:
                target.finish(self.paths)
        self.finish(done)

    @staticmethod
    def _part(
        batch: Sequence[tuple[Path, Any]], predict: Predict, plain: Callable[[Row], str] | None
    ) -> _Part:
        """A batch's rows as text, what could not be read, and what went wrong, if others wait to hear of it."""
        from lavis.common import dist
        from lavis.nn.finite import usable

        problems = [(path, str(picture)) for path, picture in batch if isinstance(picture, Exception)]
        good = [(path, picture) for path, picture in batch if not isinstance(picture, Exception)]
        try:
            rows, good, bad = usable(
                lambda some: list(predict([p for _, p in some], [path for path, _ in some])), good
            )
        except (ValueError, OSError, RuntimeError) as e:
            if not dist.is_on():
                raise
            return [], problems, e
        problems += [(path, str(error)) for (path, _), error in bad]
        lines = {str(path): "" for path, _ in good}
        for row in rows or ():
            lines[file_of(row)] += (printable(plain(row)) if plain else to_line(row)) + "\n"
        return [(path, lines[str(path)]) for path, _ in good], problems, None

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
def progress(total: int, unit: str, prints: bool = False) -> Iterator[Callable[[int], Any]]:
    """A bar on standard error, to be told of every step.

    None is shown where that is no terminal, or where results are printed to the same terminal (`prints`).
    """
    from tqdm import tqdm

    quiet = os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty() or (prints and sys.stdout.isatty())
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


def write_whole(out: Path, text: str) -> None:
    """Write a text file, whole or not at all; a pipe or device as it is."""
    out = out.expanduser()
    if out.exists() and not out.is_file():
        with out.open("w", encoding="utf-8") as f:
            f.write(text)
    else:
        write_text(out.resolve() if out.is_symlink() else out, text)


def save_png(picture: Any, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    write_bytes(path.expanduser(), out.getvalue())
