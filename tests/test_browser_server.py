"""The browser's server over HTTP: what it serves, what it refuses, what it escapes, what can be taken along."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from lavis.app.browser import export, media
from lavis.app.browser import server as server_module
from lavis.app.browser.collection import Collection, open_collection
from lavis.app.browser.media import Kept, inside
from lavis.app.browser.server import Server
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes import render_clip
from lavis.datasets.shapes.clip_layouts import write_clip
from lavis.datasets.shard_writer import Shards

SCRIPT = "<script>document.title='taken over'</script> & \"quoted\" 'text'"


class Reader:
    """A client of one server."""

    def __init__(self, server: Server) -> None:
        self.port = server.server_address[1]

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            named = {k.replace("_", "-"): v for k, v in headers.items()}
            connection.request(method, path, headers=named)
            answer = connection.getresponse()
            return answer, answer.read()

    def page(self, path: str) -> str:
        answer, content = self.get(path)
        assert answer.status == 200, content
        return content.decode()


@contextlib.contextmanager
def serving(collection: Collection) -> Iterator[Reader]:
    server = Server(collection)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield Reader(server)
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own pictures: good ones, a missing one, a broken one, and names that lead out of the folder."""
    root = tmp_path_factory.mktemp("own")
    (root / "pictures" / "deep").mkdir(parents=True)
    secret = root / "secret.png"
    Image.new("RGB", (30, 30), "red").save(secret)
    Image.new("RGB", (640, 480), "green").save(root / "pictures" / "good.jpg")
    Image.new("RGB", (40, 30), "blue").save(root / "pictures" / "deep" / "small.png")
    (root / "pictures" / "broken.png").write_bytes(b"this is no picture")
    names = [
        "good.jpg",
        "deep/small.png",
        "missing.png",
        "broken.png",
        "../secret.png",
        str(secret),
        "deep/../../secret.png",
    ]
    rows = [{"image": name, "text": [f"caption {i}", SCRIPT]} for i, name in enumerate(names)]
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture(scope="module")
def own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        section = {"train": str(folder / "t.jsonl"), "images": str(folder / "pictures"), "val_fraction": 0}
        with serving(open_collection("own", section)) as reader:
            yield reader


# ---------------------------------------------------------------------------------------- pages
def test_texts_are_escaped_on_every_page(own: Reader) -> None:
    for path in (
        "/split/train/",
        "/split/train/0",
        f"/split/train/?q={quote(SCRIPT)}",
        "/split/train/export",
    ):
        page = own.page(path)
        assert "taken over" not in re.sub(r"&lt;script&gt;.*?&lt;/script&gt;", "", page), path
        assert page.count("<script") == 1, "the page's own script alone"
    answer, content = own.get(f"/split/train/go?to={quote(SCRIPT)}")
    assert answer.status == 404 and b"&lt;script&gt;" in content


def test_pages_may_load_nothing_from_elsewhere(own: Reader) -> None:
    for path in ("/split/train/", "/card", "/style.css", "/split/train/0/thumb/0", "/nothing"):
        answer, _ = own.get(path)
        policy = answer.getheader("Content-Security-Policy") or ""
        assert "default-src 'none'" in policy and "http" not in policy and "unsafe" not in policy
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
    page = own.page("/split/train/")
    assert not re.findall(r'(?:src|href|action)="(?!/|#)', page)
    assert " style=" not in page and not re.search(r"\son\w+=", page)


def test_requests_that_name_another_machine_are_refused(own: Reader) -> None:
    assert own.get("/card", Host="example.org")[0].status == 403
    assert own.get("/card", Host="127.0.0.1.example.org")[0].status == 403
    assert own.get("/card", Host="localhost:1234")[0].status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 303), ("/split/train/go?to=3", 303), ("/split/train/go?to=%233", 303), ("/split/train/go?to=99", 404),
        ("/split/none/", 404), ("/split/train/99", 404), ("/split/train/0/thumb/5", 404), ("/split/train/x", 404),
        ("/split/train/?page=x", 400), ("/split/train/?per=7", 400), ("/split/train/?shuffle=a", 400),
        ("/split/train/?verdict=right", 400), ("/split/train/?page=999999", 200), ("/split/train/?q=nothing", 200),
        ("/split/train/?files=missing", 200), ("/favicon.ico", 404), ("/split/train", 404), ("//split/train/", 200),
        ("/split/train/0?i=77", 200), ("/split/train/0?i=-1", 200), ("/split/train/export?q=caption", 200),
        ("/split/train/export.jsonl?n=0", 400), ("/%00", 404), ("/split/%FF/", 404),
    ],
)  # fmt: skip
def test_what_is_there_and_what_is_not(own: Reader, path: str, status: int) -> None:
    answer, content = own.get(path)
    assert answer.status == status
    assert b"Traceback" not in content
    head, nothing = own.get(path, "HEAD")
    assert head.status == status and nothing == b""


