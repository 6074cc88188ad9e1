"""The demo's real server over HTTP: what it serves, what it takes, what it leaves behind."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
from PIL import Image

from tests.demo_server import running

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow

PLUGIN = """
from lavis.app.demo.page import Bars, Page, Row, TextInput
from lavis.common.registry import registry

@registry.register_page("shout")
class Shout(Page):
    title = "Shout"
    inputs = (TextInput("text", "Text"),)
    outputs = (Bars("said", "Said"),)

    def run(self, loaded, text):
        import socket
        if text == "connect":
            socket.create_connection(("192.0.2.1", 80), timeout=5)
        return [Row(text.upper())]
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "shouting.py").write_text(PLUGIN)
    (folder / "secret.txt").write_text("secret")
    with running(folder, "--max-upload-mb", "1", before=("--import", "shouting")) as server:
        yield server


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as e:
        return e.code, e.headers, e.read()


def post(url, body, kind="application/json"):
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def upload(demo, name, content):
    edge = uuid.uuid4().hex
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    return post(f"{demo.url}/gradio_api/upload", body, f"multipart/form-data; boundary={edge}")


def call(demo, page, *values):
    """A page's reply, in the way of Gradio's clients: an event, then its stream."""
    status, body = post(f"{demo.url}/gradio_api/call/{page}", json.dumps({"data": values}).encode())
    assert status == 200, body
    _, _, stream = get(f"{demo.url}/gradio_api/call/{page}/{json.loads(body)['event_id']}")
    event, data = stream.decode().strip().split("\n")[-2:]
    if event == "event: error":
        return [f"refused: {data}"]
    assert event == "event: complete", stream
    return json.loads(data.removeprefix("data: "))


def files_of(demo):
    return sorted(p for p in demo.tmp.rglob("*") if p.is_file())


def png(size=(16, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_pages_have_addresses_and_name_no_other_host(demo):
    for path in ("/", "/captioning", "/answering", "/search", "/localization", "/shout"):
        status, headers, body = get(demo.url + path)
        assert status == 200 and "default-src 'self'" in headers["Content-Security-Policy"]
        text = body.decode()
        for tag in ("<script", "<link"):
            for part in text.split(tag)[1:]:
                assert "http" not in part.split(">")[0], part[:200]


def test_only_uploads_are_served(demo):
    for path in (
        "/etc/passwd", "//etc/passwd", "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd",
        str(demo.tmp.parent / "secret.txt"), "secret.txt", __file__, "file:///etc/passwd", "http://192.0.2.1/x",
    ):  # fmt: skip
        for route in (
            "/gradio_api/file=",
            "/file=",
            "/gradio_api/file/",
            "/static/",
            "/assets/",
            "/gradio_api/proxy=",
        ):
            status, _, body = get(f"{demo.url}{route}{path}")
            assert status >= 400 or not any(secret in body for secret in (b"root:", b"secret", b"pytest"))
            if route.endswith("=") and not path.startswith("http"):
                assert status >= 400, (route, path, status)
    status, body = upload(demo, "a.png", png())
    (path,) = json.loads(body)
    assert status == 200 and Path(path).is_relative_to(demo.tmp)
    assert get(f"{demo.url}/gradio_api/file={path}")[0] == 200


def test_paths_of_other_files_are_not_opened(demo):
    picture = demo.tmp.parent / "outside.png"
    picture.write_bytes(png())
    before = files_of(demo)
    for path in (str(picture), "/etc/passwd", "http://192.0.2.1/a.png"):
        for value in ({"path": path}, {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}):
            said = call(
                demo, "captioning", "blip_caption/tiny_shapes", value, "Beam search", 1, 1, 0.9, 0, 20, ""
            )
            assert "no file that was uploaded here" in said[0] or said[0].startswith("refused"), said
    assert files_of(demo) == before  # none was copied to where it would be served from


def test_an_upload_is_captioned_and_a_bad_one_explained(demo):
    def ask(content, name="a.png"):
        (path,) = json.loads(upload(demo, name, content)[1])
        settings = ("blip_caption/tiny_shapes", {"path": path}, "Beam search", 2, 3, 0.9, 0, 20, "")
        return call(demo, "captioning", *settings)

    good = ask(png((64, 64)))
    assert "with blip_caption/tiny_shapes" in good[0] and good[1].count("<li>") == 2
    assert "no picture that can be read" in ask(b"text", "a.txt")[0]
    big = io.BytesIO()
    Image.new("1", (9000, 9000)).save(big, "PNG")
    assert "81 megapixels, at most 40" in ask(big.getvalue())[0]
    assert upload(demo, "b.png", bytes(1_200_000))[0] == 413
    other = call(demo, "captioning", "/etc", {"path": "x"}, "Beam search", 1, 1, 0.9, 0, 20, "")
    assert "choose one of the list" in other[0]


def test_weights_that_are_not_here_are_one_sentence(demo):
    before = demo.said()
    (path,) = json.loads(upload(demo, "a.png", png())[1])
    said = call(
        demo, "captioning", "blip_caption/base_coco", {"path": path}, "Beam search", 1, 1, 0.9, 0, 20, ""
    )
    assert "The weights of blip_caption/base_coco are not on this machine" in said[0]
    assert "Traceback" not in demo.said().removeprefix(before)


def test_uploaded_programs_are_not_shown_as_pages(demo):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    for name, content in (("a.svg", svg), ("a.html", b"<script>alert(1)</script>"), ("a.js", b"alert(1)")):
        (path,) = json.loads(upload(demo, name, content)[1])
        value = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        call(demo, "captioning", "blip_caption/tiny_shapes", value, "Beam search", 1, 1, 0.9, 0, 20, "")
        _, headers, _ = get(f"{demo.url}/gradio_api/file={path}")
        assert "attachment" in headers.get("Content-Disposition", ""), (name, headers.items())
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_of_a_file_outside_works_and_may_not_connect(demo):
    assert "HEY" in call(demo, "shout", "hey")[1]
    assert "makes no connections to other machines" in call(demo, "shout", "connect")[0]


def test_requests_under_other_names_are_refused(demo):
    assert get(demo.url + "/", Host="evil.example")[0] == 400
    assert get(demo.url + "/config", Host="evil.example")[0] == 400


def test_many_visitors_at_once_all_get_their_answer(demo):
    (path,) = json.loads(upload(demo, "a.png", png((64, 64)))[1])
    replies = []

    def ask():
        replies.append(
            call(
                demo,
                "captioning",
                "blip_caption/tiny_shapes",
                {"path": path},
                "Beam search",
                1,
                3,
                0.9,
                0,
                30,
                "",
            )
        )

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == 12 and len({reply[1] for reply in replies}) == 1
    assert any("in one batch" in reply[0] for reply in replies)


def test_nothing_stays_after_the_end(tmp_path):
    with running(tmp_path) as server:
        assert upload(server, "a.png", png())[0] == 200
        assert any(server.tmp.iterdir())
        server.process.send_signal(signal.SIGINT)
        server.process.wait(30)
    assert server.process.returncode in (0, 130), server.said()
    assert list(server.tmp.iterdir()) == [] and list(server.home.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "tmp"]
    assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--share"], "No such option: --share"),
        (["--gallery", "nowhere"], "there is no such folder"),
        (["--model", "nothing/here"], "there is no model named 'nothing'"),
        (["--model", "gpt_dialogue/tiny"], "no page of the demo can use it"),
        (["--max-models", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_options_are_one_line(options, says, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lavis", "demo", *options],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_one_line(demo, tmp_path):
    port = demo.url.rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "lavis", "demo", "--port", port], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and f"port {port}" in done.stderr
