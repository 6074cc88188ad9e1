"""The commands of docs/guides/pretrain.md for pre-training at full size, as printed, over a local server with a few
images of each data set, some of which are gone."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis.cli.main import main
from lavis.datasets.builders import load_dataset
from lavis.datasets.coco import CocoCaption
from tests.served import Served

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "pretrain.md"
HOSTS = ("https://storage.googleapis.com", "http://images.cocodataset.org", "https://cs.stanford.edu")
SMALL = [
    "model.model_type=tiny", "model.queue_size=8", "run.max_epoch=1", "run.batch_size_train=3", "run.num_workers=0",
    "run.warmup_steps=2", "run.job_id=small", "run.device=cpu",
]  # fmt: skip


def commands() -> list[list[str]]:
    """The words of each command of the guide's block."""
    text = GUIDE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n([^`]*blip/pretrain_14m\n)```", text)
    return [shlex.split(line) for line in block.splitlines()]


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for i, name in enumerate(names):
            packed.writestr(name, jpeg(i))
    return out.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Everything that the commands look for: annotation files, archives, and images one by one."""
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    for name in ("LAVIS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    without = {split: dataclasses.replace(s, md5=None) for split, s in CocoCaption.sources.items()}
    monkeypatch.setattr(CocoCaption, "sources", without)  # the checksums are those of the published files
    with Served() as running:
        here = running.url("")
        monkeypatch.setenv(
            "LAVIS_MIRROR", ",".join(f"{host}/={here}/{host.split('//')[1]}/" for host in HOSTS)
        )
        files = running.files
        google = "/storage.googleapis.com/sfr-vision-language-research"
        coco = {
            "train": ["train2014/COCO_train2014_000000000001.jpg", "val2014/COCO_val2014_000000000002.jpg"],
            "val": ["val2014/COCO_val2014_000000000003.jpg"],
            "test": ["val2014/COCO_val2014_000000000004.jpg"],
        }
        for split, names in coco.items():
            rows = [
                {"image": n, "caption": "a train" if split == "train" else ["a"], "image_id": n}
                for n in names
            ]
            files[f"{google}/datasets/coco_karpathy_{split}.json"] = json.dumps(rows).encode()
        every = [n for names in coco.values() for n in names]
        for folder in ("train2014", "val2014"):
            files[f"/images.cocodataset.org/zips/{folder}.zip"] = archive(
                *(n for n in every if n.startswith(folder))
            )
        vg = [{"image": f"VG_100K{s}/{i}.jpg", "caption": "a region"} for i, s in enumerate(("", "_2"))]
        files[f"{google}/LAVIS/datasets/visual_genome/vg_caption.json"] = json.dumps(vg).encode()
        for name, row in zip(("images", "images2"), vg):
            files[f"/cs.stanford.edu/people/rak248/VG_100K_2/{name}.zip"] = archive(row["image"])
        files |= {f"/web/{i}.jpg": jpeg(i) for i in range(12) if i % 4 != 3}  # a quarter is gone
        urls = [f"{here}/web/{i}.jpg" for i in range(12)]
        sbu = [{"image": f"{i}.jpg", "caption": f"sbu {i}", "url": url} for i, url in enumerate(urls)]
        files[f"{google}/LAVIS/datasets/sbu/sbu.json"] = json.dumps(sbu).encode()
        files["/storage.googleapis.com/conceptual_12m/cc12m.tsv"] = "".join(
            f"{url}\tcc12m {i}\n" for i, url in enumerate(urls)
        ).encode()
        table = (
            tmp_path / "cache" / "conceptual_caption" / "annotations" / "cc3m.tsv"
        )  # as the terms ask for: by hand
        table.parent.mkdir(parents=True)
        table.write_text("".join(f"cc3m {i}\t{url}\n" for i, url in enumerate(urls)))
        yield running


def test_the_guide_as_printed(server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *downloads, train = commands()
    assert {words[2] for words in downloads} == {
        "coco_caption", "vg_caption", "sbu_caption", "conceptual_caption_3m", "conceptual_caption_12m",
    }  # fmt: skip
    for words in downloads:
        lost = "--shards" in words
        assert words[:2] == ["lavis", "download"] and main(words[1:]) == int(lost), words
        assert ("9 fetched, 0 there before, 3 failed" in capsys.readouterr().out) == lost
    for name in ("sbu_caption", "conceptual_caption_3m", "conceptual_caption_12m"):
        data = load_dataset(name)["train"]
        texts = [data[i]["text_input"] for i in range(len(data))]
        assert [int(t.split()[1]) for t in texts] == [i for i in range(12) if i % 4 != 3]
        assert main(["data", "check", name]) == 0
    assert train[:2] == ["torchrun", "--nproc_per_node=8"] and train[2:4] == ["-m", "lavis"]
    assert main([*train[4:], "--options", *SMALL]) == 0
    (log,) = tmp_path.rglob("small/log.txt")
    rows = [json.loads(line) for line in log.read_text().splitlines() if '"split": "train"' in line]
    assert rows[-1]["step"] == 10  # 31 pairs, 3 at a time: 2 of COCO, 2 of Visual Genome, 9 of each list
    assert all(np.isfinite(rows[-1][name]) for name in ("loss_itc", "loss_itm", "loss_lm"))
