"""Pictures from lists of addresses: what is kept, what is refused and why, and going on after a cut."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lavis.cli.main import main
from lavis.common import transfer
from lavis.common.hosts import Turns, host_of
from lavis.common.registry import registry
from lavis.datasets import fetching
from lavis.datasets.builders import build_datasets, load_dataset
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.fetching import FetchSettings, Job, Tally, prepare
from lavis.datasets.lists import fetch_table, read_addresses
from lavis.datasets.shard_writer import Shards
from lavis.datasets.sources import Links, Source
from tests.served import Handler, Served

ROOT = Path(__file__).parents[1]
QUICK = FetchSettings(workers=8, backoff_s=0.001, timeout_s=1.0, deadline_s=2.0, attempts=2, progress=False)


def picture(size: tuple[int, int] = (40, 30), kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    rng = np.random.default_rng(size[0])
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(
        out, kind, **options
    )
    return out.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LAVIS_OFFLINE", "HF_HUB_OFFLINE", "LAVIS_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[Served]:
    with Served() as running:
        yield running


def table(path: Path, urls: list[str]) -> Path:
    path.write_text("".join(f'caption {i} "with a quote\t{url}\n' for i, url in enumerate(urls)))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


COLUMNS = ("caption", "url")


# ---------------------------------------------------------------- one picture
def test_small_jpegs_are_kept_bit_by_bit() -> None:
    data = picture((40, 30))
    assert prepare(data, QUICK, jpeg=True) == (data, 40, 30)
    assert prepare(data, FetchSettings(side=0), jpeg=True)[0] == data


@given(st.integers(8, 60), st.integers(8, 60), st.integers(8, 40), st.sampled_from(["JPEG", "PNG"]))
@settings(max_examples=40)
def test_the_shorter_side(width: int, height: int, side: int, kind: str) -> None:
    content, w, h = prepare(picture((width, height), kind), FetchSettings(side=side), jpeg=True)
    with Image.open(io.BytesIO(content)) as out:
        assert out.size == (w, h) and out.format == "JPEG" and out.mode == "RGB"
    assert min(w, h) == min(side, min(width, height))
    assert abs(w / h - width / height) <= (width / height) * 0.6 / min(w, h) + 1e-9


def test_other_formats() -> None:
    for kind, mode in (
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("JPEG", "CMYK"),
    ):
        data = picture((500, 400), kind, mode)
        content, *size = prepare(data, FetchSettings(side=100), jpeg=False)
        assert size == [125, 100] and Image.open(io.BytesIO(content)).mode == "RGB"
        assert prepare(data, FetchSettings(side=0), jpeg=False)[0] == data
        if kind != "JPEG":
            assert Image.open(io.BytesIO(prepare(data, FetchSettings(side=0), jpeg=True)[0])).format == "JPEG"


def test_the_orientation_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    content, *size = prepare(picture((80, 60), exif=exif), FetchSettings(side=30), jpeg=True)
    out = Image.open(io.BytesIO(content)).getexif()
    assert size == [40, 30] and dict(out) == {0x0112: 6}


def _huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a very large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>not found</html>", "no picture"),
        (b"", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture"),
        (picture((400, 300))[:5000], "broken"),
        (picture((400, 300), "PNG")[:5000], "broken"),
        (picture((30, 7)), "a side of less than 8"),
        (_huge_png(10_000, 9_000), "too many pixels"),
        (_huge_png(60_000, 60_000), "no picture|too many pixels"),
        (_huge_png(3_000, 3_000), "broken"),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    for jpeg in (True, False):
        with pytest.raises(ValueError, match=reason):
            prepare(data, QUICK, jpeg)


# ---------------------------------------------------------------- many pictures
def misbehaving(server: Served) -> tuple[list[str], set[int]]:
    """Addresses of all sorts, and which of them are good."""
    good = picture()
    server.files |= {
        "/good": good,
        "/big": picture((1000, 800)),
        "/redirect": lambda h, seen: h.answer(302, b"", Location="/good"),
        "/loop": lambda h, seen: h.answer(302, b"", Location="/loop"),
        "/ftp": lambda h, seen: h.answer(302, b"", Location="ftp://example.org/x"),
        "/recovers": lambda h, seen: h.answer(503, b"") if seen == 1 else h.file(good),
        "/never": lambda h, seen: h.answer(500, b""),
        "/busy": lambda h, seen: h.answer(429, b"", Retry_After="0") if seen == 1 else h.file(good),
        "/html": lambda h, seen: h.answer(200, b"<html>", Content_Type="text/html"),
        "/cut": lambda h, seen: h.answer(200, good, 100),
        "/lies": lambda h, seen: h.answer(200, b"", Content_Length=str(1 << 40)),
        "/endless": lambda h, seen: _endless(h),
        "/hangs": lambda h, seen: server.stop.wait(20),
        "/noai": lambda h, seen: h.answer(200, good, X_Robots_Tag="otherbot: noindex, noai"),
        "/gone": lambda h, seen: h.answer(302, b"", Location="/photo_unavailable.png"),
        "/photo_unavailable.png": picture((40, 30), "PNG"),
        "/with%20blank%C3%A9": good,
    }
    paths = [
        "/good", "/big", "/redirect", "/recovers", "/busy", "/with blanké",
        "/loop", "/ftp", "/never", "/html", "/cut", "/lies", "/endless", "/hangs", "/noai", "/gone", "/none",
    ]  # fmt: skip
    others = [
        "",
        "not an address",
        "file:///etc/passwd",
        "ftp://example.org/x",
        "http://127.0.0.1:9/x",
        "http://[::1",
    ]
    return [server.url(p) for p in paths] + others, set(range(6))


def _endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    for _ in range(2000):
        handler.wfile.write(bytes(10_000))


def test_all_sorts_of_servers(server: Served, tmp_path: Path) -> None:
    urls, good = misbehaving(server)
    quick = FetchSettings(**{**QUICK.__dict__, "side": 300, "largest_bytes": 1 << 20})
    tally = fetch_table(table(tmp_path / "t.tsv", urls), tmp_path / "out", COLUMNS, quick)
    assert (tally.got, tally.there, tally.failed, tally.refused) == (len(good), 0, len(urls) - len(good), 0)
    got = rows(tmp_path / "out" / "annotations.jsonl")
    assert [int(Path(r["image"]).stem) for r in got] == sorted(good)
    for row in got:
        with Image.open(tmp_path / "out" / row["image"]) as kept:
            assert min(kept.size) <= 300
        assert row["caption"].endswith('"with a quote') and row["url"] == urls[int(Path(row["image"]).stem)]
    failures = {f["place"]: f for f in rows(tmp_path / "out" / "failures.jsonl")}
    assert set(failures) == set(range(len(urls))) - good
    reasons = {urls[p].rpartition("/")[2]: f["reason"] for p, f in failures.items()}
    assert reasons["none"] == "HTTP status 404" and "X-Robots-Tag" in reasons["noai"]
    assert (
        "more than" in reasons["lies"] and "more than" in reasons["endless"] and "broke off" in reasons["cut"]
    )
    assert (
        "placeholder" in reasons["gone"]
        and "no picture" in reasons["html"]
        and "no http" in reasons["passwd"]
    )
    temporary = {urls[p].rpartition("/")[2] for p, f in failures.items() if f["temporary"]}
    assert {"never", "cut", "hangs"} <= temporary and not temporary & {
        "none",
        "html",
        "noai",
        "passwd",
        "ftp",
    }
    assert all(agent.startswith("openlavis/") for agent in server.agents)
    assert tally.reasons["HTTP status 404"] == 1 and f"{len(urls) - len(good)} failed" in tally.text()


def test_a_second_run_only_does_what_may_help(server: Served, tmp_path: Path) -> None:
    server.files |= {"/a": picture(), "/b": lambda h, seen: h.answer(500, b""), "/c": b"no picture"}
    urls = [server.url(p) for p in ("/a", "/b", "/c", "/d")]
    source, out = table(tmp_path / "t.tsv", urls), tmp_path / "out"
    assert fetch_table(source, out, COLUMNS, QUICK).failed == 3
    server.files["/b"] = server.files["/c"] = server.files["/d"] = picture()
    before = server.asked.copy()
    tally = fetch_table(source, out, COLUMNS, QUICK)
    assert (tally.got, tally.there, tally.refused, tally.failed) == (1, 1, 2, 0)
    assert server.asked["/a"] == before["/a"] and server.asked["/c"] == before["/c"]
    assert {f["url"] for f in rows(out / "failures.jsonl")} == {urls[2], urls[3]}
    tally = fetch_table(source, out, COLUMNS, FetchSettings(**{**QUICK.__dict__, "retry_failed": True}))
    assert (tally.got, tally.there, tally.refused) == (2, 2, 0)
    assert rows(out / "failures.jsonl") == [] and len(rows(out / "annotations.jsonl")) == 4


def test_no_network_is_not_the_pictures_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_NO_NETWORK", 20)
    source = table(tmp_path / "t.tsv", [f"http://127.0.0.1:9/{i}" for i in range(200)])
    with pytest.raises(OSError, match="is the network there"):
        fetch_table(source, tmp_path / "out", COLUMNS, QUICK)
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    with pytest.raises(OSError, match="LAVIS_OFFLINE"):
        fetch_table(source, tmp_path / "out", COLUMNS, QUICK)


def test_a_full_disk_ends_it(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/a"] = picture()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_table(table(tmp_path / "t.tsv", [server.url("/a")]), tmp_path / "out", COLUMNS, QUICK)
    assert not (tmp_path / "out" / "failures.jsonl").exists()


# ---------------------------------------------------------------- politeness
def test_few_connections_per_host(server: Served, tmp_path: Path) -> None:
    guard, running, most = threading.Lock(), [0], [0]

    def slow(handler: Handler, seen: int) -> None:
        with guard:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with guard:  # before the answer: once that is there the next request may come
            running[0] -= 1
        handler.file(picture())

    server.files = {f"/{i}": slow for i in range(60)}
    source = table(tmp_path / "t.tsv", [server.url(f"/{i}") for i in range(60)])
    tally = fetch_table(
        source, tmp_path / "out", COLUMNS, FetchSettings(workers=16, per_host=3, progress=False)
    )
    assert tally.got == 60 and most[0] <= 3


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40),
    st.integers(1, 3),
    st.integers(1, 5),
)
@settings(max_examples=40)
def test_turns(hosts_and_tries: list[tuple[int, int]], per_host: int, credit: int) -> None:
    """Every request is made as often as it is asked for, and never more than `per_host` at a time."""
    jobs = [Job(i, f"http://h{h}/{i}", "", {}, tries) for i, (h, tries) in enumerate(hosts_and_tries)]
    turns = Turns(iter(jobs), per_host, credit)
    guard, made, now, most = threading.Lock(), [0] * len(jobs), dict.fromkeys(range(4), 0), [0]

    def worker() -> None:
        while (job := turns.take()) is not None:
            host = int(host_of(job.url)[1:])
            with guard:
                made[job.place] += 1
                now[host] += 1
                most[0] = max(most[0], now[host])
            again = job.tries > 0
            job.tries -= 1
            with guard:
                now[host] -= 1
            if again:
                turns.again(job, 0.0001)
            else:
                turns.finish(job)
                turns.more(1)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert made == [tries + 1 for _, tries in hosts_and_tries] and most[0] <= per_host


def test_a_host_that_asks_to_wait_is_left_alone() -> None:
    jobs = [Job(0, "http://a/0", "", {}), Job(1, "http://a/1", "", {}), Job(2, "http://b/2", "", {})]
    turns = Turns(iter(jobs), 1, 10)
    first = turns.take()
    assert first is jobs[0]
    turns.again(first, 0.0, pause_s=0.2)
    second = turns.take()
    assert second is jobs[2]  # the other host, though it is later in the list
    turns.finish(second)
    third = turns.take()  # after the pause
    assert third in (jobs[0], jobs[1])
    turns.close()
    assert turns.take() is None


# ---------------------------------------------------------------- shards
def test_shards(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shards.__init__, "__defaults__", (10, ()))
    server.files = {f"/{i}": picture((40 + i, 30), "PNG") for i in range(35) if i % 7}
    source, out = table(tmp_path / "t.tsv", [server.url(f"/{i}") for i in range(35)]), tmp_path / "out"
    tally = fetch_table(source, out, COLUMNS, QUICK, shards=True)
    assert tally.got == 30 and tally.failed == 5
    assert sorted(p.name for p in out.glob("*.tar")) == [f"0000{i}.tar" for i in range(4)]
    seen = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getnames()
            for jpg, text in zip(members[::2], members[1::2]):
                assert Path(jpg).stem == Path(text).stem and jpg.endswith(".jpg") and text.endswith(".json")
                record = json.load(tar.extractfile(text))  # type: ignore[arg-type]
                shown = Image.open(tar.extractfile(jpg))  # type: ignore[arg-type]
                assert shown.format == "JPEG" and shown.size == (record["width"], record["height"])
                assert shown.size == (40 + int(Path(jpg).stem), 30)
                seen.append((path.name, Path(jpg).stem, record["caption"]))
    assert [(r["shard"], r["key"], r["caption"]) for r in rows(out / "annotations.jsonl")] == seen
    assert [int(key) for _, key, _ in seen] == [i for i in range(35) if i % 7]
    data = load_dataset("shards", shards=str(out / "*.tar"))["train"]  # the reader of such archives
    assert [(r["caption"], data[i]["image"].size) for i, r in enumerate(data.records)] == [
        ([caption], (40 + int(key), 30)) for _, key, caption in seen
    ]
    first, asked = {p.name: p.read_bytes() for p in out.glob("*.tar")}, server.asked.copy()
    (out / "00001.tar").unlink()
    assert fetch_table(source, out, COLUMNS, QUICK, shards=True).got == 9  # 14 was refused before
    assert {p.name: p.read_bytes() for p in out.glob("*.tar")} == first
    assert sum((server.asked - asked).values()) == 9
    with pytest.raises(ValueError, match="holds shards of"):
        fetch_table(table(tmp_path / "u.tsv", [server.url("/1")]), out, COLUMNS, QUICK, shards=True)


def test_shards_are_opened_again_for_what_failed(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shards.__init__, "__defaults__", (10, ()))
    server.files = {f"/{i}": picture((40 + i, 30)) for i in range(25) if i not in (3, 4, 17, 24)}
    source, out = table(tmp_path / "t.tsv", [server.url(f"/{i}") for i in range(25)]), tmp_path / "out"
    assert fetch_table(source, out, COLUMNS, QUICK, shards=True).failed == 4
    server.files |= {f"/{i}": picture((40 + i, 30)) for i in (3, 24)}
    before, asked = {p.name: p.read_bytes() for p in out.glob("*.tar")}, server.asked.copy()
    assert fetch_table(source, out, COLUMNS, QUICK, shards=True).got == 0  # finished is finished
    again = FetchSettings(**{**QUICK.__dict__, "retry_failed": True})
    tally = fetch_table(source, out, COLUMNS, again, shards=True)
    assert (tally.got, tally.failed, tally.there) == (2, 2, 21)
    assert set(server.asked - asked) == {"/3", "/4", "/17", "/24"}
    assert (out / "00001.tar").read_bytes() == before["00001.tar"]  # where nothing new was got
    assert {f["place"] for f in rows(out / "failures.jsonl")} == {4, 17}
    server.files |= {f"/{i}": picture((40 + i, 30)) for i in (4, 17)}
    assert fetch_table(source, out, COLUMNS, again, shards=True).got == 2
    whole = tmp_path / "whole"
    fetch_table(source, whole, COLUMNS, QUICK, shards=True)
    for path in whole.glob("*.tar"):
        assert (out / path.name).read_bytes() == path.read_bytes()
        assert path.with_suffix(".jsonl").read_text() == (out / path.name).with_suffix(".jsonl").read_text()
    assert (out / "annotations.jsonl").read_text() == (whole / "annotations.jsonl").read_text()


def test_shards_of_a_long_list_need_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is drawn only as far as shards are written."""
    monkeypatch.setattr(Shards.__init__, "__defaults__", (10, ()))
    monkeypatch.setattr(fetching, "_WINDOW", 40)
    ahead, drawn, settled = [0], [0], [0]
    monkeypatch.setattr(fetching, "_get", lambda job, *_: (b"x", 1, 1) if job.place % 3 else _refuse())
    original = Shards.write_full

    def counting(self: Shards, drawn_all: bool) -> int:
        places = original(self, drawn_all)
        settled[0] += places
        return places

    monkeypatch.setattr(Shards, "write_full", counting)

    def jobs() -> Iterator[Job]:
        for i in range(2000):
            drawn[0] += 1
            ahead[0] = max(ahead[0], drawn[0] - settled[0])
            yield Job(i, f"http://h{i % 50}/{i}", "x", {})

    keeper = fetching.Packed(tmp_path / "out", "list")
    for _ in range(2):  # the second time with a third refused before
        tally = fetching.fetch_pictures(jobs(), keeper, QUICK)
        assert tally.got == 1333 and ahead[0] <= 60
        for path in (tmp_path / "out").glob("*.tar"):
            path.unlink()
        keeper = fetching.Packed(tmp_path / "out", "list")
        drawn[0] = settled[0] = 0


