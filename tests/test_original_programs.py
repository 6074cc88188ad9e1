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
import torch
from PIL import Image

from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.models import load_model, load_model_and_preprocess, load_preprocess

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


# --------------------------------------------------------------------------------------- programs of models


def images(count: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


TEXTS = ["a red circle above a blue square", "two green stars"]
STEP = {"epoch": 0, "iters": 0, "num_iters_per_epoch": 10}


def test_captions_in_every_call_form(caplog):
    device = torch.device("cpu")
    model, vis_processors, txt_processors = load_model_and_preprocess(
        name="blip_caption", model_type="tiny_shapes", is_eval=True, device=device
    )
    raw = Image.new("RGB", (90, 60), "white")
    image = vis_processors["eval"](raw).unsqueeze(0).to(model.device)
    assert len(model.generate({"image": image})) == 1
    assert len(model.generate({"image": image}, use_nucleus_sampling=True, num_captions=3)) == 3
    five = model.generate({"image": image}, num_captions=5)
    again = model.generate({"image": image}, num_captions=5)
    assert five == again and len(set(five)) == 5
    assert five == model.generate({"image": image}, num_captions=5, num_beams=5)
    said = [r for r in caplog.records if "5 texts per image" in r.getMessage()]
    assert len(said) <= 1
    assert txt_processors["eval"]("A Dog!") == "a dog"


def test_a_training_loop():
    from lavis.common.logger import MetricLogger, SmoothedValue
    from lavis.common.optims import LinearWarmupCosineLRScheduler
    from lavis.datasets.data_utils import prepare_sample

    model, vis, txt = load_model_and_preprocess("blip_caption", "tiny_shapes")
    dataset = load_dataset("shapes_caption", n_train=8, n_val=2, n_test=2)["train"]
    dataset.set_processors(vis["eval"], txt["train"])
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=dataset.collater)
    optimizer = torch.optim.AdamW(model.get_optimizer_params(weight_decay=0.05), lr=1e-4)
    schedule = LinearWarmupCosineLRScheduler(
        optimizer=optimizer, max_epoch=2, min_lr=0, init_lr=1e-4, warmup_steps=2, warmup_start_lr=1e-6
    )
    model.train()
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
    for epoch in range(2):
        for step, samples in enumerate(logger.log_every(loader, 1, "Train")):
            samples = prepare_sample(samples, cuda_enabled=False)
            samples.update({"epoch": epoch, "num_iters_per_epoch": len(loader), "iters": step})
            schedule.step(cur_epoch=epoch, cur_step=step)
            output = model(samples)
            loss_dict = {k: v for k, v in output.items() if "loss" in k}
            loss = output["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            logger.update(**{k: v.item() for k, v in loss_dict.items()}, lr=optimizer.param_groups[0]["lr"])
    logger.synchronize_between_processes()
    assert logger.meters["loss"].count == 4 and logger.loss.global_avg > 0
    assert str(logger.lr) == f"{optimizer.param_groups[0]['lr']:.6f}"


LOSSES = [
    ("blip_caption", {"text_input": TEXTS}),
    ("blip_vqa", {"text_input": TEXTS, "answer": ["a", "b", "c"], "n_answers": [2, 1], "weight": [0.5, 0.5, 1.0]}),
    ("albef_vqa", {"text_input": TEXTS, "answer": ["a", "b", "c"], "n_answers": [2, 1], "weight": [1.0] * 3}),
    ("blip_retrieval", {"text_input": TEXTS, "image_id": torch.tensor([3, 4])}),
    ("albef_retrieval", {"text_input": TEXTS, "image_id": torch.tensor([3, 4])}),
    ("blip_pretrain", {"text_input": TEXTS}),
    ("albef_pretrain", {"text_input": TEXTS}),
    ("blip_nlvr", {"text_input": TEXTS, "label": torch.tensor([0, 1])}),
    ("albef_nlvr", {"text_input": TEXTS, "label": torch.tensor([0, 1])}),
    ("albef_classification", {"text_input": TEXTS, "label": torch.tensor([0, 1])}),
    ("blip_classification", {"text_input": TEXTS, "label": torch.tensor([0, 1])}),
    ("alpro_retrieval", {"text_input": TEXTS}),
    ("alpro_qa", {"text_input": TEXTS, "answers": torch.tensor([0, 1])}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "samples"), LOSSES, ids=[name for name, _ in LOSSES])
def test_a_loaded_model_gives_its_loss_in_evaluation_mode_and_named_outputs(name, samples):
    model = load_model(name, "tiny", is_eval=True)
    assert not model.training
    media = {"video": torch.rand(2, 3, 8, 64, 64)} if name.startswith("alpro") else {"image": images(2)}
    if name.endswith("nlvr"):
        media = {"image0": images(2), "image1": images(2, seed=1)}
    output = model({**samples, **media, **STEP})
    output["loss"].backward()
    assert output.loss is output["loss"] and output.to_tuple() == tuple(output.values())
    assert output[0] is output.to_tuple()[0] and output[:1] == output.to_tuple()[:1]
    assert dict(output).keys() == dict(**output).keys() and len(output) == len(output.keys())
    inner = output.intermediate_output
    seen = inner.video_embeds if name.startswith("alpro") else inner.image_embeds
    assert inner[0] is seen
    if name != "blip_caption":
        assert inner.encoder_output.last_hidden_state.ndim == 3
        assert inner.encoder_output[0] is inner["encoder_output"]["last_hidden_state"]
    if name.startswith("albef"):
        assert inner.image_embeds_m.shape == inner.image_embeds.shape
    if name == "albef_vqa":
        assert inner.encoder_output_m.last_hidden_state.shape == inner.encoder_output.last_hidden_state.shape
    if name.endswith(("retrieval", "pretrain")):
        assert inner.encoder_output_neg.last_hidden_state.shape[0] == 4


@pytest.mark.parametrize("family", ["blip", "albef"])
def test_retrieval_by_hand(family):
    """Similarities and matching, through the parts of a model as programs of the original use them."""
    F = torch.nn.functional
    model = load_model(f"{family}_retrieval", "tiny_shapes", is_eval=True)
    pictures = images(2)
    text = model.tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=model.config.max_txt_len, return_tensors="pt"
    ).to(model.device)
    with torch.no_grad():
        image_embeds = model.visual_encoder.forward_features(pictures)
        image_feat = F.normalize(model.vision_proj(image_embeds[:, 0, :]), dim=-1)
        text_output = model.text_encoder.forward_text(text)
        text_embeds = text_output.last_hidden_state
        text_feat = F.normalize(model.text_proj(text_embeds[:, 0, :]), dim=-1)
        tokens = model.tokens(TEXTS)
        assert torch.allclose(image_feat @ text_feat.t(), model.image_feature(model.encode_image(pictures))
                              @ model.text_feature(model.encode_text(tokens)).t(), atol=1e-5)  # fmt: skip
        atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long)
        if family == "blip":
            encoder_input_ids = text.input_ids.clone()
            encoder_input_ids[:, 0] = model.tokenizer.enc_token_id
            fused = model.text_encoder(
                encoder_input_ids, attention_mask=text.attention_mask, encoder_hidden_states=image_embeds,
                encoder_attention_mask=atts, return_dict=True,
            )  # fmt: skip
        else:
            fused = model.text_encoder(
                encoder_embeds=text_embeds, attention_mask=text.attention_mask, encoder_hidden_states=image_embeds,
                encoder_attention_mask=atts, return_dict=True, mode="fusion",
            )  # fmt: skip
        by_hand = model.itm_head(fused.last_hidden_state[:, 0, :])
        from lavis.models.fusion import TextStates

        states = None if family == "blip" else model.encode_text(tokens)
        ours = model.match_logits(TextStates(tokens, states), model.memorize(model.encode_image(pictures)))
    assert torch.allclose(by_hand, ours, atol=1e-5)
    assert model.text_encoder.config.hidden_size == model.visual_encoder.vision_width == 128


