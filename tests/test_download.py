"""`lavis download` and `lavis data check`, on data sets served by a server that misbehaves."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from lavis.cli.main import main
from lavis.common import hub, transfer
from lavis.common.registry import registry
from lavis.datasets import checking, download
from lavis.datasets.base import MissingMediaError
from lavis.datasets.builders import load_dataset
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.sources import Archive, ByHand, Source
from tests.served import Handler, Served

ROOT = Path(__file__).parents[1]


def jpeg(colour: str = "red", size: tuple[int, int] = (20, 16)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG")
    return out.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as pack:
        for name, content in files.items():
            pack.writestr(name, content)
    return out.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


TRAIN = [
    {"image": f"a/{i}.jpg", "caption": f"picture {i}", "image_id": i} for i in range(6) for _ in range(2)
]
VAL = [{"image": f"b/{i}.jpg", "caption": [f"picture {i}"], "image_id": i} for i in range(3)]
FILES = {"train.json": json.dumps(TRAIN).encode(), "val.json": json.dumps(VAL).encode()}
A = zipped({f"a/{i}.jpg": jpeg() for i in range(6)})
B = tarred({f"b/{i}.jpg": jpeg("blue") for i in range(3)})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LAVIS_OFFLINE", "HF_HUB_OFFLINE", "LAVIS_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "BACKOFF_S", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[Served]:
    with Served() as running:
        running.files = {f"/{name}": content for name, content in FILES.items()}
        running.files |= {"/a.zip": A, "/b.tar.gz": B}
        yield running


@pytest.fixture
def pictures(server: Served, monkeypatch: pytest.MonkeyPatch) -> type[CaptionDataset]:
    """A registered data set whose files the server has."""
    md5 = hashlib.md5(FILES["val.json"], usedforsecurity=False).hexdigest()

    class Pictures(CaptionDataset):
        name = "pictures_test"
        media = "pictures/images"
        sources: ClassVar[Mapping[str, Any]] = {
            "train": Source("pictures/train.json", server.url("/train.json")),
            "val": Source("pictures/val.json", server.url("/val.json"), md5=md5),
        }
        downloads = (
            Archive(server.url("/a.zip"), "pictures/images", ("train",)),
            Archive(
                server.url("/b.tar.gz"), "pictures/images", ("val",), sha256=hashlib.sha256(B).hexdigest()
            ),
        )

    registry.list_datasets()  # all others first
    monkeypatch.setitem(registry._entries["dataset"], "pictures_test", Pictures)
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "__doc__", "A card.\n\n**Licence.** Free for\ntests.\n\n**Metrics.** None.\n")
    return Pictures


def run(*arguments: str) -> int:
    return main(["download", "pictures_test", *arguments])


def names(folder: Path) -> set[str]:
    return {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and ".lavis" not in p.parts
    }


# ---------------------------------------------------------------- the straight way
def test_everything_is_fetched_once(
    pictures: type[CaptionDataset], server: Served, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    assert "Licence: Free for tests." in out and "4 of 4 there" in out
    assert f"from {server.url('/a.zip')}" in out and re.search(r"a\.zip: pictures; [\d.]+ kB", out)
    data = load_dataset("pictures_test")
    assert data["train"][0]["image"].size == (20, 16) and len(data["val"]) == 3
    assert names(cache / "pictures" / "images") == {r["image"] for r in TRAIN + VAL}
    assert not list((cache / "downloads").iterdir())  # archives go when they are unpacked
    assert main(["data", "check", "pictures_test"]) == 0
    before = server.asked.copy()
    assert run() == 0
    assert server.asked == before
    assert capsys.readouterr().out.count("there already") == 4


def test_a_dry_run_fetches_nothing(
    pictures: type[CaptionDataset], server: Served, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/a.zip"] = lambda handler, seen: handler.answer(500, b"")
    assert run("--dry-run") == 0
    out = capsys.readouterr().out
    assert (
        "a.zip: pictures; size unknown" in out
        and "and 1 of unknown size" in out
        and "free on that disk" in out
    )
    assert not server.asked and not cache.exists()


def test_a_split_needs_only_its_files(pictures: type[CaptionDataset], server: Served, cache: Path) -> None:
    assert run("--split", "val") == 0
    assert set(server.asked) == {"/val.json", "/b.tar.gz"}
    assert names(cache / "pictures") == {
        "val.json",
        "val.json.source.json",
        *(f"images/b/{i}.jpg" for i in range(3)),
    }


def test_another_place(
    pictures: type[CaptionDataset], tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = tmp_path / "elsewhere"
    assert run("--to", str(place), "--keep-archives") == 0
    out = capsys.readouterr().out
    assert f"LAVIS_CACHE={place}" in out and f"vis_path='{place / 'pictures' / 'images'}'" in out
    assert (place / "pictures" / "val.json").is_file() and (
        place / "pictures" / "images" / "a" / "0.jpg"
    ).is_file()
    assert len(list((place / "downloads").glob("*.zip"))) == 1
    assert names(cache) == {p for p in names(cache) if p.startswith("locks/")}
    monkeypatch.setenv("LAVIS_CACHE", str(place))
    assert main(["data", "check", "pictures_test"]) == 0


def test_annotations_only(pictures: type[CaptionDataset], server: Served) -> None:
    assert run("--annotations-only") == 0
    assert set(server.asked) == {"/train.json", "/val.json"}


def test_pictures_put_there_by_hand_are_not_fetched(
    pictures: type[CaptionDataset], server: Served, cache: Path
) -> None:
    for record in TRAIN:
        path = cache / "pictures" / "images" / str(record["image"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    assert run() == 0
    assert set(server.asked) == {"/train.json", "/val.json", "/b.tar.gz"}


def test_fetching_again(pictures: type[CaptionDataset], server: Served, cache: Path) -> None:
    assert run() == 0
    lost = cache / "pictures" / "images" / "a" / "3.jpg"
    lost.unlink()
    assert run() == 0 and not lost.exists()  # the archive is marked as unpacked
    assert main(["data", "check", "pictures_test"]) == 1
    assert run("--again") == 0 and lost.exists()
    assert server.asked["/a.zip"] == 2


def test_mirrors(
    pictures: type[CaptionDataset], server: Served, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with Served() as mirror:
        mirror.files = {f"/there{path}": content for path, content in server.files.items()}
        monkeypatch.setenv("LAVIS_MIRROR", f"{server.url('/')}={mirror.url('/there/')}")
        assert run() == 0
        assert not server.asked and sum(mirror.asked.values()) == 4


# ---------------------------------------------------------------- servers that misbehave
def breaks(content: bytes) -> Any:
    """Sends at most 300 bytes at a time, slowly."""

    def answer(handler: Handler, seen: int) -> None:
        time.sleep(0.002)
        handler.file(content, sent=300)

    return answer


def test_breaking_off_redirects_and_errors_that_pass(
    pictures: type[CaptionDataset], server: Served, cache: Path
) -> None:
    server.files["/a.zip"] = breaks(A)
    server.files["/b.tar.gz"] = lambda h, seen: h.answer(302, b"", Location="/moved")
    server.files["/moved"] = B
    server.files["/val.json"] = lambda h, seen: (
        h.answer(503, b"later") if seen < 3 else h.file(FILES["val.json"])
    )
    assert run() == 0
    assert server.asked["/a.zip"] > 3 and server.asked["/val.json"] >= 3
    assert main(["data", "check", "pictures_test", "--deep"]) == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda h, seen: h.file(b"another file" * 100), "is not the expected file"),
        (lambda h, seen: h.answer(200, B, len(B), Content_Length=str(len(B) + 10)), "attempts"),
        (lambda h, seen: h.answer(404, b""), "the file is not there"),
        (lambda h, seen: h.answer(403, b""), "refuses access"),
        (lambda h, seen: h.answer(200, b"<html>", Content_Type="text/html"), "web page"),
    ],
)
def test_one_failure_leaves_the_rest(
    answer: Any, reason: str, pictures: type[CaptionDataset], server: Served, cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server.files["/b.tar.gz"] = answer
    assert run() == 1
    captured = capsys.readouterr()
    assert (
        re.search(rf"b\.tar\.gz could not be fetched: .*{reason}", captured.err)
        and "3 of 4 there" in captured.out
    )
    assert names(cache / "pictures" / "images") == {str(r["image"]) for r in TRAIN}
    server.files["/b.tar.gz"] = B
    assert run() == 0


def test_a_hostile_archive(
    pictures: type[CaptionDataset], server: Served, cache: Path, tmp_path: Path
) -> None:
    server.files["/a.zip"] = zipped({"a/0.jpg": jpeg(), "../../../evil.jpg": jpeg()})
    assert run() == 1
    assert (
        not list(tmp_path.rglob("evil.jpg")) and not list((cache / "pictures" / "images").rglob("0.jpg"))[3:]
    )
    assert names(cache / "pictures" / "images") == {str(r["image"]) for r in VAL}


def test_nothing_could_be_fetched(
    pictures: type[CaptionDataset], server: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files.clear()
    assert run() == 2
    assert "nothing of pictures_test could be fetched" in capsys.readouterr().err


def test_offline(
    pictures: type[CaptionDataset],
    monkeypatch: pytest.MonkeyPatch,
    server: Served,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    assert run() == 2
    assert "LAVIS_OFFLINE" in capsys.readouterr().err and not server.asked


def test_too_little_room(
    pictures: type[CaptionDataset], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert run() == 2
    assert "make room, name another disk with --to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such"], "no dataset named 'no_such'"),
        (["coco_caption", "--split", "tset"], "no split 'tset'. Did you mean 'test'"),
        (["coco_caption", "--type", "x"], "no type 'x'"),
        (["no_such.tsv", "--to", "x"], "no table no_such.tsv"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_is_fetched_by_hand(
    pictures: type[CaptionDataset],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
) -> None:
    monkeypatch.setattr(
        pictures, "downloads", (ByHand("https://page", "Fill in the form", "pictures/images"),)
    )
    assert run() == 1
    captured = capsys.readouterr()
    assert "Fill in the form. https://page" in captured.out
    assert f"{cache / 'pictures' / 'images'} must be fetched by hand" in captured.err
    with pytest.raises(
        MissingMediaError, match=r"to get them: Fill in the form \(https://page\), or name their folder"
    ):
        load_dataset("pictures_test")["val"][0]
    for record in TRAIN + VAL:
        path = cache / "pictures" / "images" / str(record["image"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    assert run() == 0


def test_data_sets_without_downloads(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("shapes_caption", "own", "easy_vqa"):
        assert main(["download", name]) == 0
        assert f"{name}: nothing to download" in capsys.readouterr().out


def test_every_data_set_has_a_plan(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    for name in registry.list_datasets():
        todo = download.plan(name)
        for item in todo.items:
            assert item.place.is_relative_to(cache), f"{name}: {item.place}"
        if todo.items:
            assert todo.licence, f"{name} has no licence paragraph in its card"


# ---------------------------------------------------------------- interruption
_PLUGIN = """
from typing import Any, ClassVar
from lavis.common.registry import registry
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.sources import Archive, Source

