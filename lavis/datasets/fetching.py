"""Pictures from many addresses, fetched politely, checked, made smaller and kept; the lists are in `lists.py`.

Each picture is fetched with few connections per host, tried again where that may help, limited in bytes and
pixels, decoded in full, and made smaller where its shorter side exceeds `side`. What failed is listed with the reason
in `failures.jsonl`; a later run goes on where the last one stopped, tries temporary failures again and leaves
out what was refused. Pictures go to files, or into WebDataset shards (`lavis.datasets.shard_writer`).

Sites that ask with X-Robots-Tag (noai, noimageai) not to be used for training are left alone.
"""

from __future__ import annotations

import io
import json
import queue
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lavis.common import hub, transfer
from lavis.common.files import append_jsonl
from lavis.common.hosts import Turns
from lavis.common.images import (
    ORIENTATION,
    TooManyPixelsError,
    UnreadableMediaError,
    opened,
    orientation_of,
    to_rgb,
)
from lavis.common.members import STATE
from lavis.common.parallel import Board
from lavis.datasets.checking import scan
from lavis.datasets.shard_writer import Shards
from lavis.datasets.sources import TRAINING_SIDE

WORKERS = 32
_WINDOW = 4000  # pictures that are begun and not settled, at most
_LONGEST_PAUSE_S = 300.0  # however long a host asks to wait
_NO_NETWORK = 300  # temporary failures in a row: it is not the pictures
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")  # others have decoders that are rarely looked at
_REFUSED_BY = ("noai", "noimageai")
_PLACEHOLDERS = ("photo_unavailable",)  # in the address that Flickr sends one to
REFUSED_BEFORE = "refused in an earlier run"
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class FetchSettings:
    """How pictures are fetched.

    Args:
        side: pixels; larger pictures are made smaller to this shorter side; 0 keeps all as they are.
        quality: of JPEG, 1 to 95, for pictures that are made smaller.
        workers, per_host: connections in all, and to one host.
        attempts: requests per picture in one run.
        timeout_s, deadline_s: seconds of silence, and in all, for one request.
        backoff_s: pause before the second request, doubled after each.
        largest_bytes, largest_pixels, smallest_side: what is refused (pixels, for both of the latter).
        retry_failed: try again what an earlier run was refused.
        progress: show a progress line in a terminal.
    """

    side: int = TRAINING_SIDE
    quality: int = 90
    workers: int = WORKERS
    per_host: int = 4
    attempts: int = 3
    timeout_s: float = 10.0
    deadline_s: float = 60.0
    backoff_s: float = 1.0
    largest_bytes: int = 64 << 20
    largest_pixels: int = 89_478_485  # Pillow's limit against bombs
    smallest_side: int = 8
    retry_failed: bool = False
    progress: bool = True


@dataclass
class Job:
    """One picture of a list: its place, its address, the name it gets, and its record."""

    place: int
    url: str
    name: str
    record: Mapping[str, Any]
    tries: int = 0


@dataclass
class Tally:
    """What became of a list: `refused` failed in an earlier run and were left out."""

    got: int = 0
    there: int = 0
    failed: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failures: str = ""
    annotation: str = ""

    def text(self) -> str:
        """A line or two for people."""
        out = f"pictures: {self.got:,} fetched, {self.there:,} there before, {self.failed:,} failed"
        if self.refused:
            out += f", {self.refused:,} left out that were refused before (--retry-failed)"
        if self.reasons:
            out += "\n    " + "; ".join(f"{reason}: {n:,}" for reason, n in self.reasons.most_common(8))
        if self.failed or self.refused:
            out += f"\n    all failures: {self.failures}"
        return out + (f"\n    records of what was got: {self.annotation}" if self.annotation else "")


# ---------------------------------------------------------------------- one picture
class _TooSmallError(UnreadableMediaError):
    """A side is shorter than what is taken."""


