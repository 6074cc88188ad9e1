"""A table of one's own: which task its columns are for, its rows as records, and which rows a split has."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from lavis.datasets.base import Record, too_many
from lavis.datasets.tables import as_number, decode_json, read_table, refuse_strange_characters, stripped
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
IDS = ("id", "question_id")  # of a question
_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes that usual systems take
_SHORT = _LONGEST_NAME // 4  # letters that are never more bytes than a name has


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
    return next((row[n] for n in names if not _is_missing(row.get(n))), None)


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty: no value, nothing but blanks, or no number."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, str) and not stripped(value))


def text_of(where: str, name: str, value: Any) -> str:
    """A cell that is a text, a number, or true or false, as the text that it stands for, without blanks at its ends.

    Raises:
        ValueError: it is something else, or empty.
    """
    if isinstance(value, bool):
        value = str(value).lower()  # as JSON and CSV write it
    elif isinstance(value, int | float) and not _is_missing(value):
        value = _digits(value)
    if not isinstance(value, str) or not (text := stripped(value)):
        raise ValueError(f"{where}: {name} holds {value!r}; it should be a text that is not empty")
    refuse_strange_characters(f"{where}: {name}", text)
    return text


def _digits(number: float) -> str:
    """A number as text; 2.0, which tables make of whole numbers, is 2."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def texts_of(where: str, name: str, value: Any) -> list[str]:
    """A text, or a list of texts (in a table also written as JSON), as a list; numbers will do, too."""
    if isinstance(value, str) and (inside := stripped(value)).startswith("[") and inside.endswith("]"):
        try:
            found, end = decode_json(inside)
            value = found if end == len(inside) else value
        except json.JSONDecodeError:
            pass  # a text that happens to stand in brackets
    if isinstance(value, str | int | float):
        return [text_of(where, name, value)]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: {name} is {value!r}; it should be a text or a list of texts")
    return [text_of(where, name, v) for v in value]


def identity(where: str, name: str, value: Any) -> int | str:
    """An id. Ids are opaque: only what is written as whole numbers are is one, so 1, "1" and 1.0 are the same id, and
    "01" is another.

    Raises:
        ValueError: it is no text and no number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float) or _is_missing(value):
        raise ValueError(f"{where}: {name} is {value!r}; an id should be a text or a whole number")
    text = text_of(where, name, value)
    return as_number(text) if text != "-1" else text  # the number marks padding in batches


def _place(where: str, name: str, row: Mapping[str, Any]) -> str:
    """The path of a row's picture or clip, checked as far as a path can be wrong by itself."""
    path = _needed(where, name, row)
    longest = max(len(os.fsencode(part)) for part in path.split("/")) if len(path) > _SHORT else 0
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(
            f"{where}: {name} is {path[:40]!r}… of {len(os.fsencode(path))} bytes; a name in a path has at most "
            f"{_LONGEST_NAME} and a path {_LONGEST_PATH}: is this a text, or the image itself?"
        )
    return _plain(path)


def _plain(path: str) -> str:
    """One spelling of a path: ./a.png is a.png."""
    odd = "//" in path or "./" in path or path.endswith("/")
    return str(PurePath(path)) if odd else path


def _needed(where: str, name: str, row: Mapping[str, Any]) -> str:
    """The text of a column that every row needs, without blanks at its ends."""
    value = row.get(name)
    if not isinstance(value, str) or not (text := stripped(value)):
        raise ValueError(
            f"{where}: {name} is {value!r}; it should be a text (columns here: {', '.join(row)})"
        )
    refuse_strange_characters(f"{where}: {name}", text)
    return text


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
    _, names = TASKS[task]
    record: Record = {media: _place(where, media, row), "line": line}
    if not _is_missing(row.get("image_id")):
        record["image_id"] = identity(where, "image_id", row["image_id"])
    value = _first(row, names)
    if value is None and complete:
        raise ValueError(f"{where}: there is no {_either(names)} (columns here: {', '.join(row)})")
    if task == "classification":
        text = _first(row, TEXT)
        return record | {
            "label": None if value is None else text_of(where, names[0], value),
            "text": "" if text is None else text_of(where, TEXT[0], text),
        }
    texts = [] if value is None else texts_of(where, names[0], value)
    if task != "vqa":
        return record | {"caption": texts}
    record["question"] = _needed(where, "question", row)
    record["answers"] = texts
    given = {identity(where, name, row[name]) for name in IDS if not _is_missing(row.get(name))}
    if len(given) > 1:
        raise ValueError(
            f"{where}: id is {row['id']!r} and question_id {row['question_id']!r}; a question has one id"
        )
    if given:
        record["question_id"] = given.pop()
    record["question_type"] = stripped(str(row.get("question_type") or ""))
    record["answer_type"] = stripped(str(row.get("answer_type") or "")) or (
        yes_no_number_other(texts[0].lower()) if texts else ""
    )
    return record