def test_searching_paging_and_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    with serving(open_collection("shapes_caption", {"n_val": 60}, splits=["val"])) as reader:
        page = reader.page("/split/val/?page=2")
        assert re.findall(r'class="place">#(\d+)', page) == [str(i) for i in range(24, 48)]
        assert '"/split/val/" rel="prev"' in page and "page=3" in page
        found = reader.page("/split/val/?q=red&per=96")
        places = [int(n) for n in re.findall(r'class="place">#(\d+)', found)]
        data = load_dataset("shapes_caption", n_val=60)["val"]
        assert places == [
            i for i, r in enumerate(data.records) if any("red" in c.split() for c in r["caption"])
        ]
        item = reader.page(f"/split/val/{places[1]}?q=red&i=1")
        assert (
            f"/split/val/{places[0]}?q=red&amp;i=0" in item
            and f"/split/val/{places[2]}?q=red&amp;i=2" in item
        )
        assert "<mark>red</mark>" in item


# ---------------------------------------------------------------------------------------- files
def test_only_the_data_sets_own_files_are_served(own: Reader, folder: Path) -> None:
    answer, content = own.get("/split/train/0/file/0")
    assert answer.status == 200 and content == (folder / "pictures" / "good.jpg").read_bytes()
    assert answer.getheader("Content-Type") == "image/jpeg"
    secret = (folder / "secret.png").read_bytes()
    for place in (4, 5, 6):
        assert own.get(f"/split/train/{place}/file/0")[0].status == 404
        for what in ("thumb", "picture", "play"):
            answer, content = own.get(f"/split/train/{place}/{what}/0")
            assert (
                content != secret
                and b"outside" in content
                and answer.getheader("Content-Type") == "image/svg+xml"
            )
        assert "outside" in own.page(f"/split/train/{place}")
    for path in ("/../t.jsonl", "/split/train/../../t.jsonl", "/split/train/..%2f..%2ft.jsonl", "/etc/passwd",
                 "/split/train/0/file/../../t.jsonl", "/static/browse.css", "/split/..%2f..%2f/"):  # fmt: skip
        answer, content = own.get(path)
        assert answer.status == 404 and b"caption 0" not in content


@pytest.mark.parametrize(
    ("name", "is_inside"),
    [("a.png", True), ("b/../a.png", True), ("../a.png", False), ("/etc/passwd", False), ("b/../../a", False),
     ("", False), (".", False), ("a\0b", False), ("/srv/data/a.png", True), ("/srv/database/a.png", False)],
)  # fmt: skip
def test_inside(name: str, is_inside: bool) -> None:
    assert (inside(Path("/srv/data"), name) is not None) is is_inside


def test_missing_and_broken_pictures_show_why(own: Reader) -> None:
    page = own.page("/split/train/")
    assert "missing.png is not there" in page
    answer, content = own.get("/split/train/3/thumb/0")
    assert answer.status == 200 and b"broken.png cannot" in content
    assert "is not there" in own.page("/split/train/2")


def test_the_command_that_fetches_pictures_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    path = tmp_path / "c.json"
    path.write_text(json.dumps([{"image": "val2014/COCO_val2014_000000000001.jpg", "caption": ["a"]}]))
    section = {"build_info": {"annotations": {"train": None, "test": None, "val": {"storage": str(path)}}}}
    with serving(open_collection("coco_caption", section)) as reader:
        assert "lavis download coco_caption" in reader.page("/split/val/")
        assert "lavis download coco_caption" in reader.page("/split/val/0")


