"""The browser in a real web browser: keys, scripts in captions, clips, nothing from elsewhere, no complaint."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis.app.browser.collection import open_collection
from lavis.app.browser.server import Server
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes.clip_layouts import write_clip

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (apt-get install chromium)")
ATTACK = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("data")
    for i in range(60):
        if i != 5:
            Image.new("RGB", (120 + i, 90), (4 * i, 120, 90)).save(root / f"{i}.png")
    texts = [f"picture number {i} of a {'red' if i % 2 else 'blue'} thing" for i in range(60)]
    texts[0] = ATTACK
    rows = [{"image": f"{i}.png", "question": t, "answer": ["yes", "no"][i % 2]} for i, t in enumerate(texts)]
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_CACHE", str(root / "cache"))
        server = Server(open_collection("own", {"train": str(root / "t.jsonl"), "val_fraction": 0}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.address.rstrip("/")
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on(
        "request", lambda r: None if r.url.startswith(address) else complaints.append(f"asked for {r.url}")
    )
    yield page
    context.close()
    assert not complaints


def test_scripts_in_texts_are_text(page: Any, address: str) -> None:
    for path in ("/split/train/", "/split/train/0", "/split/train/?q=document", "/split/train/statistics"):
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        assert page.title() != "taken"
    page.goto(address + "/split/train/0")
    assert page.get_by_text(ATTACK).count() >= 1


def test_keys(page: Any, address: str) -> None:
    page.goto(address)
    assert page.url.endswith("/split/train/")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**page=2")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(lambda url: "page" not in url)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("red")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=red*")
    assert "answer=" not in page.url and page.locator("mark").count() >= 24
    assert page.get_by_role("status").inner_text() == "1 to 24 of 30 records, 60 in all"
    page.keyboard.press("Enter")
    page.wait_for_url("**/split/train/1?*")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/split/train/3?*")
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "/split/train/?q=red" in url)
    page.go_back()
    page.go_back()
    assert page.locator("h1").first.inner_text() == "Record #1"


def test_it_works_without_scripts(chromium: Any, address: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    page.get_by_label("search").fill("blue")
    page.get_by_label("answer or label").fill("yes")
    page.get_by_role("button", name="Search").click()
    assert "of 29 records" in page.get_by_role("status").inner_text()
    page.get_by_role("link", name="next →").first.click()
    page.get_by_label("go to #place or id").fill("#7")
    page.get_by_role("button", name="Go", exact=True).first.click()
    assert page.url.endswith("/split/train/7")
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_and_shows_its_pictures(chromium: Any, address: str, width: int, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    for path in (
        "/split/train/",
        "/split/train/5",
        "/split/train/statistics",
        "/split/train/export",
        "/card",
    ):
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        shown = "Array.from(document.images).filter(i => i.loading != 'lazy').every(i => i.naturalWidth > 0)"
        assert page.evaluate(shown), path
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        unnamed = page.locator("input:not([type=hidden]), select").evaluate_all(
            "fields => fields.filter(f => !f.labels.length).length"
        )
        assert unnamed == 0
    context.close()


def test_clips_play(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    data = load_dataset("shapes_video_caption", n_val=1, frames=16)["val"]
    write_clip(data.clip(data.records[0]), tmp_path / "c.webm")
    (tmp_path / "t.jsonl").write_text(json.dumps({"video": "c.webm", "text": "a clip"}))
    server = Server(open_collection("own", {"val": str(tmp_path / "t.jsonl")}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        page = chromium.new_page()
        page.goto(server.address + "split/val/0")
        page.locator("video").evaluate("v => v.play()")
        for _ in range(200):  # the page's policy forbids what Playwright would wait with
            if page.locator("video").evaluate("v => v.currentTime") > 0.3:
                break
            page.wait_for_timeout(50)
        else:
            pytest.fail("the clip does not play")
        assert page.locator("video").evaluate("v => [v.videoWidth, v.videoHeight]") == [64, 64]
        page.close()
    finally:
        server.shutdown()
        server.server_close()
