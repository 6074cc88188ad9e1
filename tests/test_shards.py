"""Pictures with texts in tar archives: what is read, what is refused, and training on them exactly."""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.datasets.base import UnreadableMediaError
from lavis.datasets.builders import load_dataset
from lavis.runners import train
from lavis.tasks.captioning import CaptionTask


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()


def write(path: Path, samples: list[dict[str, bytes]], prefix: str = "", mode: str = "w") -> Path:
    """An archive with files `<number>.<suffix>`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                member = tarfile.TarInfo(f"{prefix}{path.stem}_{number:05d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def samples(first: int, count: int) -> list[dict[str, bytes]]:
    return [
        {"png": jpeg(i), "json": json.dumps({"caption": f"number {i}", "url": "x"}).encode()}
        for i in range(first, first + count)
    ]


def shades(dataset: Any) -> list[int]:
    return [dataset[i]["image"].getpixel((0, 0))[0] for i in range(len(dataset))]


def test_samples_of_several_archives(tmp_path):
    for n, count in enumerate((3, 1, 4)):
        write(tmp_path / f"s{n:02d}.tar", samples(10 * n, count), prefix="./part/")
    data = load_dataset("shards", shards=str(tmp_path / "s{00..02}.tar"))["train"]
    assert shades(data) == [0, 1, 2, 10, 20, 21, 22, 23]
    assert data[3]["text_input"] == "number 10" and data[-1]["image_id"] == 7
    assert set(data[0]) == {"image", "text_input", "image_id", "instance_id"}
    for pattern in (str(tmp_path), str(tmp_path / "s*.tar"), str(tmp_path / "s{00,01,02}.tar")):
        assert shades(load_dataset("shards", shards=pattern)["train"]) == shades(data)


def test_texts_of_every_form(tmp_path):
    texts = [
        {"txt": " Äpfel \n".encode()},
        {"json": json.dumps(["a", "b", "c"]).encode()},
        {"json": json.dumps({"caption": ["x", "y"]}).encode(), "txt": b"not this one"},
        {"json": b"{"},
        {"json": b'{"url": "u"}'},
    ]
    archive = write(tmp_path / "t.tar", [{"png": jpeg(i), **text} for i, text in enumerate(texts)])
    data = load_dataset("shards", shards=str(archive))["train"]
    assert [data.records[i]["caption"] for i in range(3)] == [["Äpfel"], ["a", "b"], ["x", "y"]]
    assert {data.sample(1, np.random.default_rng(i))["text_input"] for i in range(20)} == {"a", "b"}
    for broken, why in ((3, "not valid JSON"), (4, "there is no caption")):
        with pytest.raises(UnreadableMediaError, match=rf"t\.tar, byte \d+: {why}"):
            data[broken]


def test_incomplete_samples_are_left_out_and_said(tmp_path, caplog):
    whole = samples(0, 3)
    archive = write(tmp_path / "i.tar", [whole[0], {"png": jpeg(9)}, {"txt": b"no picture"}, whole[1]])
    data = load_dataset("shards", shards=str(archive))["train"]
    assert shades(data) == [0, 1] and "2 samples without an image or without a text" in caplog.text


@pytest.mark.parametrize("cut", [300, 1500, 2000, 2600, 4000])
def test_an_archive_that_was_cut_off(tmp_path, cut, caplog):
    archive = write(tmp_path / "c.tar", samples(0, 4))
    whole = load_dataset("shards", shards=str(archive))["train"]
    ends = [int(start + size) for row in whole.records.table for start, size in (row[:2], row[2:4])]
    archive.write_bytes(archive.read_bytes()[:cut])
    complete = sum(max(ends[2 * i : 2 * i + 2]) <= cut for i in range(4))
    assert complete == {300: 0, 1500: 0, 2000: 1, 2600: 1, 4000: 2}[cut]
    if cut == 300:  # not even a header
        with pytest.raises(ValueError, match=r"c\.tar is no tar archive"):
            load_dataset("shards", shards=str(archive))
        return
    assert shades(load_dataset("shards", shards=str(archive))["train"]) == list(range(complete))


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"2 archives are missing: .*a1\.tar, .*a2\.tar"):
        write(tmp_path / "a0.tar", samples(0, 1))
        load_dataset("shards", shards=str(tmp_path / "a{0..2}.tar"))
    with pytest.raises(FileNotFoundError, match="names no archive"):
        load_dataset("shards", shards=str(tmp_path / "none*.tar"))
    with pytest.raises(ValueError, match="shards is missing"):
        load_dataset("shards")
    (tmp_path / "x.tar").write_bytes(b"no archive at all" * 100)
    packed = write(tmp_path / "z.tar", samples(0, 2), mode="w:gz")
    for path in (tmp_path / "x.tar", packed):
        with pytest.raises(ValueError, match=rf"{path.name} is no tar archive.*have to be unpacked"):
            load_dataset("shards", shards=str(path))


def test_a_changed_archive_is_read_anew(tmp_path):
    archive = write(tmp_path / "n.tar", samples(0, 2))
    assert len(load_dataset("shards", shards=str(archive))["train"]) == 2
    write(archive, samples(5, 3))
    assert shades(load_dataset("shards", shards=str(archive))["train"]) == [5, 6, 7]


def test_workers_read_what_the_main_process_reads(tmp_path):
    from torch.utils.data import DataLoader

    write(tmp_path / "w0.tar", samples(0, 9))
    write(tmp_path / "w1.tar", samples(20, 9))
    data = load_dataset("shards", shards=str(tmp_path / "w*.tar"))["train"]
    plain = shades(data)  # opens the archives before the workers are forked
    loader = DataLoader(
        data, batch_size=None, num_workers=2, collate_fn=lambda s: s["image"].getpixel((0, 0))[0]
    )
    for _ in range(2):
        assert list(loader) == plain


def test_threads_read_one_archive_at_once(tmp_path):
    write(tmp_path / "t.tar", samples(0, 120))
    data = load_dataset("shards", shards=str(tmp_path / "t.tar"))["train"]
    order = [int(i) for i in np.random.default_rng(0).permutation(np.tile(np.arange(len(data)), 25))]

    def wrong(index: int) -> bool:
        sample = data[index]
        shade = sample["image"].getpixel((0, 0))[0]
        return (shade, sample["text_input"]) != (index, f"number {index}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(wrong, order)) == 0


@pytest.mark.parametrize("pread", [True, False])
def test_an_archive_that_takes_another_ones_place_is_not_mixed_with_it(tmp_path, pread, monkeypatch):
    if not pread:  # as on Windows
        monkeypatch.delattr(os, "pread")
    archive = write(tmp_path / "r.tar", samples(0, 3))
    old = load_dataset("shards", shards=str(archive))["train"]
    assert shades(old) == [0, 1, 2]
    write(tmp_path / "new.tar", [{"txt": b"first", "png": jpeg(9)}, *samples(50, 3)]).replace(archive)
    assert shades(load_dataset("shards", shards=str(archive))["train"]) == [9, 50, 51, 52]
    with pytest.raises(UnreadableMediaError, match=r"r\.tar has changed .*; load the data set again"):
        old[0]
    archive.unlink()
    with pytest.raises(UnreadableMediaError, match=r"r\.tar cannot be read"):
        old[0]


def test_photographs_are_turned_as_their_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (40, 20)).save(out, "JPEG", exif=exif)
    archive = write(tmp_path / "e.tar", [{"jpg": out.getvalue(), "txt": b"a"}])
    assert load_dataset("shards", shards=str(archive))["train"][0]["image"].size == (20, 40)
    # published data stay as they were read when numbers were made
    assert load_dataset("laion400M", shards=str(archive))["train"][0]["image"].size == (40, 20)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "jfif", "webp", "avif", "tif", "qoi", "bmp", "gif"])
def test_images_of_every_format(tmp_path, suffix):
    out = io.BytesIO()
    kind = Image.registered_extensions()[f".{suffix.lower()}"]
    Image.new("RGB", (40, 40), "white").save(out, kind)
    archive = write(tmp_path / "k.tar", [{suffix: out.getvalue(), "txt": b"a"}])
    assert load_dataset("shards", shards=str(archive))["train"][0]["image"].size == (40, 40)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"9" * 5000,
        b'{"width": 64}',
        b"{",
        b"3",
        b"[]",
        b'{"caption": null}',
        b'{"caption": " "}',
        b'{"caption": [1]}',
    ],
)
def test_the_plain_text_is_used_where_the_json_holds_no_caption(tmp_path, content):
    for first, second in (("json", "txt"), ("txt", "json")):
        texts = {"json": content, "txt": b"a green square"}
        archive = write(
            tmp_path / "m.tar", [{"png": jpeg(0), first: texts[first], second: texts[second]}, *samples(1, 1)]
        )
        data = load_dataset("shards", shards=str(archive))["train"]
        assert [data[i]["text_input"] for i in range(2)] == ["a green square", "number 1"]


def test_what_macos_and_old_programs_put_between_the_members(tmp_path):
    rubbish = b"x" * 99
    members = [
        ("._.", rubbish), ("./.DS_Store", rubbish),
        ("./._0.png", rubbish), ("./0.png", jpeg(3)), ("./._0.txt", rubbish), ("./0.txt", b"a"),
        ("PaxHeader/1.png", rubbish), ("./1.png", jpeg(4)), ("./PaxHeaders.77/1.txt", rubbish), ("./1.txt", b"b"),
        ("__MACOSX/._1.png", rubbish), ("__MACOSX/2.txt", rubbish),
        ("__MACOSX/x/2.png", rubbish), ("./2.txt", b"c"), ("./2.png", jpeg(5)),
    ]  # fmt: skip
    with tarfile.open(tmp_path / "mac.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), {"LIBARCHIVE.xattr.com.apple": "x" * 200}
            archive.addfile(member, io.BytesIO(content))
    data = load_dataset("shards", shards=str(tmp_path / "mac.tar"))["train"]
    assert shades(data) == [3, 4, 5] and [data[i]["text_input"] for i in range(3)] == ["a", "b", "c"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_shards_and_files_resumes_exactly(tmp_path, workers, monkeypatch):
    """Mixed by ratio with another data set, interrupted in the middle of a pass and continued: the same weights."""
    for n in range(2):
        write(tmp_path / f"m{n}.tar", samples(30 * n, 12))
    recipe = {
        "model": {"arch": "blip_caption", "model_type": "tiny", "weights": "none"},
        "datasets": {
            "shards": {"shards": str(tmp_path / "m*.tar")},
            "shapes_caption": {"n_train": 16, "size": 64},
        },
        "run": {
            "task": "captioning", "max_iters": 6, "iters_per_inner_epoch": 6, "batch_size_train": 4,
            "init_lr": 1e-3, "train_splits": ["train"], "train_dataset_ratios": {"shards": 2, "shapes_caption": 1},
            "num_workers": workers, "output_dir": str(tmp_path / "runs"), "device": "cpu", "precision": "fp32",
            "save_every_iters": 3,
        },
    }  # fmt: skip

    def losses(result: Any) -> Any:
        from safetensors.torch import load_file

        return load_file(result.checkpoint_last / "model.safetensors")

    whole = losses(train(recipe, job_id="whole"))
    steps, step = iter(range(100)), CaptionTask.train_step

    def breaks_at_the_fifth(self, model, samples):
        if next(steps) == 4:
            raise RuntimeError("the machine is gone")
        return step(self, model, samples)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the machine is gone"):
        patch.setattr(CaptionTask, "train_step", breaks_at_the_fifth)
        train(recipe, job_id="parts")
    second = train(recipe, job_id="parts", resume_ckpt_path="auto")
    assert second.iterations == 6
    again = losses(second)
    assert all((whole[key] == again[key]).all() for key in whole)
