"""Programs written for the original library run unchanged: scripts, training loops, classes of one's own.

They are short programs of its public interface, in its call forms; the scripts make the calls of its train.py and
evaluate.py, in their order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent

SCRIPT = """
import argparse, random, sys
import numpy as np
import torch
import torch.backends.cudnn as cudnn
import lavis.tasks as tasks
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import setup_logger
from lavis.common.optims import LinearWarmupCosineLRScheduler, LinearWarmupStepLRScheduler
from lavis.common.registry import registry
from lavis.common.utils import now
from lavis.datasets.builders import *
from lavis.models import *
from lavis.processors import *
from lavis.runners import *
from lavis.runners.runner_base import RunnerBase
from lavis.tasks import *

{more}

parser = argparse.ArgumentParser()
parser.add_argument("--cfg-path", required=True)
parser.add_argument("--options", nargs="+")
job = now()
cfg = Config(parser.parse_args())
init_distributed_mode(cfg.run_cfg)
seed = cfg.run_cfg.seed + get_rank()
random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
setup_logger()
cfg.pretty_print()
task = tasks.setup_task(cfg)
datasets = task.build_datasets(cfg)
model = task.build_model(cfg)
{end}
"""
TRAIN = """
runner_class = registry.get_runner_class(cfg.run_cfg.get("runner", "runner_base"))
runner_class(cfg=cfg, job_id=job, task=task, model=model, datasets=datasets).train()
"""
EVALUATE = """
RunnerBase(cfg=cfg, job_id=job, task=task, model=model, datasets=datasets).evaluate(skip_reload=True)
"""


def script(tmp_path: Path, end: str, recipe: Path, *options: str, more: str = "", ranks: int = 1) -> str:
    """Run the calls of train.py or evaluate.py; what they print."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(end=end, more=more))
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    done = subprocess.run(
        [
            *start,
            str(path),
            "--cfg-path",
            str(recipe),
            "--options",
            *options,
            f"run.output_dir={tmp_path / 'out'}",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def runs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "out").iterdir())


SMALL = [
    "datasets.shapes_caption.n_train=24", "datasets.shapes_caption.n_val=4", "datasets.shapes_caption.n_test=4",
    "run.device=cpu", "run.test_splits=[test]", "run.batch_size_train=8", "run.max_iters=2",
    "run.iters_per_inner_epoch=2",
]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_calls_of_the_training_script(tmp_path, ranks):
    script(
        tmp_path,
        TRAIN,
        ROOT / "lavis/recipes/blip/caption_shapes.yaml",
        *SMALL,
        "run.max_len=10",
        ranks=ranks,
    )
    (folder,) = runs(tmp_path)
    assert {"checkpoint_last", "config.yaml", "log.txt", "evaluate.txt"} <= {p.name for p in folder.iterdir()}


def test_the_calls_of_the_evaluation_script(tmp_path):
    recipe = ROOT / "lavis/recipes/blip/caption_shapes.yaml"
    chosen = ("model.model_type=tiny_shapes", "model.weights=finetuned", "run.evaluate=True")
    script(tmp_path, EVALUATE, recipe, *SMALL, *chosen)
    (folder,) = runs(tmp_path)
    (line,) = map(json.loads, (folder / "evaluate.txt").read_text().splitlines())
    assert line["split"] == "test" and line["Bleu_4"] > 0.5


# ------------------------------------------------------------------------- classes of one's own, original's recipe

