"""The index on disk: updates, interruptions, compaction, searching in blocks."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis.datasets.builders import load_dataset
from lavis.inference import Encoder, Index, load
from lavis.inference import index as module

COUNT = 120


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load("blip_retrieval/tiny_shapes", device="cpu"))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str]]:
    """Drawings as files, and a caption of each."""
    folder = tmp_path_factory.mktemp("gallery") / "ünder 图"
    folder.mkdir()
    data = load_dataset("shapes_retrieval")["test"]
    paths, captions = [], []
    for i in range(COUNT):
        record = data.records[i]
        paths.append(folder / f"{i:03d}.png")
        data.picture(record).save(paths[-1])
        captions.append(record["caption"][0])
    return paths, captions


@pytest.fixture
def copies(tmp_path: Path, gallery: tuple[list[Path], list[str]]) -> list[Path]:
    """Twenty of the files, to be changed."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return [Path(shutil.copy(p, folder)) for p in gallery[0][:20]]


def _vectors(index: Index) -> dict[Path, np.ndarray]:
    """Every picture's vector, found by asking for it."""
    rows = np.fromfile(index._place() / module.FEATURES, dtype="<f4").reshape(-1, index.width)
    with contextlib.closing(sqlite3.connect(index._place() / module.ENTRIES)) as db:
        return {Path(os.fsdecode(p)): rows[r] for r, p in db.execute("SELECT row, path FROM entries")}


def _same(first: Index, second: Index) -> None:
    one, two = _vectors(first), _vectors(second)
    assert one.keys() == two.keys() == set(first.paths())
    for path in one:
        np.testing.assert_allclose(one[path], two[path], rtol=1e-4, atol=1e-5)


def test_texts_find_their_drawings(
    tmp_path: Path, encoder: Encoder, gallery: tuple[list[Path], list[str]]
) -> None:
    """Of 120; chance is 0.8 %."""
    paths, captions = gallery
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    progress: list[tuple[int, int]] = []
    done = index.update(paths, encoder, lambda n, all: progress.append((n, all)))
    assert (done.added, done.changed, done.removed, done.unchanged) == (COUNT, 0, 0, 0) and not done.failed
    assert progress[-1] == (COUNT, COUNT) and len(index) == COUNT and list(index.paths()) == paths
    index = Index.open(tmp_path / "index")
    some = range(0, COUNT, 3)
    first = [index.search(encoder, captions[i], k=5) for i in some]
    found = np.array([[hit.path == paths[i] for hit in hits] for i, hits in zip(some, first, strict=True)])
    assert found[:, 0].mean() > 0.8 and found.any(axis=1).mean() > 0.95
    assert all(hits[0].score >= hits[-1].score and hits[0].match is None for hits in first)
    # by picture: itself first, with a cosine of 1
    with Image.open(paths[7]) as picture:
        best = index.search(encoder, picture=picture.convert("RGB"), k=3)
        assert best[0].path == paths[7] and best[0].score == pytest.approx(1, abs=1e-4)
        # of both, the weights decide
        for weights, wanted in (((1, 0), 30), ((0, 1), 7)):
            hits = index.search(encoder, captions[30], picture.convert("RGB"), weights=weights)
            assert hits[0].path == paths[wanted]
        both = {hit.path for hit in index.search(encoder, captions[30], picture.convert("RGB"), k=6)}
        assert {paths[7], paths[30]} <= both
    # the matching head orders the nearest, and the wanted one fits
    hits = index.search(encoder, captions[40], k=4, rerank=10)
    assert hits[0].path == paths[40] and hits[0].match is not None and hits[0].match > 0.5
    assert len(hits) == 4 and all(h.match is not None and h.match < hits[0].match for h in hits[1:])


