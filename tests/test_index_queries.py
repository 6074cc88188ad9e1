"""An index of a model with several vectors of an image: two files, searched by means, ordered by the largest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lavis.inference import Encoder, Index, load
from lavis.inference import index as module

QUERIES, WIDTH = 8, 64  # of blip2/tiny


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load("blip2/tiny", device="cpu"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("gallery"), np.random.default_rng(0)
    paths = [folder / f"{i:03d}.png" for i in range(24)]
    for path in paths:
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((32, 32)).save(path)
    return paths


@pytest.fixture
def copies(tmp_path: Path, pictures: list[Path]) -> list[Path]:
    (tmp_path / "pictures").mkdir()
    return [Path(shutil.copy(p, tmp_path / "pictures")) for p in pictures]


def _filled(place: Path, vectors: np.ndarray, size: int = 50) -> tuple[Index, list[Path]]:
    """An index of given vectors (N, Q, E), as an encoder's would have written it."""
    index = Index.create(place, "blip2/tiny")
    index.queries, index.width = vectors.shape[1:]
    (index._place() / module.VECTORS).touch()
    index._describe()
    paths = [place / f"{i}.png" for i in range(len(vectors))]
    with index._entries() as db:
        db.execute("CREATE TEMP TABLE listed (path BLOB UNIQUE, size INTEGER, changed INTEGER)")
        db.executemany("INSERT INTO listed VALUES (?, 0, 0)", [(os.fsencode(p),) for p in paths])
        for start in range(0, len(vectors), size):
            index._append(db, paths[start : start + size], vectors[start : start + size])
    return index, paths


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _stored(index: Index) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
    """Every picture's mean and vectors."""
    means = np.fromfile(index._place() / module.FEATURES, dtype="<f4").reshape(-1, index.width)
    vectors = np.fromfile(index._place() / module.VECTORS, dtype="<f2")
    vectors = vectors[: len(vectors) // (QUERIES * WIDTH) * QUERIES * WIDTH].reshape(-1, QUERIES, WIDTH)
    with contextlib.closing(sqlite3.connect(index._place() / module.ENTRIES)) as db:
        rows = db.execute("SELECT row, path FROM entries").fetchall()
    return {Path(os.fsdecode(p)): (means[r], vectors[r].astype(np.float32)) for r, p in rows}


def _same(first: Index, second: Index) -> None:
    one, two = _stored(first), _stored(second)
    assert one.keys() == two.keys() == set(first.paths())
    for path, parts in one.items():
        for a, b in zip(parts, two[path], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-3)


# ------------------------------------------------------------------------------------------ order
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), count=st.integers(1, 60), queries=st.integers(1, 5), k=st.integers(1, 70),
    both=st.booleans(), weight=st.floats(-2, 2), stale=st.booleans(),
)  # fmt: skip
def test_where_all_are_ordered_exactly_it_is_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    queries: int,
    k: int,
    both: bool,
    weight: float,
    stale: bool,
) -> None:
    rng = np.random.default_rng(seed)
    vectors = _unit(rng.standard_normal((count, queries, 12)))
    if count > 4:
        vectors[4] = vectors[1]
    index, _ = _filled(tmp_path_factory.mktemp("index") / "index", vectors, size=17)
    live = np.arange(count)
    if stale:
        with index._entries() as db:
            db.execute("DELETE FROM entries WHERE row % 3 = 1")
        live = live[live % 3 != 1]
    text, other = (_unit(rng.standard_normal(12)) for _ in range(2))
    query = weight * text + (0.7 * other if both else 0)
    means = _unit(vectors.mean(axis=1))
    largest = (vectors.astype(np.float16).astype(np.float32) @ text).max(axis=1)
    wanted = weight * largest + (0.7 * means @ other if both else 0)
    hits = index.nearest(query, k, text=(text, weight), first=count)
    assert len(hits) == min(k, len(live))
    scores = [wanted[int(h.path.stem)] for h in hits]
    np.testing.assert_allclose([h.score for h in hits], scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores, np.sort(wanted[live])[::-1][:k], rtol=0, atol=1e-5)
    order = [(-h.score, int(h.path.stem)) for h in hits]
    assert order == sorted(order)  # of equal scores the earlier row comes first


