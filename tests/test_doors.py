"""Who may use the local web servers, and how much of the disk: real requests to running ones."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lavis.app.door import is_foreign, is_known, names_of
from tests.demo_server import running

EDGE = "edge"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={EDGE}"}


# ------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    ("host", "at", "known"),
    [
        ("127.0.0.1:7860", "127.0.0.1", True), ("localhost", "127.0.0.1", True), ("[::1]:80", "127.0.0.1", True),
        ("evil.example", "127.0.0.1", False), ("evil.example:7860", "0.0.0.0", False), ("", "127.0.0.1", False),
        ("192.168.1.9:7860", "127.0.0.1", False), ("192.168.1.9:7860", "0.0.0.0", True),
        ("[fe80::1]:7860", "::", True), ("127.0.0.1.evil.example", "0.0.0.0", False),
        (socket.gethostname(), "0.0.0.0", True), ("localhost.evil.example", "127.0.0.1", False),
        ("Demo.Example", "0.0.0.0", True), ("demo.example:443", "127.0.0.1", True),
    ],
)  # fmt: skip
def test_names(host: str, at: str, known: bool) -> None:
    assert is_known(host, names_of(at, ["demo.example"])) is known


HOST = "127.0.0.1:7860"


@pytest.mark.parametrize(
    ("method", "origin", "site", "mode", "foreign"),
    [
        ("POST", None, None, None, False),  # a program
        ("POST", f"http://{HOST}", "same-origin", "cors", False),
        ("POST", f"http://{HOST}", None, None, False),
        ("POST", "http://evil.example", "cross-site", "no-cors", True),
        ("POST", "http://evil.example", None, None, True),
        ("POST", "http://127.0.0.1:8000", "same-site", "no-cors", True),  # another port
        ("POST", "http://localhost:7860", "cross-site", "cors", True),
        ("POST", "null", "cross-site", "cors", True),
        ("POST", "null", None, None, True),
        ("POST", "", None, None, True),
        ("POST", f"http://{HOST}.evil.example", None, None, True),
        ("POST", f"http://evil.example@{HOST}", None, None, True),
        ("POST", f"http://evil.example/{HOST}", None, None, True),
        ("POST", None, "cross-site", "navigate", True),  # a form
        ("GET", None, "none", "navigate", False),
        ("GET", None, "cross-site", "navigate", False),  # a link
        ("GET", None, "cross-site", "no-cors", True),  # <img>
        ("GET", None, "same-site", "no-cors", True),
        ("GET", "http://evil.example", "cross-site", "cors", True),
    ],
)
def test_origins(method: str, origin: str | None, site: str | None, mode: str | None, foreign: bool) -> None:
    assert is_foreign(method, HOST, origin, site, mode) is foreign


def test_links_from_elsewhere_do_not_start_exports() -> None:
    assert is_foreign("GET", HOST, None, "cross-site", "navigate", reads_much=True)
    assert not is_foreign("GET", HOST, None, "same-origin", "navigate", reads_much=True)


# ------------------------------------------------------------------------------------ the demo


@contextmanager
def _demo(folder: Path, *options: str) -> Iterator[Any]:
    with running(folder, *options) as server:
        server.at = server.url.removeprefix("http://")
        yield server


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("gradio")
    with _demo(tmp_path_factory.mktemp("demo"), "--max-upload-mb", "1", "--max-disk-mb", "6") as server:
        yield server


def _ask(
    at: str, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(at, timeout=30)
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    try:
        connection.request(method, path, body, named, encode_chunked=not isinstance(body, bytes | None))
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _form(*contents: bytes) -> bytes:
    head = f'--{EDGE}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    return b"".join(head + content + b"\r\n" for content in contents) + f"--{EDGE}--\r\n".encode()


def _bytes_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _send(demo: Any, *contents: bytes, **headers: str) -> tuple[int, bytes]:
    return _ask(demo.at, "POST", "/gradio_api/upload", _form(*contents), **MULTIPART, **headers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
        {"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site"},
    ],
)  # fmt: skip
def test_other_sites_send_nothing(demo: Any, headers: dict[str, str]) -> None:
    before = _bytes_of(demo.tmp)
    assert _send(demo, bytes(200_000), **headers)[0] == 403
    for path in ("/gradio_api/queue/join", "/gradio_api/call/captioning", "/gradio_api/run/captioning",
                 "/gradio_api/reset", "/gradio_api/cancel", "/gradio_api/process_recording"):  # fmt: skip
        body = json.dumps({"data": []}).encode()
        assert _ask(demo.at, "POST", path, body, Content_Type="text/plain", **headers)[0] == 403
    assert _bytes_of(demo.tmp) == before


@pytest.mark.slow
def test_a_name_that_was_rebound_is_refused(demo: Any) -> None:
    name = f"evil.example:{demo.at.partition(':')[2]}"
    assert _send(demo, b"x", Host=name, Origin=f"http://{name}", Sec_Fetch_Site="same-origin")[0] == 400
    assert _ask(demo.at, "GET", "/config", Host=name)[0] == 400


@pytest.mark.slow
def test_its_own_pages_and_programs_may_send(demo: Any) -> None:
    own = {"Origin": f"http://{demo.at}", "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"}
    for headers in (own, {}):
        status, body = _send(demo, b"x" * 1000, **headers)
        assert status == 200 and Path(json.loads(body)[0]).stat().st_size == 1000
    assert _ask(demo.at, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


@pytest.mark.slow
def test_uploads_never_fill_the_disk(demo: Any) -> None:
    last = ""
    for i in range(30):
        status, body = _send(demo, os.urandom(900_000))
        assert status == 200, (i, body)
        last = json.loads(body)[0]
        assert _bytes_of(demo.tmp) <= 6_000_000
    assert Path(last).is_file()  # the oldest have gone
    assert _send(demo, bytes(1_200_000))[0] == 413  # of one file
    assert _send(demo, *[os.urandom(900_000)] * 8)[0] == 413  # of a request
    assert _bytes_of(demo.tmp) <= 6_000_000

    def endless() -> Iterator[bytes]:
        yield _form(b"")[: -len(f"\r\n--{EDGE}--\r\n")]
        for _ in range(400):
            yield bytes(100_000)

    try:
        status, _ = _ask(demo.at, "POST", "/gradio_api/upload", endless(), **MULTIPART)
        assert status == 413
    except OSError:
        pass  # the server closed the connection before all was sent
    assert _bytes_of(demo.tmp) <= 6_000_000 + 1_000_000
    assert _send(demo, os.urandom(900_000))[0] == 200
    assert _bytes_of(demo.tmp) <= 6_000_000


@pytest.mark.slow
def test_many_uploads_at_once_stay_below_the_limit(demo: Any) -> None:
    codes: list[int] = []
    largest = [0]
    threads = [
        threading.Thread(target=lambda: codes.append(_send(demo, os.urandom(950_000))[0])) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        largest.append(_bytes_of(demo.tmp))
        time.sleep(0.01)
    assert set(codes) <= {200, 503} and 200 in codes and len(codes) == 20
    assert max(largest) <= 6_000_000


# ------------------------------------------------------------------------------------ the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Callable[..., tuple[int, bytes]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "lavis", "browse", "shapes_caption", "--split", "test", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        at = process.stdout.readline().strip().removeprefix("http://").rstrip("/")
        yield lambda path, **headers: _ask(at, "GET", path, **headers)
    finally:
        process.kill()
        process.wait()


def test_other_sites_read_nothing_and_start_no_export(browser: Callable[..., tuple[int, bytes]]) -> None:
    export = "/split/test/export.jsonl?n=1"
    assert browser(export)[0] == 200
    assert browser(export, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="navigate")[0] == 200
    for path in (export, "/split/test/0/picture/0"):
        assert browser(path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
        assert browser(path, Origin="http://evil.example")[0] == 403
        assert browser(path, Host="evil.example")[0] == 403
    assert browser(export, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 403
    assert browser("/split/test/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
