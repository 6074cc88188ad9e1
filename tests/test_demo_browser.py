"""The demo in a real browser: every page used with good and bad input, at two widths, light and dark.

Needs Debian's `chromium` and Playwright; without a browser the tests are skipped, in CI they fail.
"""

import os
import re
import shutil
from contextlib import contextmanager

import pytest
from PIL import Image

from tests.demo_server import running
from tests.helpers import blip2_reference as reference

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("there is no chromium", allow_module_level=True)

PAGES = {  # name: what a good result holds
    "captioning": "purple ring",
    "answering": "red",
    "chat": "red",
    "search": "drawing_00.png",
    "localization": "triangle",
    "classification": "green square",
    "matching": "a purple ring above a red triangle and a green square",
    "video_matching": "a yellow heart grows",
    "video_captioning": "pink heart",
    "video_answering": "yes",
}
SIZES = {"wide": (1280, "light"), "narrow": (390, "dark")}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with running(tmp_path_factory.mktemp("demo"), "--max-upload-mb", "1") as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched(chromium, demo, size, expected=()):
    """A page that must not complain, and must not ask any other host; `expected`: parts of allowed complaints."""
    width, scheme = SIZES[size]
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    context.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    context.on("weberror", lambda e: said.append(str(e.error)))
    context.on("request", lambda r: asked.append(r.url))
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert [s for s in said if not any(part in s for part in expected)] == []
    assert (
        asked and [u for u in asked if not u.startswith((demo.url + "/", "data:", "blob:" + demo.url))] == []
    )
    assert wide == 0, f"{wide} pixels stick out"


def go(page, demo, name):
    page.goto(f"{demo.url}/{name}")
    page.wait_for_selector(".lv-result, .lv-cards")
    page.wait_for_load_state("networkidle")


def press(page, button=None):
    """Press the page's button; the new message."""
    page.evaluate("document.querySelectorAll('.lv-message').forEach(e => e.remove())")
    (button or page.locator("button.primary")).click()
    return page.wait_for_selector(".lv-message").inner_text()


SHOWN = (
    "document.querySelector(':is(.image-frame img, .image-container img, video):not(button *)')?.src ?? ''"
)


def choose(page, path=None, example=None):
    """Put a file of one's own, or another example, in place of what is in the first input, and wait for it."""
    before = page.evaluate(SHOWN)
    if example is not None:
        page.get_by_label(f"Example {example}").click()
    else:
        if before:
            clear(page)
        page.locator("input[type=file]").first.set_input_files(path)
    page.wait_for_function(f"before => ({SHOWN}) && ({SHOWN}) !== before", arg=before)


def clear(page):
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.wait_for_function(f"!({SHOWN})")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_gives_its_result(chromium, demo, name, size):
    with watched(chromium, demo, size) as page:
        go(page, demo, name)
        assert page.locator("h1").count() == 1
        assert page.locator('.lv-nav [aria-current="page"]').get_attribute("href") == f"/{name}"
        assert " s with " in press(page)
        assert PAGES[name] in page.locator(".lv-result").inner_text()
        unnamed = page.evaluate(
            "[...document.querySelectorAll('button, input, textarea, select, a')].filter(e => e.offsetParent"
            " && !(e.ariaLabel || e.labels?.length || e.innerText.trim() || e.title)).map(e => e.outerHTML)"
        )
        assert unnamed == []


ROUNDS = ":is(.lv-asked, .lv-said) p"


