"""A model from outside the package, the example of docs/guides/extend.md, in every command and on the demo's pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from lavis.app.demo.calls import Caller
from lavis.app.demo.models import Pool, choices
from lavis.app.demo.page import Settings
from lavis.app.demo.uploads import Limits
from lavis.cli.main import main
from lavis.common.registry import registry
from lavis.inference import load
from lavis.inference.abilities import abilities
from tests.pages import ROOT, blocks

SPEC = "my_palette/base"
Ran = tuple[int, list[dict], str]
PAGES = {
    "captioning": ("Beam search", 2, 5, 0.9, 0, 40, ""),
    "answering": ("what color is it?", "red\nblue", ""),
    "chat": ("what color is it?", "[]", "no", "", 3, 60, "", ""),
    "matching": ("something blue\nsomething red",),
    "search": ("blue", None, 2, 4),
    "classification": ("red\nblue", "a {}", ""),
    "localization": ("something blue",),
}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Real files, and the example's module where Python finds it."""
    (source,) = (b.code for b in blocks(ROOT / "docs/guides/extend.md") if b.file == "my_palette.py")
    (tmp_path / "my_palette.py").write_text(source, encoding="utf-8")
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("orange", "blue", "red"):
        Image.new("RGB", (70, 50), name).save(folder / f"{name}.png")
    half = Image.new("RGB", (64, 64), "white")
    half.paste("blue", (0, 0, 32, 64))
    half.save(folder / "left.jpg", quality=95)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield folder
    registry.unregister("model", "my_palette")
    registry.unregister("processor", "my_pixels")
    sys.modules.pop("my_palette", None)


