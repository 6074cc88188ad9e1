"""Your own data: a table of pictures and texts plus a folder of pictures, without writing Python.

**Description.** One file per split (or one for all): JSONL, a JSON list, CSV or TSV, in UTF-8.

| column | captioning | question answering |
| --- | --- | --- |
| `image` | path of the picture, below the folder `images` | the same |
| `text` or `caption` | a caption, or a list of captions | |
| `question` | | the question |
| `answer` or `answers` | | the answer, or a list of several people's answers |
| `id` | | the question's id (a whole number or a word; default: its place) |
| `image_id` | the picture's id (default: its place) | the same |
| `split` | optional: train, val or test, when one file has all | the same |

In CSV and TSV a list is written as JSON (`["a cat", "a black cat"]`), or as several rows.

**Options.** `train`, `val`, `test`: the files. `images`: the folder (default: where the file lies).
`task`: captioning or vqa (default: told from the columns). `val_fraction`: the share of training pictures
held out when no val file is given (default 0.05; 0 holds out nothing); a picture is chosen by the hash of
its path, so it stays where it is when data are added. `answer_list`: a file with the answers to choose
from (default: those of the training part). `upright`: turn photographs as their camera says (EXIF).

Before anything runs, every row is read and every picture looked for. Missing pictures of a training part
are skipped with a warning unless they are many, like unreadable ones (`on_error: raise` refuses them);
those of other parts are refused (`on_error: skip` leaves them out). A test part needs no captions or
answers: it is then predicted and not scored.

**Task.** Captioning or visual question answering.

**Metrics.** Those of the task.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lavis.common.registry import registry, suggest
from lavis.datasets.base import Dataset, Plan, Record, error_policy, open_picture, too_many
from lavis.datasets.captioning import CaptionDataset, CaptionOptions
from lavis.datasets.tables import read_table
from lavis.datasets.vqa import VQADataset, VQAOptions, yes_no_number_other

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_TASKS = ("captioning", "vqa")
_TEXT = ("text", "caption")
_ANSWER = ("answer", "answers")


@dataclass(frozen=True)
class OwnOptions(CaptionOptions, VQAOptions):
    """See the module's docstring, `CaptionOptions` and `VQAOptions`."""

    task: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    images: str | None = None
    val_fraction: float = 0.05
    answer_list: str | None = None
    upright: bool = True

    def __post_init__(self) -> None:
        CaptionOptions.__post_init__(self)
        VQAOptions.__post_init__(self)
        if self.task is not None and self.task not in _TASKS:
            raise ValueError(f"task is {self.task!r}.{suggest(self.task, _TASKS)}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction}; it should be at least 0 and below 1")
        if not (self.train or self.val or self.test):
            raise ValueError("name at least one file: train, val or test")


# ---------------------------------------------------------------------- rows to records
def task_of(
    path: str | Path, columns: Sequence[str], wanted: str | None = None, complete: bool = True
) -> str:
    """Which task a table is for.

    Args:
        path: the table, for messages. columns: its columns. wanted: the task if it is known.
        complete: whether captions are needed.

    Raises:
        ValueError: its columns fit neither, or not the wanted one; the message lists them.
    """
    has = set(columns)
    captions = "image" in has and (not complete or bool(has & set(_TEXT)))
    answers = "image" in has and "question" in has
    task = wanted or ("vqa" if answers else "captioning")
    if not (answers if task == "vqa" else captions):
        needed = {"captioning": "image and text (or caption)", "vqa": "image, question and answer"}
        if not complete:
            needed = {"captioning": "image", "vqa": "image and question"}
        need = needed[wanted] if wanted else f"{needed['captioning']}, or {needed['vqa']}"
        header = Path(path).suffix.lower() in (".csv", ".tsv") and "image" not in has
        hint = " (its first line should name the columns)" if header else ""
        raise ValueError(f"{path}: found the columns {', '.join(sorted(has))}; needed are {need}{hint}")
    return task


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[n] for n in names if row.get(n) is not None), None)