def test_an_updated_index_is_one_made_from_scratch(
    tmp_path: Path, encoder: Encoder, copies: list[Path], gallery: tuple[list[Path], list[str]]
) -> None:
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    assert index.update(copies[:15], encoder).added == 15
    copies[3].unlink()
    shutil.copy(gallery[0][50], copies[5])
    copies[6].write_bytes(b"broken")
    os.utime(copies[8], ns=(1, 1))  # the same picture, another time
    left = [p for p in copies if p != copies[3]]
    done = index.update(left, encoder, batch_size=3)
    assert (done.added, done.changed, done.removed, done.unchanged) == (5, 2, 1, 11)
    assert [p for p, _ in done.failed] == [copies[6]] and str(copies[6]) in done.failed[0][1]
    fresh = Index.create(tmp_path / "fresh", encoder.loaded.spec)
    fresh.update(left, encoder)
    _same(index, fresh)
    assert len(index) == 18
    for text in gallery[1][:5]:
        one, two = index.search(encoder, text, k=18), fresh.search(encoder, text, k=18)
        assert [h.path for h in one] == [h.path for h in two]
    again = index.update(left, encoder)
    assert (again.added, again.changed, again.removed, again.unchanged) == (0, 0, 0, 18)
    failed = index.update([*left, tmp_path / "gone.png"], encoder).failed
    assert {path for path, _ in failed} == {copies[6], tmp_path / "gone.png"}


@pytest.mark.parametrize("torn", [0, 100])
def test_an_interrupted_update_loses_one_batch_at_most(
    tmp_path: Path, encoder: Encoder, copies: list[Path], torn: int
) -> None:
    index = Index.create(tmp_path / "index", encoder.loaded.spec)

    def stop(done: int, total: int) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.update(copies, encoder, stop, batch_size=4)
    with (index._place() / module.FEATURES).open("ab") as f:
        f.write(b"x" * torn)  # what a kill in the middle of writing leaves
    index = Index.open(tmp_path / "index")
    assert len(index) == 12 and len(index.search(encoder, "a circle", k=50)) == 12
    done = index.update(copies, encoder)
    assert (done.added, done.unchanged) == (8, 12)
    fresh = Index.create(tmp_path / "fresh", encoder.loaded.spec)
    fresh.update(copies, encoder)
    _same(index, fresh)


def test_a_row_without_an_entry_is_never_found(tmp_path: Path, encoder: Encoder, copies: list[Path]) -> None:
    """A kill between the two leaves whole rows that nothing names."""
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies[:4], encoder)
    with (index._place() / module.FEATURES).open("ab") as f:
        f.write(encoder.texts(["a circle"]).numpy().tobytes())  # would be the best
    assert len(index.search(encoder, "a circle", k=10)) == 4
    index.update(copies[:6], encoder)
    hits = index.search(encoder, "a circle", k=10)
    assert {h.path for h in hits} == set(copies[:6]) and hits[0].score < 0.99