@pytest.mark.parametrize("name", ["blip_vqa", "albef_vqa"])
def test_question_answering_by_hand(name):
    model = load_model(name, "tiny_shapes", is_eval=True)
    samples = {
        "image": images(2), "text_input": TEXTS, "answer": ["red", "two", "three"], "n_answers": torch.tensor([2, 1]),
        "weight": torch.ones(3), **STEP,
    }  # fmt: skip
    tokenizer, start = model.tokenizer, model.tokenizer.cls_token_id
    with torch.no_grad():
        output = model(samples)
        questions = tokenizer(
            TEXTS,
            padding="longest",
            truncation=True,
            max_length=model.config.max_txt_len,
            return_tensors="pt",
        )
        if name == "blip_vqa":
            questions.input_ids[:, 0] = tokenizer.enc_token_id
            start = tokenizer.bos_token_id
        image_embeds = model.visual_encoder.forward_features(samples["image"])
        multimodal = model.text_encoder.forward_automask(tokenized_text=questions, visual_embeds=image_embeds)
        assert torch.allclose(
            multimodal.last_hidden_state,
            output.intermediate_output.encoder_output.last_hidden_state,
            atol=1e-5,
        )
        answers = tokenizer(samples["answer"], padding="longest", return_tensors="pt")
        answers.input_ids[:, 0] = start
        targets = answers.input_ids.masked_fill(answers.input_ids == tokenizer.pad_token_id, -100)
        decoded = model.text_decoder(
            answers.input_ids,
            attention_mask=answers.attention_mask,
            encoder_hidden_states=multimodal.last_hidden_state.repeat_interleave(samples["n_answers"], 0),
            encoder_attention_mask=questions.attention_mask.repeat_interleave(samples["n_answers"], 0),
            labels=targets,
            return_dict=True,
            reduction="none",
        )
    assert torch.allclose(decoded.logits, output.intermediate_output.decoder_output.logits, atol=1e-4)
    assert decoded.loss.shape == (3,)