def _texts(where: str, name: str, value: Any) -> list[str]:
    """A string, or a list of strings (in a table also written as JSON), as a list."""
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = [value]  # a text that happens to stand in brackets
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: {name} is {value!r}; it should be a text or a list of texts")
    values = [str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in values]
    for v in values:
        if not isinstance(v, str) or not v.strip():
            raise ValueError(f"{where}: {name} holds {v!r}; every entry should be a text that is not empty")
    return values


def _identity(value: Any) -> Any:
    """Whole numbers as int, whether they come from JSON or from a table's text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def make_record(path: str | Path, line: int, row: Mapping[str, Any], task: str, complete: bool) -> Record:
    """Check a row and turn it into a record.

    Args:
        path, line: where the row is from, for messages.
        row: the row's cells by column.
        task: "captioning" or "vqa".
        complete: whether it needs a caption or an answer (a test split can do without).

    Raises:
        ValueError: a cell is missing or of the wrong kind.
    """
    where = f"{path}, line {line}"
    needed = ("image", "question") if task == "vqa" else ("image",)
    for name in needed:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(
                f"{where}: {name} is {row.get(name)!r}; it should be a text (columns here: {', '.join(row)})"
            )
    record: Record = {"image": row["image"].strip(), "line": line}
    if row.get("image_id") is not None:
        record["image_id"] = _identity(row["image_id"])
    names = _ANSWER if task == "vqa" else _TEXT
    value = _first(row, names)
    if value is None and complete:
        raise ValueError(
            f"{where}: there is neither {names[0]} nor {names[1]} (columns here: {', '.join(row)})"
        )
    texts = [] if value is None else _texts(where, names[0], value)
    if task == "captioning":
        return record | {"caption": texts}
    record |= {"question": row["question"], "answers": texts}
    if row.get("id", row.get("question_id")) is not None:
        record["question_id"] = _identity(row.get("id", row.get("question_id")))
    record["question_type"] = str(row.get("question_type") or "")
    record["answer_type"] = str(row.get("answer_type") or (yes_no_number_other(texts[0]) if texts else ""))
    return record


def held_out(images: Sequence[str], share: float) -> set[str]:
    """The pictures that `val_fraction` holds out, by the hash of their path; at least one of several."""

    def place(image: str) -> float:
        return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64

    ordered = sorted(set(images), key=place)
    if share == 0 or len(ordered) < 2:
        return set()
    count = sum(place(i) < share for i in ordered)
    return set(ordered[: min(max(1, count), len(ordered) - 1)])


def find_missing(records: Sequence[Record], folder: Path, path: str | Path, skip: bool = False) -> None:
    """Look for every record's picture.

    Args:
        records: with `image` and `line`. folder: theirs. path: the table, for messages.
        skip: only warn, unless so many records lack theirs that a run would not go on.

    Raises:
        FileNotFoundError: some are missing; the first five are listed with their lines.
    """
    lines: dict[str, list[int]] = {}
    for record in records:
        lines.setdefault(record["image"], []).append(record["line"])
    missing = {image: where for image, where in lines.items() if not (folder / image).is_file()}
    if not missing:
        return
    first = [f"{image} (line {where[0]})" for image, where in list(missing.items())[:5]]
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    message = f"{path}: {len(missing)} of {len(lines)} pictures are missing below {folder}: {', '.join(first)}{more}"
    if not skip:
        raise FileNotFoundError(f"{message}; name their folder with images, or set on_error: skip")
    if sum(map(len, missing.values())) >= too_many(len(records)):
        raise FileNotFoundError(f"{message}; too many to skip: name their folder with images")
    logger.warning("%s; they are skipped (on_error: raise refuses them)", message)


def _merge_by_picture(records: Sequence[Record]) -> list[Record]:
    """One record per picture with all its captions, for evaluation."""
    merged: dict[str, Record] = {}
    for record in records:
        if record["image"] in merged:
            merged[record["image"]]["caption"] += record["caption"]
        else:
            merged[record["image"]] = record | {"caption": list(record["caption"])}
    return list(merged.values())


def _number(records: list[Record], task: str, path: str | Path) -> None:
    """Give every record an image_id and, for questions, an id; check that given ones are unique."""
    places: dict[str, int] = {}
    lines: dict[Any, int] = {}
    for number, record in enumerate(records):
        record.setdefault("image_id", places.setdefault(record["image"], len(places)))
        if task == "vqa":
            name = record.setdefault("question_id", number)
            if name in lines:
                raise ValueError(
                    f"{path}, line {record['line']}: the id {name!r} is already that of line {lines[name]}; "
                    "give every question its own, or none"
                )
            lines[name] = record["line"]


# ---------------------------------------------------------------------- the data set
class _Upright(Dataset):
    def picture(self, record: Mapping[str, Any]) -> Image.Image:
        path = self._media_path(str(record["image"]))
        return open_picture(path, self._what_to_do(), upright=self.options.upright)


class OwnCaption(_Upright, CaptionDataset):
    """Own pictures with captions."""

    name = "own"
    Options = OwnOptions


class OwnVQA(_Upright, VQADataset):
    """Own pictures with questions."""

    name = "own"
    Options = OwnOptions


@registry.register_dataset("own")
class OwnDataset(Dataset):
    """Builds an `OwnCaption` or an `OwnVQA`; see the module's docstring."""

    name = "own"
    Options = OwnOptions

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if rows_of(s, plan.options)[1])

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        options: OwnOptions = plan.options
        path, rows = rows_of(split, options)
        columns = sorted({name for _, row in rows for name in row})
        complete = split != "test"
        task = task_of(path, columns, options.task, complete)
        records = [make_record(path, line, row, task, complete) for line, row in rows]
        folder = Path(options.images).expanduser() if options.images else plan.vis_root or path.parent
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; name the pictures' folder with images")
        skip = error_policy(plan.on_error, split in cls.train_splits) == "skip"
        find_missing(records, folder, path, skip)
        if task == "captioning":
            if split != "train":
                records = _merge_by_picture(records)
            _number(records, task, path)
            return OwnCaption(records, split, vis_root=folder, options=options, annotation_paths=[path])
        _number(records, task, path)
        answers = _answer_list(options)
        return OwnVQA(
            records,
            split,
            vis_root=folder,
            options=options,
            annotation_paths=[path],
            answer_list=answers,
        )