def test_images_in_the_shards_of_a_download_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    shards = Shards(tmp_path / "sbu_captions" / "images", "sbu_caption/train")
    for place in range(2):
        out = io.BytesIO()
        Image.new("RGB", (40 + place, 30)).save(out, "JPEG")
        shards.expect(place)
        shards.put(place, out.getvalue(), {"image": f"{place}.jpg", "caption": f"number {place}", "url": "u"})
    shards.write_full(True)
    for _ in range(2):  # indexed, and from the index
        with serving(open_collection("sbu_caption")) as reader:
            assert "number 1" in reader.page("/split/train/") and "is not there" not in reader.page(
                "/split/train/1"
            )
            _, content = reader.get("/split/train/1/thumb/0")
            with Image.open(io.BytesIO(content)) as picture:
                assert picture.size == (41, 30)


def test_thumbnails_are_small_and_large_pictures_are_not_opened(
    own: Reader, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = own.get("/split/train/0/thumb/0")
    with Image.open(io.BytesIO(content)) as picture:
        assert max(picture.size) == media.THUMBNAIL
    _, content = own.get("/split/train/1/picture/0")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (40, 30) and picture.format == "PNG"
    monkeypatch.setattr(media, "MOST_PIXELS", 1000)
    _, content = own.get("/split/train/1/picture/0")
    assert b"too many" in content.replace(b"</text>", b" ") or b"pixels" in content


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png", compress_level=1)
    assert (tmp_path / "bomb.png").stat().st_size < 1_000_000
    (tmp_path / "t.jsonl").write_text('{"image": "bomb.png", "text": "dark"}')
    with serving(open_collection("own", {"train": str(tmp_path / "t.jsonl"), "val_fraction": 0})) as reader:
        _, content = reader.get("/split/train/0/thumb/0")
        assert b"<svg" in content and b"bomb.png" in content


def test_kept_thumbnails_are_bounded() -> None:
    kept = Kept(limit=8000)
    for i in range(100):
        assert kept.get(i, lambda: (bytes(900), "x"))[0] == bytes(900)
    assert kept.size <= 8000
    assert kept.get("large", lambda: (bytes(5000), "x"))[0] == bytes(5000) and kept.size <= 8000
    made: list[int] = []
    kept.get(99, lambda: (made.append(1) or b"", "x"))  # type: ignore[func-returns-value]
    assert not made


# ---------------------------------------------------------------------------------------- clips
@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, Path]]:
    pytest.importorskip("av")
    root = tmp_path_factory.mktemp("clips")
    data = load_dataset("shapes_video_caption", n_val=2)["val"]
    rows = []
    for i, suffix in enumerate((".mp4", ".avi")):
        write_clip(render_clip(data.records[i]["clip"], 8, 64), root / f"c{i}{suffix}")
        rows.append({"video": f"c{i}{suffix}", "text": data.records[i]["caption"]})
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_CACHE", str(root / "cache"))
        with serving(open_collection("own", {"val": str(root / "t.jsonl")})) as reader:
            yield reader, root


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-9", 0, 9), ("bytes=100-", 100, -1), ("bytes=-7", -7, -1), ("bytes=5-999999999", 5, -1)],
)  # fmt: skip
def test_clips_are_served_in_parts(clips: tuple[Reader, Path], asked: str, first: int, last: int) -> None:
    reader, root = clips
    whole = (root / "c0.mp4").read_bytes()
    answer, content = reader.get("/split/val/0/file/0", Range=asked)
    first, last = first % len(whole), last % len(whole)
    assert answer.status == 206 and content == whole[first : last + 1]
    assert answer.getheader("Content-Range") == f"bytes {first}-{last}/{len(whole)}"


def test_parts_that_are_not_there(clips: tuple[Reader, Path]) -> None:
    reader, root = clips
    whole = (root / "c0.mp4").read_bytes()
    assert reader.get("/split/val/0/file/0", Range=f"bytes={len(whole)}-")[0].status == 416
    for asked in ("bytes=", "bytes=-", "lines=1-2", "bytes=0-1,5-6"):
        answer, content = reader.get("/split/val/0/file/0", Range=asked)
        assert answer.status == 200 and content == whole
    assert answer.getheader("Accept-Ranges") == "bytes"


def test_clips_that_web_browsers_do_not_play_move_as_pictures(clips: tuple[Reader, Path]) -> None:
    reader, _ = clips
    assert "<video" in reader.page("/split/val/0") and "<video" not in reader.page("/split/val/1")
    answer, content = reader.get("/split/val/1/play/0")
    assert answer.getheader("Content-Type") == "image/webp"
    with Image.open(io.BytesIO(content)) as moving:
        assert moving.n_frames > 4  # frames that are alike are stored once
    with Image.open(io.BytesIO(reader.get("/split/val/1/thumb/0")[1])) as still:
        assert still.size == (64, 64)
    assert reader.get("/split/val/1/file/0")[0].status == 404