@registry.register_dataset("interrupted_test")
class Interrupted(CaptionDataset):
    name = "interrupted_test"
    media = "pictures/images"
    sources: ClassVar[Any] = {{"train": Source("pictures/train.json", "{base}/train.json")}}
    downloads = (Archive("{base}/a.zip", "pictures/images"),)
"""


def test_interrupted_and_continued(server: Served, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "interrupted_plugin.py").write_text(_PLUGIN.format(base=server.url("")))

    def hangs(handler: Handler, seen: int) -> None:
        if seen == 1 and handler.command == "GET":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(A)))
            handler.send_header("ETag", '"v1"')
            handler.end_headers()
            handler.wfile.write(A[:500])
            handler.wfile.flush()
            server.stop.wait(30)
            handler.close_connection = True
        else:
            handler.file(A)

    server.files["/a.zip"] = hangs
    command = [
        sys.executable, "-m", "lavis", "--import", "interrupted_plugin", "download", "interrupted_test",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        # a shell may start background jobs without it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        end = time.monotonic() + 30
        while not server.asked["/a.zip"] and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; what was fetched is kept" in errors and "Traceback" not in errors
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "begun, will be continued" in done.stdout
    assert names(cache / "pictures" / "images") == {str(r["image"]) for r in TRAIN}
    assert server.asked["/train.json"] == 1


# ---------------------------------------------------------------- data check
def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["data", "check", "pictures_test", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_check_before_anything_is_there(
    pictures: type[CaptionDataset], server: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = check(capsys)
    assert code == 1 and not server.asked
    assert [a["state"] for a in found["annotations"]] == ["missing", "missing"]
    assert found["advice"] == "`lavis download pictures_test` fetches what is missing"


def test_check_counts(
    pictures: type[CaptionDataset], server: Served, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    folder = cache / "pictures" / "images"
    (folder / "a" / "2.jpg").unlink()
    (folder / "a" / "4.jpg").write_bytes(jpeg()[:300])
    (folder / "b" / "1.jpg").write_bytes(b"")
    (folder / "extra").mkdir()
    (folder / "extra" / "x.jpg").write_bytes(jpeg())
    capsys.readouterr()
    code, found = check(capsys)
    assert code == 1
    train, val = found["splits"]
    assert (train["records"], train["media"], train["missing"], train["missing_names"]) == (
        12,
        6,
        1,
        ["a/2.jpg"],
    )
    assert (val["records"], val["media"], val["missing"], val["broken"]) == (3, 3, 0, None)
    assert found["extra"] == 1 and found["extra_names"] == ["extra/x.jpg"]
    code, found = check(capsys, "--deep")
    train, val = found["splits"]
    assert train["broken_names"] == [str(folder / "a" / "4.jpg")] and val["broken"] == 1
    code, found = check(capsys, "--split", "val")
    assert code == 0 and [s["split"] for s in found["splits"]] == ["val"] and found["extra"] is None
    assert main(["data", "check", "pictures_test", "--deep"]) == 1
    out = capsys.readouterr().out
    assert "train: 12 records, 6 pictures, 1 missing, 1 broken" in out and "missing: a/2.jpg" in out
    assert "which no record names: 1: extra/x.jpg" in out


def test_check_of_damaged_annotations(
    pictures: type[CaptionDataset], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    (cache / "pictures" / "val.json").write_text("[]")  # its md5 is published
    (cache / "pictures" / "train.json").write_text("[")  # its sha256 was recorded when it was fetched
    capsys.readouterr()
    code, found = check(capsys)
    assert code == 1 and [a["state"] for a in found["annotations"]] == ["damaged", "damaged"]
    assert "train.json" in found["splits"][0]["problem"]
    assert run() == 0  # both are fetched again
    assert main(["data", "check", "pictures_test"]) == 0


def test_check_another_folder(
    pictures: type[CaptionDataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--annotations-only") == 0
    for record in VAL:
        path = tmp_path / "mine" / str(record["image"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    capsys.readouterr()
    code, found = check(capsys, "--vis-path", str(tmp_path / "mine"), "--split", "val")
    assert code == 0 and found["folder"] == str(tmp_path / "mine")
    assert main(["data", "check", "pictures_test", "--vis-path", str(tmp_path / "no")]) == 2
    assert main(["data", "check", "pictures_test", "--split", "no"]) == 2


def test_check_of_pairs_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records with two pictures; folders that are links, even back up; names that are not tidy."""
    folder, other = tmp_path / "cache" / "m", tmp_path / "other"
    other.mkdir(parents=True)
    (other / "x.jpg").write_bytes(jpeg())
    folder.mkdir(parents=True)
    (folder / "linked").symlink_to(other)
    (folder / "loop").symlink_to(folder)
    (folder / "y.jpg").write_bytes(jpeg())
    rows = [
        {"images": ["linked/x.jpg", "./y.jpg"], "caption": "c"},
        {"images": ["linked//x.jpg", "z.jpg"], "caption": "d"},
    ]
    (tmp_path / "cache" / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in rows))

    class Pairs(CaptionDataset):
        name = "pairs_test"
        media = "m"
        sources: ClassVar[Mapping[str, Any]] = {"test": Source("rows.jsonl")}

    registry.list_datasets()
    monkeypatch.setitem(registry._entries["dataset"], "pairs_test", Pairs)
    found = checking.check("pairs_test")
    assert found.splits[0].missing_names == ["z.jpg"] and found.extra == 0
    assert found.annotations[0].state == "unverified" and found.advice == ""


