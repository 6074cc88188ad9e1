"""A searchable index of pictures: a folder on disk, of any size, updated by what has changed.

    index.json            the model's name and fingerprint, the folders that are indexed, the generation in use
    generation-1/
        features.f32      one row of E float32 per picture, appended to; memory-mapped for searching
        entries.db        SQLite: row, path, size and time of change of every picture that counts

A row is written and flushed before its entry, so an entry always has its row, and an update that is killed loses the
batch it was at. Rows without an entry (of changed or removed pictures) are stale; when there are many, the whole is
written anew as the next generation, which takes the place of the old one by the renaming of index.json.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lavis.common.files import write_json
from lavis.datasets.tables import read_json
from lavis.inference.encoder import Encoder
from lavis.inference.entries import database, key_of, list_pictures, not_encoded, path_of
from lavis.inference.reading import read_batches
from lavis.nn.finite import usable

DESCRIPTION, FEATURES, ENTRIES, LOCK = "index.json", "features.f32", "entries.db", "update.lock"
FORMAT = 1
BLOCK = 65_536  # rows that are searched or copied at once
STALE_SHARE, STALE_ROWS = 0.3, 1024  # more than both: the index is written anew
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        path: its file. score: cosine with the query.
        match: probability of the matching head that the text fits, where it was asked.
    """

    path: Path
    score: float
    match: float | None = None


