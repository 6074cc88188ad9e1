"""Commands that go through many files: killed, resumed, on several ranks, and given what they can't use."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lavis.cli import common
from lavis.cli.main import main
from lavis.cli.results import results
from lavis.common.files import existing, is_file, is_folder, read_jsonl, replace_folder
from lavis.datasets.builders import load_dataset

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LONG = "a red circle and " * 300  # no file has such a name
Ran = tuple[int, str, str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty drawings, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    data = load_dataset("shapes_retrieval")["test"]
    for i in range(20):
        data.picture(data.records[i]).save(folder / f"{i:02d}.png")
    (folder / "07b.png").write_bytes(b"broken")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command in this process: exit code, output, notes without that about the packaged model."""

    def call(*arguments: str | Path) -> Ran:
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        notes = [line for line in captured.err.splitlines() if "packaged model" not in line]
        return code, captured.out, "\n".join(notes)

    return call


def _start(*arguments: str | Path, ranks: int = 1) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--rdzv-backend=c10d",
                "--rdzv-endpoint=localhost:0"]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *(torchrun if ranks > 1 else []), "-m", "lavis", *map(str, arguments)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _names(file: Path) -> list[str]:
    return [Path(row["image"]).name for row in read_jsonl(file)]


# ------------------------------------------------------------------------------------ --out


def test_results_are_as_if_never_killed(run: Callable[..., Ran], images: Path, tmp_path: Path) -> None:
    """Killed again and again, at whatever place, until it is done."""
    start = ["caption", images, "--batch-size", "1", "--scores", "--out"]
    assert run(*start, tmp_path / "once.jsonl")[0] == 1
    wanted = (tmp_path / "once.jsonl").read_bytes()
    assert len(_names(tmp_path / "once.jsonl")) == 20
    out, progress = tmp_path / "killed.jsonl", tmp_path / ".killed.jsonl.progress"
    for done in (1, 6):
        process = _start(*start, out)
        while process.poll() is None and not (
            progress.exists() and progress.read_bytes().count(b'"input"') >= done
        ):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert done <= progress.read_bytes().count(b'"input"') < 20
        for torn in (out, progress):
            with torn.open("ab") as f:
                f.write(b'{"image": "half of a li')
    code, _, said = run(*start, out)
    assert code == 1 and "were kept" in said and "07b.png" in said
    assert out.read_bytes() == wanted
    before = out.stat().st_mtime_ns
    code, _, said = run(*start, out)
    assert code == 1 and "20 of 21 pictures were in" in said and out.stat().st_mtime_ns == before