def test_drawn_clips_and_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    with serving(open_collection("shapes_video_qa", {"n_val": 3}, splits=["val"])) as reader:
        with Image.open(io.BytesIO(reader.get("/split/val/0/play/0")[1])) as moving:
            assert moving.n_frames > 4  # those that are alike are stored once
        assert "Also about this clip" in reader.page("/split/val/0")
    with serving(open_collection("shapes_nlvr", {"n_val": 4}, splits=["val"])) as reader:
        left, right = (reader.get(f"/split/val/0/picture/{i}")[1] for i in (0, 1))
        assert left != right and left.startswith(b"\x89PNG")
        assert "two pictures" in reader.page("/split/val/export")
    with serving(open_collection("shapes_dialogue", {"n_val": 3}, splits=["val"])) as reader:
        assert reader.page("/split/val/0").count('class="question"') == 5


# ---------------------------------------------------------------------------------------- taking along
@pytest.mark.parametrize(
    ("name", "section", "split"),
    [
        ("shapes_caption", {"n_val": 12}, "val"), ("shapes_vqa", {"n_val": 6}, "val"),
        ("shapes_entailment", {"n_val": 9}, "val"), ("shapes_video_retrieval", {"n_val": 2}, "val"),
    ],
)  # fmt: skip
def test_an_exported_selection_is_a_data_set_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, section: dict[str, Any], split: str
) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    with serving(open_collection(name, section, splits=[split])) as reader:
        answer, content = reader.get(f"/split/{split}/export.zip?shuffle=3&n=5")
        table = reader.get(f"/split/{split}/export.jsonl?shuffle=3&n=5")[1]
    assert answer.status == 200
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out")
    assert len(table.splitlines()) == len((tmp_path / "out" / f"{split}.jsonl").read_text().splitlines())
    mine = load_dataset("own", train=str(tmp_path / "out" / f"{split}.jsonl"), images=str(tmp_path / "out" / "images"),
                        val_fraction=0)["train"]  # fmt: skip
    theirs = load_dataset(name, **section)[split]
    texts = {str(r.get("caption") or r.get("question") or r.get("sentence")) for r in theirs.records}
    for i, record in enumerate(mine.records):
        assert str(record.get("caption") or record.get("question") or record.get("text")) in texts
        sample = mine[i]
        assert ("video" if "video" in name else "image") in sample
    if name == "shapes_caption":
        first = next(r for r in theirs.records if r["caption"] == mine.records[0]["caption"])
        assert mine[0]["image"].tobytes() == theirs.picture(first).tobytes()


@pytest.mark.parametrize("error", [ValueError("a record"), OSError("the disk"), KeyError("a key")])
@pytest.mark.parametrize("form", ["jsonl", "zip"])
def test_an_export_that_breaks_off_does_not_look_complete(
    own: Reader, monkeypatch: pytest.MonkeyPatch, form: str, error: Exception
) -> None:
    whole = own.get(f"/split/train/export.{form}")[1]

    def broken(*inputs: Any) -> Any:
        raise error

    monkeypatch.setattr(server_module, "_CHUNK", 1)  # what was written before has been sent
    make, made = export.own_row, []

    def second_is_broken(*inputs: Any) -> Any:
        made.append(1)
        return make(*inputs) if len(made) < 2 else broken()

    monkeypatch.setattr(export, "own_row", second_is_broken)
    with pytest.raises(http.client.IncompleteRead) as broken_off:
        own.get(f"/split/train/export.{form}")
    assert len(broken_off.value.partial) < len(whole) and b"<html" not in broken_off.value.partial
    assert own.get("/split/train/")[0].status == 200  # the server goes on


def test_export_leaves_out_what_is_missing_and_stays_in_its_folder(own: Reader) -> None:
    _, content = own.get("/split/train/export.zip")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(archive.namelist())
        assert names == {
            "images/good.jpg",
            "images/deep/small.png",
            "images/broken.png",
            "train.jsonl",
            "missing.txt",
        }
        assert archive.read("missing.txt").decode().splitlines()[0] == "missing.png"
    records = [json.loads(line) for line in own.get("/split/train/export.records?q=%223%22")[1].splitlines()]
    assert [r["image"] for r in records] == ["broken.png"]