def test_only_the_first_by_their_means_are_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_LEAST", 256)
    vectors = _unit(np.random.default_rng(1).standard_normal((2_000, QUERIES, WIDTH)))
    text = _unit(np.random.default_rng(2).standard_normal(WIDTH))
    vectors[1_500, 3] = text  # the best of all: one of its vectors is the text
    vectors[1_500] = _unit(vectors[1_500] - 0.2 * text * (np.arange(QUERIES) != 3)[:, None])
    index, paths = _filled(tmp_path / "index", vectors, size=500)
    means = _unit(vectors.mean(axis=1)) @ text
    first = np.argsort(-means, kind="stable")
    place = int(np.flatnonzero(first == 1_500)[0])
    for count, best in ((place + 1, True), (place, False)):
        hits = index.nearest(text, 1, text=(text, 1.0), first=count)
        assert (hits[0].path == paths[1_500]) == best
    largest = (vectors[first[:256]].astype(np.float16).astype(np.float32) @ text).max(axis=1)
    hits = index.nearest(text, 5, text=(text, 1.0))  # without a number: so many, or ten times k
    assert [h.path for h in hits] == [paths[i] for i in first[:256][np.argsort(-largest)[:5]]]
    # by picture: the means alone
    hits = index.nearest(text, 3)
    np.testing.assert_allclose([h.score for h in hits], means[first[:3]], rtol=0, atol=1e-5)


def test_scores_are_those_of_match(tmp_path: Path, encoder: Encoder, pictures: list[Path]) -> None:
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    done = index.update(pictures, encoder, batch_size=5)
    assert done.added == len(pictures) and Index.open(tmp_path / "index").queries == QUERIES
    hits = Index.open(tmp_path / "index").search(encoder, "a red circle", k=30)
    with contextlib.ExitStack() as stack:
        media = [stack.enter_context(Image.open(h.path)).convert("RGB") for h in hits]
        chances, cosines = encoder.match_all(media, ["a red circle"])
        vectors = encoder.images(media)
        likes = index.search(encoder, picture=media[7], k=30)
        both = index.search(encoder, "a red circle", media[7], k=30, weights=(1.0, 0.5))
    np.testing.assert_allclose([h.score for h in hits], cosines[:, 0].numpy(), rtol=0, atol=1e-3)
    assert likes[0].path == hits[7].path and likes[0].score == pytest.approx(1, abs=1e-4)
    text = encoder.texts(["a red circle"])[0]
    length = float((text + 0.5 * vectors[7]).norm())
    wanted = {h.path: (cosines[i, 0] + 0.5 * vectors[i] @ vectors[7]) / length for i, h in enumerate(hits)}
    np.testing.assert_allclose(
        [h.score for h in both], [float(wanted[h.path]) for h in both], rtol=0, atol=1e-3
    )
    assert chances is not None
    ranked = index.search(encoder, "a red circle", k=30, rerank=10)
    assert [h.match is not None for h in ranked] == [True] * 10 + [False] * 14
    by_path = {h.path: float(chances[i, 0]) for i, h in enumerate(hits)}
    for hit in ranked[:10]:
        assert hit.match == pytest.approx(by_path[hit.path], abs=1e-4)


