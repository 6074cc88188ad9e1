"""Fetching: against a server that breaks off, lies, redirects, refuses and recovers."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lavis.common import hub, transfer
from tests import served

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Handler(served.Handler):
    """The first part of the path says what to do; `server.log` holds (path, Range) of each request."""

    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:  # noqa: N802
        behaviour = self.path.split("/")[1]
        with self.server.guard:
            self.server.log.append((self.path, self.headers.get("Range")))
            seen = sum(path == self.path for path, _ in self.server.log)
        getattr(self, f"do_{behaviour}")(seen)

    def _serve(self, sent: int | None = None, content: bytes = CONTENT, etag: str = '"v1"') -> None:
        """The file, with ranges as RFC 9110 says, breaking off after `sent` bytes."""
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.answer(416, b"", Content_Range=f"bytes */{len(content)}")
                return
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], sent, Content_Range=place, ETag=etag)
        else:
            self.answer(200, content, sent, ETag=etag)

    def do_good(self, seen: int) -> None:
        self._serve()

    def do_slow(self, seen: int) -> None:
        time.sleep(0.5)
        self._serve()

    def do_breaks(self, seen: int) -> None:
        self._serve(sent=300_000)

    def do_ignores(self, seen: int) -> None:
        self.answer(200, CONTENT, 300_000 if seen == 1 else None, ETag='"v1"')

    def do_changes(self, seen: int) -> None:
        if seen == 1:
            self._serve(sent=300_000, content=b"old" * 200_000, etag='"old"')
        else:
            self._serve()

    def do_unmarked(self, seen: int) -> None:
        """No ETag, no Last-Modified: nothing tells whether the rest belongs to the beginning."""
        self.answer(200, CONTENT, 300_000 if seen == 1 else None)

    def do_hangs(self, seen: int) -> None:
        """300,000 bytes, then silence, for the process that is killed meanwhile; afterwards it works."""
        if seen == 1:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.send_header("ETag", '"v1"')
            self.end_headers()
            self.wfile.write(CONTENT[:300_000])
            self.wfile.flush()
            self.server.stop.wait(20)
            self.close_connection = True
        else:
            self._serve()

    def do_corrupt(self, seen: int) -> None:
        self._serve(content=b"x" + CONTENT[1:] if seen == 1 else CONTENT)

    def do_wrong(self, seen: int) -> None:
        self._serve(content=b"another file")

    def do_toolong(self, seen: int) -> None:
        self.answer(200, CONTENT, len(CONTENT), Content_Length=str(len(CONTENT) + 10))

    def do_redirects(self, seen: int) -> None:
        self.answer(308 if seen == 1 else 302, b"", Location="/good/file.bin")

    def do_404(self, seen: int) -> None:
        self.answer(404, b"no")

    def do_403(self, seen: int) -> None:
        self.answer(403, b"no")

    def do_recovers(self, seen: int) -> None:
        if seen < 3:
            self.answer(500, b"later")
        else:
            self._serve()

    def do_500(self, seen: int) -> None:
        self.answer(503, b"never")

    def do_page(self, seen: int) -> None:
        self.answer(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8")

    def do_otherrange(self, seen: int) -> None:
        """Breaks off, then answers every range with the first bytes, and what has no range with the whole."""
        if self.headers.get("Range") is None:
            self.answer(200, CONTENT, 300_000 if seen == 1 else None, ETag='"v1"')
        else:
            place = f"bytes 0-999/{len(CONTENT)}"
            self.answer(206, CONTENT[:1000], Content_Range=place, ETag='"v1"')

    def do_otherversion(self, seen: int) -> None:
        """Breaks off, then sends the rest of another version, as if nothing had happened."""
        if self.headers.get("Range") is None:
            content, sent, etag = (
                (b"old" * 200_000, 300_000, '"old"') if seen == 1 else (CONTENT, None, '"new"')
            )
            self.answer(200, content, sent, ETag=etag)
        else:
            place = f"bytes 300000-{len(CONTENT) - 1}/{len(CONTENT)}"
            self.answer(206, CONTENT[300_000:], Content_Range=place, ETag='"new"')

    def do_pieces(self, seen: int) -> None:
        """Breaks off, then sends at most 300,000 bytes of what is asked for."""
        wanted = self.headers.get("Range")
        if wanted is None:
            self.answer(200, CONTENT, 300_000, ETag='"v1"')
        else:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            part = CONTENT[start : start + 300_000]
            place = f"bytes {start}-{start + len(part) - 1}/{len(CONTENT)}"
            self.answer(206, part, Content_Range=place, ETag='"v1"')

    def do_toomuch(self, seen: int) -> None:
        """Breaks off, then sends more than the range that it names."""
        if self.headers.get("Range") is None:
            self.answer(200, CONTENT, 300_000, ETag='"v1"')
        else:
            place = f"bytes 300000-{len(CONTENT) - 1}/{len(CONTENT)}"
            self.answer(206, CONTENT[300_000:] + b"more", Content_Range=place, ETag='"v1"')

    def do_onlyparts(self, seen: int) -> None:
        self.answer(206, CONTENT[:1000], Content_Range=f"bytes 0-999/{len(CONTENT)}", ETag='"v1"')

    def do_badrange(self, seen: int) -> None:
        self.answer(206, CONTENT[:1000], Content_Range="bytes */*")

    def do_201(self, seen: int) -> None:
        self.answer(201, b"made")

    def do_202(self, seen: int) -> None:
        self.answer(202, b"come back later")

    def do_203(self, seen: int) -> None:
        self.answer(203, CONTENT + b"with a banner")

    def do_204(self, seen: int) -> None:
        self.answer(204, b"")

    def do_prepares(self, seen: int) -> None:
        if seen < 3:
            self.answer(202, b"come back later")
        else:
            self._serve()

    def do_drips(self, seen: int) -> None:
        """Headers without end, a byte at a time: no byte comes late."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(500):
            if self.server.stop.is_set():
                break
            self.wfile.write(b"X")
            self.wfile.flush()
            time.sleep(0.02)
        self.close_connection = True

    def do_compressed(self, seen: int) -> None:
        self.answer(200, b"x", Content_Encoding="gzip")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.log: list[tuple[str, str | None]] = []
        self.guard = threading.Lock()
        self.stop = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def handle_error(self, *_: object) -> None:
        return None  # clients that are killed are part of the tests


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.stop.set()
        running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LAVIS_OFFLINE", "HF_HUB_OFFLINE", "LAVIS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "BACKOFF_S", 0.001)
    return tmp_path / "cache"