def test_check_of_made_and_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "shapes_caption", "--split", "val"]) == 0
    assert "made when they are needed" in capsys.readouterr().out
    (tmp_path / "p.jpg").write_bytes(jpeg())
    (tmp_path / "t.jsonl").write_text('{"image": "p.jpg", "text": "a cat"}\n')
    assert main(["data", "check", "own", "--options", f"test={tmp_path / 't.jsonl'}"]) == 0
    assert "test: 1 records, 1 pictures, 0 missing" in capsys.readouterr().out
    assert main(["data", "check", "own"]) == 2


def test_check_is_quick_for_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is touched one by one: folders are listed."""
    rows = [{"image": f"{i % 10}/{i}.jpg", "caption": "x"} for i in range(3000)]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "rows.json").write_text(json.dumps(rows))

    class Many(CaptionDataset):
        name = "many_test"
        media = "many"
        sources: ClassVar[Mapping[str, Any]] = {"train": Source("rows.json")}

    registry.list_datasets()
    monkeypatch.setitem(registry._entries["dataset"], "many_test", Many)
    for i in range(10):
        (tmp_path / "cache" / "many" / str(i)).mkdir(parents=True)
    for row in rows:
        (tmp_path / "cache" / "many" / row["image"]).touch()
    touched: list[Any] = []
    original = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: (touched.append(a), original(*a, **k))[1])
    found = checking.check("many_test")
    assert found.complete and found.splits[0].media == 3000 and len(touched) < 100


# ---------------------------------------------------------------- what an error says
def test_a_missing_picture_names_the_command(pictures: type[CaptionDataset]) -> None:
    assert run("--annotations-only") == 0
    with pytest.raises(MissingMediaError, match="`lavis download pictures_test` fetches what is missing"):
        load_dataset("pictures_test")["val"][0]


def test_sizes_of_servers_without_head(server: Served) -> None:
    server.files["/x"] = lambda h, seen: h.answer(405, b"")
    assert transfer.size_of(server.url("/x")) is None
    assert transfer.size_of("http://127.0.0.1:9/none", timeout_s=2) is None
    assert transfer.size_of(server.url("/a.zip")) == len(A)


def test_progress_can_be_told_and_can_stop(server: Served, cache: Path) -> None:
    server.files["/big"] = bytes(3 << 20)
    seen: list[tuple[int, int | None]] = []
    hub.fetch(server.url("/big"), progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 3 << 20) and seen[-1] == (3 << 20, 3 << 20) and len(seen) >= 4

    def stop(done: int, total: int | None) -> None:
        if done:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        hub.fetch(server.url("/big"), to="other", progress=stop)
    assert (cache / "other.part").stat().st_size == 1 << 20
    assert hub.fetch(server.url("/big"), to="other").stat().st_size == 3 << 20