def test_a_caption_written_by_hand():
    model = load_model("blip_caption", "tiny_shapes", is_eval=True)
    samples = {"image": images(2)}
    image_embeds = model.forward_encoder(samples)
    prompt = model.tokenizer([model.prompt] * 2, return_tensors="pt")
    prompt.input_ids[:, 0] = model.tokenizer.bos_token_id
    prompt.input_ids = prompt.input_ids[:, :-1]
    assert (
        prompt.input_ids.shape[1] == len(model.tokenizer(model.prompt).input_ids) - 1 == model.prompt_length
    )
    written = model.text_decoder.generate_from_encoder(
        tokenized_prompt=prompt, visual_embeds=image_embeds, sep_token_id=model.tokenizer.sep_token_id,
        pad_token_id=model.tokenizer.pad_token_id, num_beams=3, max_length=30, min_length=10,
    )  # fmt: skip
    outputs = model.tokenizer.batch_decode(written, skip_special_tokens=True)
    assert [output[len(model.prompt) :] for output in outputs] == model.generate(samples)


def test_gradcam_by_hand():
    from lavis.models.blip_models.blip_image_text_matching import compute_gradcam

    model = load_model("blip_image_text_matching", "tiny_shapes", is_eval=True)
    tokens = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    layer = model.text_encoder.base_model.base_model.encoder.layer[1].crossattention.self
    layer.save_attention = True
    output = model({"image": images(2), "text_input": TEXTS}, match_head="itm")
    model.zero_grad()
    output[:, 1].sum().backward()
    shares = (layer.get_attention_map() * layer.get_attn_gradients().clamp(0)).mean(1).detach()
    layer.save_attention = False
    maps, logits = compute_gradcam(model, images(2), TEXTS, tokens, block_num=1)
    assert torch.allclose(logits, output.detach(), atol=1e-5)
    side = maps[0].shape[-1]
    by_hand = (shares[0, :, 1:] * tokens.attention_mask[0][:, None]).view(-1, side, side)
    assert torch.allclose(maps[0][0], by_hand[0], atol=1e-6) and torch.allclose(
        maps[0][2:], by_hand[1:], atol=1e-6
    )


def test_features_and_answers():
    model, vis, txt = load_model_and_preprocess("blip_feature_extractor", "tiny_shapes", is_eval=True)
    sample = {
        "image": vis["eval"](Image.new("RGB", (80, 50))).unsqueeze(0),
        "text_input": [txt["eval"](TEXTS[0])],
    }
    both, image = model.extract_features(sample), model.extract_features(sample, mode="image")
    text = model.extract_features(sample, mode="text")
    assert (image.image_embeds_proj[:, 0, :] @ text.text_embeds_proj[:, 0, :].t()).shape == (1, 1)
    assert both.multimodal_embeds[:, 0, :].shape == (1, 128) and set(both.keys()) == {
        "image_embeds",
        "multimodal_embeds",
    }
    model = load_model("blip_vqa", "tiny_shapes", is_eval=True)
    sample["text_input"] = "what colour is the circle?"
    assert len(model.predict_answers(samples=sample, inference_method="generate")) == 1
    assert model.predict_answers(sample, answer_list=["red", "blue"], inference_method="rank")[0] in (
        "red",
        "blue",
    )
    model = load_model("albef_nlvr", "tiny_shapes", is_eval=True)
    pair = {"image0": images(1), "image1": images(1), "text_input": [TEXTS[0]], "label": torch.tensor([1])}
    found = model.predict(pair)
    assert found["predictions"].shape == (1, 2) and found["targets"].tolist() == [1]