# ------------------------------------------------------------------------------------------ on disk
def test_an_updated_index_is_one_made_from_scratch(
    tmp_path: Path, encoder: Encoder, copies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after compaction."""
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies[:15], encoder, batch_size=4)
    copies[3].unlink()
    shutil.copy(copies[20], copies[5])
    left = [p for p in copies if p != copies[3]]
    done = index.update(left, encoder, batch_size=3)
    assert (done.added, done.changed, done.removed, done.unchanged) == (9, 1, 1, 13)
    fresh = Index.create(tmp_path / "fresh", encoder.loaded.spec)
    fresh.update(left, encoder)
    _same(index, fresh)
    monkeypatch.setattr(module, "STALE_ROWS", 4)
    monkeypatch.setattr("lavis.inference.rows.BLOCK_BYTES", 3_000)
    index.update(left[10:], encoder, prune=True)
    assert [p.name for p in (tmp_path / "index").glob("generation-*")] == ["generation-2"]
    assert (index._place() / module.VECTORS).stat().st_size == len(left[10:]) * QUERIES * WIDTH * 2
    fresh = Index.create(tmp_path / "fresh2", encoder.loaded.spec)
    fresh.update(left[10:], encoder)
    _same(Index.open(tmp_path / "index"), fresh)


@pytest.mark.parametrize(("vectors", "means"), [(0, 0), (777, 0), (1024, 0), (3000, 100), (1024, 256)])
def test_what_a_kill_leaves_in_the_files_is_written_over(
    tmp_path: Path, encoder: Encoder, copies: list[Path], vectors: int, means: int
) -> None:
    """Torn and whole rows without an entry; the row of all vectors is written first."""
    index = Index.create(tmp_path / "index", encoder.loaded.spec)

    def stop(done: int, total: int) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.update(copies, encoder, stop, batch_size=4)
    for name, torn in ((module.VECTORS, vectors), (module.FEATURES, means)):
        with (index._place() / name).open("ab") as f:
            f.write(b"x" * torn)
    index = Index.open(tmp_path / "index")
    assert len(index) == 12 and len(index.search(encoder, "a circle", k=50)) == 12
    done = index.update(copies, encoder)
    assert (done.added, done.unchanged) == (12, 12)
    fresh = Index.create(tmp_path / "fresh", encoder.loaded.spec)
    fresh.update(copies, encoder)
    _same(index, fresh)


def test_a_killed_update_goes_on(tmp_path: Path, encoder: Encoder, copies: list[Path]) -> None:
    place, saved = tmp_path / "index", tmp_path / "model"
    encoder.loaded.model.save_pretrained(saved)
    encoder = Encoder(load(str(saved), device="cpu"))
    command = [
        sys.executable, "-m", "lavis", "index", str(copies[0].parent), "--to", str(place), "--model", str(saved),
        "--device", "cpu", "--batch-size", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    entries, last = place / "generation-1" / module.ENTRIES, time.monotonic() + 120
    try:
        while time.monotonic() < last and process.poll() is None:
            with contextlib.suppress(sqlite3.Error):
                address = f"file:{entries}?mode=ro"
                with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
                    if db.execute("SELECT count(*) FROM entries").fetchone()[0] >= 3:
                        break
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    index = Index.open(place)
    before = len(index)
    assert before >= 3
    done = index.update(copies, encoder)
    assert done.unchanged == before and len(index) == len(copies)
    fresh = Index.create(tmp_path / "fresh", encoder.loaded.spec)
    fresh.update(copies, encoder)
    _same(index, fresh)


def test_damage_is_said_and_a_plain_index_has_neither_file_nor_key(
    tmp_path: Path, encoder: Encoder, copies: list[Path]
) -> None:
    index = Index.create(tmp_path / "index", encoder.loaded.spec)
    index.update(copies[:6], encoder)
    path, row = index._place() / module.VECTORS, QUERIES * WIDTH * 2
    content = path.read_bytes()

    def both(wrong: str) -> None:
        for use in (lambda: index.search(encoder, "a circle"), lambda: index.update(copies, encoder)):
            with pytest.raises(OSError, match=wrong):
                use()

    path.write_bytes(content[: 4 * row + 7])
    both(r"vectors\.f16 has 4 rows, its entries name row 5; build it anew")
    path.unlink()
    both(r"is damaged.*vectors\.f16.*build it anew")
    path.write_bytes(content[: 2 * row] + b"\xff" * row + content[3 * row :])  # NaN
    with pytest.raises(OSError, match=r"row 2 of vectors\.f16 holds no finite numbers; build it anew"):
        index.search(encoder, "a circle")
    path.write_bytes(content)
    assert len(index.search(encoder, "a circle")) == 6
    described: dict[str, Any] = json.loads((tmp_path / "index" / module.DESCRIPTION).read_text())
    assert (described["format"], described["queries"]) == (2, QUERIES)
    for wrong in (None, 0, -3, "8", 2**20):
        (tmp_path / "index" / module.DESCRIPTION).write_text(json.dumps({**described, "queries": wrong}))
        with pytest.raises(ValueError, match="does not describe an index: queries is missing or wrong"):
            Index.open(tmp_path / "index")
    plain = Encoder(load("blip_retrieval/tiny", device="cpu"))
    other = Index.create(tmp_path / "plain", plain.loaded.spec)
    other.update(copies[:3], plain)
    described = json.loads((tmp_path / "plain" / module.DESCRIPTION).read_text())
    assert described["format"] == 1 and "queries" not in described
    assert not (other._place() / module.VECTORS).exists()
    assert torch.allclose(plain.all_vectors(copies_of(copies[:2])), plain.images(copies_of(copies[:2])))


def copies_of(paths: list[Path]) -> list[Image.Image]:
    return [Image.open(p).convert("RGB") for p in paths]