def _left_over(cache: Path) -> list[str]:
    return [p.name for p in cache.rglob("*") if ".part" in p.name]


# ---------------------------------------------------------------- settings
def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAVIS_CACHE", "~/elsewhere")
    assert hub.cache_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("LAVIS_CACHE")
    assert hub.cache_root() == tmp_path / ".cache" / "lavis"


def test_the_longest_mirror_prefix_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_MIRROR", "https://a.b/=http://m/one/, https://a.b/c/=http://m/two/")
    assert hub.mirrored("https://a.b/x.pth") == "http://m/one/x.pth"
    assert hub.mirrored("https://a.b/c/x.pth") == "http://m/two/x.pth"
    assert hub.mirrored("https://other/x.pth") == "https://other/x.pth"
    monkeypatch.setenv("LAVIS_MIRROR", "a.b=c")
    with pytest.raises(ValueError, match=r"LAVIS_MIRROR: 'a\.b=c'"):
        hub.mirrored("https://a.b/x")


def test_equal_base_names_do_not_collide() -> None:
    one, two = hub.place_of("https://a/v1/model.pth"), hub.place_of("https://a/v2/model.pth")
    assert one != two and one.name.startswith("model-") and one.suffix == ".pth"
    assert hub.place_of("https://a/").name.startswith("file-")
    assert hub.place_of("https://a/x.pth", "coco/x.json") == hub.cache_root() / "coco" / "x.json"
    assert hub.place_of("https://a/x.pth", "/data/x.json") == Path("/data/x.json")


# ---------------------------------------------------------------- local paths
def test_a_local_path_is_returned_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(CONTENT)
    assert hub.fetch(file) == file
    assert hub.fetch(str(file), sha256=SHA256.upper(), md5=MD5) == file
    assert hub.fetch(file.as_uri(), sha256=SHA256) == file
    assert hub.fetch(tmp_path) == tmp_path
    with pytest.raises(OSError, match=r"x\.bin is not the expected file: its sha256 is"):
        hub.fetch(file, sha256="0" * 64)