# ------------------------------------------------------------------------------- configurations, files, registry


@pytest.mark.parametrize(
    ("name", "model_type"), [("blip_caption", "tiny_shapes"), ("albef_retrieval", "tiny_shapes")]
)
def test_a_model_from_its_default_configuration(name, model_type):
    from omegaconf import OmegaConf

    cls = registry.get_model_class(name)
    cfg = OmegaConf.load(cls.default_config_path(model_type))
    model, (vis, txt) = cls.from_config(cfg.model), load_preprocess(cfg.preprocess)
    same, same_vis, same_txt = load_model_and_preprocess(name, model_type)
    assert {k: v.tolist() for k, v in model.state_dict().items() if "queue" not in k and v.numel() < 999} == {
        k: v.tolist() for k, v in same.state_dict().items() if "queue" not in k and v.numel() < 999
    }
    assert repr(vis) == repr(same_vis) and repr(txt) == repr(same_txt)
    cfg.model.image_size, cfg.model.load_finetuned, cfg.model.load_pretrained = 32, False, False
    assert cls.from_config(cfg.model).visual_encoder.image_size == 32


def test_a_model_file_of_the_original_is_understood(tmp_path):
    from omegaconf import OmegaConf

    GS = "https://storage.googleapis.com/sfr-vision-language-research/"
    from lavis.common.config import translate_model

    section = {
        "arch": "blip_caption", "load_finetuned": False, "load_pretrained": False, "vit_type": "large",
        "finetuned": GS + "BLIP/models/model_large_caption.pth", "vit_grad_ckpt": True, "vit_ckpt_layer": 5,
        "vit_drop_path_rate": 0.1, "image_size": 384, "med_config_path": "configs/models/med_large_config.json",
        "prompt": "a photo of ",
    }  # fmt: skip
    assert translate_model(section) == {
        "arch": "blip_caption", "model_type": "large_coco", "weights": "none", "image_size": 384,
        "prompt": "a photo of ", "grad_checkpointing": 5, "vit": {"drop_path": 0.1},
    }  # fmt: skip
    for arch, keys, expected in (
        ("blip_vqa", {"finetuned": GS + "LAVIS/models/BLIP/blip_okvqa.pth", "vit_type": "base"}, "okvqa"),
        (
            "albef_retrieval",
            {"vit_type": "base", "med_config_path": "configs/models/med_config_albef.json"},
            "coco",
        ),
        (
            "alpro_qa",
            {"finetuned": GS + "LAVIS/models/ALPRO/alpro_msvd_qa.pth", "timesformer": {"n_frms": 16}},
            "msvd",
        ),
        ("gpt_dialogue", {"len_tokenizer": 50264, "len_video_ft": 4224}, "base"),
    ):
        assert translate_model({"arch": arch, **keys})["model_type"] == expected
    with pytest.raises(ValueError, match="base or large"):
        translate_model({"arch": "blip_caption", "vit_type": "huge"})
    small = {
        "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "encoder_width": 768, "max_position_embeddings": 64,
    }  # fmt: skip
    (tmp_path / "bert.json").write_text(json.dumps(small))
    cfg = OmegaConf.create(
        {"arch": "blip_caption", "vit_type": "base", "image_size": 32, "load_finetuned": False,
         "load_pretrained": False, "med_config_path": str(tmp_path / "bert.json")}
    )  # fmt: skip
    model = registry.get_model_class("blip_caption").from_config(cfg)
    assert len(model.text_decoder.bert.encoder.layer) == 2 and model.text_decoder.bert.config.width == 96
    assert type(model).init_tokenizer().bos_token_id == 30522