def test_many_stale_rows_are_thrown_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder, copies: list[Path]
) -> None:
    monkeypatch.setattr(module, "STALE_ROWS", 4)
    monkeypatch.setattr(module, "BLOCK", 3)
    monkeypatch.setattr("lavis.inference.rows.BLOCK_BYTES", 3 * 64 * 4)
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies, encoder)
    reader = Index.open(tmp_path / "index")
    before = (index._place() / module.FEATURES).stat().st_size
    index.update(copies[10:16], encoder, prune=True)
    after = (index._place() / module.FEATURES).stat().st_size
    assert after == before * 6 // 20
    assert [p.name for p in sorted((tmp_path / "index").glob("generation-*"))] == ["generation-2"]
    fresh = Index.create(tmp_path / "fresh", encoder.loaded.spec)
    fresh.update(copies[10:16], encoder)
    _same(Index.open(tmp_path / "index"), fresh)
    assert len(reader.search(encoder, "a circle")) == 6  # one that was open finds the new generation
    # left behind by a kill before the new generation counted
    (tmp_path / "index" / "generation-3").mkdir()
    (tmp_path / "index" / "generation-3" / "features.f32").write_bytes(b"half")
    index.update(copies[10:17], encoder)
    assert len(index) == 7 and not (tmp_path / "index" / "generation-3").exists()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_give_the_plain_product(tmp_path: Path, encoder: Encoder, block: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[400] = vectors[20]  # equal ones: the earlier row comes first
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.width = 64
    index._describe()
    paths = [tmp_path / f"{i}.png" for i in range(500)]
    with index._entries() as db:
        db.execute("CREATE TEMP TABLE listed (path BLOB UNIQUE, size INTEGER, changed INTEGER)")
        db.executemany("INSERT INTO listed VALUES (?, 0, 0)", [(os.fsencode(p),) for p in paths])
        for start in range(0, 500, 90):
            index._append(db, paths[start : start + 90], vectors[start : start + 90])
        db.execute("DELETE FROM entries WHERE row % 5 = 1")
    live = [i for i in range(500) if i % 5 != 1]
    for query in (vectors[20], rng.standard_normal(64).astype(np.float32)):
        products = vectors[live] @ query
        order = np.lexsort((live, -products))[:30]
        hits = index.nearest(query, 30, block=block)
        assert [h.path for h in hits] == [paths[live[i]] for i in order]
        np.testing.assert_allclose([h.score for h in hits], products[order], rtol=1e-5, atol=1e-6)
    assert [h.path.stem for h in index.nearest(vectors[20], 2, block=block)] == ["20", "400"]
    assert len(index.nearest(vectors[0], 1000, block=block)) == 400


def test_what_is_wrong_is_said(tmp_path: Path, encoder: Encoder, copies: list[Path]) -> None:
    with pytest.raises(FileNotFoundError, match="is no index"):
        Index.open(tmp_path)
    with pytest.raises(ValueError, match="it is not empty"):
        Index.create(copies[0].parent, "x")
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    assert index.search(encoder, "a circle") == [] and len(index) == 0
    index.update(copies[:3], encoder)
    with pytest.raises(ValueError, match="there is an index already"):
        Index.create(tmp_path / "index", "x")
    other = Encoder(load("albef_retrieval/tiny_shapes", device="cpu"))
    for use in (lambda: index.update(copies, other), lambda: index.search(other, "a circle")):
        with pytest.raises(ValueError, match="holds features of blip_retrieval/tiny_shapes; albef_retrieval"):
            use()
    with pytest.raises(ValueError, match="nothing to look for"):
        index.search(encoder)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(encoder, "a", k=0)
    with pytest.raises(ValueError, match="compares pictures with a text"):
        index.search(encoder, picture=Image.new("RGB", (9, 9)), rerank=3)
    copies[1].unlink()
    hits = index.search(encoder, "a circle", rerank=3)
    assert hits[-1].path == copies[1] and hits[-1].match is None and hits[0].match is not None
    with index._alone(), pytest.raises(OSError, match="being updated by another process; wait"):
        Index.open(tmp_path / "index").update(copies, encoder)
    assert len(index) == 3
    (index._place() / module.FEATURES).write_bytes(b"")
    with pytest.raises(OSError, match=r"features\.f32 has 0 rows"):
        index.search(encoder, "a circle")
    (tmp_path / "index" / "index.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="does not describe an index"):
        Index.open(tmp_path / "index")


# ------------------------------------------------------------------------------------ updates that are interfered with


def test_more_than_half_is_only_removed_when_asked_to(
    tmp_path: Path, encoder: Encoder, copies: list[Path]
) -> None:
    """What an empty mount point, another list, or a folder that lost its files looks like."""
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies, encoder)
    gone = tmp_path / "gone"
    for pictures in ([], copies[:9], [gone / p.name for p in copies]):
        with pytest.raises(ValueError, match=r"of the 20 entries of the index .* --prune"):
            index.update(pictures, encoder)
        assert len(index) == 20 and len(index.search(encoder, "a circle", k=30)) == 20
    assert index.update(copies[:10], encoder).removed == 10  # half is not more than half
    assert index.update([], encoder, prune=True).removed == 10 and len(index) == 0


def test_one_of_several_roots_is_not_wiped(tmp_path: Path, encoder: Encoder, copies: list[Path]) -> None:
    small = tmp_path / "small [1]"
    small.mkdir()
    few = [Path(shutil.copy(p, small)) for p in copies[:3]]
    roots = [str(copies[0].parent), str(small)]
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update([*copies, *few], encoder, roots=roots)
    with pytest.raises(ValueError, match=r"3 of the 3 entries of .*small"):
        index.update(copies, encoder)
    assert len(index) == 23 and index.roots == roots
    done = index.update(copies, encoder, roots=roots[:1])  # it was taken out
    assert done.removed == 3 and Index.open(tmp_path / "index").roots == roots[:1]


def test_a_changed_picture_is_found_until_its_new_row_is_there(
    tmp_path: Path, encoder: Encoder, copies: list[Path], gallery: tuple[list[Path], list[str]]
) -> None:
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies, encoder)
    for i, path in enumerate(copies):
        shutil.copy(gallery[0][60 + i], path)
    reader = Index.open(tmp_path / "index")
    seen = []
    index.update(copies, encoder, lambda *_: seen.append(len(reader.search(encoder, "a star", k=50))), 3)
    assert seen == [20] * 7
    fresh = Index.create(tmp_path / "fresh", encoder.loaded.spec)
    fresh.update(copies, encoder)
    _same(index, fresh)