OWN = """
import json, os
import torch
from PIL import Image
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import BaseDataset
from lavis.models.base_model import BaseModel
from lavis.processors.base_processor import BaseProcessor
from lavis.tasks.base_task import BaseTask


class DotsDataset(BaseDataset):
    def __getitem__(self, index):
        ann = self.annotation[index]
        image = Image.open(os.path.join(self.vis_root, ann["image"])).convert("RGB")
        return {
            "image": self.vis_processor(image), "text_input": self.text_processor(ann["caption"]),
            "label": ann["label"], "instance_id": ann["instance_id"],
        }

    def collater(self, samples):
        return {
            "image": torch.stack([s["image"] for s in samples]), "text_input": [s["text_input"] for s in samples],
            "label": torch.tensor([s["label"] for s in samples]), "instance_id": [s["instance_id"] for s in samples],
        }


@registry.register_builder("dots")
class DotsBuilder(BaseDatasetBuilder):
    train_dataset_cls = DotsDataset
    eval_dataset_cls = DotsDataset
    DATASET_CONFIG_DICT = {"default": "dots.yaml"}


@registry.register_processor("shout")
class Shout(BaseProcessor):
    def __init__(self, mark="!"):
        self.mark = mark

    def __call__(self, caption):
        return caption + self.mark

    @classmethod
    def from_config(cls, cfg=None):
        return cls(mark=cfg.get("mark", "!"))


@registry.register_model("dot_counter")
class DotCounter(BaseModel):
    PRETRAINED_MODEL_CONFIG_DICT = {"base": "dot_counter.yaml"}

    def __init__(self, width):
        super().__init__()
        self.head = torch.nn.Linear(3, width)
        self.out = torch.nn.Linear(width, 2)

    @classmethod
    def from_config(cls, cfg):
        return cls(width=cfg.get("width", 4))

    def forward(self, samples):
        assert samples["text_input"][0].endswith("?")
        logits = self.out(self.head(samples["image"].mean(dim=(2, 3))))
        return {"loss": torch.nn.functional.cross_entropy(logits, samples["label"]), "logits": logits}


@registry.register_task("count_dots")
class CountDots(BaseTask):
    def __init__(self, evaluate, report_metric=True):
        super().__init__()
        self.evaluate_only = evaluate

    @classmethod
    def setup_task(cls, cfg):
        return cls(evaluate=cfg.run_cfg.evaluate)

    def train_step(self, model, samples):
        output = model(samples)
        return output["loss"], {"loss_dots": output["loss"].detach()}

    def valid_step(self, model, samples):
        guesses = model(samples)["logits"].argmax(1).tolist()
        return [
            {"guess": g, "label": int(l), "instance_id": i}
            for g, l, i in zip(guesses, samples["label"], samples["instance_id"])
        ]

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        name = "{}_epoch{}".format(split_name, epoch)
        file = self.save_result(val_result, registry.get_path("result_dir"), "own_" + name, "instance_id")
        rows = json.load(open(file))
        share = sum(r["guess"] == r["label"] for r in rows) / len(rows)
        return {"agg_metrics": share, "share": share}
"""
RECIPE = """
model:
  arch: dot_counter
  model_type: base
  width: 8
datasets:
  dots:
    vis_processor:
      train: {name: "blip_image_eval", image_size: 16}
      eval: {name: "blip_image_eval", image_size: 16}
    text_processor:
      train: {name: "shout", mark: "?"}
      eval: {name: "shout", mark: "?"}
run:
  task: count_dots
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 1e-1
  min_lr: 0
  weight_decay: 0.05
  max_epoch: 3
  batch_size_train: 4
  batch_size_eval: 4
  num_workers: 0
  seed: 42
  output_dir: "output"
  amp: False
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  valid_splits: ["val"]
  device: "cpu"
  world_size: 1
  dist_url: "env://"
  distributed: True
"""


def test_own_classes_in_the_original_form_train_from_a_recipe_of_the_original(tmp_path):
    (tmp_path / "images").mkdir()
    records = []
    for i in range(12):
        colour = (200, 30, 30) if i % 2 else (30, 30, 200)
        Image.new("RGB", (20, 20), colour).save(tmp_path / "images" / f"{i}.png")
        records.append({"image": f"{i}.png", "caption": f"dots {i}", "label": i % 2})
    for split, rows in (("train", records[:8]), ("val", records[8:])):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    info = {
        "annotations": {
            s: {"url": f"{s}.json", "storage": str(tmp_path / f"{s}.json")} for s in ("train", "val")
        },
        "images": {"storage": str(tmp_path / "images")},
    }
    section = {"dots": {"data_type": "images", "build_info": info}}
    (tmp_path / "dots.yaml").write_text(json.dumps({"datasets": section}))
    (tmp_path / "dot_counter.yaml").write_text(json.dumps({"model": {"arch": "dot_counter", "width": 6}}))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    more = OWN + '\nassert "dots" in dataset_zoo.get_names() and "dot_counter" in str(model_zoo)\n'
    more += 'assert load_model("dot_counter", "base").head.weight.shape == (6, 3)\n'
    more += 'assert len(load_dataset("dots")["val"]) == 4\n'
    script(tmp_path, TRAIN, tmp_path / "recipe.yaml", "run.log_freq=1", more=more)
    (folder,) = runs(tmp_path)
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert any("loss_dots" in line for line in lines)
    assert [line["agg_metrics"] for line in lines if line.get("split") == "val"][-1] == 1.0
    assert len(json.loads((folder / "result" / "own_val_epoch2.json").read_text())) == 4