def prepare(data: bytes, settings: FetchSettings, jpeg: bool) -> tuple[bytes, int, int]:
    """Check a picture and make it smaller where it is larger than wanted.

    Args:
        data: the file's content.
        settings: sizes and quality.
        jpeg: turn other formats into JPEG; False keeps them as they are unless they are too large.

    Returns:
        (content, width, height); an EXIF orientation is kept as it is, and so are the pixels' places.

    Raises:
        ValueError: no picture, a broken one, or one of a refused size.
    """
    try:
        with opened(data, formats=_FORMATS, limit=settings.largest_pixels) as picture:
            width, height = picture.size
            if min(width, height) < settings.smallest_side:
                raise _TooSmallError(f"a side of less than {settings.smallest_side} pixels")
            scale = settings.side / min(width, height) if settings.side else 1.0
            if scale >= 1 and (picture.format == "JPEG" or not jpeg):
                picture.load()
                return data, width, height
            size = (max(1, round(width * min(scale, 1.0))), max(1, round(height * min(scale, 1.0))))
            picture.draft("RGB", (2 * size[0], 2 * size[1]))  # JPEG decodes smaller pictures faster
            out = to_rgb(picture)
            orientation = orientation_of(picture)
    except TooManyPixelsError as e:
        raise ValueError("too many pixels") from e
    except _TooSmallError as e:
        raise ValueError(str(e)) from e
    except UnreadableMediaError as e:
        raise ValueError("no picture, or a broken one") from e
    if out.size != size:
        out = out.resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if orientation > 1:
        exif[ORIENTATION] = orientation
    content = io.BytesIO()
    out.save(content, "JPEG", quality=settings.quality, exif=exif)
    return content.getvalue(), *size


def _get(job: Job, settings: FetchSettings, jpeg: bool) -> tuple[bytes, int, int]:
    """Fetch and prepare one picture."""
    url = hub.mirrored(job.url)
    reply = transfer.read(url, settings.largest_bytes, settings.timeout_s, settings.deadline_s)
    tags = ",".join(reply.headers.get_all("X-Robots-Tag", [])).lower().replace(":", ",").split(",")
    if any(tag.strip() in _REFUSED_BY for tag in tags):
        raise ValueError("the site asks not to be used (X-Robots-Tag)")
    if any(word in reply.url for word in _PLACEHOLDERS):
        raise ValueError("taken down: the site sends a placeholder")
    return prepare(reply.data, settings, jpeg)


# ---------------------------------------------------------------------- many pictures
@dataclass
class _Settled:
    job: Job
    data: bytes | None = None  # kept only for shards
    width: int = 0
    height: int = 0
    failure: str = ""
    temporary: bool = False


class Files:
    """Keeps pictures as files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jpeg = folder, False
        self._parts = folder / STATE / "parts"
        self._parts.mkdir(parents=True, exist_ok=True)
        for rubbish in self._parts.iterdir():
            rubbish.unlink()
        self._before = scan(folder)
        self.there: set[str] = set()  # of this list, as far as it has been gone through
        self._claimed: set[str] = set()  # in hand, or failed in this run

    def claim(self, job: Job, tally: Tally) -> bool:
        """Whether this picture is to be fetched; several records may name one picture."""
        if job.name in self._before:
            self._before.discard(job.name)
            self.there.add(job.name)
            tally.there += 1
        if job.name in self.there or job.name in self._claimed:
            return False
        self._claimed.add(job.name)
        return True

    def keep(self, settled: _Settled) -> None:
        """On a worker's thread: the file appears whole or not at all."""
        assert settled.data is not None
        place = self.folder / settled.job.name
        place.parent.mkdir(parents=True, exist_ok=True)
        part = self._parts / f"{threading.get_ident()}"
        part.write_bytes(settled.data)
        part.replace(place)
        settled.data = None

    def settle(self, settled: _Settled, drawn_all: bool) -> int:
        if not settled.failure:
            self.there.add(settled.job.name)
            self._claimed.discard(settled.job.name)
        return 1


class Packed:
    """Keeps pictures in shards; `retry_failed` opens complete ones again for what failed."""

    def __init__(self, folder: Path, identity: str, retry_failed: bool = False) -> None:
        self.folder, self.jpeg = folder, True
        failed = {f["place"]: f for f in _lines(folder / FAILURES)} if retry_failed else {}
        self.shards = Shards(folder, identity, again=failed)

    def claim(self, job: Job, tally: Tally) -> bool:
        """Whether this picture is to be fetched: its shard isn't complete, or is opened again for it."""
        if self.shards.has(job.place):
            tally.there += 1
            return False
        self.shards.expect(job.place)
        return True

    def keep(self, settled: _Settled) -> None:
        return None

    def settle(self, settled: _Settled, drawn_all: bool) -> int:
        record = {
            **settled.job.record,
            "url": settled.job.url,
            "width": settled.width,
            "height": settled.height,
        }
        self.shards.put(settled.job.place, settled.data, record)
        # what was refused before was not drawn from the list's credit
        return self.shards.write_full(drawn_all) - (settled.failure == REFUSED_BEFORE)