def test_searches_during_updates_see_one_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder, copies: list[Path]
) -> None:
    """Updates that add, remove and write the index anew; each search finds a state that an update has left."""
    monkeypatch.setattr(module, "STALE_ROWS", 0)
    monkeypatch.setattr(module, "STALE_SHARE", 0.0)
    rng = np.random.default_rng(0)
    rows = dict(zip(copies, rng.standard_normal((20, encoder.width)), strict=True))
    monkeypatch.setattr(encoder.loaded.__class__, "read", lambda self, path: path)
    monkeypatch.setattr(
        encoder, "images", lambda paths: torch.tensor(np.stack([rows[p] for p in paths]), dtype=torch.float32)
    )
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies[:12], encoder, batch_size=100)
    reader, query = Index.open(tmp_path / "index"), rng.standard_normal(encoder.width).astype(np.float32)
    stop, errors, found = threading.Event(), [], set()

    def look() -> None:
        try:
            while not stop.is_set():
                hits = reader.nearest(query, 100, block=5)
                assert all(abs(h.score - float(rows[h.path] @ query)) < 1e-3 for h in hits)
                found.add(frozenset(h.path for h in hits))
                assert len(reader) in (4, 8, 12)
        except BaseException as e:  # noqa: BLE001
            errors.append(e)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(40):
        index.update(copies[:8] if i % 2 == 0 else copies[:12], encoder, batch_size=100)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert found <= {frozenset(copies[:8]), frozenset(copies[:12])} and found
    assert Index.open(tmp_path / "index")._generation > 10


def test_searches_of_other_processes_during_an_update(
    tmp_path: Path, encoder: Encoder, copies: list[Path]
) -> None:
    program = """
import sys
import numpy as np
from lavis.inference import Index
from lavis.inference import index as module
index = Index.open(sys.argv[1])
query = np.ones(index.width, dtype=np.float32)
print("ready", flush=True)
looked = 0
while not (index.folder / "enough").exists():
    hits = index.nearest(query, 100)
    assert len(hits) == len({h.path for h in hits}) and 10 <= len(hits) <= 20, len(hits)
    looked += 1
print(looked)
"""
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies, encoder)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "index")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for reader in readers:
        assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    for i in range(12):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "STALE_ROWS", 4)
            index.update(copies[:10] if i % 2 == 0 else copies, encoder, batch_size=2)
    (tmp_path / "index" / "enough").touch()
    for reader in readers:
        out, _ = reader.communicate(timeout=60)
        assert reader.returncode == 0 and int(out) > 0