@dataclass
class Update:
    """What an update did: numbers of pictures, and (path, reason) of those that could not be read."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)


class Index:
    """An index on disk; `open` or `create` one. Its methods may be called from several threads.

    Attributes:
        folder: where it lies.
        spec, checkpoint: the model that its features are of.
        fingerprint: of that model's weights; "" until there are features.
        width: E; 0 until there are features.
        roots: folders that it was built of, for the user's information.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder = folder
        self._take(description)

    def _take(self, description: dict[str, Any]) -> None:
        self.spec, self.checkpoint = str(description["model"]), description["checkpoint"]
        self.fingerprint, self.width = str(description["fingerprint"]), int(description["width"])
        self.roots = [str(r) for r in description["roots"]]
        self._generation = int(description["generation"])

    # ------------------------------------------------------------------------------ on disk
    @classmethod
    def create(cls, folder: str | Path, spec: str, checkpoint: str | None = None) -> Index:
        """A new, empty index.

        Raises:
            ValueError: the folder holds something else.
        """
        folder = Path(folder).expanduser()
        if folder.is_dir() and any(folder.iterdir()):
            what = "there is an index already" if cls.exists(folder) else "it is not empty"
            raise ValueError(f"no index can be made in {folder}: {what}")
        index = cls(
            folder,
            {
                "model": spec,
                "checkpoint": checkpoint,
                "fingerprint": "",
                "width": 0,
                "roots": [],
                "generation": 1,
            },
        )
        index._begin(index._place())
        index._describe()
        return index

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """An index that is there.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of a later version.
        """
        folder = Path(folder).expanduser()
        if not cls.exists(folder):
            raise FileNotFoundError(
                f"{folder} is no index: it has no {DESCRIPTION}; make one with lavis index"
            )
        description = read_json(folder / DESCRIPTION)
        wanted = ("format", "model", "checkpoint", "fingerprint", "width", "roots", "generation")
        if not isinstance(description, dict) or any(key not in description for key in wanted):
            raise ValueError(f"{folder / DESCRIPTION} does not describe an index")
        if description["format"] != FORMAT:
            raise ValueError(
                f"{folder} is an index of format {description['format']}; this version reads {FORMAT}"
            )
        return cls(folder, description)

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether there is an index in a folder."""
        return (Path(folder).expanduser() / DESCRIPTION).is_file()

    def _describe(self) -> None:
        content = {
            "format": FORMAT, "model": self.spec, "checkpoint": self.checkpoint, "fingerprint": self.fingerprint,
            "width": self.width, "roots": self.roots, "generation": self._generation,
        }  # fmt: skip
        write_json(self.folder / DESCRIPTION, content)

    def set_roots(self, roots: Sequence[str]) -> None:
        """Remember which folders the index is built of."""
        self.roots = list(roots)
        self._describe()

    def _place(self) -> Path:
        return self.folder / f"generation-{self._generation}"

    @staticmethod
    def _begin(place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / FEATURES).touch()
        with database(place / ENTRIES) as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS entries"
                " (row INTEGER PRIMARY KEY, path BLOB UNIQUE NOT NULL, size INTEGER NOT NULL, changed INTEGER NOT NULL)"
            )

    def _entries(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        self._take(read_json(self.folder / DESCRIPTION))  # another process may have written a new generation
        path = self._place() / ENTRIES
        if not path.is_file():
            raise FileNotFoundError(f"the index {self.folder} is damaged: {path} is not there; build it anew")
        return database(path)

    def __len__(self) -> int:
        """Pictures."""
        with self._entries() as db:
            return int(db.execute("SELECT count(*) FROM entries").fetchone()[0])

    def paths(self) -> Iterator[Path]:
        """All pictures, in the order of their rows."""
        with self._entries() as db:
            for (path,) in db.execute("SELECT path FROM entries ORDER BY row"):
                yield path_of(path)

    # ------------------------------------------------------------------------------ updating
    def update(
        self,
        pictures: Iterable[Path],
        encoder: Encoder,
        progress: Progress | None = None,
        batch_size: int = 16,
    ) -> Update:
        """Make the index one of these pictures: encode new and changed ones, forget all others.

        Args:
            pictures: files, each path once; changed ones are seen by size and time.
            encoder: the index's model.
            progress: told (done, all) of the pictures to encode.

        Returns:
            what was done. A picture that can't be read, or of which the model computes NaN, is not in the index.

        Raises:
            ValueError: another model.
            OSError: another update is under way.
        """
        with self._alone():
            self._take(read_json(self.folder / DESCRIPTION))
            self._check(encoder)
            if not self.fingerprint:
                self.fingerprint, self.width = encoder.loaded.fingerprint(), encoder.width
                self._describe()
            self._remove_leftovers()
            with self._entries() as db:
                done = self._update(db, pictures, encoder, progress, batch_size)
            self._compact()
        return done

    def _update(
        self,
        db: sqlite3.Connection,
        pictures: Iterable[Path],
        encoder: Encoder,
        progress: Progress | None,
        batch_size: int,
    ) -> Update:
        done = Update()
        list_pictures(db, pictures, done.failed)
        count = "SELECT count(*) FROM"
        done.removed = db.execute(f"{count} entries WHERE path NOT IN (SELECT path FROM listed)").fetchone()[
            0
        ]
        db.execute("DELETE FROM entries WHERE path NOT IN (SELECT path FROM listed)")
        old = "listed JOIN entries USING (path) WHERE"
        same = "listed.size = entries.size AND listed.changed = entries.changed"
        done.unchanged = db.execute(f"{count} {old} {same}").fetchone()[0]
        db.execute(f"CREATE TEMP TABLE altered AS SELECT path FROM {old} NOT ({same})")
        # the old features of what has changed are wrong, whether or not it can be read now
        db.execute("DELETE FROM entries WHERE path IN (SELECT path FROM altered)")
        db.commit()
        total = db.execute(f"{count} listed WHERE path NOT IN (SELECT path FROM entries)").fetchone()[0]
        was_there = {row[0] for row in db.execute("SELECT path FROM altered")}
        seen = 0
        for batch in read_batches(not_encoded(db), encoder.loaded.read, batch_size):
            good = [(path, picture) for path, picture in batch if not isinstance(picture, Exception)]
            done.failed += [(path, str(e)) for path, e in batch if isinstance(e, Exception)]
            found, good, bad = usable(lambda some: encoder.images([t for _, t in some]), good)
            done.failed += [(path, str(e)) for (path, _), e in bad]
            if found is not None:
                self._append(db, [p for p, _ in good], found.numpy())
                changed = sum(key_of(path) in was_there for path, _ in good)
                done.changed += changed
                done.added += len(good) - changed
            seen += len(batch)
            if progress is not None:
                progress(seen, total)
        return done

    def _append(self, db: sqlite3.Connection, paths: Sequence[Path], vectors: np.ndarray) -> None:
        """Add rows, then their entries, whose size and time are those of the listing."""
        if not np.isfinite(vectors).all():
            raise ValueError(f"vectors for the index {self.folder} hold NaN or infinity; they are not stored")
        first = self._rows()
        with (self._place() / FEATURES).open("r+b") as f:
            f.seek(first * 4 * self.width)  # over a torn row, if a kill has left one
            f.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            f.flush()
            os.fsync(f.fileno())
        db.executemany(
            "INSERT INTO entries SELECT ?, path, size, changed FROM listed WHERE path = ?",
            [(first + i, key_of(path)) for i, path in enumerate(paths)],
        )
        db.commit()

    def _check(self, encoder: Encoder) -> None:
        if self.fingerprint and self.fingerprint != encoder.loaded.fingerprint():
            raise ValueError(
                f"the index {self.folder} holds features of {self.spec}"
                f"{f' with the weights {self.checkpoint}' if self.checkpoint else ''}; {encoder.loaded.spec} as it is "
                "loaded here has other weights, so the two don't compare; use that model, or build another index"
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other updates out; the system lets go of the lock if this process dies."""
        db = sqlite3.connect(self.folder / LOCK, timeout=0, isolation_level=None)
        try:
            try:
                db.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as e:
                raise OSError(f"the index {self.folder} is being updated by another process ({e})") from e
            yield
        finally:
            db.close()

    def _remove_leftovers(self) -> None:
        """Other generations: of an update that was killed while it wrote the index anew."""
        for other in self.folder.glob("generation-*"):
            if other != self._place():
                shutil.rmtree(other)

    def _compact(self) -> None:
        """Write the index anew, without stale rows, if they are many."""
        with self._entries() as db:
            live = np.array(
                [r for (r,) in db.execute("SELECT row FROM entries ORDER BY row")], dtype=np.int64
            )
            rows = self._rows()
            stale = rows - len(live)
            if stale <= STALE_ROWS or stale <= STALE_SHARE * rows:
                return
            old, features = self._place(), self._map()
            new = self.folder / f"generation-{self._generation + 1}"
            self._begin(new)
            with (new / FEATURES).open("wb") as f:
                for start in range(0, len(live), BLOCK):
                    f.write(features[live[start : start + BLOCK]].tobytes())
                f.flush()
                os.fsync(f.fileno())
            with database(new / ENTRIES) as other:
                entries = db.execute("SELECT path, size, changed FROM entries ORDER BY row")
                other.executemany(
                    "INSERT INTO entries VALUES (?, ?, ?, ?)",
                    ((i, *entry) for i, entry in enumerate(entries)),
                )
                other.commit()
            del features
        self._generation += 1
        self._describe()
        shutil.rmtree(old)

    # ------------------------------------------------------------------------------ searching
    def _rows(self) -> int:
        """Rows of the file, stale ones too; a torn last one does not count."""
        return (self._place() / FEATURES).stat().st_size // (4 * self.width) if self.width else 0

    def _map(self) -> np.ndarray:
        rows = self._rows()
        if not rows:
            return np.zeros((0, self.width), dtype=np.float32)
        return np.memmap(self._place() / FEATURES, dtype="<f4", mode="r", shape=(rows, self.width))

    def nearest(self, query: np.ndarray, k: int, block: int = BLOCK) -> list[Hit]:
        """The k pictures whose vectors have the largest product with a query (E,), the best first.

        Reads the features block by block, so memory does not grow with their number.
        """
        with self._entries() as db:
            features = self._map()
            live = self._live(db, len(features))
            rows, scores = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
            for start in range(0, len(features), block):
                here = np.flatnonzero(live[start : start + block])
                found = (features[start : start + block] @ query.astype(np.float32))[here]
                rows, scores = _best(np.concatenate([rows, here + start]), np.concatenate([scores, found]), k)
            by_row = "SELECT path FROM entries WHERE row = ?"
            return [
                Hit(path_of(db.execute(by_row, (row,)).fetchone()[0]), score)
                for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            ]

    def _live(self, db: sqlite3.Connection, rows: int) -> np.ndarray:
        """Which rows count, (rows,) bool."""
        count, last = db.execute("SELECT count(*), max(row) FROM entries").fetchone()
        if count and last >= rows:
            raise OSError(
                f"the index {self.folder} is damaged: {FEATURES} has {rows} rows, its entries name row {last}; "
                "build it anew"
            )
        if count == rows:
            return np.ones(rows, dtype=bool)
        live = np.zeros(rows, dtype=bool)
        found = db.execute("SELECT row FROM entries")
        while some := found.fetchmany(BLOCK):
            live[[row for (row,) in some]] = True
        return live

    def search(
        self,
        encoder: Encoder,
        text: str | None = None,
        picture: Any = None,
        k: int = 20,
        rerank: int = 0,
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> list[Hit]:
        """Pictures that fit a text, look like a picture, or both.

        Args:
            encoder: the index's model.
            text, picture: the query; of both, their vectors are added, text times weights[0], picture times weights[1].
            k: how many pictures.
            rerank: how many of the nearest are read again and ordered by the matching head (its logit plus the cosine,
                as in retrieval's published figures) before the first k are taken; 0: none.

        Returns:
            the best first. Of those that were to be read again, pictures that can't be come last, without `match`.

        Raises:
            ValueError: nothing to look for; another model; `rerank` without a text or without a matching head.
        """
        self._check(encoder)
        if k < 1:
            raise ValueError(f"k is {k}; it must be 1 or more")
        if text is None and picture is None:
            raise ValueError("there is nothing to look for; give a text, a picture or both")
        if rerank and text is None:
            raise ValueError(
                "the matching head compares pictures with a text; give one, or leave reranking out"
            )
        if rerank and not encoder.matches:
            raise ValueError(
                f"{encoder.loaded.spec} has no matching head to rerank with; build the index with a model that has, "
                "such as blip_retrieval/coco or albef_retrieval/coco"
            )
        if not self.width:
            return []
        query = torch.zeros(self.width)
        if text is not None:
            query += weights[0] * encoder.texts([text])[0]
        if picture is not None:
            query += weights[1] * encoder.images([picture])[0]
        hits = self.nearest(F.normalize(query, dim=0).numpy(), max(k, rerank))
        if rerank and text is not None:
            hits = _reranked(encoder, text, hits[:rerank]) + hits[rerank:]
        return hits[:k]


# ------------------------------------------------------------------------------------------ parts


def _reranked(encoder: Encoder, text: str, hits: Sequence[Hit], batch_size: int = 16) -> list[Hit]:
    by_path = {hit.path: hit for hit in hits}
    matched: list[tuple[float, Hit]] = []
    lost: list[Hit] = []
    for batch in read_batches([hit.path for hit in hits], encoder.loaded.read, batch_size):
        lost += [by_path[path] for path, picture in batch if isinstance(picture, Exception)]
        good = [(by_path[path], picture) for path, picture in batch if not isinstance(picture, Exception)]
        if not good:
            continue
        logits, _ = encoder.match_logits([picture for _, picture in good], [text])
        chances = logits[:, 0].softmax(dim=-1)[:, 1].tolist()
        for (hit, _), logit, chance in zip(good, logits[:, 0, 1].tolist(), chances, strict=True):
            matched.append((logit + hit.score, Hit(hit.path, hit.score, chance)))
    matched.sort(key=lambda pair: -pair[0])
    return [hit for _, hit in matched] + lost


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest scores, the largest first, of equal ones the earlier row."""
    if len(scores) > k:
        kept = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]