def fetch_pictures(
    jobs: Iterator[Job], keeper: Files | Packed, settings: FetchSettings, total: int | None = None
) -> Tally:
    """Fetch all pictures of a list that aren't there.

    Args:
        jobs: the list; names must be safe, places ascending.
        keeper: where they go.
        settings: see `FetchSettings`.
        total: how many they are, for the progress line.

    Raises:
        OSError: being offline, no network, or the disk is full; what was got is kept.
        KeyboardInterrupt: passed on; what was got is kept.
    """
    if hub.is_offline():
        raise OSError("LAVIS_OFFLINE or HF_HUB_OFFLINE forbids the network")
    failures = keeper.folder / FAILURES
    tally = Tally(failures=str(failures))
    refused = set() if settings.retry_failed else {f["url"] for f in _lines(failures) if not f["temporary"]}
    results: queue.SimpleQueue[_Settled | BaseException | None] = queue.SimpleQueue()
    drawn = threading.Event()

    def wanted() -> Iterator[Job]:
        for job in jobs:
            if not keeper.claim(job, tally):
                continue
            if job.url in refused:
                tally.refused += 1
                if isinstance(keeper, Packed):
                    results.put(_Settled(job, failure=REFUSED_BEFORE))
            else:
                yield job
        drawn.set()

    turns = Turns(wanted(), settings.per_host, _WINDOW)

    def worker() -> None:
        try:
            while (job := turns.take()) is not None:
                settled = _attempt(job, turns, settings, keeper.jpeg)
                if settled is not None:
                    if not settled.failure:
                        keeper.keep(settled)
                    turns.finish(job)
                    results.put(settled)
            results.put(None)
        except BaseException as e:  # noqa: BLE001 (raised again below)
            results.put(e)

    for _ in range(settings.workers):
        threading.Thread(target=worker, daemon=True).start()
    running, in_a_row = settings.workers, 0
    bombs = warnings.catch_warnings()
    with bombs, Board("pictures", total, "", settings.progress) as board:
        warnings.simplefilter(
            "ignore", Image.DecompressionBombWarning
        )  # refused by `prepare`, as too many pixels
        try:
            while running:
                try:
                    settled = results.get(timeout=0.2)
                except queue.Empty:
                    continue
                if settled is None:
                    running -= 1
                    continue
                if isinstance(settled, BaseException):
                    raise settled
                turns.more(keeper.settle(settled, drawn.is_set()))
                if not settled.failure:
                    tally.got += 1
                elif settled.failure != REFUSED_BEFORE:
                    tally.failed += 1
                    tally.reasons[settled.failure] += 1
                    append_jsonl(failures, _failure(settled))
                in_a_row = in_a_row + 1 if settled.temporary else 0
                if in_a_row >= _NO_NETWORK:
                    raise OSError(
                        f"the last {in_a_row} pictures failed ({settled.failure}): is the network there? What was got "
                        "is kept; run it again to go on"
                    )
                board.at("", tally.got + tally.failed + tally.there + tally.refused)
                board.say(f"{tally.failed} failed")
        finally:
            turns.close()
    if isinstance(keeper, Packed):
        keeper.shards.write_full(True)
    _tidy(failures, keeper)
    return tally


def _attempt(job: Job, turns: Turns[Job], settings: FetchSettings, jpeg: bool) -> _Settled | None:
    """One request; None if it will be made again."""
    try:
        data, width, height = _get(job, settings, jpeg)
    except transfer.TemporaryError as e:
        job.tries += 1
        if job.tries >= settings.attempts:
            return _Settled(job, failure=str(e), temporary=True)
        pause = min(e.after_s, _LONGEST_PAUSE_S)
        turns.again(job, settings.backoff_s * 2 ** (job.tries - 1), pause)
        return None
    except (OSError, ValueError) as e:
        return _Settled(job, failure=str(e))
    return _Settled(job, data, width, height)


def _failure(settled: _Settled) -> dict[str, Any]:
    job = settled.job
    return {
        "url": job.url, "name": job.name, "place": job.place, "reason": settled.failure,
        "temporary": settled.temporary,
    }  # fmt: skip


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a list of failures; a line that a kill has torn is left out."""
    if path.is_file():
        with path.open("rb") as f:
            for line in f:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and {"url", "name", "place", "temporary"} <= row.keys():
                    yield row


def _tidy(failures: Path, keeper: Files | Packed) -> None:
    """One line, the last one, per address that still fails; in shards per place, as each has an image of its own."""
    if not failures.is_file():
        return
    if isinstance(keeper, Files):
        last = {row["url"]: row for row in _lines(failures) if row["name"] not in keeper.there}
    else:
        there = {int(record["key"]) for record in keeper.shards.records()}
        last = {row["place"]: row for row in _lines(failures) if row["place"] not in there}
    write_rows(failures, iter(last.values()))


def write_rows(path: Path, rows: Iterator[Mapping[str, Any]]) -> int:
    """JSON lines, as one file that appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, count = path.with_name(path.name + ".part"), 0
    with part.open("w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            count += 1
    part.replace(path)
    return count
