"""The command: results on stdout, notes on stderr, one line and an exit code for what is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lavis.app.demo.page import EXAMPLES
from lavis.cli import common
from lavis.cli.main import _normalized, _without_traceback, main
from lavis.cli.runs import script
from lavis.common.files import read_jsonl
from lavis.inference import split_model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of small random models, per kind."""
    from lavis.models import build_model

    folder = tmp_path_factory.mktemp("models")
    for arch in ("blip_caption", "blip_vqa"):
        build_model({"arch": arch, "model_type": "tiny", "weights": "none"}).save_pretrained(folder / arch)
    return {arch: str(folder / arch) for arch in ("blip_caption", "blip_vqa")}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures, two of them deeper, and files that are none."""
    folder = tmp_path / "pictures"
    (folder / "deep" / "er").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (40 + i, 30), (60 * i, 100, 200)).save(folder / f"p{i}.png")
    Image.new("L", (20, 20), 50).save(folder / "deep" / "q.jpg")
    Image.new("RGB", (20, 20), "red").save(folder / "deep" / "er" / "r.JPEG")
    (folder / "notes.txt").write_text("no picture")
    return folder


def _json(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------- help and arguments
@pytest.mark.parametrize(
    "command",
    [[], ["caption"], ["ask"], ["train"], ["evaluate"], ["models"], ["datasets"], ["card"], ["env"]],
)
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Examples?:\n +lavis ", out)


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys; from lavis.cli.main import main; code = main(['--help']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    start = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    assert time.perf_counter() - start < 5  # about 0.2 s on an idle machine


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lavis", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("lavis ")


def test_global_options_go_anywhere_and_options_take_several() -> None:
    assert _normalized(["caption", "x", "--debug"]) == ["--debug", "caption", "x"]
    assert _normalized(["models", "--import", "m"]) == ["--import", "m", "models"]
    assert _normalized(["train", "r", "--options", "a=1", "b", "2", "--resume"]) == [
        "train", "r", "--option", "a=1", "--option", "b", "--option", "2", "--resume",
    ]  # fmt: skip
    assert _normalized(["ask", "--", "--debug"]) == ["ask", "--", "--debug"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["caption"], r"Missing argument 'PATH\.\.\.'\. See: lavis caption --help"),
        (["caption", "nope.png"], "nope.png: there is no such file or folder"),
        (["caption", "*.nothing"], "no file matches this pattern"),
        (["caption", "x.png", "--num-beams", "0"], "Invalid value for '--num-beams'"),
        (["ask", "x.png"], "at least one picture or clip and a question"),
        (["train"], "which recipe"),
        (["train", "blip/nope"], "no packaged recipe"),
        (["train", "blip/caption_shapes", "--options", "run.max_epoc=1"], "Did you mean 'max_epoch'"),
        (["train", "blip/caption_shapes", "--images", "x"], "--images belong to data of your own"),
        (["train", "--data", "nope.jsonl"], "there is no data file nope.jsonl"),
        (["models", "nope"], "no model's name holds 'nope'"),
        (["card", "coco_captoin"], "Did you mean 'coco_caption'"),
        (["nope"], "No such command 'nope'"),
        (["models", "--import", "no_such_module"], "--import no_such_module: there is no such module"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    command: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("lavis: ") and captured.err.count("\n") == 1
    assert re.search(expected, captured.err), captured.err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "nope.png", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("lavis: nope.png")


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "find_media", interrupted)
    assert main(["caption", "x.png"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "lavis: interrupted"


def test_a_users_module_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_lavis_module.py").write_text("print('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["--import", "my_lavis_module", "datasets", "--json"]) == 0
    assert capsys.readouterr().out.startswith("imported\n[")


# ---------------------------------------------------------------- finding pictures, answers, models
def test_pictures_of_files_folders_and_patterns(pictures: Path) -> None:
    found, problems = common.find_media([str(pictures)])
    assert [p.relative_to(pictures).as_posix() for p in found] == [
        "deep/er/r.JPEG", "deep/q.jpg", "p0.png", "p1.png", "p2.png", "p3.png",
    ]  # fmt: skip
    assert not problems
    found, problems = common.find_media([f"{pictures}/p[12].png", f"{pictures}/p1.png", "nope.png"])
    assert [p.name for p in found] == ["p1.png", "p2.png"]
    assert problems == ["nope.png: there is no such file or folder"]
    assert len(common.find_media([f"{pictures}/**/*.jpg"])[0]) == 1


def test_an_empty_folder_is_a_problem(tmp_path: Path) -> None:
    found, problems = common.find_media([str(tmp_path)])
    assert not found and "no pictures in this folder" in problems[0]


def test_answers_of_lists_and_files(tmp_path: Path) -> None:
    assert common.read_answers(None) is None
    assert common.read_answers("yes, no,yes") == ["yes", "no"]
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.json").write_text('["x", "y"]')
    (tmp_path / "b.json").write_text('{"x": 1}')
    assert common.read_answers(str(tmp_path / "a.txt")) == ["one", "two"]
    assert common.read_answers(str(tmp_path / "a.json")) == ["x", "y"]
    with pytest.raises(ValueError, match="JSON list of answers"):
        common.read_answers(str(tmp_path / "b.json"))
    (tmp_path / "b.json").write_text('{"x": 1, "y": 0}')
    assert common.read_answers(str(tmp_path / "b.json")) == ["y", "x"]
    (tmp_path / "b.json").write_text('{"x": ')
    with pytest.raises(ValueError, match=r"b\.json is no JSON"):
        common.read_answers(str(tmp_path / "b.json"))
    with pytest.raises(ValueError, match="no answer in it"):
        common.read_answers(",")
    with pytest.raises(FileNotFoundError, match="no file"):
        common.read_answers("nope.txt")


def test_models_by_name_or_folder(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_model("blip_caption/base_coco") == ("blip_caption", "base_coco")
    assert split_model("blip_caption") == ("blip_caption", None)
    assert split_model(models["blip_vqa"]) == (models["blip_vqa"], None)
    with pytest.raises(ValueError, match="Did you mean 'blip_caption'"):
        split_model("blip_captoin/base_coco")
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    with pytest.raises(OSError, match="no local path 'zzz/qqq'"):
        split_model("zzz/qqq")


# ---------------------------------------------------------------- caption and ask
def test_caption_writes_json_lines(
    models: dict[str, str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["caption", str(pictures), "--model", models["blip_caption"], "--max-new-tokens", "6"]
    assert main([*arguments, "--min-length", "0", "--batch-size", "4"]) == 0
    captured = capsys.readouterr()
    rows = _json(captured.out)
    assert captured.err == "" and len(rows) == 6 and set(rows[0]) == {"image", "caption"}
    assert [Path(r["image"]).name for r in rows] == [
        "r.JPEG",
        "q.jpg",
        "p0.png",
        "p1.png",
        "p2.png",
        "p3.png",
    ]
    # the size of the batch changes nothing
    assert main([*arguments, "--min-length", "0", "--batch-size", "1"]) == 0
    assert _json(capsys.readouterr().out) == rows


def test_caption_options(
    models: dict[str, str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["caption", str(pictures / "p0.png"), "--model", models["blip_caption"], "--max-new-tokens", "4"]
    more = ["--nucleus", "--num-captions", "3", "--seed", "1", "--scores", "--min-length", "0"]
    out = tmp_path / "new" / "captions.jsonl"
    assert main([*one, *more, "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    (row,) = _json(out.read_text(encoding="utf-8"))
    assert len(row["captions"]) == len(row["scores"]) == 3 and row["captions"][0] == row["caption"]
    assert isinstance(row["score"], float) and row["logprob"] <= 0
    assert main([*one, *more, "--pretty"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == row["image"] and len(lines) == 4
    assert lines[1].startswith(f"  {row['caption']}")


def test_a_broken_picture_is_reported_and_the_others_go_on(
    models: dict[str, str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "p1.png").write_bytes((pictures / "p1.png").read_bytes()[:40])
    (pictures / "p2.png").write_bytes(b"nonsense")
    arguments = ["--model", models["blip_caption"], "--max-new-tokens", "2", "--min-length", "0"]
    assert main(["caption", str(pictures), "nope.png", *arguments]) == 1
    captured = capsys.readouterr()
    assert len(_json(captured.out)) == 4
    for name in ("p1.png", "p2.png", "nope.png"):
        assert len([line for line in captured.err.splitlines() if name in line]) == 1
    assert captured.err.splitlines()[-1] == "lavis: 3 of 7 inputs could not be used; see above"
    assert main(["caption", str(pictures / "p2.png"), *arguments]) == 2
    assert "none of the 1 pictures could be read" in capsys.readouterr().err


def test_ask(models: dict[str, str], pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", models["blip_vqa"]]
    one = str(pictures / "p0.png")
    assert main(["ask", one, "what is it?", "--answers", "yes,no", "--scores", *model]) == 0
    (row,) = _json(capsys.readouterr().out)
    assert row["question"] == "what is it?" and row["answer"] in ("yes", "no") and 0 <= row["score"] <= 1
    assert main(["ask", str(pictures), "-q", "what?", "-q", "where?", "--answers", "a,b", *model]) == 0
    rows = _json(capsys.readouterr().out)
    assert len(rows) == 12 and [r["question"] for r in rows[:2]] == ["what?", "where?"]
    assert main(["ask", one, "what?", "--answers", "a,b", "--pretty", *model]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{one}  what?"
    assert main(["ask", one, "what?", "--max-len", "4", *model]) == 0
    assert "answer" in _json(capsys.readouterr().out)[0]
    assert main(["ask", str(pictures / "p1.png"), one, *model]) == 2
    assert "is a file; put the question last" in capsys.readouterr().err


# ---------------------------------------------------------------- train and evaluate
def _table(pictures: Path) -> Path:
    path = pictures / "train.jsonl"
    rows = [{"image": f"p{i}.png", "text": f"a picture number {i}"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_train_on_own_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    table = tmp_path / "clips.csv"
    table.write_text("video,caption\nclip_0.webm,a yellow heart grows\nclip_1.webm,a diamond moves\n")
    call = ["--task", "captioning", "--data", str(table), "--images", str(EXAMPLES), "--out", str(tmp_path)]
    assert main(["train", *call, "--epochs", "1", "--val", str(table)]) == 0
    captured = capsys.readouterr()
    assert "starting from the small packaged model blip_video_caption/tiny_shapes" in captured.err
    assert json.loads(captured.out)["stopped"] == "finished"


def test_train_and_evaluate_on_own_data(
    models: dict[str, str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = _table(pictures), tmp_path / "runs"
    start = ["--task", "captioning", "--data", str(data), "--images", str(pictures)]
    quick = ["--options", "run.num_beams=1", "run.max_len=8"]
    arguments = [*start, "--model", models["blip_caption"], "--out", str(out), *quick]
    assert main(["train", *arguments, "--epochs", "1", "--batch-size", "2"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["stopped"] == "finished" and Path(summary["output_dir"]).parent == out
    checkpoint = summary["checkpoint_last"]
    assert (Path(checkpoint) / "model.safetensors").is_file()
    # the written configuration repeats the run
    assert (Path(summary["output_dir"]) / "config.yaml").is_file()
    assert main(["evaluate", *start, "--model", checkpoint, "--out", str(out), *quick]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert "CIDEr" in metrics["test"]
    picture = str(pictures / "p0.png")
    assert (
        main(["caption", picture, "--model", checkpoint, "--max-new-tokens", "3", "--min-length", "0"]) == 0
    )
    assert _json(capsys.readouterr().out)[0]["image"] == picture


def test_classes_of_own_pictures(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the packaged model, with as many classes as the table has; evaluated with the table's own classes."""
    data = tmp_path / "labels.csv"
    data.write_text("image,label\n" + "".join(f"p{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    start = ["--data", str(data), "--images", str(pictures), "--out", str(tmp_path / "runs")]
    assert (
        main(["train", *start, "--epochs", "1", "--batch-size", "2", "--options", "run.valid_splits=[]"]) == 0
    )
    captured = capsys.readouterr()
    assert "starting from the small packaged model blip_classification/tiny_shapes" in captured.err
    checkpoint = json.loads(captured.out)["checkpoint_last"]
    assert main(["evaluate", *start, "--model", checkpoint]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["test"]["accuracy_percent"] <= 100
    data.write_text("image,label\np0.png,a\n")  # fewer classes are some that it knows
    assert main(["evaluate", *start, "--model", checkpoint]) == 0
    capsys.readouterr()
    data.write_text("image,label\np0.png,a\np1.png,c\n")
    assert main(["evaluate", *start, "--model", checkpoint]) == 2
    error = capsys.readouterr().err
    assert (
        "labels.csv, line 3: the model does not know the class 'c'; it was trained to tell apart: a, b"
        in error
    )
    assert main(["train", *start, "--task", "classify"]) == 2
    assert "expected captioning, vqa, retrieval, classification" in capsys.readouterr().err


def test_one_picture_is_enough_to_train_on(
    models: dict[str, str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "one.csv"
    data.write_text("image,text\np0.png,a picture\n")
    start = ["--data", str(data), "--images", str(pictures), "--model", models["blip_caption"]]
    assert main(["train", *start, "--epochs", "1", "--out", str(tmp_path / "runs")]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["iterations"] == 1 and summary["best"] is None and summary["stopped"] == "finished"
    said = [line for line in captured.err.splitlines() if line.startswith("lavis: ")]
    assert len(said) == 2 and "no validation" in said[0] and "a batch has only 1" in said[1]
    # asked for, it is an error
    asked = ["--options", "run.valid_splits=[val]", "run.batch_size_train=1"]
    assert main(["train", *start, "--out", str(tmp_path / "runs"), *asked]) == 2
    assert "the split 'val'" in capsys.readouterr().err


def test_pictures_without_captions_are_predicted_and_not_scored(
    models: dict[str, str],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = tmp_path / "t.jsonl"
    data.write_text("".join(json.dumps({"image": f"p{i}.png", "image_id": 10 + i}) + "\n" for i in range(3)))
    start = ["--data", str(data), "--images", str(pictures), "--model", models["blip_caption"]]
    quick = ["--out", str(tmp_path / "runs"), "--options", "run.num_beams=1", "run.max_len=8"]
    assert main(["evaluate", *start, *quick]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"test": {}}
    (result,) = (tmp_path / "runs").glob("*/result/test_epochbest.json")
    assert f"nothing to score; the predictions are in {result}" in caplog.text
    assert [r["image_id"] for r in json.loads(result.read_text())] == [10, 11, 12]
    assert main(["train", *start, *quick]) == 2
    assert "needed are image (or video), text (or caption)" in capsys.readouterr().err


def test_a_column_split_says_what_is_evaluated(tmp_path: Path) -> None:
    from lavis.cli.own_data import part_to_evaluate

    for splits, expected in ((["val", "test"], "test"), (["train", "val"], "val"), (None, "test")):
        table = tmp_path / f"{expected}{splits is None}{len(splits or ())}.jsonl"
        rows = [{"image": "a.png"} | ({"split": s} if splits else {}) for s in splits or ["", ""]]
        table.write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert part_to_evaluate(str(table)) == expected


SMALL = """
model: {arch: blip_caption, model_type: tiny, weights: none}
datasets: {shapes_caption: {n_train: 48, n_val: 3, n_test: 3}}
run:
  {task: captioning, max_epoch: 5, batch_size_train: 4, num_workers: 1, num_beams: 1, max_len: 8, min_len: 1,
   log_freq: 1, train_splits: [train], valid_splits: [val], test_splits: [test], device: cpu}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small recipe.yaml"
    path.write_text(SMALL)
    return path


def test_evaluating_a_named_type_takes_its_finished_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the recipe, which is for training, starts from."""
    small = [
        "datasets.shapes_caption.n_test=12",
        "datasets.shapes_caption.n_train=4",
        "run.test_splits=[test]",
    ]
    call = ["evaluate", "blip/caption_shapes", "--model", "blip_caption/tiny_shapes", "--out", str(tmp_path)]
    assert main([*call, "--options", *small]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test"]["truth_percent"] > 80  # 0 with the recipe's random weights


def test_a_recipe_that_only_evaluates(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recipe.parent / "runs"
    assert main(["train", str(recipe), "--out", str(out), "--options", "run.evaluate=true"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["stopped"] == "evaluated" and summary["iterations"] == 0
    assert "truth_percent" in summary["metrics"]["test"] and set(summary["metrics"]) == {"test"}
    (job,) = out.iterdir()
    assert {p.name for p in job.iterdir()} == {
        ".lock",
        "config.yaml",
        "versions.json",
        "evaluate.txt",
        "result",
    }


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(
    recipe: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = recipe.parent / "the runs"  # a space: the command has to be quoted
    process = subprocess.Popen(
        [sys.executable, "-m", "lavis", "train", str(recipe), "--out", str(out)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not list(out.glob("*/log.txt")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: workers get it, too
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130 and printed == "" and "Traceback" not in said
    last = said.splitlines()[-1]
    found = re.fullmatch(r"lavis: interrupted at iteration (\d+); continue with: lavis (train .*)", last)
    assert found is not None, last
    (job,) = out.iterdir()
    done = int(found[1])
    assert 1 <= done < 60
    # the command does it
    assert main(shlex.split(found[2])) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["iterations"] == 60 and Path(summary["output_dir"]) == job
    assert f"at iteration {done} of 60" in caplog.text
    steps = [r["step"] for r in read_jsonl(job / "log.txt") if r["event"] == "step"]
    assert steps == list(range(1, 61))
    # evaluating it leaves the description of the training
    before = (job / "config.yaml").read_text()
    assert main(["evaluate", str(recipe), "--options", f"run.resume_ckpt_path={job}"]) == 0
    assert (job / "config.yaml").read_text() == before


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("run:", "rum:", "there is no section 'rum'"),
        ("log_freq", "log_frequency", r"run\.log_frequency is no known key. Did you mean 'log_freq'"),
        ("max_len: 8", "max_len: long", r"run\.max_len is 'long'; expected whole number"),
        ("n_train: 48", "n_trian: 48", "shapes_caption: unknown key 'n_trian'. Did you mean 'n_train'"),
        ("n_val: 3", "n_val: three", "shapes_caption: n_val is 'three'; expected whole number"),
        ("n_val: 3", "vis_processor: blip_image_eval", "vis_processor is 'blip_image_eval'; it should be"),
        (
            "n_val: 3",
            "vis_processor: {train: {nam: x}, eval: {nam: x}}",
            "has no `name`|unknown setting 'nam'",
        ),
        ("n_val: 3", "build_info: [a]", "build_info is .'a'.; it should map"),
        ("n_val: 3", "build_info: {imags: {storage: x}}", "build_info: unknown key 'imags'"),
        ("shapes_caption", "shapes_captoin", "no dataset named 'shapes_captoin'"),
        ("weights: none", "weights: none, imag_size: 3", r"model\.imag_size: there is no such key"),
        ("model_type: tiny", "model_type: tinny", "no model type 'tinny'"),
        ("weights: none", "weights: nowhere.pth", "no file or folder 'nowhere.pth'"),
        ("weights: none", "weights: EMPTY", "no checkpoint at"),
        ("log_freq: 1", "output_dir: FILE", "no folder can be made there"),
        ("log_freq: 1", "resume_ckpt_path: EMPTY", "no run's folder and no checkpoint folder"),
        ("[test]", "[tset]", "the split 'tset'; there are"),
        ("device: cpu", "device: gpu", "device 'gpu' is unknown"),
        ("{n_train", "[n_train", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_code_2(
    recipe: Path, capsys: pytest.CaptureFixture[str], command: str, old: str, new: str, expected: str
) -> None:
    (recipe.parent / "empty").mkdir()
    new = new.replace("EMPTY", str(recipe.parent / "empty")).replace("FILE", str(recipe))
    recipe.write_text(SMALL.replace(old, new, 1))
    arguments = [] if "output_dir" in new else ["--out", str(recipe.parent / "runs")]
    assert main([command, str(recipe), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and re.search(expected, captured.err)
    assert not (recipe.parent / "runs").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_truncated_checkpoint_is_one_line_and_code_2(
    models: dict[str, str], recipe: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    damaged = recipe.parent / "damaged"
    shutil.copytree(models["blip_caption"], damaged)
    (damaged / file).write_bytes((damaged / file).read_bytes()[:200])
    for command in ("train", "evaluate"):
        assert main([command, str(recipe), "--model", str(damaged)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert re.search(rf"{re.escape(str(damaged / file))} is damaged", captured.err)


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.jsonl",
            '{"image": "p0.png", "text": "a"}\n{"image": "p1.pn',
            r"a\.jsonl, line 2: not valid JSON",
        ),
        (
            "a.csv",
            "p0.png,a cat\np1.png,a dog\n",
            "found the columns .*its first line should name the columns",
        ),
        ("a.csv", "image,text\np0.png,a,b\n", "line 2: 3 fields, but the header has 2"),
        ("a.jsonl", "", "has no rows"),
        ("a.txt", "image,text\n", "the suffix should be one of"),
        ("a.csv", "image,text\np0.png,a\nnone.png,b\n", r"none\.png \(line 3\)"),
        ("a.csv", "image,text\np0.png,a\n", "there is no folder nowhere"),
    ],
)
def test_wrong_data_are_one_line_and_code_2(
    pictures: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, text: str, expected: str
) -> None:
    table = pictures / name
    table.write_text(text)
    images = "nowhere" if "nowhere" in expected else str(pictures)
    assert main([command, "--data", str(table), "--images", images, "--out", str(pictures / "runs")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and re.search(expected, captured.err)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_line_whatever_the_workers(
    models: dict[str, str], pictures: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    data = _table(pictures)
    (pictures / "p1.png").write_bytes((pictures / "p1.png").read_bytes()[:60])
    start = ["--data", str(data), "--images", str(pictures), "--model", models["blip_caption"]]
    options = ["--out", str(pictures / "runs"), "--options", f"run.num_workers={workers}"]
    assert main(["evaluate", *start, *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(pictures / "p1.png") in err and "cannot be decoded" in err


def test_an_error_of_a_worker_is_said_without_its_traceback() -> None:
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\n    raise ValueError("a: b")\nValueError: a: b\nand more\n'
    )
    assert _without_traceback(text) == "a: b\nand more\n"
    assert _without_traceback("Caught nothing") == "Caught nothing"


def test_recipe_and_data_exclude_each_other(
    models: dict[str, str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(_table(pictures)), "--model", models["blip_caption"]]
    assert main(["train", "blip/caption_shapes", *data]) == 2
    assert "not both" in capsys.readouterr().err


def test_epochs_replace_a_recipes_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis.cli import runs

    seen = []
    monkeypatch.setattr(runs, "_train", lambda config, notes: seen.append(config))
    assert main(["train", "blip/caption_shapes", "--epochs", "2", "--batch-size", "8"]) == 0
    assert seen[0].run.max_epoch == 2 and seen[0].run.max_iters is None and seen[0].run.batch_size_train == 8
    assert main(["train", "blip/caption_shapes", "--options", "run.max_iters=7", "--resume"]) == 0
    assert seen[1].run.max_iters == 7 and seen[1].run.resume_ckpt_path == "auto"


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_the_papers_scripts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis.cli import runs

    seen = []
    monkeypatch.setattr(runs, f"_{kind}", lambda config, notes: seen.append(config))
    recipe = ["--cfg-path", "blip/caption_shapes"]
    assert script(kind, [*recipe, "--options", "run.batch_size_train=8", "run.seed", "7"]) == 0
    assert script(kind, ["--cfg-path=blip/caption_shapes", "--options", "run.seed=9"]) == 0
    assert [c.run.seed for c in seen] == [7, 9] and seen[0].run.batch_size_train == 8
    assert seen[0].run.evaluate == (kind == "evaluate")


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_the_script_files_run(kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, f"{kind}.py", "--cfg-path", "nope.yaml"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("lavis: there is no recipe file 'nope.yaml'")


# ---------------------------------------------------------------- what there is
def test_models_and_datasets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {r["model"]: r for r in json.loads(capsys.readouterr().out)}
    assert "licence" in rows["blip_caption/base_coco"] and rows["blip_caption/tiny"]["where"] == "none"
    assert main(["models", "caption"]) == 0
    out = capsys.readouterr().out
    assert "blip_caption/base_coco" in out and "blip_vqa" not in out and "Commercial use" in out
    assert main(["datasets", "--json"]) == 0
    assert {"own", "coco_caption"} <= {r["name"] for r in json.loads(capsys.readouterr().out)}
    assert main(["datasets"]) == 0
    assert "shapes_caption" in capsys.readouterr().out
    assert main(["card", "own"]) == 0
    assert "captioning" in capsys.readouterr().out


def test_env(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    monkeypatch.setenv("LAVIS_CACHE", "/somewhere")
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["offline"] == "yes" and facts["cache"] == "/somewhere" and facts["torch"]
    assert main(["env"]) == 0
    assert "huggingface_hub" in capsys.readouterr().out


def test_a_closed_pipe_is_silent() -> None:
    code = "import sys; from lavis.cli.main import main; sys.exit(main(['card', 'shapes_caption']))"
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait(timeout=60) == 141
