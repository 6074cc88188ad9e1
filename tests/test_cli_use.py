"""Commands that use a model on pictures or clips: ask, match, classify, features, index, search, explain, dialogue,
convert."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis.cli.main import main
from lavis.common.device import PRECISIONS
from lavis.common.files import read_jsonl
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes.scene import COLORS, SHAPES

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
COMMANDS = (
    "match",
    "classify",
    "features",
    "index",
    "search",
    "explain",
    "dialogue",
    "convert",
    "completion",
)
Ran = tuple[int, list[dict], str]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawings, a JPEG that EXIF turns, a PNG with alpha, a broken JPEG, an empty folder."""
    folder = tmp_path_factory.mktemp("drawings")
    data = load_dataset("shapes_retrieval")["test"]
    deep = folder / "tief" / "ünïcode 图 'x'"
    deep.mkdir(parents=True)
    (folder / "empty").mkdir()
    for i in range(12):
        data.picture(data.records[i]).save((deep if i % 3 == 2 else folder) / f"p{i:02d}.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    data.picture(data.records[0]).rotate(90).save(folder / "turned.jpg", exif=exif, quality=95)
    clear = data.picture(data.records[1]).convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 128))
    clear.save(folder / "clear.png")
    whole = io.BytesIO()
    data.picture(data.records[2]).save(whole, "JPEG")
    (folder / "broken.jpg").write_bytes(whole.getvalue()[:300])
    return folder