def _refuse() -> Any:
    raise ValueError("no")


# ---------------------------------------------------------------- interruption
_FETCH = """
import sys
from lavis.datasets.fetching import FetchSettings
from lavis.datasets.lists import fetch_table
fetch_table(sys.argv[1], sys.argv[2], ("caption", "url"), FetchSettings(workers=4, progress=False),
            shards=sys.argv[3] == "shards")
"""


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_kill_and_go_on(kind: str, server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shards.__init__, "__defaults__", (1000, ()))
    good = picture()

    def slow(handler: Handler, seen: int) -> None:
        time.sleep(0.005)
        handler.file(good)

    count = 60 if kind == "files" else 1200
    server.files = {f"/{i}": good if kind == "shards" and i < 1000 else slow for i in range(count)}
    source, out = table(tmp_path / "t.tsv", [server.url(f"/{i}") for i in range(count)]), tmp_path / "out"
    enough = 30 if kind == "files" else 1050
    with subprocess.Popen(
        [sys.executable, "-c", _FETCH, str(source), str(out), kind],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        end = time.monotonic() + 60
        while sum(server.asked.values()) < enough and time.monotonic() < end:
            time.sleep(0.005)
        if kind == "shards":
            while not (out / "00000.tar").exists() and time.monotonic() < end:
                time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (out / "annotations.jsonl").exists()
    before = sum(server.asked.values())
    tally = fetch_table(source, out, COLUMNS, QUICK, shards=kind == "shards")
    assert tally.there >= (20 if kind == "files" else 1000) and tally.there + tally.got == count
    assert sum(server.asked.values()) - before == tally.got
    assert len(rows(out / "annotations.jsonl")) == count
    if kind == "files":
        for row in rows(out / "annotations.jsonl"):
            assert (out / row["image"]).read_bytes() == good
    assert not [p for p in out.rglob("*") if p.is_file() and ("part" in p.name or "parts" in p.parts)]


# ---------------------------------------------------------------- lists and data sets
@pytest.mark.parametrize("shards", [False, True])
def test_two_downloads_of_one_list_fetch_each_file_once(
    shards: bool, server: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.files = {f"/{i}": picture() for i in range(30)}
    source = table(tmp_path / "t.tsv", [server.url(f"/{i}") for i in range(30)])
    tallies: list[Tally] = []

    def fetch() -> None:
        tallies.append(fetch_table(source, tmp_path / "out", COLUMNS, QUICK, shards=shards))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(t.got for t in tallies) == [0, 0, 30] and not any(t.failed for t in tallies)
    assert set(server.asked.values()) == {1}
    assert len(rows(tmp_path / "out" / "annotations.jsonl")) == 30
    assert caplog.text.count("another process is fetching into") == 2


def test_another_list_does_not_take_a_lists_files(server: Served, tmp_path: Path) -> None:
    server.files = {f"/{i}": picture() for i in range(6)}
    urls = [server.url(f"/{i}") for i in range(6)]
    assert fetch_table(table(tmp_path / "a.tsv", urls[:3]), tmp_path / "out", COLUMNS, QUICK).got == 3
    with pytest.raises(ValueError, match="holds the files of another list"):
        fetch_table(table(tmp_path / "b.tsv", urls[3:]), tmp_path / "out", COLUMNS, QUICK)
    assert fetch_table(table(tmp_path / "a.tsv", urls[:5]), tmp_path / "out", COLUMNS, QUICK).got == 2


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('caption,url\n"a, b",http://x\n')
    assert list(read_addresses(tmp_path / "t.csv")) == [{"caption": "a, b", "url": "http://x"}]
    (tmp_path / "n.csv").write_text('"a, b",http://x\n')
    assert list(read_addresses(tmp_path / "n.csv", COLUMNS)) == [{"caption": "a, b", "url": "http://x"}]
    (tmp_path / "t.tsv").write_text('"a\thttp://x\nonly one\n')
    with pytest.raises(ValueError, match=r"t\.tsv, row 2: 1 fields, and the columns are caption, url"):
        list(read_addresses(tmp_path / "t.tsv", COLUMNS))
    (tmp_path / "t.jsonl").write_text('{"caption": "a", "link": "http://x"}\n')
    with pytest.raises(ValueError, match=r"columns caption, link, and none named 'url'"):
        fetch_table(tmp_path / "t.jsonl", tmp_path / "out", settings=QUICK)


def test_the_command_for_a_table(server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files = {"/0": picture((800, 600)), "/1": picture()}
    source = table(tmp_path / "t.tsv", [server.url(f"/{i}") for i in range(3)])
    arguments = ["download", str(source), "--columns", "caption,url", "--to", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run"]) == 0 and not server.asked
    assert main(["download", str(source), "--columns", "caption,url"]) == 2
    assert main([*arguments, "--side", "100"]) == 1
    assert "2 fetched, 0 there before, 1 failed" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "000000" / "000000000.jpg").size == (133, 100)


@pytest.fixture
def linked(server: Served, monkeypatch: pytest.MonkeyPatch) -> type[CaptionDataset]:
    """A data set of addresses, with two captions of each picture; one picture is gone."""
    server.files = {f"/{i}.jpg": picture((900, 600)) for i in range(3)}
    train = [
        {"image": f"t/{i}.jpg", "caption": f"c{i}{k}", "url": server.url(f"/{i}.jpg")}
        for i in range(4)
        for k in range(2)
    ]
    val = [{"image": "v/0.jpg", "caption": ["c"], "url": server.url("/0.jpg")}]
    server.files |= {"/train.json": json.dumps(train).encode(), "/val.json": json.dumps(val).encode()}

    class Linked(CaptionDataset):
        name = "linked_test"
        media = "linked/images"
        sources: ClassVar[Mapping[str, Any]] = {
            s: Source(f"linked/{s}.json", server.url(f"/{s}.json")) for s in ("train", "val")
        }
        downloads = (Links("linked/images", splits=("train",)), Links("linked/images", splits=("val",)))

    registry.list_datasets()
    monkeypatch.setitem(registry._entries["dataset"], "linked_test", Linked)
    return Linked


def test_a_data_set_of_addresses(
    linked: type[CaptionDataset], server: Served, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "linked_test"]) == 1
    out = capsys.readouterr().out
    assert "train: pictures: 3 fetched, 0 there before, 1 failed" in out
    got = cache / "linked" / "train.got.jsonl"
    assert f"build_info.annotations.train.storage={got}" in out
    section = {"build_info": {"annotations": {"train": {"storage": str(got)}}}}
    data = build_datasets("linked_test", section)
    assert len(data["train"]) == 6 and data["train"][0]["image"].size == (576, 384)
    assert data["val"][0]["image"].size == (900, 600)  # evaluation sees the pictures as they are
    assert server.asked["/1.jpg"] == 1  # once for both captions
    assert main(["data", "check", "linked_test"]) == 1
    assert main(["download", "linked_test"]) == 0  # what was refused is not tried again
    assert server.asked["/3.jpg"] == 1
    server.files["/3.jpg"] = picture()
    assert main(["download", "linked_test", "--retry-failed"]) == 0
    assert main(["data", "check", "linked_test"]) == 0


def test_a_data_set_made_from_a_table(
    linked: type[CaptionDataset], server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = "".join(f"caption {i}\t{server.url(f'/{i}.jpg')}\n" for i in range(4)).encode()
    monkeypatch.setattr(linked, "sources", {"train": Source("linked/made.json")})
    links = Links(
        "linked/images", table=Source("linked/table.tsv"), columns=COLUMNS, how="Log in at https://page"
    )
    monkeypatch.setattr(linked, "downloads", (links,))
    assert main(["download", "linked_test"]) == 2
    assert "Log in at https://page; put it at" in capsys.readouterr().err
    (cache / "linked").mkdir(parents=True)
    (cache / "linked" / "table.tsv").write_bytes(text)
    assert main(["download", "linked_test"]) == 1
    data = build_datasets("linked_test")["train"]
    assert [r["caption"] for r in data.records] == [f"caption {i}" for i in range(3)]
    assert data[2]["image"].size == (576, 384)
    assert main(["data", "check", "linked_test"]) == 0
    before = server.asked.copy()
    assert main(["download", "linked_test"]) == 0 and server.asked == before
    assert main(["download", "linked_test", "--again"]) == 0


def test_a_data_set_of_addresses_in_shards(
    linked: type[CaptionDataset], server: Served, cache: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What `--shards` wrote is what the data set reads, without another setting."""
    monkeypatch.setattr(Shards.__init__, "__defaults__", (3, ()))
    assert main(["download", "linked_test", "--shards"]) == 1  # one image is gone
    data = build_datasets("linked_test")
    assert [r["caption"] for r in data["train"].records] == [f"c{i}{k}" for i in range(3) for k in range(2)]
    assert {s["image"].size for s in (data["train"][i] for i in range(6))} == {(576, 384)}
    assert [data["train"][i]["image_id"] for i in range(6)] == [0, 0, 1, 1, 2, 2]  # by image, as with files
    assert data["val"][0]["image"].size == (900, 600) and data["val"].references() == {0: ["c"]}
    grouped = build_datasets("linked_test", {"captions_per_image": 2})["train"]
    assert len(grouped) == 3 and sorted(grouped[1]["text_input"]) == ["c10", "c11"]
    capsys.readouterr()
    assert main(["data", "check", "linked_test", "--deep", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(s["records"], s["missing"], s["broken"]) for s in found["splits"]] == [(6, 0, 0), (1, 0, 0)]
    # the option need not be given again
    server.files["/3.jpg"] = picture()
    assert main(["download", "linked_test", "--retry-failed"]) == 0
    assert len(build_datasets("linked_test")["train"]) == 8 and not list(cache.rglob("*.jpg"))
    # another folder
    elsewhere = cache.parent / "elsewhere"
    (cache / "linked" / "images").rename(elsewhere)
    assert len(load_dataset("linked_test", vis_path=elsewhere)["train"]) == 8


def test_a_data_set_made_from_a_table_in_shards(
    linked: type[CaptionDataset], server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shards.__init__, "__defaults__", (2, ()))
    urls = "".join(f"caption {i}\t{server.url(f'/{i}.jpg')}\n" for i in (0, 3, 1, 3, 3, 2))
    monkeypatch.setattr(linked, "sources", {"train": Source("linked/made.json")})
    links = Links("linked/images", table=Source("linked/table.tsv"), columns=COLUMNS)
    monkeypatch.setattr(linked, "downloads", (links,))
    (cache / "linked").mkdir(parents=True)
    (cache / "linked" / "table.tsv").write_text(urls)
    assert main(["download", "linked_test", "--shards"]) == 1
    data = build_datasets("linked_test")["train"]
    assert [r["caption"] for r in data.records] == ["caption 0", "caption 1", "caption 2"]
    assert [data[i]["text_input"] for i in range(3)] == ["caption 0", "caption 1", "caption 2"]
    assert main(["data", "check", "linked_test"]) == 0
    # records of one's own choice, by their keys
    made = cache / "linked" / "made.json"
    chosen = [r for r in rows(made) if r["caption"] != "caption 1"]
    made.write_text(json.dumps(chosen))
    data = build_datasets("linked_test")["train"]
    assert [data[i]["text_input"] for i in range(len(data))] == ["caption 0", "caption 2"]
    made.write_text(json.dumps([*chosen, {"caption": "c", "key": "000000004"}]))
    with pytest.raises(ValueError, match=r"made\.json: 1 of its 3 records have a key that is in no shard"):
        build_datasets("linked_test")
    made.unlink()  # a download that was interrupted: what it has written so far
    assert len(build_datasets("linked_test")["train"]) == 3
    first = cache / "linked" / "images" / "00000.jsonl"
    first.write_text(first.read_text() * 2)
    with pytest.raises(ValueError, match=r"00000\.tar holds 1 samples, and the list beside it 2"):
        build_datasets("linked_test")
    first.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*00000\.jsonl"):
        build_datasets("linked_test")


def test_names_that_leave_the_folder(
    linked: type[CaptionDataset], server: Served, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/train.json"] = json.dumps(
        [{"image": "../../e.jpg", "caption": "c", "url": server.url("/0.jpg")}]
    ).encode()
    assert main(["download", "linked_test", "--split", "train"]) == 1
    assert "its name leaves the folder" in capsys.readouterr().err
    assert not list(cache.parent.rglob("e.jpg"))


def test_a_drip_ends(server: Served) -> None:
    def drip(handler: Handler, seen: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.01)

    server.files["/drip"] = drip
    with pytest.raises(transfer.TemporaryError, match="not finished after"):
        transfer.read(server.url("/drip"), 1 << 20, timeout_s=5.0, deadline_s=0.2)
