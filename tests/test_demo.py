"""The web demo without a browser: pages' functions, checks of inputs, batching, the models that are kept."""

import importlib.util
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lavis.app.demo import models, privacy, uploads
from lavis.app.demo.calls import Caller
from lavis.app.demo.page import (
    EXAMPLES,
    Bars,
    ChoiceInput,
    Layers,
    LinesInput,
    NumberInput,
    Page,
    PictureInput,
    Pictures,
    Row,
    Settings,
    Shown,
    TextInput,
)
from lavis.common.registry import registry
from lavis.datasets.shapes import judge_caption

TRUE = "a purple ring above a red triangle and a green square"  # of drawing_00
THINGS = {("purple", "ring"), ("red", "triangle"), ("green", "square")}
ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("draw_examples", ROOT / "scripts" / "draw_examples.py")
draw_examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(draw_examples)


@pytest.fixture
def limits(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    return uploads.Limits(folder, megabytes=1, megapixels=2)


@pytest.fixture(scope="module")
def pool():
    from lavis.inference import load

    return models.Pool(8, lambda spec: load(spec, device="cpu", precision="fp32"))


def page(name, work, **settings):
    return registry.get_page_class(name)(Settings(work, **settings))


def example(name):
    return Image.open(EXAMPLES / name).convert("RGB")


def scenes():
    """The scenes that the shipped drawings show, by file name."""
    return dict(draw_examples.scenes())


# ------------------------------------------------------------------------------------------ examples


def test_shipped_drawings_are_our_own_and_small():
    drawn = {name: np.asarray(picture) for name, picture in draw_examples.drawings()}
    shipped = {p.name: np.asarray(Image.open(p).convert("RGB")) for p in EXAMPLES.glob("*.png")}
    assert shipped.keys() == drawn.keys()
    assert all((shipped[name] == drawn[name]).all() for name in drawn)
    assert sum(p.stat().st_size for p in EXAMPLES.iterdir() if p.is_file()) < 150_000


def test_every_page_names_examples_that_are_there(tmp_path):
    for name in registry.list_pages():
        assert all(path.is_file() for path in registry.get_page_class(name).examples), name


# ------------------------------------------------------------------------------------------ pages


def test_captions_of_the_drawings_are_true(pool, tmp_path):
    by_name = scenes()
    names = sorted(n for n in by_name if n.startswith("drawing"))[:12]
    with pool.use("blip_caption/tiny_shapes") as loaded:
        found = page("captioning", tmp_path).run(loaded, [example(n) for n in names], captions=2)
    assert [len(rows) for rows in found] == [2] * len(names)
    assert all(rows[0].share >= rows[1].share > 0 for rows in found)
    true = [judge_caption(rows[0].text, by_name[n]).true for n, rows in zip(names, found)]
    assert sum(true) >= 9, list(zip(names, (rows[0].text for rows in found), true))


def test_nucleus_sampling_repeats_with_its_seed(pool, tmp_path):
    run = page("captioning", tmp_path).run
    with pool.use("blip_caption/tiny_shapes") as loaded:
        first, again, other = (
            run(loaded, [example("drawing_03.png")], "Nucleus sampling", captions=4, seed=seed)
            for seed in (1, 1, 2)
        )
    assert first == again != other


def test_answers_are_written_or_chosen(pool, tmp_path):
    run = page("answering", tmp_path).run
    pictures = [example("single_1.png"), example("single_2.png")]
    questions = ["what color is the shape?", "what color is the shape?"]
    with pool.use("blip_vqa/tiny_easy_vqa") as loaded:
        written = run(loaded, pictures, questions)
        chosen = run(loaded, pictures, questions, ("red", "yellow"))
    assert [rows[0].text for rows in chosen] == ["red", "yellow"]
    for rows in written + chosen:
        assert len(rows) == 1 and 0 < rows[0].share <= 1


def test_single_drawings_get_their_label(pool, tmp_path):
    labels = tuple(f"{color} {shape}" for color, shape in draw_examples.SINGLES)
    run = page("classification", tmp_path).run
    for spec in ("blip_feature_extractor/tiny_shapes", "albef_feature_extractor/tiny_shapes"):
        with pool.use(spec) as loaded:
            for number, label in enumerate(labels):
                rows = run(loaded, example(f"single_{number}.png"), labels)
                assert rows[0].text == label, (spec, rows)
                assert sum(row.share for row in rows) == pytest.approx(1, abs=1e-5)
    with pool.use(spec) as loaded, pytest.raises(ValueError, match="where the label goes"):
        run(loaded, example("single_0.png"), labels, "no place")


def test_a_fitting_sentence_matches_best(pool, tmp_path):
    sentences = ("a yellow star and a pink heart", TRUE)
    for spec in ("blip_image_text_matching/tiny_shapes", "albef_retrieval/tiny_shapes"):
        with pool.use(spec) as loaded:
            rows = page("matching", tmp_path).run(loaded, example("drawing_00.png"), sentences)
        assert rows[0].text == TRUE and rows[0].share > 0.5 > rows[1].share, (spec, rows)
        assert "cosine" in rows[0].note


def test_search_finds_what_the_text_says(pool, tmp_path):
    by_name = scenes()
    search = page("search", tmp_path)
    with pool.use("blip_image_text_matching/tiny_shapes") as loaded:
        found = search.run(loaded, text=TRUE, count=3)
        alike = search.run(loaded, picture=example("drawing_05.png"), count=1)
        both = search.run(loaded, text=TRUE, picture=example("drawing_05.png"), count=24)
        with pytest.raises(ValueError, match="nothing to look for"):
            search.run(loaded)
    best = by_name[found[0].title]["objects"]
    assert {(o["color"], o["shape"]) for o in best} == THINGS
    assert "match" in found[0].note and len(found) == 3
    assert alike[0].title == "drawing_05.png" and "match" not in alike[0].note
    assert len(both) == 24


def test_search_in_a_folder_of_ones_own_and_in_an_index(pool, tmp_path):
    from lavis.inference import Encoder, Index

    gallery = tmp_path / "gallery"
    (gallery / "inside").mkdir(parents=True)
    for name in ("single_0.png", "single_1.png"):
        example(name).save(gallery / "inside" / name)
    (gallery / "broken.png").write_bytes(b"no picture")
    spec = "blip_image_text_matching/tiny_shapes"
    with pool.use(spec) as loaded:
        search, told = page("search", tmp_path / "work", gallery=gallery), []
        for _ in range(2):  # the second search reads nothing anew
            found = search.run(loaded, text="a red circle", progress=lambda *now: told.append(now))
            assert [shown.title for shown in found] == ["single_1.png", "single_0.png"]
        assert told[-1] == (3, 3, "reading the gallery, once") and len(told) == len(set(told))

        index = Index.create(tmp_path / "index", spec)
        index.update([gallery / "inside" / "single_0.png"], Encoder(loaded))
        indexed = page("search", tmp_path / "work", gallery=tmp_path / "index")
        assert indexed.models == (spec,)
        own = ["blip_retrieval/tiny_shapes", spec]  # only the index's model can search it
        assert [choice.spec for choice in models.choices(indexed, own)] == [spec]
        assert [shown.title for shown in indexed.run(loaded, text="a red circle")] == ["single_0.png"]
        (gallery / "inside" / "single_0.png").unlink()
        assert "can't be read any more" in indexed.run(loaded, text="a red circle")[0].note
    with pytest.raises(FileNotFoundError, match="no such folder"):
        page("search", tmp_path, gallery=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no pictures"):
        page("search", tmp_path, gallery=_empty(tmp_path))


def test_a_gallery_of_clips_shows_their_frames(pool, tmp_path):
    from lavis.datasets.clips import Clip
    from lavis.inference import Encoder, Index

    with pool.use("alpro_retrieval/tiny_shapes") as loaded:
        index = Index.create(tmp_path / "index", loaded.spec)
        index.update([EXAMPLES / f"clip_{i}.webm" for i in range(3)], Encoder(loaded))
        found = page("search", tmp_path, gallery=tmp_path / "index").run(
            loaded, text="a yellow heart grows and then a pink heart shrinks"
        )
    assert found[0].title == "clip_0.webm" and all("can't be read" not in f.note for f in found)
    with Clip(EXAMPLES / "clip_0.webm") as clip:
        assert found[0].picture.size == (2 * clip.size[0], 2 * clip.size[1])  # four frames


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_the_map_of_a_shape_points_at_it(pool):
    from lavis.inference import explain

    hits = []
    with pool.use("blip_caption/tiny_shapes") as loaded:
        for name, scene in scenes().items():
            objects = scene["objects"]
            if len({o["shape"] for o in objects}) < len(objects):
                continue
            text = " and ".join(f"a {o['color']} {o['shape']}" for o in objects)
            found = explain(loaded, example(name), text)
            for o in objects:
                heat = found.maps[found.words.index(o["shape"])]
                y, x = (np.array(np.unravel_index(heat.argmax(), heat.shape)) + 0.5) / heat.shape
                hits.append(max(abs(x - o["x"]), abs(y - o["y"])) <= o["r"] + 0.06)
    assert len(hits) >= 15 and sum(hits) >= 0.75 * len(hits), hits


def test_words_have_maps_over_the_picture(pool, tmp_path):
    with pool.use("blip_caption/tiny_shapes") as loaded:
        layers = page("localization", tmp_path).run(loaded, example("drawing_00.png"), TRUE)
    assert [word for word, _ in layers] == ["all words", *TRUE.split()]
    assert {picture.size for _, picture in layers} == {(384, 384)}
    assert len({picture.tobytes() for _, picture in layers}) == 12


def test_the_sentence_of_a_clip_beats_those_of_others(pool, tmp_path):
    pytest.importorskip("av")
    told = draw_examples.clip_sentences()
    with pool.use("alpro_retrieval/tiny_shapes") as loaded:
        for number, sentence in enumerate(told):
            rows = page("video_matching", tmp_path).run(loaded, EXAMPLES / f"clip_{number}.webm", tuple(told))
            assert rows[0].text == sentence, rows


def test_clips_are_captioned(pool, tmp_path):
    pytest.importorskip("av")
    with pool.use("blip_video_caption/tiny_shapes") as loaded:
        rows = page("video_captioning", tmp_path).run(loaded, EXAMPLES / "clip_0.webm", 2)
    assert len(rows) == 2 and rows[0].share >= rows[1].share
    assert "pink heart" in rows[0].text and "yellow heart" in rows[0].text, rows


def test_questions_about_clips_take_the_same_way(pool, tmp_path):
    pytest.importorskip("av")
    with pool.use("blip_video_qa/tiny_shapes") as loaded:
        rows = page("video_answering", tmp_path).run(
            loaded, EXAMPLES / "clip_0.webm", "what color is the shape?", ("red", "blue")
        )
    assert rows[0].text in ("red", "blue") and 0.5 <= rows[0].share <= 1


OUTSIDE = """
from PIL import Image
from lavis.app.demo.page import Page, Pictures, Shown, TextInput
from lavis.common.registry import registry

@registry.register_page("text_to_image")
class TextToImage(Page):
    title = "Text to image"
    about = "Draws a square of the colour that the text names."
    inputs = (TextInput("text", "Text", value="red"),)
    outputs = (Pictures("drawn", "Drawing"),)

    def run(self, loaded, text):
        return [Shown(Image.new("RGB", (64, 64), text), text)]
"""


def test_a_page_is_added_by_one_file_outside_of_the_package(tmp_path, monkeypatch, limits):
    (tmp_path / "my_outside_page.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    registry.import_module("my_outside_page")
    try:
        added = page("text_to_image", tmp_path)
        html = Caller(added, [], models.Pool(1, lambda spec: None), limits)("blue")
        assert "data:image/webp" in html[1] and "blue" in html[1]
        assert "text_to_image" in registry.list_pages()
    finally:
        registry.unregister("page", "text_to_image")


# ------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize(
    ("field", "bad", "says"),
    [
        (TextInput("t", "Question"), None, "Question: write something"),
        (TextInput("t", "Question"), "  \n ", "Question: write something"),
        (TextInput("t", "Question"), {"a": 1}, "a text was expected"),
        (TextInput("t", "Question"), "x" * 501, "501 characters are too many"),
        (LinesInput("l", "Labels", minimum=2), "one\none\n", "at least 2 different lines"),
        (LinesInput("l", "Labels"), "\n".join(map(str, range(101))), "101 lines are too many"),
        (ChoiceInput("c", "Method", choices=("a", "b")), "c", "choose one of a, b"),
        (NumberInput("n", "Beams"), 11, "from 1 to 10"),
        (NumberInput("n", "Beams"), 1.5, "a whole number"),
        (NumberInput("n", "Beams"), True, "a whole number"),
        (NumberInput("n", "Beams"), "3", "a whole number"),
        (NumberInput("n", "Top p", step=0.1), float("nan"), "a number"),
        (PictureInput("p", "Picture"), None, "choose a picture first"),
        (PictureInput("p", "Picture"), {"path": "/etc/passwd"}, "no file that was uploaded here"),
        (PictureInput("p", "Picture"), {"url": "http://192.0.2.1/x.png"}, "no file that was uploaded here"),
        (PictureInput("p", "Picture"), {"path": "http://192.0.2.1/x.png"}, "no file that was uploaded here"),
        (PictureInput("p", "Picture"), {"path": "a\0b"}, "no file that was uploaded here"),
        (PictureInput("p", "Picture"), "/etc/passwd", "no file that was uploaded here"),
    ],
)
def test_bad_inputs_get_a_sentence(field, bad, says, limits):
    with pytest.raises(ValueError, match=says):
        field.check(bad, limits)


def test_good_inputs_are_made_tidy(limits):
    assert TextInput("t", "T").check("  what   is\nthis? ", limits) == "what is this?"
    assert LinesInput("l", "L").check("a\n\n b \na", limits) == ("a", "b")
    assert PictureInput("p", "P", required=False).check(None, limits) is None
    assert NumberInput("n", "N").check(3.0, limits) == 3


def upload(limits, name, content):
    path = limits.folder / name
    path.write_bytes(content)
    return {"path": str(path), "orig_name": name}


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pictures_are_opened_by_what_they_are(limits):
    check = PictureInput("p", "Picture").check
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    turned = check(upload(limits, "a.jpg", encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)), limits)
    assert turned.size == (20, 40) and turned.mode == "RGB"
    frames = [Image.new("L", (8, 8), tone) for tone in (0, 255)]
    first = check(
        upload(limits, "a.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])), limits
    )
    assert first.getpixel((0, 0)) == (0, 0, 0)
    assert check(upload(limits, "wrong.txt", encoded(Image.new("1", (8, 8)))), limits).size == (8, 8)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a picture", "no picture that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture that can be read"),
        (encoded(Image.new("RGB", (64, 64), "red"))[:80], "damaged"),
        (encoded(Image.new("1", (2000, 1200))), "2 megapixels, at most 2|megapixels"),
        (encoded(Image.new("1", (30_000, 10_000))), "megapixels, at most"),
        (b"\x89PNG" + bytes(1_100_000), "1.1 MB, at most 1"),
    ],
)
def test_bad_pictures_get_a_sentence(content, says, limits):
    with pytest.raises(ValueError, match=says) as caught:
        PictureInput("p", "Picture").check(upload(limits, "a.png", content), limits)
    assert "\n" not in str(caught.value) and str(limits.folder) not in str(caught.value)