@pytest.mark.parametrize("source", ["no/such.pth", "./no/such", "~/no-such-file", "such", "file:///no/such"])
def test_a_missing_path_is_named(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        hub.fetch(source)


def test_other_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot fetch ftp"):
        hub.fetch("ftp://host/x")


def test_a_file_url_can_be_copied(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(CONTENT)
    got = hub.fetch(file.as_uri(), to="sub/y.bin", sha256=SHA256)
    assert got == cache / "sub" / "y.bin" and got.read_bytes() == CONTENT


# ---------------------------------------------------------------- downloads
def test_a_file_is_downloaded_once_and_recorded(server: Server, cache: Path) -> None:
    url = server.url("good/model.bin")
    path = hub.fetch(url)
    assert path.read_bytes() == CONTENT and path.parent == cache / "downloads"
    assert hub.fetch(url) == path and hub.fetch(url, sha256=SHA256, md5=MD5) == path
    assert len(server.log) == 1 and not _left_over(cache)
    record = json.loads(path.with_name(path.name + ".source.json").read_text())
    assert record["url"] == url and record["size"] == len(CONTENT)
    assert record["digests"] == {"sha256": SHA256, "md5": MD5}


def test_the_place_can_be_chosen(server: Server, cache: Path, tmp_path: Path) -> None:
    assert hub.fetch(server.url("good/a.json"), to="coco/a.json") == cache / "coco" / "a.json"
    assert hub.fetch(server.url("good/a.json"), to=tmp_path / "b.json") == tmp_path / "b.json"


@pytest.mark.parametrize(
    ("path", "requests"),
    [
        ("breaks/x.bin", [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]),
        ("ignores/x.bin", [None, "bytes=300000-"]),
        ("changes/x.bin", [None, "bytes=300000-"]),
        ("unmarked/x.bin", [None, None]),
        ("recovers/x.bin", [None, None, None]),
    ],
)
def test_broken_transfers_are_continued(server: Server, cache: Path, path: str, requests: list) -> None:
    assert hub.fetch(server.url(path)).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.log] == requests
    assert not _left_over(cache)


@pytest.mark.parametrize(
    ("path", "ranges"),
    [
        ("otherrange", [None, "bytes=300000-", None]),
        ("otherversion", [None, "bytes=300000-", None]),
        ("pieces", [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]),
        ("prepares", [None, None, None]),
    ],
)
def test_only_the_part_that_was_asked_for_is_joined(
    server: Server, cache: Path, path: str, ranges: list
) -> None:
    assert hub.fetch(server.url(f"{path}/file.bin")).read_bytes() == CONTENT
    assert [given for _, given in server.log] == ranges and not _left_over(cache)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("onlyparts", "a part where the whole was asked for"),
        ("badrange", "a part where the whole was asked for"),
        ("toomuch", "sends 1048580 bytes and says that they are 1048576"),
        ("201", "HTTP status 201"),
        ("202", "HTTP status 202"),
        ("203", "HTTP status 203"),
        ("204", "HTTP status 204"),
    ],
)
def test_what_is_not_the_file_never_takes_its_place(
    server: Server, cache: Path, path: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the content, nor its digest as what a later download is compared with."""
    place = cache / "place" / "file.bin"
    with pytest.raises(OSError, match=expected) as e:
        hub.fetch(server.url(f"{path}/file.bin"), to=place)
    assert "\n" not in str(e.value) and not place.exists()
    monkeypatch.setattr(Handler, f"do_{path}", Handler.do_good)
    assert hub.fetch(server.url(f"{path}/file.bin"), to=place).read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["201", "203", "204", "onlyparts"])
def test_small_things_come_whole_or_not_at_all(server: Server, path: str) -> None:
    with pytest.raises(OSError, match="HTTP status 20"):
        transfer.read(server.url(f"{path}/x"), 1 << 24, 5.0, 5.0)
    with pytest.raises(transfer.TemporaryError, match="HTTP status 202"):
        transfer.read(server.url("202/x"), 1 << 24, 5.0, 5.0)


def test_headers_that_drip_end_at_the_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(transfer.TemporaryError, match=r"not finished after 0\.3 s"):
        transfer.read(server.url("drips/x"), 1 << 20, timeout_s=5.0, deadline_s=0.3)
    monkeypatch.setattr(transfer, "HEADERS_S", 0.3)
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    with pytest.raises(OSError, match=r"after 2 attempts: not finished after 0\.3 s"):
        hub.fetch(server.url("drips/file.bin"))


def test_a_large_file_may_take_longer_than_its_headers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Handler, seen: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "40")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.02)

    monkeypatch.setattr(Handler, "do_good", slow)
    monkeypatch.setattr(transfer, "HEADERS_S", 0.5)
    assert hub.fetch(server.url("good/file.bin")).read_bytes() == b"x" * 40


def test_a_known_checksum_allows_to_continue_without_marks(server: Server) -> None:
    assert hub.fetch(server.url("unmarked/x.bin"), sha256=SHA256).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.log] == [None, "bytes=300000-"]


@pytest.mark.parametrize("wanted", [{"sha256": SHA256}, {"md5": MD5}])
def test_a_corrupt_transfer_is_repeated(server: Server, wanted: dict) -> None:
    assert hub.fetch(server.url("corrupt/x.bin"), **wanted).read_bytes() == CONTENT
    assert len(server.log) == 2


def test_a_wrong_file_is_refused(server: Server, cache: Path) -> None:
    with pytest.raises(OSError, match=r"not the expected file: its sha256 is .* expected"):
        hub.fetch(server.url("wrong/x.bin"), sha256=SHA256)
    assert not any(p.suffix == ".bin" for p in cache.rglob("*")) and not _left_over(cache)


def test_a_length_that_never_comes_is_an_error(server: Server) -> None:
    with pytest.raises(OSError, match=r"could not be fetched after 6 attempts"):
        hub.fetch(server.url("toolong/x.bin"))


def test_redirects_are_followed(server: Server) -> None:
    assert hub.fetch(server.url("redirects/x.bin")).read_bytes() == CONTENT
    assert hub.fetch(server.url("redirects/x.bin"), to="again.bin").read_bytes() == CONTENT


def test_https_is_never_downgraded() -> None:
    request = transfer.urllib.request.Request("https://host/x")
    with pytest.raises(OSError, match="not encrypted; refused"):
        transfer._Redirects().redirect_request(request, None, 302, "", {}, "http://host/x")
    with pytest.raises(OSError, match="not encrypted; refused"):
        transfer._Redirects().redirect_request(request, None, 302, "", {}, "ftp://host/x")


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("404/x.bin", FileNotFoundError, "404, the file is not there.*LAVIS_MIRROR.*local path"),
        ("403/x.bin", OSError, "403, it refuses access.*LAVIS_MIRROR.*local path"),
        ("500/x.bin", OSError, "after 6 attempts: HTTP status 503"),
        ("page/x.bin", OSError, "a web page instead of the file"),
        ("compressed/x.bin", OSError, "compressed"),
    ],
)
def test_refusals_say_what_to_do(server: Server, cache: Path, path: str, kind: type, expected: str) -> None:
    url = server.url(path)
    with pytest.raises(kind, match=expected) as caught:
        hub.fetch(url)
    assert url in str(caught.value)
    assert not _left_over(cache)


def test_a_dead_host_is_an_error() -> None:
    with pytest.raises(OSError, match=r"could not be fetched after 6 attempts.*proxy"):
        hub.fetch("http://127.0.0.1:9/x.bin")


def test_a_full_disk_is_seen_before(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="free; make room, or set LAVIS_CACHE"):
        hub.fetch(server.url("good/x.bin"))


# ---------------------------------------------------------------- later
def test_a_damaged_file_is_fetched_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    url = server.url("good/x.bin")
    path = hub.fetch(url)
    path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert hub.fetch(url).read_bytes() == CONTENT
    assert "damaged" in caplog.text and len(server.log) == 2


def test_a_file_that_changed_at_its_source_is_refused(server: Server) -> None:
    path = hub.fetch(server.url("good/x.bin"))
    other = hub.place_of(server.url("wrong/x.bin"))
    other.write_bytes(b"damaged")
    record = path.with_name(path.name + ".source.json")
    other.with_name(other.name + ".source.json").write_text(record.read_text())
    with pytest.raises(OSError, match=r"delete .*source\.json to accept"):
        hub.fetch(server.url("wrong/x.bin"))


def test_a_touched_file_is_hashed_not_fetched(server: Server) -> None:
    path = hub.fetch(server.url("good/x.bin"))
    os.utime(path)
    assert hub.fetch(server.url("good/x.bin")) == path and len(server.log) == 1


def test_a_file_put_there_by_hand_is_not_replaced(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "mine.bin").write_bytes(b"mine")
    assert hub.fetch(server.url("good/x.bin"), to="mine.bin").read_bytes() == b"mine"
    with pytest.raises(OSError, match="not the expected file"):
        hub.fetch(server.url("good/x.bin"), to="mine.bin", sha256=SHA256)
    assert (cache / "mine.bin").read_bytes() == b"mine" and not server.log


@pytest.mark.parametrize("name", ["LAVIS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_uses_the_cache_and_names_what_is_missing(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = hub.fetch(server.url("good/x.bin"))
    monkeypatch.setenv(name, "1")
    assert hub.fetch(server.url("good/x.bin")) == path
    missing = server.url("good/y.bin")
    with pytest.raises(OSError, match="forbids the network") as caught:
        hub.fetch(missing)
    assert missing in str(caught.value) and str(hub.place_of(missing)) in str(caught.value)
    path.write_bytes(b"damaged")
    with pytest.raises(OSError, match="is damaged"):
        hub.fetch(server.url("good/x.bin"))
    assert len(server.log) == 1


def test_a_mirror_serves_under_the_official_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    official = "https://official.example/models/x.bin"
    monkeypatch.setenv("LAVIS_MIRROR", f"https://official.example/models/={server.url('good/')}")
    path = hub.fetch(official)
    assert path == hub.place_of(official) and server.log == [("/good/x.bin", None)]


def test_a_folder_can_be_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.bin").write_bytes(CONTENT)
    monkeypatch.setenv("LAVIS_MIRROR", f"https://official.example/={tmp_path.as_uri()}/")
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    assert hub.fetch("https://official.example/x.bin", sha256=SHA256) == tmp_path / "x.bin"


# ---------------------------------------------------------------- processes
def _fetch_in_child(url: str, queue: multiprocessing.Queue) -> None:
    queue.put(str(hub.fetch(url)))


def test_two_processes_download_once(server: Server) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    url = server.url("slow/x.bin")
    children = [context.Process(target=_fetch_in_child, args=(url, queue)) for _ in range(2)]
    for child in children:
        child.start()
    paths = {queue.get(timeout=60) for _ in children}
    for child in children:
        child.join(timeout=60)
        assert child.exitcode == 0
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == CONTENT
    assert len(server.log) == 1


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_killed_download_is_resumed(server: Server) -> None:
    url = server.url("hangs/x.bin")
    place = hub.place_of(url)
    part = place.with_name(place.name + ".part")
    code = f"from lavis.common import hub, transfer; transfer.CHUNK = 1 << 14; hub.fetch({url!r})"
    child = subprocess.Popen([sys.executable, "-c", code])
    # the last few kilobytes may sit in the killed process's buffer
    _until(lambda: part.exists() and part.stat().st_size > 200_000)
    child.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    child.wait(timeout=30)
    assert not place.exists()
    size = part.stat().st_size
    assert hub.fetch(url).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.log] == [None, f"bytes={size}-"]


# ---------------------------------------------------------------- Hugging Face
def test_hub_ids_go_to_huggingface_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    calls: list[tuple] = []
    (tmp_path / "w.safetensors").write_bytes(CONTENT)

    def one(repo: str, file: str, **rest: object) -> str:
        calls.append((repo, file, rest))
        return str(tmp_path / "w.safetensors")

    def whole(repo: str, **rest: object) -> str:
        calls.append((repo, None, rest))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", whole)
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "vocab.txt",
    ]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision: names)
    assert hub.fetch("org/name@v1:sub/w.safetensors", sha256=SHA256) == tmp_path / "w.safetensors"
    assert hub.fetch("org/na.me-1") == tmp_path
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    assert hub.fetch("org/name:w.safetensors") == tmp_path / "w.safetensors"
    assert calls == [
        ("org/name", "sub/w.safetensors", {"revision": "v1", "local_files_only": False}),
        (
            "org/na.me-1",
            None,
            # the same weights once more
            {
                "revision": None,
                "local_files_only": False,
                "ignore_patterns": ["pytorch_model.bin", "tf_model.h5"],
            },
        ),
        ("org/name", "w.safetensors", {"revision": None, "local_files_only": True}),
    ]
    with pytest.raises(OSError, match="not the expected file"):
        hub.fetch("org/name:w.safetensors", sha256="0" * 64)
    with pytest.raises(ValueError, match="leave out to="):
        hub.fetch("org/name", to="x")


def test_hub_errors_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for source in ("no-such-org-1/no-such-name", "no-such-org-1/no-such-name:x.bin"):
        with pytest.raises(OSError, match=r"not in the cache, and LAVIS_OFFLINE") as caught:
            hub.fetch(source)
        assert source in str(caught.value) and "\n" not in str(caught.value)