@pytest.fixture(scope="module")
def captions() -> list[str]:
    data = load_dataset("shapes_retrieval")["test"]
    return [data.records[i]["caption"][0] for i in range(12)]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command in this process: exit code, rows of JSON, notes."""

    def call(*arguments: str | Path) -> Ran:
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return call


def _shell(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lavis", *arguments],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options,
    )  # type: ignore[call-overload]  # fmt: skip


# ------------------------------------------------------------------------------------ help, mistakes


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert re.search(r"Examples:\n +.*lavis ", capsys.readouterr().out)


def test_help_lists_commands_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    places = [out.index(f"{name}:\n") for name in ("Use a model on pictures", "Vectors and search", "Models")]
    assert places == sorted(places)
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["match", "PICTURE"], "match needs at least one picture or clip and a text"),
        (["match", "PICTURE", "PICTURE"], "is a file; put the text last or give --text"),
        (["match", "nope.png", "a circle"], "nope.png: there is no such file or folder"),
        (["match", "EMPTY", "a circle"], "no pictures in this folder"),
        (
            ["match", "PICTURE", "a", "--model", "blip_caption/tiny_shapes"],
            "can't put images and texts into one space; it can write captions",
        ),
        (["match", "PICTURE", "a", "--model", "blip_retreival/coco"], "Did you mean 'blip_retrieval'"),
        (["classify", "PICTURE"], "Missing option '--labels'"),
        (["classify", "PICTURE", "--labels", "nope.txt"], "--labels: there is no file nope.txt"),
        (["classify", "PICTURE", "--labels", ","], "there is no label in it"),
        (["classify", "PICTURE", "--labels", "a,b", "--template", "a thing"], "neither a text with {}"),
        (["classify", "PICTURE", "--labels", "a,b", "--head", "x"], "head is 'x'; it must be itc"),
        (
            ["classify", "PICTURE", "--labels", "a", "--head", "itm", "--model", "clip/tiny"],
            "--head itm: clip/tiny can't match images with texts by a matching head",
        ),
        (["features", "PICTURE"], "Name a folder: --out vectors"),
        (["features", "--out", "x"], "which pictures"),
        (["features", "PICTURE", "--out", "x", "--mode", "video"], "--mode is 'video'; it must be image"),
        (["features", "PICTURE", "--out", "x", "--format", "csv"], "--format is 'csv'; it must be npy"),
        (["features", "PICTURE", "--out", "x", "--mode", "text"], "--mode text needs --texts FILE"),
        (["features", "--out", "x", "--mode", "text", "--texts", "no.txt"], "there is no file no.txt"),
        (["features", "PICTURE", "--out", "x", "--texts", "no.txt"], "--texts is for --mode text"),
        (["index", "EMPTY"], "Name a folder: --to photos.index"),
        (["index", "--to", "x"], "x is no index yet; name the folders"),
        (["index", "EMPTY", "--to", "x"], "no pictures in this folder"),
        (["index", "nope", "--to", "x"], "nope: there is no such file or folder"),
        (["search", "EMPTY"], "what should be looked for"),
        (["search", "EMPTY", "a"], "is no index"),
        (["explain", "PICTURE", "a circle"], "Name a file, --out maps.png, or print them with --json"),
        (["explain", "nope.png", "a", "--json"], "there is no image nope.png"),
        (
            ["explain", "PICTURE", "a circle", "--json", "--word", "star"],
            "has no such word; it has a, circle",
        ),
        (
            ["explain", "PICTURE", "a", "--json", "--model", "clip/tiny"],
            "can't explain the words of a text; it can",
        ),
        (["dialogue", "nope.png"], "there is no file nope.png"),
        (
            ["dialogue", "PICTURE", "--model", "clip/tiny"],
            "can't answer questions; it can put images and texts",
        ),
        (["caption", "PICTURE", "--model", "clip/tiny"], "can't write captions; it can put images"),
        (
            ["ask", "PICTURE", "what?", "--model", "clip/tiny"],
            "can't answer questions; it can put images and texts",
        ),
        (["ask", "PICTURE", "what?", "--model", "alpro_qa/tiny"], "knows 33 answers by number only"),
        (
            ["ask", "PICTURE", "what?", "--model", "alpro_qa/tiny", "--answers", "a,b"],
            "knows 33 answers, but 2 names are given",
        ),
        (
            ["caption", "PICTURE", "--model", "blip_video_qa/tiny"],
            "Models that can: blip_video_caption/base_coco",
        ),
        (
            ["caption", "PICTURE", "--model", "blip_video_dialogue/tiny"],
            "can't write captions (its generate takes no num_captions); it can hold a dialogue",
        ),
        (
            ["caption", "PICTURE", "--model", "blip_vis_dialogue/tiny"],
            "Models that can: blip_caption/base_coco",
        ),
        (["match", "DRAWINGS", "a", "--model", "alpro_retrieval/tiny"], "no clips in this folder"),
        (["search", "EMPTY", "--picture", "nope.mp4"], "--picture: there is no file nope.mp4"),
        (["convert", "x.pth"], "Name a folder: --out my_model"),
        (["convert", "x.pth", "--out", "x"], "which model are the weights x.pth of"),
        (["convert", "x.pth", "--out", "x", "--model", "clip/tiny"], "no file or folder 'x.pth'"),
        (["completion", "tcsh"], "no completion for 'tcsh'; there is for bash, zsh, fish"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    command: list[str], expected: str, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    places = {
        "PICTURE": str(drawings / "p00.png"),
        "EMPTY": str(drawings / "empty"),
        "DRAWINGS": str(drawings),
    }
    assert main([places.get(word, word) for word in command]) == 2
    captured = capsys.readouterr()
    said = [
        line
        for line in captured.err.splitlines()
        if "small packaged model" not in line and "random" not in line
    ]
    assert captured.out == "" and len(said) == 1 and said[0].startswith("lavis: ")
    assert expected in said[0] and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ match and classify


def test_match(run: Callable[..., Ran], drawings: Path, captions: list[str], tmp_path: Path) -> None:
    code, rows, said = run("match", drawings / "p00.png", drawings / "turned.jpg", captions[0])
    assert code == 0 and "using the small packaged model blip_retrieval/tiny_shapes" in said
    assert [Path(r["image"]).name for r in rows] == ["p00.png", "turned.jpg"]
    assert all(r["text"] == captions[0] and r["match"] > 0.9 and r["cosine"] > 0.4 for r in rows)
    texts = [part for text in captions[:3] for part in ("-t", text)]
    out = tmp_path / "new" / "rows.jsonl"
    code, rows, said = run("match", drawings, *texts, "--out", out, "--batch-size", "5")
    assert code == 1 and rows == [] and said.count("broken.jpg") == 1 and "1 of 15 inputs" in said
    written = read_jsonl(out)
    assert len(written) == 14 * 3 and {r["text"] for r in written} == set(captions[:3])
    best = {
        t: max((r for r in written if r["text"] == t), key=lambda r: r["match"])["image"]
        for t in captions[:3]
    }
    assert {Path(p).stem for p in best.values()} <= {"p00", "turned", "p01", "clear", "p02"}
    code, rows, said = run("match", drawings / "p00.png", "a cat", "--model", "clip/tiny")
    assert code == 0 and rows[0]["match"] is None and "clip/tiny has random starting weights" in said


def test_upright_pictures(run: Callable[..., Ran], drawings: Path, captions: list[str]) -> None:
    """What EXIF turns is the same picture; its stored pixels are another."""
    _, rows, _ = run("match", drawings / "turned.jpg", drawings / "p00.png", captions[0])
    assert rows[0]["cosine"] == pytest.approx(rows[1]["cosine"], abs=0.05)


def test_classify(run: Callable[..., Ran], drawings: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"{c} {s}" for c in COLORS for s in SHAPES))
    code, rows, _ = run("classify", drawings / "p00.png", "--labels", names, "--top-k", "3")
    (row,) = rows
    assert (
        code == 0
        and row["label"] == row["labels"][0]
        and len(row["labels"]) == len(row["probabilities"]) == 3
    )
    objects = load_dataset("shapes_retrieval")["test"].records[0]["scene"]["objects"]
    assert row["label"] in {f"{o['color']} {o['shape']}" for o in objects}
    (tmp_path / "templates.txt").write_text("a {}\n\na drawing of a {}\n")
    more = ["--templates", tmp_path / "templates.txt", "--template", "one {}", "--head", "itm", "-k", "1"]
    code, rows, _ = run("classify", drawings / "p00.png", "--labels", "red heart,blue star", *more)
    assert code == 0 and set(rows[0]) == {"image", "label", "probability"} and rows[0]["label"] == "red heart"


def test_pretty(drawings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(drawings / "p00.png"), "--labels", "red heart,blue star", "--pretty"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(drawings / "p00.png") and re.fullmatch(r" +\d+\.\d %  red heart", lines[1])
    assert main(["match", str(drawings / "p00.png"), "a red heart", "--pretty"]) == 0
    assert re.search(r"p00\.png  a red heart\n  0\.\d{3} fits, cosine 0\.\d{3}\n", capsys.readouterr().out)


def test_a_decompression_bomb_is_reported(run: Callable[..., Ran], drawings: Path, tmp_path: Path) -> None:
    """200 million pixels in a file of some kilobytes."""
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    code, rows, said = run("match", tmp_path / "bomb.png", drawings / "p00.png", "a circle")
    assert (
        code == 1 and len(rows) == 1 and "bomb.png cannot be decoded" in said and "decompression bomb" in said
    )


# ------------------------------------------------------------------------------------ standard input


@pytest.mark.parametrize("command", ["caption", "ask", "match", "classify"])
def test_paths_from_standard_input(
    command: str, run: Callable[..., Ran], drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"caption": ["--max-new-tokens", "4", "--min-length", "0"], "ask": ["-q", "what?"], "match": ["-t", "a"],
            "classify": ["--labels", "a,b"]}  # fmt: skip
    listed = [drawings / "p01.png", drawings / "tief", drawings / "p00.png"]
    for separator, option in (("\n", []), ("\0", ["-0"])):
        given = separator.join(map(str, listed)).encode() + separator.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        code, rows, _ = run(command, "-", *more[command], *option)
        found = [Path(r["image"]).stem for r in rows]
        assert code == 0 and found == ["p01", "p02", "p05", "p08", "p11", "p00"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, _, said = run(command, "-", *more[command])
    assert code == 2 and "standard input has no paths" in said


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names of files are text")
def test_names_that_are_no_utf8(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    name = os.fsencode(str(folder)) + b"/caf\xe9.png"
    shutil.copy(drawings / "p00.png", name)
    assert main(["match", str(folder), "a circle", "--pretty"]) == 0
    assert "caf\\udce9.png" in capsys.readouterr().out
    place, page, sheet = (str(tmp_path / n) for n in ("i", "i.html", "i.png"))
    assert main(["index", str(folder), "--to", place]) == 0
    capsys.readouterr()
    assert main(["search", place, "a circle", "--html", page, "--sheet", sheet]) == 0
    assert os.fsencode(json.loads(capsys.readouterr().out)["image"]) == name
    found = _Page(Path(page).read_text(encoding="utf-8"))
    assert "caf\\udce9.png" in found.words and found.addresses[-1].endswith("caf%E9.png")


def test_a_pipe_of_find(drawings: Path) -> None:
    """In a real shell; a name that is no UTF-8 comes out as valid JSON."""
    strange = os.fsencode(str(drawings / "empty")) + b"/caf\xe9.png"
    shutil.copy(drawings / "p03.png", strange)
    try:
        find = f"find {drawings / 'empty'} -name '*.png' -print0"
        command = f"{find} | {sys.executable} -m lavis match - -0 -t 'a circle'"
        done = subprocess.run(command, shell=True, capture_output=True, env=ENVIRONMENT, timeout=300)
        assert done.returncode == 0, done.stderr
        assert os.fsencode(json.loads(done.stdout)["image"]) == strange
    finally:
        os.unlink(strange)  # noqa: PTH108 (a path of bytes)


# ------------------------------------------------------------------------------------ features


def _content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def test_features_killed_and_resumed_and_on_two_ranks(
    run: Callable[..., Ran], drawings: Path, tmp_path: Path
) -> None:
    """Byte for byte what an uninterrupted run of one process writes."""
    folder = tmp_path / "pictures"
    shutil.copytree(drawings, folder)
    for i in range(36):
        shutil.copy(drawings / f"p0{i % 2}.png", folder / f"q{i:03d}.png")
    start = ["features", str(folder), "--shard-size", "2", "--batch-size", "2"]
    once = _shell([*start, "--out", str(tmp_path / "once")])
    assert once.returncode == 1 and "broken.jpg" in once.stderr
    assert json.loads(once.stdout) == {"out": str(tmp_path / "once"), "rows": 50, "failed": 1, "width": 64}
    wanted = _content(tmp_path / "once")
    assert len(wanted) == 1 + 26 * 3

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "lavis", *start, "--out", str(killed)],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not (killed / "shard-00001.json").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = _content(killed)
    assert "shard-00001.json" in left and left != wanted  # so it was interrupted
    code, _, said = run(*start, "--out", killed)
    kept = re.search(r"(\d+) of 50 rows were there already", said)
    assert code == 1 and kept is not None and 3 <= int(kept[1]) < 50
    assert _content(killed) == wanted

    two = tmp_path / "two"
    start[1] = "-"  # which only one of the processes can read
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d",
         "--rdzv-endpoint=localhost:0", "-m", "lavis", *start, "--out", str(two)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300, input=f"{folder}\n",
    )  # fmt: skip
    assert _content(two) == wanted, done.stderr
    assert done.stdout.count('"rows": 50') == 1 and done.returncode == 1


def test_features_of_texts_and_pairs(run: Callable[..., Ran], drawings: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a red circle\n\na blue star\n")
    code, rows, _ = run("features", "--mode", "text", "--texts", texts, "--out", tmp_path / "t", "--half")
    assert code == 0 and rows[0]["rows"] == 2
    assert np.load(tmp_path / "t" / "shard-00000.npy").shape == (2, 64)
    table = tmp_path / "pairs.csv"
    table.write_text("image,text\np00.png,a red circle\nbroken.jpg,a star\np01.png,a blue star\n")
    code, rows, said = run(
        "features", drawings, "--mode", "multimodal", "--texts", table, "--out", tmp_path / "m", "--format",
        "safetensors",
    )  # fmt: skip
    assert code == 1 and rows[0] == {"out": str(tmp_path / "m"), "rows": 2, "failed": 1, "width": 128}
    assert "broken.jpg" in said
    named = read_jsonl(tmp_path / "m" / "shard-00000.jsonl")
    assert [r["text"] for r in named] == ["a red circle", "a blue star"]
    code, _, said = run("features", drawings, "--out", tmp_path / "m")
    assert code == 2 and "holds features of mode 'multimodal', not 'image'" in said


# ------------------------------------------------------------------------------------ index and search


def test_index_and_search(
    run: Callable[..., Ran], drawings: Path, captions: list[str], tmp_path: Path
) -> None:
    folder, other = tmp_path / "a", tmp_path / "b"
    shutil.copytree(drawings, folder)
    other.mkdir()
    place = tmp_path / "my.index"
    code, rows, said = run("index", folder, "--to", place)
    assert code == 1 and "broken.jpg" in said
    assert rows == [{"index": str(place), "pictures": 14, "added": 14, "changed": 0, "removed": 0, "unchanged": 0,
                     "failed": 1}]  # fmt: skip
    (folder / "broken.jpg").unlink()
    (folder / "p04.png").rename(other / "p04.png")
    code, rows, _ = run("index", other, "--to", place)  # what it was of stays
    assert code == 0 and (rows[0]["added"], rows[0]["removed"], rows[0]["pictures"]) == (1, 1, 14)
    code, rows, said = run("index", "--to", place)
    assert code == 0 and said == "" and (rows[0]["unchanged"], rows[0]["pictures"]) == (14, 14)

    code, rows, _ = run("search", place, captions[3], "-k", "4")
    assert code == 0 and len(rows) == 4 and set(rows[0]) == {"image", "score"}
    assert Path(rows[0]["image"]) == folder / "p03.png"
    code, rows, _ = run("search", place, "--picture", folder / "turned.jpg", "-k", "2")
    assert {Path(r["image"]).stem for r in rows} == {"turned", "p00"} and rows[0]["score"] > 0.999
    code, rows, _ = run("search", place, captions[5], "--rerank", "6", "-k", "3")
    assert len(rows) == 3 and Path(rows[0]["image"]).stem == "p05" and rows[0]["match"] > 0.5

    other.rename(tmp_path / "c")
    code, _, said = run("index", "--to", place)  # a disk that is not there
    assert code == 2 and "which the index is of, is not there" in said
    assert run("search", place, "a circle")[1] != []
    code, rows, _ = run("index", "--to", place, "--remove", other)
    assert code == 0 and rows[0]["removed"] == 1 and rows[0]["pictures"] == 13
    code, _, said = run("index", "--to", place, "--model", "albef_retrieval/tiny_shapes")
    assert code == 2 and "holds features of blip_retrieval/tiny_shapes" in said


def test_an_index_of_a_list(
    run: Callable[..., Ran], drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(*names: str) -> None:
        given = "\n".join(str(drawings / n) for n in names).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))

    listed("p00.png", "p01.png")
    assert run("index", "-", "--to", tmp_path / "i")[1][0]["pictures"] == 2
    code, _, said = run("index", "--to", tmp_path / "i")
    assert code == 2 and "give the whole list again" in said
    listed("p01.png", "p03.png")
    (row,) = run("index", "-", "--to", tmp_path / "i")[1]
    assert (row["added"], row["removed"], row["unchanged"]) == (1, 1, 1)


def test_an_index_that_is_killed_goes_on(run: Callable[..., Ran], drawings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(150):
        shutil.copy(drawings / f"p{i % 2:02d}.png", folder / f"{i:03d}.png")
    place = tmp_path / "index"
    process = subprocess.Popen(
        [sys.executable, "-m", "lavis", "index", str(folder), "--to", str(place), "--batch-size", "1"],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    features = place / "generation-1" / "features.f32"
    while process.poll() is None and not (features.exists() and features.stat().st_size > 20 * 256):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = features.stat().st_size // 256
    assert 20 <= rows < 150
    code, (row,), _ = run("index", folder, "--to", place)
    assert code == 0 and row["pictures"] == 150 and rows - 1 <= row["unchanged"] <= rows


class _Page(HTMLParser):
    """The addresses that a page names, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "img":
            self.pictures.append(named)
        self.addresses += [str(named[k]) for k in ("src", "href") if k in named]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_sheet_and_page(run: Callable[..., Ran], drawings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b> & co"
    shutil.copytree(drawings, folder)
    (folder / "broken.jpg").unlink()
    run("index", folder, "--to", tmp_path / "i")
    sheet, page = tmp_path / "new" / "s.png", tmp_path / "new" / "s.html"
    query = ["search", tmp_path / "i", "a <i>red</i> circle", "-k", "7", "--sheet", sheet, "--html", page]
    code, rows, _ = run(*query)
    assert code == 0 and len(rows) == 7
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.width > 500 and len(picture.getcolors(10**6) or []) > 200
    found = _Page(page.read_text(encoding="utf-8"))
    assert len(found.pictures) == 7 and all(p["alt"] and p["src"] for p in found.pictures)
    assert "a <i>red</i> circle" in found.words and str(folder) in found.words
    assert all(a.startswith(("data:image/jpeg;base64,", "file:///")) for a in found.addresses)
    Path(rows[0]["image"]).unlink()
    code, rows, said = run(*query)
    assert code == 1 and len(rows) == 7 and "there is no image" in said
    assert len(_Page(page.read_text(encoding="utf-8")).pictures) == 6


# ------------------------------------------------------------------------------------ clips

CLIPS = ROOT / "lavis" / "app" / "demo" / "examples"
TOLD = (
    "a yellow heart grows and then a pink heart shrinks",
    "a yellow square grows while a blue square moves up and a yellow circle stays still",
)  # of clip_0 and clip_2
ALPRO = "alpro_retrieval/tiny_shapes"


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """The three packaged clips, in a folder with a drawing and a text that calls itself a clip."""
    pytest.importorskip("av")
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    for i in range(3):
        shutil.copy(CLIPS / f"clip_{i}.webm", folder / "more" if i == 2 else folder)
    shutil.copy(CLIPS / "drawing_00.png", folder)
    return folder


def test_captions_of_clips(run: Callable[..., Ran], clips: Path) -> None:
    model = ("--model", "blip_video_caption/tiny_shapes")
    code, rows, said = run("caption", clips, *model, "--num-captions", "2")
    found = {Path(row["video"]).name: row["captions"] for row in rows}
    assert code == 0 and set(found) == {"clip_0.webm", "clip_1.webm", "clip_2.webm"} and not said
    assert "pink heart" in found["clip_0.webm"][0] and all(len(texts) == 2 for texts in found.values())
    code, rows, _ = run("caption", clips / "drawing_00.png", *model)  # a clip in which nothing moves
    assert code == 0 and list(rows[0]) == ["video", "caption"]
    code, _, said = run("caption", clips / "clip_0.webm")
    assert code == 2 and "is a video, and blip_caption/tiny_shapes is for images" in said


def test_texts_and_clips(run: Callable[..., Ran], clips: Path) -> None:
    code, rows, _ = run("match", clips, "-t", TOLD[0], "-t", TOLD[1], "--model", ALPRO)
    assert code == 0 and [Path(r["video"]).stem for r in rows[::2]] == ["clip_0", "clip_1", "clip_2"]
    fits = [[r["match"] for r in rows[i : i + 2]] for i in (0, 2, 4)]
    assert fits[0][0] > 0.5 > fits[0][1] and fits[2][1] > 0.5 > fits[2][0] and max(fits[1]) < 0.5
    code, rows, _ = run("classify", clips, "--labels", ",".join(TOLD), "--model", ALPRO,
                        "--template", "{}")  # fmt: skip
    assert code == 0 and [rows[0]["label"], rows[2]["label"]] == [*TOLD] and len(rows) == 3


def test_a_picture_is_a_clip_in_which_nothing_moves(run: Callable[..., Ran], clips: Path) -> None:
    from lavis.inference import Encoder, load

    code, rows, _ = run("match", clips / "drawing_00.png", "a red star stays still", "--model", ALPRO)
    encoder = Encoder(load(ALPRO, device="cpu"))
    with Image.open(clips / "drawing_00.png") as picture:
        still = encoder.images([[picture.convert("RGB")] * 8]) @ encoder.texts(["a red star stays still"]).T
    assert code == 0 and rows[0]["cosine"] == pytest.approx(float(still), abs=2e-6)


def test_a_clip_of_any_name(run: Callable[..., Ran], clips: Path) -> None:
    (clips / "clip_0.webm").rename(clips / "clip")
    code, rows, _ = run("match", clips / "clip", TOLD[0], "--model", ALPRO)
    assert code == 0 and rows[0]["match"] > 0.5


def test_a_gif_is_what_the_model_sees(run: Callable[..., Ran], clips: Path) -> None:
    first = Image.new("RGB", (64, 64), "red")
    first.save(clips / "a.gif", save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")] * 3)
    for model, key in ((ALPRO, "video"), ("blip_retrieval/tiny_shapes", "image")):
        code, rows, _ = run("match", clips / "a.gif", "a circle", "--model", model)
        assert code == 0 and rows[0][key] == str(clips / "a.gif")


def test_clips_that_can_not_be_used(run: Callable[..., Ran], clips: Path) -> None:
    (clips / "text.mp4").write_text("no clip")
    code, rows, said = run("match", clips, "a heart", "--model", ALPRO)
    assert code == 1 and len(rows) == 3 and "text.mp4" in said
    code, rows, said = run("caption", clips / "clip_0.webm")
    assert code == 2 and not rows and "is a video, and blip_caption/tiny_shapes is for images" in said


def test_questions_about_clips(run: Callable[..., Ran], clips: Path, tmp_path: Path) -> None:
    from lavis.datasets.shapes.clip_questions import CLIP_ANSWERS

    asked = ["ask", clips, "-q", "what moves?", "-q", "how many hearts are there?"]
    code, rows, _ = run(
        *asked, "--model", "blip_video_qa/tiny_shapes", "--answers", "0,1,2", "--batch-size", "2"
    )
    assert code == 0 and len(rows) == 6 and {r["answer"] for r in rows} <= {"0", "1", "2"}
    assert [Path(r["video"]).stem for r in rows] == [f"clip_{i}" for i in (0, 0, 1, 1, 2, 2)]
    # classes have no names in the model: the data's own file has them, in any order
    names = tmp_path / "train_ans2label.json"
    names.write_text(json.dumps({name: i for i, name in reversed(list(enumerate(CLIP_ANSWERS)))}))
    code, rows, _ = run(*asked, "--model", "alpro_qa/tiny_shapes", "--answers", names, "--scores")
    assert code == 0 and len(rows) == 6 and all(r["answer"] in CLIP_ANSWERS for r in rows)
    assert all(np.exp(r["logprob"]) == pytest.approx(r["score"]) for r in rows)
    names.write_text('{"a": 0, "b": 2}')
    code, _, said = run(*asked, "--model", "alpro_qa/tiny_shapes", "--answers", names)
    assert code == 2 and "their numbers from 0 on, each once" in said


def test_dialogue_about_a_clip(run: Callable[..., Ran], clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("is there a heart?\nwhat color is it?\n"))
    code, rows, _ = run("dialogue", clips / "clip_0.webm", "--json", "--model", "blip_video_dialogue/tiny",
                        "--caption", "two hearts")  # fmt: skip
    assert code == 0 and [r["round"] for r in rows] == [1, 2]
    assert all(r["video"] == str(clips / "clip_0.webm") for r in rows)


def test_vectors_of_clips_are_found_again(run: Callable[..., Ran], clips: Path, tmp_path: Path) -> None:
    place, out = tmp_path / "i", tmp_path / "vectors"
    code, rows, _ = run("index", clips, "--to", place, "--model", ALPRO)
    assert code == 0 and rows[0]["clips"] == 3
    code, rows, _ = run("search", place, TOLD[1], "--rerank", "3", "--html", tmp_path / "s.html")
    assert code == 0 and Path(rows[0]["video"]).stem == "clip_2" and rows[0]["match"] > 0.5
    page = _Page((tmp_path / "s.html").read_text(encoding="utf-8"))
    assert len(page.pictures) == 3 and page.pictures[0]["alt"] == "clip_2.webm"
    # a picture that was named is in an index of clips, and shown as what it is
    run("index", clips, clips / "drawing_00.png", "--to", tmp_path / "both", "--model", ALPRO)
    code, rows, _ = run("search", tmp_path / "both", "a star", "--sheet", tmp_path / "s.png")
    assert code == 0 and len(rows) == 4
    code, rows, _ = run("search", place, "--picture", clips / "clip_1.webm", "-k", "1")
    assert Path(rows[0]["video"]).stem == "clip_1" and rows[0]["score"] > 0.999

    model = "alpro_feature_extractor/tiny_shapes"
    code, rows, _ = run("features", clips, "--out", out, "--model", model)
    assert code == 0 and rows[0]["rows"] == 3
    listed = list(read_jsonl(out / "shard-00000.jsonl"))
    assert [Path(r["video"]).stem for r in listed] == ["clip_0", "clip_1", "clip_2"]
    vectors = np.load(out / "shard-00000.npy")
    assert vectors.shape == (3, 64) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    code, _, said = run("features", clips, "--out", out, "--model", model)
    assert code == 0 and "3 of 3 rows were there already" in said
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"video,text\nclip_0.webm,{TOLD[0]}\nmore/clip_2.webm,{TOLD[1]}\n")
    code, rows, _ = run("features", clips, "--mode", "multimodal", "--texts", pairs, "--out", tmp_path / "m",
                        "--model", model)  # fmt: skip
    assert code == 0 and rows[0]["rows"] == 2


# ------------------------------------------------------------------------------------ explain, dialogue, convert


def test_explain(run: Callable[..., Ran], drawings: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "maps.png"
    code, rows, _ = run("explain", drawings / "turned.jpg", "A red heart.", "--out", out, "--json")
    (row,) = rows
    assert code == 0 and row["words"] == ["a", "red", "heart"] and row["given"] == "A red heart."
    assert np.array(row["maps"]).shape == (3, 8, 8) and row["text"] == "a red heart"
    with Image.open(out) as picture:
        whole = picture.size
    code, rows, _ = run("explain", drawings / "p00.png", "a red heart", "-w", "Heart", "--out", out)
    assert code == 0 and rows[0]["words"] == ["heart"] and rows[0]["out"] == str(out)
    with Image.open(out) as picture:
        assert picture.width < whole[0]
    code, rows, said = run("explain", drawings / "p00.png", "--json")
    assert code == 0 and "blip_caption/tiny_shapes" in said and rows[0]["text"].split() == rows[0]["words"]
    code, rows, _ = run(
        "explain", drawings / "p00.png", "what color?", "--json", "--model", "blip_vqa/tiny_easy_vqa"
    )
    assert code == 0 and rows[0]["question"] == "what color?" and rows[0]["words"] == ["what", "color?"]
    pair = (drawings / "p00.png", "both have a heart", "--right", drawings / "p01.png")
    code, rows, _ = run("explain", *pair, "--json", "--out", out, "--model", "blip_nlvr/tiny_shapes")
    assert code == 0 and rows[0]["right"] == str(pair[-1]) and rows[0]["text"] in ("true", "false")
    assert np.array(rows[0]["maps"]).shape == (4, 2, 8, 8) and rows[0]["given"] == pair[1]
    code, _, said = run("explain", *pair, "--json")
    assert code == 2 and "blip_caption/tiny_shapes takes no second picture, --right" in said
    code, _, said = run("explain", *pair[:2], "--json", "--model", "albef_nlvr/tiny_shapes")
    assert code == 2 and "judges two pictures; give the second, --right PICTURE" in said


def test_explain_a_clip(run: Callable[..., Ran], clips: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "frames.png", ("--model", "blip_video_retrieval/tiny_shapes")
    code, rows, _ = run("explain", clips / "clip_0.webm", TOLD[0], "--json", "--out", out, *model)
    words = TOLD[0].split()
    assert code == 0 and rows[0]["words"] == words and rows[0]["video"] == str(clips / "clip_0.webm")
    assert np.array(rows[0]["maps"]).shape == (len(words), 8, 8, 8)
    with Image.open(out) as picture:
        assert picture.width > 8 * 100 and picture.height > len(words) * 100
    code, rows, _ = run("explain", clips / "drawing_00.png", "a heart", "--out", out, *model)
    with Image.open(out) as picture:  # a clip in which nothing moves is shown once
        assert code == 0 and picture.width < 900
    code, _, said = run("explain", clips / "clip_0.webm", "a heart", "--out", out)
    assert code == 2 and "clip_0.webm is a video, and blip_caption/tiny_shapes is for images" in said
    code, _, said = run("explain", clips / "clip_0.webm", "a", "--out", out, "--model", ALPRO)
    assert code == 2 and "can't explain the words of a text; it can" in said


def test_dialogue_of_standard_input(
    run: Callable[..., Ran],
    drawings: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = "what color is the shape?\n\n...\nwhat shape is it?\nQUIT\nand more?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked))
    code, rows, said = run("dialogue", drawings / "p00.png", "--json")
    assert [r["question"] for r in rows] == ["what color is the shape?", "what shape is it?"]
    assert [r["round"] for r in rows] == [1, 2] and all(r["answer"] for r in rows)
    assert code == 1 and "'...': the question is empty" in said
    monkeypatch.setattr(sys, "stdin", io.StringIO("what color?\n"))
    assert main(["dialogue", str(drawings / "p00.png"), "--answers", "red,blue"]) == 0
    assert capsys.readouterr().out.strip() in ("red", "blue")
    monkeypatch.setattr(sys, "stdin", io.StringIO("what color?\n"))
    assert main(["dialogue", str(drawings / "p00.png"), "--answers", "red", "--pretty"]) == 0
    assert capsys.readouterr().out == "what color?\n  red\n"


def test_dialogue_answers_as_questions_come(drawings: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lavis", "dialogue", str(drawings / "p00.png")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    for question in ("what color is the shape?", "what shape is it?"):
        process.stdin.write(question + "\n")
        process.stdin.flush()
        assert process.stdout.readline().strip()  # before the next question, and before the end
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_convert(run: Callable[..., Ran], tmp_path: Path) -> None:
    from lavis.models.tokenizer import ASSETS

    code, rows, said = run(
        "convert", ASSETS / "blip_shapes" / "model.safetensors", "--model", "blip_retrieval/tiny", "--out",
        tmp_path / "new",
    )  # fmt: skip
    assert code == 2 and "does not fit this model" in said and not (tmp_path / "new").exists()
    code, rows, said = run("convert", ASSETS / "blip_shapes", "--out", tmp_path / "new", "--half")
    assert code == 0 and rows[0]["model"] == "blip_pretrain/tiny_shapes" and rows[0]["half"] is True
    assert "licence of this preset's weights: BSD-3-Clause" in said
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    code, _, said = run("convert", ASSETS / "blip_shapes", "--out", tmp_path / "new")
    assert code == 2 and "is there already" in said


# ------------------------------------------------------------------------------------ completion


def _completed(shell: str, **more: str) -> str:
    variables = {"_LAVIS_COMPLETE": f"complete_{shell}", **more}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from lavis.cli.main import main; code = main(); "
         "assert 'torch' not in sys.modules; sys.exit(code)"],
        capture_output=True, text=True, env={**ENVIRONMENT, **variables}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_completion_of_commands_options_and_values() -> None:
    def bash(words: str) -> list[str]:
        return _completed("bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))).split()

    assert set(bash("lavis c")) >= {"caption", "classify", "convert", "completion"}
    assert "--labels" in bash("lavis classify --la") and bash("lavis classify --head it") == ["itc", "itm"]
    assert bash("lavis caption --precision f") == ["fast", "fp32", "fp16"]
    assert set(bash("lavis caption --precision ")) == set(PRECISIONS)
    assert "classify" in _completed("zsh", _TYPER_COMPLETE_ARGS="lavis cl")


def test_completion_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, sign in (
        ("bash", "complete -o default"),
        ("zsh", "#compdef lavis"),
        ("fish", "--command lavis"),
    ):
        assert main(["completion", shell]) == 0
        out = capsys.readouterr().out
        assert sign in out and f"complete_{shell}" in out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_the_script(tmp_path: Path) -> None:
    """The script in a real bash, with a `lavis` on the path."""
    program = tmp_path / "lavis"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lavis "$@"\n')
    program.chmod(0o755)
    script = (
        "source <(lavis completion bash); COMP_WORDS=(lavis sea); COMP_CWORD=1; _lavis_completion lavis; "
        'echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**ENVIRONMENT, "PATH": path}, timeout=60
    )
    assert done.stdout.strip() == "search", done.stderr