def test_a_conversation_in_the_browser(chromium, tmp_path):
    described = reference.manifest("t5_instruct")
    reference.build(described, reference.write(described, tmp_path / "model.pth")).save_pretrained(
        tmp_path / "saved"
    )
    with (
        running(tmp_path, "--model", str(tmp_path / "saved")) as demo,
        watched(chromium, demo, "wide") as page,
        watched(chromium, demo, "narrow") as other,
    ):
        for visitor in (page, other):
            visitor.set_default_timeout(120_000)  # transformers is imported, too
            go(visitor, demo, "chat")

        def said(visitor):
            return visitor.locator(ROUNDS).all_inner_texts()

        def send(visitor, text):
            visitor.get_by_label("Message").fill(text)
            return press(visitor)

        assert " s with " in send(page, "what is it?")
        assert page.get_by_label("Message").input_value() == ""
        assert " s with " in send(page, "is it <b>red</b>?")
        assert said(page)[::2] == ["what is it?", "is it <b>red</b>?"] and len(said(page)) == 4
        assert " s with " in send(other, "which color?")
        assert said(other)[::2] == ["which color?"]  # nobody reads what another said
        before = said(page)
        answers = set()
        for _ in range(4):
            assert " s with " in press(page, page.get_by_role("button", name="Retry"))
            assert said(page)[:3] == before[:3]
            answers.add(said(page)[3])
        assert len(answers) > 1
        page.get_by_role("button", name="Stop").click()  # nothing is written
        assert "write something first" in press(page)
        assert said(page)[:3] == before[:3]  # an error takes nothing away
        page.get_by_role("button", name="Clear").click()
        page.wait_for_selector(".lv-empty")
        assert "there is no answer yet" in press(page, page.get_by_role("button", name="Retry"))
        assert " s with " in send(page, "and now?") and said(page)[::2] == ["and now?"]
        choose(page, example=2)  # about another picture
        page.wait_for_selector(".lv-empty")
        assert len(said(other)) == 2


