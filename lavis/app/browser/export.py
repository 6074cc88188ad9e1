"""A selection of records to take along: a table that `lavis train --data` reads, with or without pictures.

Rows are written one by one, so a selection may be of any size.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from lavis.app.browser.collection import Positions, Split
from lavis.app.browser.media import Media, media_of, outside
from lavis.datasets.base import Record
from lavis.datasets.captioning import as_list
from lavis.datasets.shown import answers_of


def why_not(split: Split) -> str:
    """Why records can't be written as a table of one's own; "" if they can."""
    record = split.record(0) if len(split) else {}
    if "images" in record:
        return "a record has two pictures, and a table of one's own has one in a row"
    if "dialog" in record:
        return "records are dialogues, for which there is no table of one's own"
    if "features" in split.dataset.data_type:
        return "records have features in place of pictures"
    return ""


def own_row(record: Record, media: str, clip: bool, ident: str) -> dict[str, Any]:
    """A record as a row of the data set `own`; see `lavis card own`.

    Args:
        media: the path of the picture or clip below the folder that is named with --images. ident: the record's id.
    """
    row: dict[str, Any] = {"video" if clip else "image": media}
    if record.get("image_id") is not None and not isinstance(record["image_id"], (list, dict)):
        row["image_id"] = record["image_id"]
    if record.get("question") is not None:
        row |= {"question": record["question"], "id": ident}
        answers = list(answers_of(record).elements())
        if answers:
            row["answer"] = answers[0] if len(answers) == 1 else answers
        return row
    if record.get("label") is not None:
        text = record.get("sentence", record.get("text"))
        return row | ({"text": text} if text else {}) | {"label": str(record["label"])}
    captions = as_list(record.get("caption") or ())
    return row | ({"text": captions[0] if len(captions) == 1 else captions} if captions else {})


def lines(split: Split, positions: Positions, form: str) -> Iterator[bytes]:
    """JSON lines of records: as they are, or as a table of one's own."""
    for position in positions:
        record = split.record(int(position))
        if form == "records":
            row: Any = record
        else:
            media = media_of(split.dataset, record)
            row = _row(split, record, int(position), media[0], media[0].name)
        yield _line(row)


def _row(split: Split, record: Record, position: int, media: Media, name: str) -> dict[str, Any]:
    ident = split.index.items([position])[position][0]
    return own_row(record, name, media.clip, ident)


def _line(row: Any) -> bytes:
    # ASCII: halves of surrogate pairs, which a file may hold, stay what they are
    return json.dumps(row, default=plain).encode() + b"\n"


def plain(value: Any) -> Any:
    """What JSON can't hold, as something that it can: arrays as lists, the rest as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def archive(split: Split, positions: Positions) -> Iterator[bytes]:
    """A ZIP archive with `<split>.jsonl` and the folder `images`, piece by piece. Missing files are left out, and
    listed in `missing.txt`."""
    sink = _Sink()
    table: list[bytes] = []
    missing: list[str] = []
    written: dict[str, str] = {}
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as out:  # pictures don't get smaller
        for position in positions:
            record = split.record(int(position))
            media = media_of(split.dataset, record)[0]
            name = _name(media)
            if name not in written:
                content = _content(split, record, media)
                if content is None:
                    missing.append(media.name)
                    continue
                suffix, read = content
                written[name] = name if name.lower().endswith(suffix) else name + suffix
                with out.open(f"images/{written[name]}", "w") as file:
                    for piece in read():
                        file.write(piece)
                        yield sink.take()
            table.append(_line(_row(split, record, int(position), media, written[name])))
        out.writestr(f"{split.name}.jsonl", b"".join(table))
        if missing:
            out.writestr("missing.txt", "\n".join(missing) + "\n")
    yield sink.take()


def _name(media: Media) -> str:
    """A path below a folder, whatever the record says."""
    parts = [p for p in PurePosixPath(media.name.replace("\\", "/")).parts if p not in ("/", "..", ".")]
    return "/".join(p.replace(":", "_") for p in parts) or "picture"


def _content(split: Split, record: Record, media: Media) -> tuple[str, Callable[[], Iterator[bytes]]] | None:
    """The suffix and the bytes of a record's file, None if there is none."""
    if outside(split.dataset, media):
        return None
    path = media.path
    if path is not None and path.is_file():

        def read() -> Iterator[bytes]:
            with path.open("rb") as f:
                while piece := f.read(1 << 18):
                    yield piece

        return path.suffix.lower(), read
    if path is not None and split.dataset.vis_root is not None:
        return None
    buffer = io.BytesIO()
    if media.clip:  # GIF is the one moving format that is read here and written without PyAV
        frames = [Image.fromarray(f) for f in split.dataset.clip(record)]  # type: ignore[attr-defined]
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=160, loop=0)
        return ".gif", lambda: iter([buffer.getvalue()])
    split.dataset.picture(record).save(buffer, "PNG")
    return ".png", lambda: iter([buffer.getvalue()])


class _Sink(io.RawIOBase):
    """What an archive is written to, and taken from."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._pieces.append(bytes(content))
        return len(content)

    def take(self) -> bytes:
        out = b"".join(self._pieces)
        self._pieces.clear()
        return out