@pytest.fixture
def run(images: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """A command with the model, in this process: exit code, rows of JSON, notes."""

    def call(*arguments: object, model: bool = True) -> Ran:
        named = ["--model", SPEC] if model else []
        code = main(["--import", "my_palette", *map(str, arguments), *named])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        whole = captured.out.startswith("{\n")
        return code, [json.loads(captured.out)] if whole else [json.loads(x) for x in lines], captured.err

    return call


def test_captions(run: Callable[..., Ran], images: Path) -> None:
    code, rows, said = run("caption", images, "--num-captions", 2, "--scores")
    found = {Path(row["image"]).stem: row for row in rows}
    assert code == 0 and {n: row["caption"].split()[-1] for n, row in found.items() if n != "left"} == {
        "orange": "orange", "blue": "blue", "red": "red"
    }  # fmt: skip
    assert set(found["left"]["captions"]) == {"something blue", "something white"} and len(found) == 4
    assert "random starting weights" not in said
    # what the model doesn't take is refused, what is a default is not passed
    code, _, said = run("caption", images, "--max-length", 9)
    assert code == 2 and "my_palette/base writes captions without the option max_length; leave it out" in said


def test_answers(run: Callable[..., Ran], images: Path) -> None:
    questions = ("-q", "what color is it?", "-q", "and now?")
    code, rows, _ = run(
        "ask", images / "red.png", images / "blue.png", *questions, "--answers", "red,blue,a cow"
    )
    assert code == 0 and [row["answer"] for row in rows] == ["red", "red", "blue", "blue"]
    code, rows, _ = run("ask", images / "orange.png", "what color is it?", "--scores")
    assert code == 0 and rows[0]["answer"] == "orange" and 0 < rows[0]["score"] < 1
    code, _, said = run("ask", images / "red.png", "what?", "--num-beams", 7)
    assert code == 2 and "answers without the option num_beams" in said


def test_a_talk(run: Callable[..., Ran], images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("what color is it?\n"))
    code, rows, _ = run("dialogue", images / "red.png", "--json", "--answers", "red,blue")
    assert code == 0 and rows[0]["answer"] == "red" and rows[0]["round"] == 1


def test_matches_and_classes(run: Callable[..., Ran], images: Path) -> None:
    code, rows, _ = run("match", images / "left.jpg", "-t", "a blue door", "-t", "a red door")
    assert code == 0 and rows[0]["match"] > 0.9 > 0.1 > rows[1]["match"] and rows[0]["cosine"] > 0.6
    for head in ("itc", "itm"):
        code, rows, _ = run("classify", images, "--labels", "red,blue,orange", "--head", head, "--top-k", 1)
        labels = {Path(row["image"]).stem: row["label"] for row in rows}
        assert code == 0 and labels == {"orange": "orange", "blue": "blue", "red": "red", "left": "blue"}


def test_an_index_is_built_searched_and_reranked(run: Callable[..., Ran], images: Path) -> None:
    code, rows, _ = run("index", images, "--to", "all.index")
    assert code == 0 and rows[0]["added"] == 4
    code, rows, _ = run("search", "all.index", "the blue sea", "--rerank", 3, model=False)
    assert code == 0 and [Path(row["image"]).stem for row in rows][:2] == ["blue", "left"]
    assert rows[0]["match"] > rows[1]["match"] > 0.5


def test_features(run: Callable[..., Ran], images: Path) -> None:
    code, rows, _ = run("features", images, "--out", "vectors")
    assert code == 0 and rows[0]["rows"] == 4 and rows[0]["width"] == 8
    Path("pairs.csv").write_text("image,text\nred.png,something red\n")
    code, _, said = run("features", images, "--mode", "multimodal", "--texts", "pairs.csv", "--out", "fused")
    assert code == 2 and "my_palette/base can't read image and text together; it can write captions" in said


def test_explanations(run: Callable[..., Ran], images: Path) -> None:
    code, rows, _ = run("explain", images / "left.jpg", "a blue door", "--out", "door.png", "--json")
    assert code == 0 and rows[0]["words"] == ["a", "blue", "door"]
    blue = rows[0]["maps"][1]
    assert all(sum(row[:14]) > 13 and not any(row[18:]) for row in blue)
    assert Image.open("door.png").size[0] > 400
    code, rows, _ = run("explain", images / "red.png", "--json")  # its own caption
    assert code == 0 and rows[0]["text"] == "something red"


def test_what_it_can_not_do_is_said(run: Callable[..., Ran], images: Path) -> None:
    code, _, said = run("classify", images)
    assert code == 2 and "my_palette/base has no classes of its own" in said
    # and it is named where others can't
    code, _, said = run("ask", images / "red.png", "what?", "--model", "blip_caption/tiny", model=False)
    assert code == 2 and "blip_caption/tiny can't answer questions" in said and "my_palette/base" in said


def test_evaluation(run: Callable[..., Ran], images: Path) -> None:
    names = ("orange", "blue", "red")
    Path("captions.jsonl").write_text(
        "".join(json.dumps({"image": f"{n}.png", "text": f"something {n}"}) + "\n" for n in names)
    )
    Path("questions.jsonl").write_text(
        "".join(
            json.dumps({"image": f"{n}.png", "question": "what color is it?", "answer": n}) + "\n"
            for n in names
        )
    )
    for task, table, metric, wanted in (
        ("captioning", "captions.jsonl", "ROUGE_L", 1.0),
        ("retrieval", "captions.jsonl", "r_mean", 100.0),
        ("vqa", "questions.jsonl", "accuracy_percent", 100.0),
    ):
        code, rows, said = run(
            "evaluate",
            "--task",
            task,
            "--data",
            table,
            "--images",
            images,
            "--out",
            "runs",
            *(("--options", "run.inference_method=generate") if task == "vqa" else ()),
        )
        assert code == 0, said
        assert rows[0]["test"][metric] == pytest.approx(wanted), task


def test_the_demo_offers_and_uses_it(run: Callable[..., Ran], images: Path, tmp_path: Path) -> None:
    registry.import_module("my_palette")
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    value = {"path": str(uploads / "blue.png")}
    Image.open(images / "blue.png").save(value["path"])
    pool = Pool(1, lambda spec: load(spec, device="cpu"))
    fitting = []
    for name in registry.list_pages():
        page = registry.get_page_class(name)(Settings(tmp_path / name, gallery=images))
        offered = choices(page, own=[SPEC])
        if offered[0].spec != SPEC:
            continue
        fitting.append(name)
        call = Caller(page, offered, pool, Limits(uploads, megabytes=1, megapixels=2))
        inputs = PAGES[name]
        given = (*inputs[:1], None, *inputs[2:]) if name == "search" else (value, *inputs)
        said, shown = call(SPEC, *given)[:2]
        assert "with my_palette/base" in said and "blue" in shown, name
    assert set(fitting) == set(PAGES)


def test_an_installed_plug_in_is_known_without_import(images: Path, tmp_path: Path) -> None:
    installed = tmp_path / "mine-1.0.dist-info"  # what `pip install` leaves of a package with an entry point
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[lavis.plugins]\nmine = my_palette\n")
    done = subprocess.run(
        [sys.executable, "-m", "lavis", "caption", str(images / "red.png"), "--model", SPEC],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["caption"] == "something red"


def test_it_is_saved_and_loaded(run: Callable[..., Ran], images: Path) -> None:
    registry.import_module("my_palette")
    loaded = load(SPEC, device="cpu")
    assert not loaded.is_random and len(abilities(loaded.model)) == 5
    loaded.model.save_pretrained("saved")
    code, rows, _ = run("caption", images / "red.png", "--model", "saved", model=False)
    assert code == 0 and rows[0]["caption"] == "something red"