def place_of(record: Mapping[str, Any]) -> str:
    """The path of a record's picture or clip, below their folder."""
    return str(record["image"] if "image" in record else record["video"])


def read_texts(record: Mapping[str, Any]) -> list[str]:
    """The texts of a record that a model reads after the text processor."""
    if "caption" in record:
        return list(record["caption"])
    return [record["question"]] if "question" in record else [record["text"]]


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


def merged(records: Iterable[Record], task: str, training: bool) -> list[Record]:
    """Rows that are about one thing as one record: captions of an image (in training each is a record of its own),
    answers to one question about an image, unless both have ids of their own."""
    if task == "classification" or (training and task != "vqa"):
        return list(records)
    texts = "answers" if task == "vqa" else "caption"
    found: dict[Any, Record] = {}
    for record in records:
        key = (place_of(record), record.get("question"), record.get("question_id"))
        if key in found:
            found[key][texts] += record[texts]
        else:
            found[key] = record | {texts: list(record[texts])}
        if task == "vqa" and not found[key]["answer_type"]:
            found[key]["answer_type"] = record["answer_type"]
    return list(found.values())


def check_ids(path: str | Path, rows: Sequence[tuple[int, Record]], task: str) -> None:
    """Ids are for all rows or for none, an image has one, and so has a question about it.

    Args:
        path: the table, for messages. rows: lines and rows of a split, or of several that are one file.

    Raises:
        ValueError: naming the lines that don't go together.
    """
    for names in (("image_id",), IDS) if task == "vqa" else (("image_id",),):
        lines = [line for line, row in rows if _first(row, names) is None]
        if len(lines) == len(rows):
            continue
        if lines:
            other = next(line for line, row in rows if _first(row, names) is not None)
            raise ValueError(
                f"{path}, line {lines[0]}: there is no {names[0]}, and line {other} has one; "
                "give every row one, or none"
            )
        of_id: dict[Any, tuple[int, Any]] = {}  # the line and the image (and question) that an id is of
        of_place: dict[str, tuple[int, Any]] = {}
        for line, row in rows:
            where, name = (
                f"{path}, line {line}",
                identity(f"{path}, line {line}", names[0], _first(row, names)),
            )
            place = _same_place(row)
            about = place if names != IDS else (place, stripped(str(row.get("question") or "")))
            first, before = of_id.setdefault(name, (line, about))
            if before != about:
                what = "question" if names == IDS else "image"
                raise ValueError(
                    f"{where}: the {names[0]} {name!r} is already that of line {first}, which is about another {what}; "
                    f"give every {what} its own, or none"
                )
            first, before = of_place.setdefault(place, (line, name))
            if names != IDS and before != name:
                raise ValueError(
                    f"{where}: the image_id of {place} is {name!r}, and {before!r} in line {first}; "
                    "give every image one"
                )


def _same_place(row: Mapping[str, Any]) -> str:
    """A row's picture or clip, equal for spellings of one path."""
    return _plain(stripped(str(_first(row, MEDIA) or "")))


def number(records: Sequence[Record], task: str) -> None:
    """Give every record an image_id and, for questions, an id, where the table has none."""
    places: dict[str, int] = {}
    for place, record in enumerate(records):
        record.setdefault("image_id", places.setdefault(place_of(record), len(places)))
        if task == "vqa":
            record.setdefault("question_id", place)


def split_of(row: Mapping[str, Any]) -> Any:
    """What a row's column `split` says."""
    given = row.get("split")
    return stripped(given) if isinstance(given, str) else given


def whole_file(path: Path, rows: list[tuple[int, Record]]) -> list[tuple[int, Record]]:
    """The rows of a split, with those of the part that is held out of its file, if one is."""
    return rows if any("split" in row for _, row in rows) else read_table(path)


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
            if split_of(row) not in SPLITS:
                raise ValueError(
                    f"{path}, line {line}: split is {row.get('split')!r}; it should be train, val or test"
                )
        return path, [(line, row) for line, row in rows if split_of(row) == split]
    if given is not None and (split != "train" or options.val is not None):
        return path, rows
    if split == "test":
        return path, []
    places = [_same_place(row) for _, row in rows]
    out = held_out(places, options.val_fraction)
    keep = split == "val"
    return path, [row for row, place in zip(rows, places) if (place in out) == keep]