def rows_of(split: str, options: OwnOptions) -> tuple[Path, list[tuple[int, Record]]]:
    """The file and the rows of a split: by its own file, by the column `split`, or held out of train."""
    given = getattr(options, split)
    if given is not None:
        path = Path(given).expanduser()
        rows = read_table(path)
    elif options.train is not None:
        path = Path(options.train).expanduser()
        rows = read_table(path)
    else:
        return Path(), []
    if any("split" in row for _, row in rows):
        for line, row in rows:
            if row.get("split") not in SPLITS:
                raise ValueError(
                    f"{path}, line {line}: split is {row.get('split')!r}; it should be train, val or test"
                )
        return path, [(line, row) for line, row in rows if row["split"] == split]
    if given is not None and (split != "train" or options.val is not None):
        return path, rows
    if split == "test":
        return path, []
    out = held_out([str(row.get("image", "")).strip() for _, row in rows], options.val_fraction)
    keep = split == "val"
    return path, [(n, row) for n, row in rows if (str(row.get("image", "")).strip() in out) == keep]


def _answer_list(options: OwnOptions) -> list[str]:
    """The answers to choose from: the given file's, else the training part's, most frequent first."""
    if options.answer_list is not None:
        path = Path(options.answer_list).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path} (answer_list)")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return _texts(str(path), "the list", json.loads(text))
        return [line.strip() for line in text.splitlines() if line.strip()]
    path, rows = rows_of("train", options)
    counts: Counter[str] = Counter()
    for line, row in rows:
        counts.update(make_record(path, line, row, "vqa", True)["answers"])
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
