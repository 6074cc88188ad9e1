"""A searchable index of pictures: a folder on disk, of any size, updated by what has changed.

    index.json            the model's name and fingerprint, the folders that are indexed, the generation in use
    generation-1/
        features.f32      one row of E float32 per picture, appended to; memory-mapped for searching
        vectors.f16       of a model with Q vectors of an image: one row of Q x E float16 per image, likewise
        entries.db        SQLite: row, path, size and time of change of every picture that counts

Where an image has Q vectors, features.f32 holds their mean. A search takes the first few thousand images by it, and
orders those exactly, by the largest product of a text with their vectors.

A row is written and flushed before its entry (that of vectors.f16 before that of features.f32), so an entry always has
its row, and an update that is killed loses the batch it was at. Rows without an entry (of changed or removed pictures)
are stale; when there are many, the whole is written anew as the next generation, which takes the place of the old one
by the renaming of index.json.

A search reads one state of the index, however many updates are under way: the entries of one transaction, and the rows
that were there before it. A changed picture keeps its old row until the new one is in place.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lavis.common.files import is_file, locked, write_json
from lavis.datasets.tables import read_json
from lavis.inference.abilities import cannot
from lavis.inference.encoder import Encoder
from lavis.inference.entries import beneath, database, key_of, list_pictures, not_encoded, path_of, snapshot
from lavis.inference.protocols import Matches
from lavis.inference.reading import read_batches
from lavis.inference.rows import RowFile
from lavis.nn.finite import usable

DESCRIPTION, FEATURES, ENTRIES, LOCK = "index.json", "features.f32", "entries.db", "update.lock"
VECTORS = "vectors.f16"
FORMAT, FORMAT_OF_SEVERAL = 1, 2  # the second: an image has several vectors
BLOCK = 65_536  # rows that are searched at once
BLOCK_OF_SEVERAL = 1024  # the same, of images' Q vectors
FIRST_TIMES, FIRST_LEAST = 10, 4096  # so many times k images, and at least so many, are ordered exactly
STALE_SHARE, STALE_ROWS = 0.3, 1024  # more than both: the index is written anew
PRUNED_SHARE = 0.5  # an update that removes more of the entries must be told to
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        path: its file. score: cosine with the query; of a text with an image of several vectors the largest.
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
        queries: Q, the vectors of an image; None where it has one.
        roots: folders that it was built of, for the user's information.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder = folder
        self._take(description)

    def _take(self, description: dict[str, Any]) -> None:
        self.spec, self.checkpoint = description["model"], description["checkpoint"]
        self.fingerprint, self.width = description["fingerprint"], description["width"]
        self.queries: int | None = description.get("queries")
        self.roots = list(description["roots"])
        self._generation = description["generation"]

    # ------------------------------------------------------------------------------ on disk
    @classmethod
    def create(cls, folder: str | Path, spec: str, checkpoint: str | None = None) -> Index:
        """A new, empty index.

        Raises:
            ValueError: the folder holds something else.
        """
        folder = Path(folder).expanduser()
        cls._refuse_others(folder)
        with locked(folder / LOCK, _busy(folder)):
            cls._refuse_others(folder)  # another process may have been quicker
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
            shutil.rmtree(index._place(), ignore_errors=True)  # of a creation that was killed
            index._begin(index._place())
            index._describe()
        return index

    @classmethod
    def _refuse_others(cls, folder: Path) -> None:
        """A folder that holds something else than what a killed creation of an index leaves.

        Raises:
            ValueError: it does.
        """
        if cls.exists(folder):
            raise ValueError(f"no index can be made in {folder}: there is an index already")
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            ours = path.name in (LOCK, "generation-1") or path.name.startswith(f".{DESCRIPTION}.")
            if path.name == "generation-1":
                ours = all(p.name == FEATURES or p.name.startswith(ENTRIES) for p in path.iterdir())
            if not ours:
                raise ValueError(f"no index can be made in {folder}: it is not empty")

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
                f"{str(folder)[:200]} is no index: it has no {DESCRIPTION}; make one with lavis index"
            )
        return cls(folder, _description_of(folder))

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether there is an index in a folder."""
        return is_file(Path(folder) / DESCRIPTION)

    def _describe(self) -> None:
        several = {} if self.queries is None else {"queries": self.queries}
        content = {
            "format": FORMAT_OF_SEVERAL if several else FORMAT, "model": self.spec, "checkpoint": self.checkpoint,
            "fingerprint": self.fingerprint, "width": self.width, **several, "roots": self.roots,
            "generation": self._generation,
        }  # fmt: skip
        write_json(self.folder / DESCRIPTION, content)

    def _place(self) -> Path:
        return self.folder / f"generation-{self._generation}"

    def _files(self) -> tuple[RowFile, RowFile | None]:
        return _files(self._place(), {"width": self.width, "queries": self.queries})

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
        """The entries, to be changed; only under the lock, where no other process writes a new generation."""
        return database(self._place() / ENTRIES)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[sqlite3.Connection, np.ndarray, np.ndarray | None]]:
        """One state of the index: its entries, its rows (N, E), stale ones too, and where images have several vectors
        all of them (N, Q, E).

        Raises:
            OSError: it is damaged.
        """
        with contextlib.ExitStack() as stack:
            while True:
                found = _description_of(self.folder)
                place = self.folder / f"generation-{found['generation']}"
                try:
                    # the entries first: every row that they name has been written before them
                    db = stack.enter_context(snapshot(place / ENTRIES))
                    features, vectors = (
                        None if file is None else file.mapped() for file in _files(place, found)
                    )
                    assert features is not None
                    break
                except OSError as e:
                    # an update may have put a new generation in the place of this one
                    if _description_of(self.folder) == found:
                        raise OSError(f"the index {self.folder} is damaged ({e}); build it anew") from e
            yield db, features, vectors

    def __len__(self) -> int:
        """Pictures."""
        with self._reading() as (db, *_):
            return int(db.execute("SELECT count(*) FROM entries").fetchone()[0])

    def paths(self) -> Iterator[Path]:
        """All pictures, in the order of their rows."""
        with self._reading() as (db, *_):
            found = [path for (path,) in db.execute("SELECT path FROM entries ORDER BY row")]
        return map(path_of, found)  # no transaction stays open while the caller goes through them

    # ------------------------------------------------------------------------------ updating
    def update(
        self,
        pictures: Iterable[Path],
        encoder: Encoder,
        progress: Progress | None = None,
        batch_size: int = 16,
        prune: bool = False,
        roots: Sequence[str] | None = None,
    ) -> Update:
        """Make the index one of these pictures: encode new and changed ones, forget all others.

        Args:
            pictures: files, each path once; changed ones are seen by size and time.
            encoder: the index's model.
            progress: told (done, all) of the pictures to encode.
            prune: allow to forget more than half of the index, or of one of its `roots`. Without it that is refused,
                because it is what a disk that is not mounted, or the wrong list, looks like.
            roots: the folders that the pictures are of, to be remembered; what is in none of them any more because
                its root was taken out may be forgotten. None: as before.

        Returns:
            what was done. A picture that can't be read, or of which the model computes NaN, is not in the index.

        Raises:
            ValueError: another model; more than half of the pictures would be forgotten. Nothing was changed.
            OSError: another update is under way.
        """
        with self._alone():
            self._take(_description_of(self.folder))
            self._check(encoder)
            self._remove_leftovers()
            with self._entries() as db:
                self._check_rows(db)
                done = Update()
                list_pictures(db, pictures, done.failed)
                kept = self.roots if roots is None else list(roots)
                if not prune:
                    self._keep_most(db, kept)
                if not self.fingerprint or kept != self.roots:
                    self.fingerprint, self.width = encoder.loaded.fingerprint(), encoder.width
                    self.queries, self.roots = encoder.queries, kept
                    if self.queries is not None:
                        (self._place() / VECTORS).touch()
                    self._describe()
                self._update(db, done, encoder, progress, batch_size)
            self._compact()
        return done

    def _keep_most(self, db: sqlite3.Connection, roots: Sequence[str]) -> None:
        """Refuse an update that would forget more than half of the pictures, or of those of one root that stays.

        Raises:
            ValueError: it would.
        """
        db.execute(
            "CREATE TEMP TABLE asked AS SELECT path, path NOT IN (SELECT path FROM listed) AS gone FROM entries"
        )
        start = "substr(path, 1, ?2) = ?1"
        for root in set(self.roots) - set(roots):
            db.execute(f"DELETE FROM asked WHERE gone AND {start}", beneath(root))
        count = "SELECT count(*), coalesce(sum(gone), 0) FROM asked"
        counts = [("the index", *db.execute(count).fetchone())]
        for root in roots:
            counts.append((root, *db.execute(f"{count} WHERE {start}", beneath(root)).fetchone()))
        db.execute("DROP TABLE asked")
        for what, there, gone in counts:
            if gone > PRUNED_SHARE * there:
                raise ValueError(
                    f"{gone} of the {there} entries of {what} are not in the list any more, and would be removed from "
                    f"{self.folder}; is the folder mounted, and is it the right one? To remove them, update with "
                    "--prune (in Python prune=True)"
                )

    def _update(
        self,
        db: sqlite3.Connection,
        done: Update,
        encoder: Encoder,
        progress: Progress | None,
        batch_size: int,
    ) -> None:
        count = "SELECT count(*) FROM"
        gone = "path NOT IN (SELECT path FROM listed)"
        done.removed = db.execute(f"{count} entries WHERE {gone}").fetchone()[0]
        db.execute(f"DELETE FROM entries WHERE {gone}")
        db.commit()
        same = "listed.size = entries.size AND listed.changed = entries.changed"
        old = "listed JOIN entries USING (path) WHERE"
        done.unchanged = db.execute(f"{count} {old} {same}").fetchone()[0]
        altered = {row[0] for row in db.execute(f"SELECT path FROM {old} NOT ({same})")}
        total = db.execute(f"{count} listed").fetchone()[0] - done.unchanged
        seen = 0
        for batch in read_batches(not_encoded(db), encoder.loaded.read, batch_size):
            good = [(path, picture) for path, picture in batch if not isinstance(picture, Exception)]
            failed = [(path, str(e)) for path, e in batch if isinstance(e, Exception)]
            found, good, bad = usable(lambda some: encoder.all_vectors([t for _, t in some]), good)
            failed += [(path, str(e)) for (path, _), e in bad]
            if found is not None:
                self._append(db, [p for p, _ in good], found.numpy())
                changed = sum(key_of(path) in altered for path, _ in good)
                done.changed += changed
                done.added += len(good) - changed
            # the old features of what has changed and can't be read now are wrong
            lost = [(key_of(path),) for path, _ in failed if key_of(path) in altered]
            if lost:
                db.executemany("DELETE FROM entries WHERE path = ?", lost)
                db.commit()
            done.failed += failed
            seen += len(batch)
            if progress is not None:
                progress(seen, total)

    def _append(self, db: sqlite3.Connection, paths: Sequence[Path], vectors: np.ndarray) -> None:
        """Add rows, then their entries, whose size and time are those of the listing; older entries of them go.

        Args:
            vectors: (B, E), or (B, Q, E) where images have several.
        """
        if not np.isfinite(vectors).all():
            raise ValueError(f"vectors for the index {self.folder} hold NaN or infinity; they are not stored")
        means, several = self._files()
        first = len(means)
        if several is not None:
            several.write(first, vectors)
            vectors = F.normalize(torch.from_numpy(vectors).mean(dim=1), dim=-1).numpy()
        means.write(first, vectors)
        db.executemany(
            "INSERT OR REPLACE INTO entries SELECT ?, path, size, changed FROM listed WHERE path = ?",
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

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep other updates out; the system lets go of the lock if this process dies."""
        return locked(self.folder / LOCK, _busy(self.folder))

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
            rows = len(self._files()[0])
            stale = rows - len(live)
            if stale <= STALE_ROWS or stale <= STALE_SHARE * rows:
                return
            old = self._place()
            new = self.folder / f"generation-{self._generation + 1}"
            self._begin(new)
            for file in filter(None, self._files()):
                file.copy(new / file.path.name, live)
            with database(new / ENTRIES) as other:
                entries = db.execute("SELECT path, size, changed FROM entries ORDER BY row")
                other.executemany(
                    "INSERT INTO entries VALUES (?, ?, ?, ?)",
                    ((i, *entry) for i, entry in enumerate(entries)),
                )
                other.commit()
        self._generation += 1
        self._describe()
        shutil.rmtree(old)

    # ------------------------------------------------------------------------------ searching
    def nearest(
        self,
        query: np.ndarray,
        k: int,
        block: int = BLOCK,
        text: tuple[np.ndarray, float] | None = None,
        first: int | None = None,
    ) -> list[Hit]:
        """The k pictures whose vectors have the largest product with a query (E,), the best first.

        Reads the features block by block, so memory does not grow with their number.

        Args:
            text: what part of the query is a text, its vector (E,) and its weight. Where images have several vectors,
                the nearest `first` by their means are ordered by the text's largest product with them.
            first: None: 10 k, and at least 4096, which takes 0.1 s. How many of the exact best are among them depends
                on what an image's vectors have in common (benchmarks/index_queries.py).
        """
        if not np.isfinite(query).all():
            raise ValueError("the model's features of the query are no finite numbers")
        with self._reading() as (db, features, vectors):
            if len(features) and features.shape[1] != len(query):
                raise self._damaged(
                    f"{FEATURES} has rows of {features.shape[1]} numbers, the model {len(query)}"
                )
            live = self._live(db, len(features), None if vectors is None else len(vectors))
            ordered = vectors is not None and text is not None
            wanted = max(k, first or max(FIRST_TIMES * k, FIRST_LEAST)) if ordered else k
            rows, scores = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
            for start in range(0, len(features), block):
                here = np.flatnonzero(live[start : start + block])
                with np.errstate(all="ignore"):  # stale rows may be anything
                    found = (features[start : start + block] @ query.astype(np.float32))[here]
                if not np.isfinite(found).all():
                    raise self._damaged(f"row {start + here[~np.isfinite(found)][0]} holds no finite numbers")
                rows, scores = _best(
                    np.concatenate([rows, here + start]), np.concatenate([scores, found]), wanted
                )
            if vectors is not None and text is not None:
                rows = np.sort(rows)  # as they lie on the disk
                scores = self._exact(rows, features, vectors, query, *text)
                rows, scores = _best(rows, scores, k)
            by_row = "SELECT path FROM entries WHERE row = ?"
            return [
                Hit(path_of(db.execute(by_row, (row,)).fetchone()[0]), score)
                for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            ]

    def _damaged(self, what: str) -> OSError:
        return OSError(f"the index {self.folder} is damaged: {what}; build it anew")

    def _exact(
        self,
        rows: np.ndarray,
        features: np.ndarray,
        vectors: np.ndarray,
        query: np.ndarray,
        text: np.ndarray,
        weight: float,
    ) -> np.ndarray:
        """Products of some rows with a query, of its part that is a text the largest with the row's vectors."""
        rest = (query - weight * text).astype(np.float32)
        found = np.zeros(len(rows), dtype=np.float32)
        for start in range(0, len(rows), BLOCK_OF_SEVERAL):
            some = rows[start : start + BLOCK_OF_SEVERAL]
            with np.errstate(all="ignore"):  # said below
                largest = (vectors[some].astype(np.float32) @ text.astype(np.float32)).max(axis=1)
                found[start : start + BLOCK_OF_SEVERAL] = weight * largest + features[some] @ rest
        if not np.isfinite(found).all():
            raise self._damaged(f"row {rows[~np.isfinite(found)][0]} of {VECTORS} holds no finite numbers")
        return found

    def _check_rows(self, db: sqlite3.Connection) -> None:
        """
        Raises:
            OSError: the entries name rows that the files don't have.
        """
        try:
            means, several = (None if file is None else len(file) for file in self._files())
        except OSError as e:
            raise self._damaged(str(e)) from e
        self._live(db, means or 0, several)

    def _live(self, db: sqlite3.Connection, rows: int, several: int | None) -> np.ndarray:
        """Which rows count, (rows,) bool; `several`: rows of the vectors, where images have several."""
        count, first, last = db.execute("SELECT count(*), min(row), max(row) FROM entries").fetchone()
        for name, there in ((FEATURES, rows), (VECTORS, several)):
            if count and there is not None and (first < 0 or last >= there):
                raise self._damaged(
                    f"{name} has {there} rows, its entries name row {first if first < 0 else last}"
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
                Where images have several vectors, a text is compared with the one that fits best, two images by the
                means of theirs.
            k: how many pictures.
            rerank: how many of the nearest are read again and ordered by the matching head (its logit plus the cosine,
                as in retrieval's published figures) before the first k are taken; 0: none.

        Returns:
            the best first. Of those that were to be read again, pictures that can't be come last, without `match`.

        Raises:
            ValueError: nothing to look for; another model; `rerank` without a text or without a matching head.
            OSError: the index is damaged.
        """
        self._take(_description_of(self.folder))
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
                f"there is nothing to rerank with: {cannot(encoder.loaded.spec, encoder.loaded.model, Matches)}; build "
                "the index with such a model"
            )
        if not len(self):
            return []
        query, of_text = torch.zeros(encoder.width), None
        if text is not None:
            of_text = encoder.texts([text])[0]
            query += weights[0] * of_text
        if picture is not None:
            query += weights[1] * encoder.images([picture])[0]
        length = max(float(query.norm()), 1e-12)
        part = None if of_text is None else (of_text.numpy(), weights[0] / length)
        hits = self.nearest((query / length).numpy(), max(k, rerank), text=part)
        if rerank and text is not None:
            hits = _reranked(encoder, text, hits[:rerank]) + hits[rerank:]
        return hits[:k]


# ------------------------------------------------------------------------------------------ parts


def _files(place: Path, description: Mapping[str, Any]) -> tuple[RowFile, RowFile | None]:
    """The rows of images' vectors, or of their means and of all of them."""
    width, queries = description["width"], description.get("queries")
    means = RowFile(place / FEATURES, "<f4", width)
    return means, None if queries is None else RowFile(place / VECTORS, "<f2", queries, width)


def _busy(folder: Path) -> str:
    return f"the index {folder} is being updated by another process; wait for it, or name another folder"


def _description_of(folder: Path) -> dict[str, Any]:
    """The content of index.json.

    Raises:
        ValueError: it is damaged, or of a later version.
        OSError: it can't be read.
    """
    path = folder / DESCRIPTION
    try:
        found = read_json(path)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} does not describe an index ({e}); build it anew") from e
    if not isinstance(found, dict) or "format" not in found:
        raise ValueError(f"{path} does not describe an index; build it anew")
    kinds: dict[str, Any] = {
        "model": str,
        "checkpoint": (str, type(None)),
        "fingerprint": str,
        "width": int,
        "generation": int,
    }
    wrong = [key for key, kind in kinds.items() if not isinstance(found.get(key, ...), kind)]
    if found["format"] != FORMAT_OF_SEVERAL:
        found.pop("queries", None)
    elif not isinstance(found.get("queries"), int) or not 0 < found["queries"] < 2**16:
        wrong.append("queries")
    wrong += [key for key in ("width", "generation") if key not in wrong and not 0 <= found[key] < 2**31]
    if not isinstance(found.get("roots"), list) or not all(isinstance(r, str) for r in found["roots"]):
        wrong.append("roots")
    if wrong:
        raise ValueError(
            f"{path} does not describe an index: {', '.join(wrong)} is missing or wrong; build it anew"
        )
    if found["format"] not in (FORMAT, FORMAT_OF_SEVERAL):
        raise ValueError(
            f"{folder} is an index of format {str(found['format'])[:20]}; this version reads {FORMAT} and "
            f"{FORMAT_OF_SEVERAL}"
        )
    return found


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