def test_what_failed_or_has_changed_is_done_again_in_its_place(
    run: Callable[..., Ran], images: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "some", tmp_path / "out.jsonl"
    folder.mkdir()
    for name in ("01.png", "07b.png", "08.png", "09.png"):
        shutil.copy(images / name, folder)
    ask = ["ask", folder, "-q", "what is there?", "-q", "how many?", "--out", out]
    assert run(*ask)[0] == 1 and len(read_jsonl(out)) == 6
    shutil.copy(images / "02.png", folder / "07b.png")  # can be read now
    shutil.copy(images / "03.png", folder / "01.png")  # another image
    shutil.copy(images / "04.png", folder / "00.png")  # a new one
    assert run(*ask)[0] == 0
    assert _names(out) == [n for n in ("00.png", "01.png", "07b.png", "08.png", "09.png") for _ in range(2)]
    again = [*ask[:-1], tmp_path / "again.jsonl"]
    run(*again)
    assert out.read_text() == (tmp_path / "again.jsonl").read_text()


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (["caption"], ["caption", "--num-beams", "2"], "num_beams 3, not 2"),
        (["caption"], ["caption", "--model", "blip_caption/tiny_shapes", "--pretty"], "plain False, not True"),
        (["caption"], ["ask", "-q", "what?"], "command 'caption', not 'ask'"),
        (["match", "-t", "a"], ["match", "-t", "b"], "texts ['a'], not ['b']"),
        (["match", "-t", "a"], ["match", "-t", "a", "--model", "albef_retrieval/tiny_shapes"], "model 'blip"),
        (["classify", "--labels", "a,b"], ["classify", "--labels", "a,c"], "labels ['a', 'b'], not ['a', 'c']"),
        (["ask", "-q", "a"], ["ask", "-q", "a", "--answers", "b,c"], "answers None, not ['b', 'c']"),
    ],
)  # fmt: skip
def test_results_of_other_settings_are_not_touched(
    first: list[str], second: list[str], says: str, run: Callable[..., Ran], images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(*first, images / "00.png", "--out", out)[0] == 0
    before = out.read_bytes()
    code, _, said = run(*second, images / "01.png", "--out", out)
    assert code == 2 and says in said and "--overwrite" in said and len(said.splitlines()) == 1
    assert out.read_bytes() == before
    assert run(*second, images / "01.png", "--out", out, "--overwrite")[0] == 0
    assert out.read_bytes() != before and b"00.png" not in out.read_bytes()


def test_a_file_of_something_else_is_not_touched(
    run: Callable[..., Ran], images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine\n")
    code, _, said = run("caption", images / "00.png", "--out", out)
    assert code == 2 and "this command has not begun it" in said and out.read_text() == "mine\n"
    done = tmp_path / "done.jsonl"
    assert run("caption", images / "00.png", "--out", done)[0] == 0
    with done.open("a") as f:
        f.write("a line of mine\n")
    code, _, said = run("caption", images / "01.png", "--out", done)
    assert code == 2 and "was changed by something else" in said and "mine" in done.read_text()
    code, _, said = run("caption", images / "01.png", "--out", tmp_path)
    assert code == 2 and "is a folder" in said


def test_nothing_is_left_where_nothing_could_be_done(
    run: Callable[..., Ran], images: Path, tmp_path: Path
) -> None:
    code, _, said = run("caption", images / "07b.png", "--out", tmp_path / "out.jsonl")
    assert code == 2 and "none of the 1 pictures" in said
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_one_process_at_a_time_writes_a_file(run: Callable[..., Ran], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with results(out, {}):
        code, _, said = run("caption", images / "00.png", "--out", out)
    assert code == 2 and "is being written by another process" in said


def test_a_disk_that_is_full_leaves_whole_lines(images: Path, tmp_path: Path) -> None:
    """A limit of the size of files stands for the disk."""
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "lavis", "caption", str(images), "--batch-size", "4", "--out", str(out)]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2 and str(out) in done.stderr and "Traceback" not in done.stderr
    kept = out.read_bytes()
    assert kept.endswith(b"\n") and 4 <= len(kept.splitlines()) < 20
    after = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert after.returncode == 1 and "were kept" in after.stderr
    assert out.read_bytes().startswith(kept) and len(read_jsonl(out)) == 20
    full = subprocess.run([*command[:-1], "/dev/full"], env=ENVIRONMENT, capture_output=True, text=True)
    assert full.returncode == 2 and "No space left on device: '/dev/full'" in full.stderr
    assert "Traceback" not in full.stderr


# ------------------------------------------------------------------------------------ several ranks


@pytest.mark.parametrize(
    "command",
    [
        ["ask", "-q", "what?", "-q", "how many?", "--scores"],
        pytest.param(["caption", "--scores"], marks=pytest.mark.slow),
        pytest.param(["match", "-t", "a circle"], marks=pytest.mark.slow),
        pytest.param(["classify", "--labels", "circle,star"], marks=pytest.mark.slow),
    ],
)
def test_ranks_share_the_images(command: list[str], images: Path, tmp_path: Path) -> None:
    """Byte for byte the output of one process, in its order, and each image is computed once."""
    counting = tmp_path / "counting.py"
    counting.write_text(
        "import os, pathlib\n"
        "from lavis.inference import Loaded\n"
        "real = Loaded.read\n"
        "def read(self, path):\n"
        f"    with open({str(tmp_path / 'reads')!r}, 'a') as f: f.write(os.environ['RANK'] + ' ' + path.name + '\\n')\n"
        "    return real(self, path)\n"
        "Loaded.read = read\n"
    )
    one = _start(*command, images, "--batch-size", "3")
    wanted, _ = one.communicate(timeout=600)
    two = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d",
         "--rdzv-endpoint=localhost:0", "-m", "lavis", "--import", "counting", *command, "-", "--batch-size", "3",
         "--out", str(tmp_path / "two.jsonl")],
        env=ENVIRONMENT, cwd=tmp_path, input=f"{images}\n", capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert one.returncode == 1 and two.returncode == 1, two.stderr
    assert (tmp_path / "two.jsonl").read_text() == wanted and wanted.count("\n") >= 20
    reads = (tmp_path / "reads").read_text().splitlines()
    assert len(reads) == 21 and len({r.split()[1] for r in reads}) == 21
    assert {r.split()[0] for r in reads} == {"0", "1"}
    assert two.stderr.count("07b.png") == 1


def test_ranks_say_together_what_is_wrong(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    process = _start("caption", images, "--out", out, ranks=2)
    _, said = process.communicate(timeout=600)
    assert process.returncode != 0 and "this command has not begun it" in said and out.read_text() == "mine\n"


def test_an_index_is_built_by_one_of_the_ranks(images: Path, tmp_path: Path) -> None:
    process = _start("index", images, "--to", tmp_path / "index", ranks=2)
    out, said = process.communicate(timeout=600)
    assert out.count('"added": 20') == 1, said
    assert "being updated" not in said


# ------------------------------------------------------------------------------------ features, index


def test_lists_do_not_replace_one_another(run: Callable[..., Ran], images: Path, tmp_path: Path) -> None:
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    for folder, names in ((first, range(4)), (second, range(4, 9))):
        folder.mkdir()
        for i in names:
            shutil.copy(images / f"{i:02d}.png", folder)
    assert run("features", first, "--out", out)[0] == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    code, _, said = run("features", second, "--out", out)
    assert code == 2 and "holds features of another list: 4 of the 4 inputs" in said and "--overwrite" in said
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    shutil.copy(images / "09.png", first)  # a list may grow
    code, printed, _ = run("features", first, "--out", out)
    assert code == 0 and json.loads(printed)["rows"] == 5
    code, printed, _ = run("features", second, "--out", out, "--overwrite")
    assert code == 0 and _names(out / "shard-00000.jsonl") == [f"{i:02d}.png" for i in range(4, 9)]
    code, _, said = run("features", second, "--out", out, "--half")
    assert code == 2 and "holds features of dtype 'float32', not 'float16'" in said
    code, printed, _ = run("features", second, "--out", out, "--half", "--overwrite")
    assert code == 0 and json.loads(printed)["rows"] == 5


def test_another_processor_is_another_model(images: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from lavis.inference import Encoder, load
    from lavis.inference.features import Item, extract
    from lavis.processors.blip_processors import BlipImageEvalProcessor

    loaded = load("blip_feature_extractor/tiny_shapes", device="cpu")
    items = [Item(image=images / "00.png")]
    extract(Encoder(loaded), items, tmp_path / "out")
    size = loaded.vis.image_size  # type: ignore[attr-defined]
    other = replace(loaded, vis=BlipImageEvalProcessor(size, mean=(0.1, 0.2, 0.3)))
    with pytest.raises(ValueError, match="holds features of processor 'BlipImageEvalProcessor"):
        extract(Encoder(other), items, tmp_path / "out")


def test_two_processes_write_one_folder_one_after_another(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start = ["features", images, "--out", out, "--shard-size", "1", "--batch-size", "1"]
    both = [_start(*start), _start(*start)]
    said = [p.communicate(timeout=600)[1] for p in both]
    codes = sorted(p.returncode for p in both)
    assert codes in ([1, 2], [1, 1])  # the other one was refused, or came when all was done
    if codes == [1, 2]:
        assert any("another process is writing features" in text for text in said)
    assert json.loads((out / "features.json").read_text())["rows"] == 20
    assert not list(out.glob(".*.part"))


def test_two_processes_index_one_after_another(run: Callable[..., Ran], images: Path, tmp_path: Path) -> None:
    start = ["index", images, "--to", tmp_path / "index", "--batch-size", "1"]
    both = [_start(*start), _start(*start)]
    said = [p.communicate(timeout=600)[1] for p in both]
    assert sorted(p.returncode for p in both) in ([1, 2], [1, 1]), said
    assert all("Traceback" not in text for text in said)
    code, printed, _ = run(*start)
    assert code == 1 and json.loads(printed)["pictures"] == 20


@pytest.mark.parametrize("rows", [0, 6])
def test_a_first_indexing_that_was_killed_goes_on(
    rows: int, run: Callable[..., Ran], images: Path, tmp_path: Path
) -> None:
    place = tmp_path / "index"
    process = _start("index", images, "--to", place, "--batch-size", "1")
    features = place / "generation-1" / "features.f32"
    while process.poll() is None and not (
        place.exists() if rows == 0 else features.exists() and features.stat().st_size >= rows * 256
    ):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, printed, said = run("index", images, "--to", place)
    assert code == 1 and json.loads(printed)["pictures"] == 20, said
    code, printed, _ = run("index", "--to", place)
    assert json.loads(printed)["unchanged"] == 20


def test_an_empty_folder_does_not_wipe_an_index(
    run: Callable[..., Ran], images: Path, tmp_path: Path
) -> None:
    folder, place = tmp_path / "photos", tmp_path / "index"
    shutil.copytree(images, folder)
    assert run("index", folder, "--to", place)[0] == 1
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()  # a mount point without its disk
    code, _, said = run("index", "--to", place)
    assert code == 2 and "20 of the 20 entries" in said and "--prune" in said
    shutil.copy(images / "00.png", folder)
    assert run("index", "--to", place)[0] == 2
    assert len(run("search", place, "a circle", "-k", "50")[1].splitlines()) == 20
    code, printed, _ = run("index", "--to", place, "--prune")
    assert code == 0 and json.loads(printed)["pictures"] == 1


def test_a_folder_that_could_not_be_written_is_not_left(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").touch()
    for name in ("there", "new"):
        with pytest.raises(OSError, match="No space left"):
            replace_folder(tmp_path / name, write)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["old", "there"]


# ------------------------------------------------------------------------------------ hostile inputs


def test_texts_that_are_no_paths() -> None:
    for text in (LONG, "a\0b", "~nobody-of-this-name/x", "\ud800", "x/" * 3000, ""):
        assert existing(text) is None or text == ""
        assert not is_file(text) and (not is_folder(text) or text == "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["match", "{image}", LONG], ["match", "{image}", "-t", LONG], ["ask", "{image}", LONG],
        ["ask", "{image}", "what?", "--answers", ",".join(f"the answer number {i}" for i in range(60))],
        ["classify", "{image}", "--labels", ",".join(f"the label number {i}" for i in range(60))],
        ["classify", "{image}", "--labels", "a,b", "--template", LONG + "{}"],
        ["match", "{image}", "~nobody-of-this-name/and more"],
    ],
)  # fmt: skip
def test_long_texts_are_no_paths(arguments: list[str], run: Callable[..., Ran], images: Path) -> None:
    code, printed, said = run(*(a.replace("{image}", str(images / "00.png")) for a in arguments))
    assert code == 0 and json.loads(printed.splitlines()[0])["image"] and said == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["caption", LONG], "there is no such file or folder"),
        (["caption", "a\0b.png"], "there is no such file or folder"),
        (["caption", "{image}", "--model", LONG], "there is no model"),
        (["match", "{image}", "a \udcff b"], "is no text in UTF-8"),
        (["match", "{image}", "-t", "a\0b"], "NUL character"),
        (["ask", "{image}", "-q", "\ud800"], "is no text in UTF-8"),
        (["classify", "{image}", "--labels", "a,\udcff"], "is no text in UTF-8"),
        (["classify", "{image}", "--labels", "{binary}"], "is no text in UTF-8"),
        (["classify", "{image}", "--labels", "a,b", "--template", LONG], "is neither a text with {}"),
        (["features", "--mode", "text", "--texts", "{binary}", "--out", "{out}"], "UTF-8"),
        (["features", "--mode", "text", "--texts", LONG, "--out", "{out}"], "there is no file"),
        (["search", LONG, "x"], "is no index"),
        (["index", LONG, "--to", "{out}"], "there is no such file or folder"),
        (["search", "{image}", "x"], "is no index"),
        (["explain", LONG, "--json"], "there is no image"),
        (["dialogue", LONG], "there is no file"),
        (["convert", LONG, "--out", "{out}"], "which model"),
        (["download", LONG + ".csv", "--to", "{out}"], "there is no table"),
    ],
)  # fmt: skip
def test_what_can_not_be_used_is_one_line(
    arguments: list[str], says: str, run: Callable[..., Ran], images: Path, tmp_path: Path
) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"caf\xe9 \xff\n")
    places = {"{image}": str(images / "00.png"), "{binary}": str(binary), "{out}": str(tmp_path / "out")}
    code, printed, said = run(*(places.get(a, a) for a in arguments))
    assert code == 2 and printed == "" and says in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_names_with_nul_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.png\0b.png\0")))
    with pytest.raises(ValueError, match=r"--null \(-0\)"):
        common.read_paths()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.png\0b.png\0")))
    assert common.read_paths(null=True) == ["a.png", "b.png"]