@pytest.mark.parametrize("left", ["nothing", "folder", "features", "all"])
def test_a_creation_that_was_killed_is_done_again(
    tmp_path: Path, encoder: Encoder, copies: list[Path], left: str
) -> None:
    place = tmp_path / "index"
    if left != "nothing":
        (place / "generation-1").mkdir(parents=True)
        (place / ".index.json.abc.part").write_text("{")
        (place / module.LOCK).touch()
    if left in ("features", "all"):
        (place / "generation-1" / module.FEATURES).touch()
    if left == "all":
        (place / "generation-1" / module.ENTRIES).write_bytes(b"half")
        (place / "generation-1" / f"{module.ENTRIES}-journal").write_bytes(b"half")
    index = Index.create(place, encoder.loaded.spec)
    assert index.update(copies[:2], encoder).added == 2
    other = tmp_path / "other"
    (other / "generation-1").mkdir(parents=True)
    (other / "generation-1" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="it is not empty"):
        Index.create(other, encoder.loaded.spec)
    assert (other / "generation-1" / "letter.txt").exists()


def test_features_that_are_no_numbers_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder, copies: list[Path]
) -> None:
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies[:2], encoder)
    real = encoder.images

    def images(pictures: Sequence[Any]) -> torch.Tensor:
        out = real(pictures)
        out[1] = float("nan")
        return out

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "images", images)  # past the encoder's own check
        with pytest.raises(ValueError, match="hold NaN or infinity; they are not stored"):
            index.update(copies[:5], encoder)
    assert len(index.search(encoder, "a circle", k=9)) == 2
    features = index._place() / module.FEATURES
    rows = np.fromfile(features, dtype="<f4")
    rows[0] = np.nan
    rows.tofile(features)  # by an earlier version
    with pytest.raises(OSError, match="damaged: row 0 holds no finite numbers; build it anew"):
        index.search(encoder, "a circle")


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "nul\0", '{"format": 1}', "[" * 100_000, '{"format": ' + "1" * 5000 + "}", "NaN", '{"format": {}}',
        '{"format": 1, "model": 3, "checkpoint": null, "fingerprint": "", "width": 0, "roots": [], "generation": 1}',
        '{"format": 1, "model": "", "checkpoint": null, "fingerprint": "", "width": -1, "roots": [], "generation": 1}',
        '{"format": 1, "model": "", "checkpoint": null, "fingerprint": "", "width": 1, "roots": 5, "generation": 1}',
        '{"format": 1, "model": "", "checkpoint": null, "fingerprint": "", "width": 1, "roots": [],'
        ' "generation": "../../x"}',
    ],
)  # fmt: skip
def test_a_description_that_was_tampered_with(tmp_path: Path, content: str) -> None:
    Index.create(tmp_path / "index", "x")
    (tmp_path / "index" / module.DESCRIPTION).write_text(content)
    with pytest.raises(ValueError, match=r"index\.json|is an index of format"):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET row = -1 WHERE row = 1", "UPDATE entries SET row = 9223372036854775807 WHERE row = 1",
        "UPDATE entries SET path = 5 WHERE row = 1", "DROP TABLE entries", "ALTER TABLE entries DROP COLUMN size",
        "file", "gone",
    ],
)  # fmt: skip
def test_entries_that_were_tampered_with(
    tmp_path: Path, encoder: Encoder, copies: list[Path], change: str
) -> None:
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies[:3], encoder)
    place = index._place() / module.ENTRIES
    if change == "file":
        place.write_bytes(b"no database" * 100)
    elif change == "gone":
        place.unlink()
    else:
        with contextlib.closing(sqlite3.connect(place)) as db:
            db.execute(change)
            db.commit()
    uses = [lambda: index.update(copies, encoder)] if "COLUMN" in change else []
    for use in uses or [lambda: index.search(encoder, "a circle")]:
        with pytest.raises(OSError, match="index"):
            use()
