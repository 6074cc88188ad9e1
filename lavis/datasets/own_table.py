"""A table of one's own: which task its columns are for, its rows as records, and which rows a split has."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis.datasets.base import Record, too_many
from lavis.datasets.tables import read_table
from lavis.datasets.vqa import yes_no_number_other

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MEDIA = ("image", "video")
TEXT, ANSWER, LABEL = ("text", "caption"), ("answer", "answers"), ("label",)
# Tasks with what a row needs beside a picture or clip: columns that are always needed, and columns of which one is
# what a test part may lack.
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "captioning": ((), TEXT),
    "vqa": (("question",), ANSWER),
    "retrieval": ((), TEXT),
    "classification": ((), LABEL),
}


def task_of(
    path: str | Path, columns: Sequence[str], wanted: str | None = None, complete: bool = True
) -> str:
    """Which task a table is for.

    Args:
        path: the table, for messages. columns: its columns. wanted: the task if it is known; retrieval has to be
            asked for, as its tables are those of captioning.
        complete: whether captions, answers or labels are needed.

    Raises:
        ValueError: its columns fit no task, or not the wanted one; the message lists them.
    """
    has = set(columns)

    def fits(task: str) -> bool:
        always, one_of = TASKS[task]
        return bool(has & set(MEDIA)) and has >= set(always) and (not complete or bool(has & set(one_of)))

    told = "vqa" if "question" in has else "classification" if "label" in has else "captioning"
    task = wanted or told
    if not fits(task):
        always, one_of = TASKS[task]
        needed = ["image (or video)", *always, *([_either(one_of)] if complete else [])]
        hint = ""
        if not has & set(MEDIA) and Path(path).suffix.lower() in (".csv", ".tsv"):
            hint = " (its first line should name the columns)"
        raise ValueError(
            f"{path}: found the columns {', '.join(sorted(has))}; needed are {', '.join(needed)} for {task}{hint}"
        )
    return task


def _either(names: Sequence[str]) -> str:
    return f"{names[0]} (or {names[1]})" if len(names) > 1 else names[0]


def media_of(path: str | Path, columns: Sequence[str]) -> str:
    """ "image" or "video", whichever column a table has.

    Raises:
        ValueError: it has both.
    """
    found = [name for name in MEDIA if name in columns]
    if len(found) > 1:
        raise ValueError(f"{path} has the columns image and video; a table is about pictures or about clips")
    return found[0] if found else "image"


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[n] for n in names if row.get(n) is not None), None)


def texts_of(where: str, name: str, value: Any) -> list[str]:
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
        task: one of `TASKS`.
        complete: whether it needs a caption, an answer or a label (a test split can do without).

    Raises:
        ValueError: a cell is missing or of the wrong kind.
    """
    where, media = f"{path}, line {line}", media_of(path, list(row))
    always, names = TASKS[task]
    for name in (media, *always):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(
                f"{where}: {name} is {row.get(name)!r}; it should be a text (columns here: {', '.join(row)})"
            )
    record: Record = {media: row[media].strip(), "line": line}
    if row.get("image_id") is not None:
        record["image_id"] = _identity(row["image_id"])
    value = _first(row, names)
    if value is None and complete:
        raise ValueError(f"{where}: there is no {_either(names)} (columns here: {', '.join(row)})")
    if task == "classification":
        text = _first(row, TEXT)
        return record | {
            "label": None if value is None else str(value),
            "text": "" if text is None else str(text),
        }
    texts = [] if value is None else texts_of(where, names[0], value)
    if task != "vqa":
        return record | {"caption": texts}
    record |= {"question": row["question"], "answers": texts}
    if row.get("id", row.get("question_id")) is not None:
        record["question_id"] = _identity(row.get("id", row.get("question_id")))
    record["question_type"] = str(row.get("question_type") or "")
    record["answer_type"] = str(row.get("answer_type") or (yes_no_number_other(texts[0]) if texts else ""))
    return record


def place_of(record: Mapping[str, Any]) -> str:
    """The path of a record's picture or clip, below their folder."""
    return str(record["image"] if "image" in record else record["video"])


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
    """Look for every record's picture or clip.

    Args:
        records: with `image` or `video`, and `line`. folder: theirs. path: the table, for messages.
        skip: only warn, unless so many records lack theirs that a run would not go on.

    Raises:
        FileNotFoundError: some are missing; the first five are listed with their lines.
    """
    lines: dict[str, list[int]] = {}
    for record in records:
        lines.setdefault(place_of(record), []).append(record["line"])
    missing = {image: where for image, where in lines.items() if not (folder / image).is_file()}
    if not missing:
        return
    first = [f"{image} (line {where[0]})" for image, where in list(missing.items())[:5]]
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    what = "clips" if "video" in records[0] else "pictures"
    message = (
        f"{path}: {len(missing)} of {len(lines)} {what} are missing below {folder}: {', '.join(first)}{more}"
    )
    if not skip:
        raise FileNotFoundError(f"{message}; name their folder with images, or set on_error: skip")
    if sum(map(len, missing.values())) >= too_many(len(records)):
        raise FileNotFoundError(f"{message}; too many to skip: name their folder with images")
    logger.warning("%s; they are skipped (on_error: raise refuses them)", message)


def merge_by_picture(records: Sequence[Record]) -> list[Record]:
    """One record per picture with all its captions, for evaluation."""
    merged: dict[str, Record] = {}
    for record in records:
        place = place_of(record)
        if place in merged:
            merged[place]["caption"] += record["caption"]
        else:
            merged[place] = record | {"caption": list(record["caption"])}
    return list(merged.values())


def number(records: list[Record], task: str, path: str | Path) -> None:
    """Give every record an image_id and, for questions, an id; check that given ones are unique."""
    places: dict[str, int] = {}
    lines: dict[Any, int] = {}
    for place, record in enumerate(records):
        record.setdefault("image_id", places.setdefault(place_of(record), len(places)))
        if task == "vqa":
            name = record.setdefault("question_id", place)
            if name in lines:
                raise ValueError(
                    f"{path}, line {record['line']}: the id {name!r} is already that of line {lines[name]}; "
                    "give every question its own, or none"
                )
            lines[name] = record["line"]


def rows_of(split: str, options: Any) -> tuple[Path, list[tuple[int, Record]]]:
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
    places = [str(_first(row, MEDIA) or "").strip() for _, row in rows]
    out = held_out(places, options.val_fraction)
    keep = split == "val"
    return path, [row for row, place in zip(rows, places) if (place in out) == keep]