def test_links_out_of_the_upload_folder_are_not_followed(limits, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(Image.new("1", (8, 8))))
    (limits.folder / "link.png").symlink_to(secret)
    for path in (limits.folder / "link.png", limits.folder / ".." / "secret.png", limits.folder):
        with pytest.raises(ValueError, match="no file that was uploaded here"):
            uploads.open_picture({"path": str(path)}, limits, "Picture")


def test_clips_are_told_from_playlists_and_rubbish(limits):
    pytest.importorskip("av")
    good = (EXAMPLES / "clip_0.webm").read_bytes()
    assert uploads.checked_clip(upload(limits, "a.webm", good), limits, "Clip").name == "a.webm"
    for content, says in (
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no clip that can be read"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no clip that can be read"),
        (good[:4000], "cannot be read"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            uploads.checked_clip(upload(limits, "b.mp4", content), limits, "Clip")
        assert str(limits.folder) not in str(caught.value)


def test_clips_with_huge_frames_or_too_many_are_not_decoded(limits, monkeypatch):
    pytest.importorskip("av")
    clip = upload(limits, "a.webm", (EXAMPLES / "clip_0.webm").read_bytes())
    for name, value, says in (
        ("_CLIP_FRAMES", 15, "16 frames are too many"),
        ("_CLIP_PIXELS", 999, "128 x 128 pixels"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=says):
            patch.setattr(uploads, name, value)
            uploads.checked_clip(clip, limits, "Clip")


# ------------------------------------------------------------------------------------------ outputs


def test_texts_are_escaped():
    evil = '<img src=x onerror="alert(1)">'
    for html in (
        Bars("b", evil).render([Row(evil, 0.5, evil)]),
        Pictures("p", evil).render([Shown(Image.new("RGB", (4, 4)), evil, evil)]),
        Layers("l", evil).render([(evil, Image.new("RGB", (4, 4)))]),
        Bars("b", evil, evil).placeholder(),
    ):
        assert "onerror=&quot;" in html and "<img src=x" not in html


def test_one_word_is_chosen_at_first_and_each_has_a_label():
    html = Layers("l", "Words").render([(w, Image.new("RGB", (4, 4))) for w in ("a", "b")])
    assert html.count(" checked") == 1 and html.count('type="radio"') == html.count("<label") == 2


# ------------------------------------------------------------------------------------------ calls


class Echo(Page):
    """Says which texts it was called with together; `held` keeps it waiting."""

    title = "Echo"
    models = ("m",)
    inputs = (TextInput("text", "Text"), NumberInput("times", "Times"))
    outputs = (Bars("said", "Said"),)
    batched = ("text",)

    def __init__(self, settings):
        super().__init__(settings)
        self.held, self.batches = threading.Event(), []
        self.held.set()

    def run(self, loaded, text, times):
        self.held.wait(10)
        self.batches.append((loaded, tuple(text), times))
        if "fail" in text:
            raise ValueError("can't say fail")
        if "bug" in text:
            raise KeyError("bug")
        return [[Row(t * times)] for t in text]


def caller_of(page, limits, load=lambda spec: spec, specs=("m", "n"), limit=2):
    offered = [models.Choice(spec, models.PACKAGED) for spec in specs]
    return Caller(page, offered, models.Pool(limit, load), limits)


def test_calls_that_wait_with_equal_settings_are_one_batch(tmp_path, limits):
    echo = Echo(Settings(tmp_path))
    call = caller_of(echo, limits)
    replies = {}

    def ask(key, *values):
        replies[key] = call(*values)

    echo.held.clear()
    first = threading.Thread(target=ask, args=("first", "m", "first", 1))
    first.start()
    while not call._turns or call._waiting:
        pass  # until the first computes
    others = {"b": ("m", "b", 1), "c": ("m", "c", 1), "d": ("m", "d", 2), "bad": ("m", "", 1)}
    threads = [threading.Thread(target=ask, args=(key, *values)) for key, values in others.items()]
    for thread in threads:
        thread.start()
    while len(call._waiting) < 3:
        pass
    echo.held.set()
    for thread in [first, *threads]:
        thread.join(10)
    assert sorted((len(texts), times) for _, texts, times in echo.batches) == [(1, 1), (1, 2), (2, 1)]
    assert ">b<" in replies["b"][1] and ">c<" in replies["c"][1] and ">dd<" in replies["d"][1]
    assert "in one batch with 1 more" in replies["b"][0] and "batch" not in replies["d"][0]
    assert "write something first" in replies["bad"][0]


def test_errors_are_sentences_and_do_not_stay(tmp_path, limits):
    call = caller_of(Echo(Settings(tmp_path)), limits)
    assert "can&#x27;t say fail" in call("m", "fail", 1)[0] and 'role="alert"' in call("m", "fail", 1)[0]
    with pytest.raises(KeyError):
        call("m", "bug", 1)
    assert ">ok<" in call("m", "ok", 1)[1]
    assert "choose one of the list" in call("/etc/passwd", "ok", 1)[0]
    assert "choose one of the list" in call(None, "ok", 1)[0]


def test_a_model_that_is_not_there_is_one_sentence(tmp_path, limits):
    def load(spec):
        raise OSError("the weights are\nnot here")

    reply = caller_of(Echo(Settings(tmp_path)), limits, load)("m", "a", 1)
    assert "the weights are not here" in reply[0] and "The result appears here" in reply[1]


# ------------------------------------------------------------------------------------------ models


def test_the_pool_keeps_the_models_used_last():
    loads = []
    pool = models.Pool(2, lambda spec: loads.append(spec) or SimpleNamespace(spec=spec))
    for spec in ("a", "b", "a", "c", "a", "b"):
        with pool.use(spec) as loaded:
            assert loaded.spec == spec
    assert loads == ["a", "b", "c", "b"] and pool.kept() == ["a", "b"]
    with pytest.raises(ValueError, match="--max-models is 0"):
        models.Pool(0, lambda spec: None)


def test_a_model_is_loaded_once_for_all_who_wait_and_again_after_a_failure():
    begun, loads = threading.Event(), []

    def load(spec):
        begun.wait(10)
        loads.append(spec)
        if len(loads) == 1:
            raise OSError("first time")
        return spec

    pool, seen = models.Pool(1, load), []

    def use():
        try:
            with pool.use("a") as loaded:
                seen.append(loaded)
        except OSError as e:
            seen.append(str(e))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join(10)
    assert sorted(seen) == ["a", "a", "a", "first time"]


def test_what_is_on_this_machine_is_offered_first(tmp_path, monkeypatch):
    from lavis.common import hub
    from lavis.models import load_model

    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    offered = {c.spec: c.where for c in models.choices(registry.get_page_class("captioning"))}
    assert next(iter(offered)) == "blip_caption/tiny_shapes" and "blip_caption/tiny" not in offered
    assert offered["blip_caption/base_coco"] == models.AWAY
    place = hub.place_of(registry.get_model_class("blip_caption").preset("base_coco").weights)
    place.parent.mkdir(parents=True)
    place.touch()
    load_model("blip_caption", "tiny_shapes").save_pretrained(tmp_path / "mine")
    mine = str(tmp_path / "mine")
    found = models.choices(registry.get_page_class("captioning"), own=(mine, "clip/tiny"))
    assert [(c.spec, c.where) for c in found][:3] == [
        (mine, models.HERE), ("blip_caption/tiny_shapes", models.PACKAGED), ("blip_caption/base_coco", models.HERE),
    ]  # fmt: skip
    assert all(not c.spec.startswith("clip") for c in found)


def test_weights_elsewhere_are_fetched_only_if_that_is_allowed(tmp_path, monkeypatch):
    from lavis.app.demo.server import Options, _loader

    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    offered = {"captioning": models.choices(registry.get_page_class("captioning"))}
    with pytest.raises(OSError, match="`lavis demo --download`"):
        _loader(Options(), offered)("blip_caption/base_coco")
    with pytest.raises(OSError, match="LAVIS_OFFLINE"):
        _loader(Options(download=True), offered)("blip_caption/base_coco")


# ------------------------------------------------------------------------------------------ the process


def test_without_gradio_it_says_what_to_install(monkeypatch, tmp_path):
    from lavis.app.demo.server import Options, application

    monkeypatch.setitem(sys.modules, "gradio", None)
    before = dict(os.environ), tempfile.gettempdir()
    with pytest.raises(ImportError, match=r"pip install openlavis\[app\]"), application(Options()):
        pass
    assert (dict(os.environ), tempfile.gettempdir()) == before


def test_looking_at_pages_imports_neither_torch_nor_gradio():
    code = (
        "import sys; from lavis.common.registry import registry; assert 'captioning' in registry.list_pages();"
        "assert not {'torch', 'gradio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ------------------------------------------------------------------------------------------ privacy


def test_connections_to_others_are_refused_and_only_those():
    server = socket.create_server(("127.0.0.1", 0))
    with privacy.no_connections():
        socket.create_connection(server.getsockname()).close()
        for ask in (
            lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
            lambda: socket.getaddrinfo("example.org", 80),
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
        ):
            with pytest.raises(PermissionError, match="the demo"):
                ask()
    server.close()
    with pytest.raises(OSError) as after:
        socket.create_connection(("192.0.2.1", 80), timeout=0.01)
    assert "the demo" not in str(after.value)