def test_weights_of_a_file_take_the_place_of_others(tmp_path):
    model = load_model("blip_retrieval", "tiny_shapes", is_eval=True)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    other = load_model("blip_retrieval", "tiny")
    other.load_checkpoint(url_or_filename=str(tmp_path / "weights.pth"))
    assert torch.equal(other.itm_head.weight, model.itm_head.weight)
    captioner = load_model("blip_caption", "tiny")
    torch.save(
        {"model": load_model("blip_pretrain", "tiny_shapes").state_dict()}, tmp_path / "pretrained.pth"
    )
    captioner.load_from_pretrained(url_or_filename=str(tmp_path / "pretrained.pth"))
    captioner.load_checkpoint_from_config(
        {"load_finetuned": False, "pretrained": str(tmp_path / "pretrained.pth")}
    )
    captioner.before_training(dataset=None, task_type=None)
    captioner.before_evaluation(dataset=None, task_type=None)
    assert captioner.show_n_params() == "1.9M" and captioner.show_n_params(return_str=False) > 1_800_000
    assert captioner.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["blip_image_eval", "clip_image_eval"])
def test_the_steps_of_an_image_processor(name):
    from lavis.processors import load_processor
    from lavis.processors.blip_processors import BlipImageEvalProcessor

    processor = load_processor(name).build(image_size=48)
    picture = Image.effect_noise((70, 50), 80).convert("RGB")
    whole = processor(picture)
    assert torch.equal(processor.transform(picture), whole)
    *first, last = processor.transform.transforms
    step = picture
    for transform in first:
        step = transform(step)
    assert step.shape == (3, 48, 48) and float(step.min()) >= 0 and float(step.max()) <= 1
    assert torch.equal(last(step), whole) and torch.equal(processor.normalize(step), whole)
    assert last.mean == processor.mean and BlipImageEvalProcessor(image_size=48).transform is not None


def test_registry_zoo_and_paths():
    from lavis.models import model_zoo

    mapping = registry.mapping
    assert mapping["model_name_mapping"]["blip_caption"] is registry.get_model_class("blip_caption")
    for kind in ("builder", "task", "processor", "lr_scheduler", "runner"):
        assert mapping[f"{kind}_name_mapping"]
    assert Path(str(registry.get_path("library_root")), "models").is_dir()
    assert registry.get_path("cache_root") and registry.get("SPLIT_NAMES") == ["train", "val", "test"]
    assert "base_coco" in model_zoo.model_zoo["blip_caption"]
    with pytest.raises(ValueError, match="base_coco"):
        registry.get_model_class("blip_caption").default_config_path("base_cocoo")


def test_builders_of_published_data():
    from lavis.datasets.builders import COCOCapBuilder, dataset_zoo
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder, load_dataset_config

    assert issubclass(COCOCapBuilder, BaseDatasetBuilder) and COCOCapBuilder.__name__ == "COCOCapBuilder"
    cfg = load_dataset_config(COCOCapBuilder.default_config_path())
    assert (
        cfg["data_type"] == "images" and {"train", "val", "test"} <= cfg["build_info"]["annotations"].keys()
    )
    builder = registry.get_builder_class("shapes_caption")({"n_train": 4, "n_val": 2, "n_test": 2})
    built = builder.build_datasets()
    assert {"train", "val", "test"} <= built.keys() and len(built["train"]) == 4
    assert "default" in dataset_zoo.dataset_zoo["coco_caption"]
    assert built["train"].annotation[0] and built["train"].displ_item(0)["image"].size


def test_tasks_from_a_command_line(tmp_path):
    from argparse import Namespace

    import lavis.tasks as tasks
    from lavis.common.config import Config

    recipe = ROOT / "lavis/recipes/blip/caption_shapes.yaml"
    cfg = Config(Namespace(cfg_path=str(recipe), options=["run.seed=7", "model.model_type", "tiny_shapes"]))
    assert (
        cfg.run_cfg.seed == 7 and cfg.run_cfg.get("nothing", 3) == 3 and cfg.model_cfg.arch == "blip_caption"
    )
    assert "shapes_caption" in cfg.datasets_cfg
    task = tasks.setup_task(cfg)
    model = load_model("blip_caption", "tiny_shapes", is_eval=True)
    rows = task.valid_step(
        model=model, samples={"image": images(2), "image_id": [1, 2], "instance_id": ["0", "1"]}
    )
    assert [row["image_id"] for row in rows] == [1, 2]
    file = task.save_result([*rows, *rows], str(tmp_path), "val_epoch0", remove_duplicate="image_id")
    assert len(json.loads(Path(file).read_text())) == 2