def test_reading_a_gallery_shows_how_far_it_is_beside_the_button(chromium, tmp_path):
    (tmp_path / "gallery").mkdir()
    for number in range(1200):
        Image.new("RGB", (64, 64), (number % 256, number // 256, 0)).save(tmp_path / f"gallery/{number}.png")
    with (
        running(tmp_path, "--gallery", str(tmp_path / "gallery")) as demo,
        watched(chromium, demo, "wide") as page,
    ):
        page.set_viewport_size({"width": 1280, "height": 700})
        go(page, demo, "search")
        page.locator("button.primary").click()
        progress = page.locator(".progress-level-inner")
        progress.first.wait_for()
        # one, not one for each output
        assert re.search(r"reading the gallery, once: [\d,]+ of 1,200", progress.inner_text())
        page.wait_for_function("scrollY > 100")  # the button lies below, and the results stay in view
        assert progress.bounding_box()["y"] > 0
        assert " s with " in page.wait_for_selector(".lv-message").inner_text()
        assert page.locator(".lv-result img").count() == 6


@pytest.mark.parametrize("size", SIZES)
def test_the_start_page_leads_to_every_page(chromium, demo, size):
    with watched(chromium, demo, size) as page:
        go(page, demo, "")
        for title in ("Captioning", "Video questions"):
            page.locator(".lv-cards a", has_text=title).first.click()
            page.wait_for_selector(".lv-result")
            assert page.locator("h1").inner_text() == title
            page.go_back()
            page.wait_for_selector(".lv-cards")
        assert page.locator(".lv-cards a").count() == page.locator(".lv-nav a").count() >= 8


def test_an_own_picture_and_another_example(chromium, demo, tmp_path):
    picture = tmp_path / "mine.png"
    Image.new("RGB", (300, 200), "white").save(picture)
    with watched(chromium, demo, "wide") as page:
        go(page, demo, "classification")
        choose(page, example=2)
        press(page)
        assert page.locator(".lv-bars li").first.inner_text().startswith("red circle")
        page.get_by_label("Labels").fill("a\nb\nc")
        choose(page, picture)
        press(page)
        assert page.locator(".lv-bars li").count() == 3


def test_bad_inputs_are_explained_in_the_page(chromium, demo, tmp_path):
    huge, large, fake = tmp_path / "huge.png", tmp_path / "large.png", tmp_path / "fake.png"
    Image.new("1", (9000, 9000)).save(huge)
    large.write_bytes(bytes(1_500_000))
    fake.write_bytes(b"this is text")
    # what the browser itself says of a picture that it can't show, and of an upload that is refused
    with watched(chromium, demo, "narrow", ("Failed to load resource", "Response")) as page:
        go(page, demo, "answering")
        page.get_by_label("Question").fill("   ")
        assert "write something first" in press(page)
        assert page.locator(".lv-error").get_attribute("role") == "alert"
        page.get_by_label("Question").fill("what color is the triangle?")
        clear(page)
        assert "choose a picture first" in press(page)
        choose(page, fake)
        assert "no picture that can be read" in press(page)
        choose(page, huge)
        assert "81 megapixels, at most 40" in press(page)
        clear(page)
        page.locator("input[type=file]").first.set_input_files(large)
        page.wait_for_selector("text=/maximum allowed size/i")
        assert "choose a picture first" in press(page)


def test_clips_of_ones_own(chromium, demo, tmp_path):
    from lavis.app.demo.page import EXAMPLES

    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"#EXTM3U\nfile:///etc/passwd\n")
    good = tmp_path / "good.webm"
    shutil.copyfile(EXAMPLES / "clip_2.webm", good)
    with watched(chromium, demo, "wide", ("ERR_", "Failed to load resource")) as page:
        go(page, demo, "video_matching")
        clear(page)
        assert "choose a clip first" in press(page)
        choose(page, bad)
        assert "no clip that can be read" in press(page)
        choose(page, good)
        press(page)
        assert page.locator(".lv-bars li").first.inner_text().startswith("a yellow square grows")


def test_models_that_are_not_here_are_marked_and_say_so(chromium, demo):
    with watched(chromium, demo, "wide") as page:
        go(page, demo, "captioning")
        page.get_by_label("Model").click()
        page.get_by_role("option", name="blip_caption/base_coco (not here)").click()
        page.wait_for_selector("text=Its weights are not on this machine")
        assert "The weights of blip_caption/base_coco are not on this machine" in press(page)
        page.get_by_label("Model").click()
        page.get_by_role("option", name="blip_caption/tiny_shapes").click()
        page.wait_for_selector("text=This is a small model for demonstration")
        assert "with blip_caption/tiny_shapes" in press(page)


def test_words_are_chosen_by_mouse_and_by_keyboard(chromium, demo):
    with watched(chromium, demo, "wide") as page:
        go(page, demo, "localization")
        press(page)
        layers = page.locator(".lv-layer:visible img")
        last, picture = page.locator(".lv-chip").last.bounding_box(), layers.bounding_box()
        assert last["y"] + last["height"] <= picture["y"], "words lie over the picture"
        seen = [layers.get_attribute("alt")]
        page.get_by_role("radio", name="triangle").click()
        seen.append(layers.get_attribute("alt"))
        page.keyboard.press("ArrowRight")
        seen.append(layers.get_attribute("alt"))
        assert seen == ["where “all words” is seen", "where “triangle” is seen", "where “and” is seen"]


def test_everything_is_reached_by_keyboard_in_order(chromium, demo):
    with watched(chromium, demo, "wide") as page:
        go(page, demo, "answering")
        page.evaluate("document.querySelectorAll('.lv-message').forEach(e => e.remove())")
        names = []
        for _ in range(40):
            page.keyboard.press("Tab")
            name, outline = page.evaluate(
                "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
                " return [e.ariaLabel || e.labels?.[0]?.innerText || e.innerText, parseFloat(s.outlineWidth)] })()"
            )
            names.append(name.strip().split("\n")[0])
            assert outline >= 2, f"{names[-1]} has the focus and does not show it"
            if names[-1] == "Ask":
                break
        wanted = ["LAVIS", "Captioning", "Model", "Example 1", "Question", "Answers to choose from", "Ask"]
        assert [name for name in names if name in wanted] == wanted
        page.keyboard.press("Enter")
        assert " s with " in page.wait_for_selector(".lv-message").inner_text()


def test_nothing_that_a_visitor_writes_is_executed(chromium, demo):
    evil = '<img src=x onerror="document.title=\'evil\'"><script>document.title="evil"</script>'
    with watched(chromium, demo, "wide") as page:
        go(page, demo, "matching")
        page.get_by_label("Sentences").fill(evil)
        press(page)
        assert evil in page.locator(".lv-bars").inner_text()
        assert page.title() != "evil"
