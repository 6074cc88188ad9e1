"""Evaluation of models with language models: what tasks hand over, data sets with instructions, answers by reading."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from lavis.cli import own_data
from lavis.common.config import Config
from lavis.datasets.builders import load_dataset, make_plan
from lavis.datasets.shapes import export_clips
from lavis.datasets.shapes.layouts import export_pictures
from lavis.datasets.snli_ve import SNLIVEInstruct
from lavis.models import lemmas
from lavis.nn.generation import GenerationOptions
from lavis.processors import load_processor
from lavis.runners import build, evaluate
from lavis.tasks import setup_task
from lavis.tasks.captioning import CaptionSettings, CaptionTask
from lavis.tasks.classification import ClassificationTask
from lavis.tasks.vqa import AOKVQATask, GQAReadingTask, VQAReadingTask, VQATask
from tests.helpers import blip2_reference as reference
from tests.small import random_model
from tests.test_recipes_start import write
from tests.test_video_datasets import PUBLISHED


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    described = reference.manifest("t5_instruct")
    return reference.build(
        described, reference.write(described, tmp_path_factory.mktemp("model") / "model.pth")
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    return tmp_path


def pictures(cache: Path, name: str, shapes: str) -> None:
    for dataset in load_dataset(shapes, n_train=4, n_val=3, n_test=3).values():
        if dataset.split in ("train", "val", "test"):
            export_pictures(dataset, name, cache)


# ------------------------------------------------------------------------------------------ captions
class Recorder(nn.Module):
    """Notes what it was asked."""

    prompt = ""

    def check_prompt(self, prompt: str, places: int) -> None: ...

    def generate(self, samples: Any, **options: Any) -> list[str]:
        self.samples, self.options = samples, options
        return [f"caption {i}" for i in range(len(samples["image"]))]


def test_a_penalty_that_is_given_is_handed_over_and_one_that_is_not_is_the_models() -> None:
    model, samples = Recorder(), {"image": torch.zeros(2, 3, 4, 4), "image_id": [1, 2]}
    CaptionTask().predict(model, samples)
    assert model.options == {"num_beams": 5, "max_length": 30, "min_length": 1}
    CaptionTask(repetition_penalty=1.0, length_penalty=-1.0).predict(model, samples)
    assert model.options["repetition_penalty"] == 1.0 and model.options["length_penalty"] == -1.0
    # a model that takes none is told only where somebody asked
    assert GenerationOptions.run_arguments(CaptionSettings(), random_model("blip_caption").generate)


def test_only_some_images_are_captioned() -> None:
    model = Recorder()
    samples = {
        "image": torch.arange(3.0)[:, None],
        "image_id": ["7", "8", "9"],
        "text_input": ["a", "b", "c"],
    }
    records = CaptionTask(img_ids=[9, "7"], prompt="a photo of").predict(model, samples)
    assert [r and r["image_id"] for r in records] == ["7", None, "9"]
    assert model.samples["image"].flatten().tolist() == [0, 2] and model.samples["text_input"] == ["a", "c"]
    assert model.samples["prompt"] == "a photo of"
    model.prompt = "its own"
    CaptionTask(prompt="a photo of").predict(model, samples)
    assert "prompt" not in model.samples
    assert CaptionTask(img_ids=[1]).predict(model, samples) == [None, None, None]


def test_references_of_a_file(cache: Path) -> None:
    pictures(cache, "coco_caption", "shapes_caption")
    data = load_dataset("coco_caption")["val"]
    ids = [data.image_id(i) for i in range(len(data))]
    records = [{"image_id": i, "caption": f"a red dog {i}"} for i in ids]
    task = CaptionTask()
    task.before_evaluation(Recorder(), data)
    own = task.score(records, data)
    write(cache / "own.json", {"annotations": [{"image_id": i, "caption": f"a red dog {i}"} for i in ids]})
    task = CaptionTask(annotation_file=str(cache / "own.json"))
    task.before_evaluation(Recorder(), data)
    assert task.score(records, data)["CIDEr"] > 9 > own["CIDEr"]
    assert task.contributions(records, data).metrics["CIDEr"]  # type: ignore[union-attr]
    task = CaptionTask(annotation_file="/export/home/nobody.json")  # of the original's authors
    task.before_evaluation(Recorder(), data)
    assert task.score(records, data) == own
    for file, error in (
        (str(cache / "nothing.json"), FileNotFoundError),
        (str(cache / "bad.json"), ValueError),
    ):
        write(cache / "bad.json", [1])
        with pytest.raises(error, match=Path(file).name):
            CaptionTask(annotation_file=file).before_evaluation(Recorder(), data)
    with pytest.raises(ValueError, match=r"none of the 1 images of run\.img_ids"):
        CaptionTask(img_ids=["nobody"]).before_evaluation(Recorder(), data)
    with pytest.raises(ValueError, match=r"run\.prompt: BlipCaption reads no prompt"):
        CaptionTask(prompt="a").before_evaluation(random_model("blip_caption"), data)


# ------------------------------------------------------------------------------------------ answers
def test_the_form_of_a_question() -> None:
    class Answerer(nn.Module):
        question_prompt = "Own: {}"

        def predict_answers(self, samples: Any, **options: Any) -> list[str]:
            self.options = options
            return ["a"]

    model, samples = Answerer(), {"question_id": [1]}
    for settings, prompt, penalty in (
        ({}, "Own: {}", None), ({"prompt": "Q: {}", "length_penalty": -1.0}, "Q: {}", -1.0), ({"prompt": ""}, "", None)
    ):  # fmt: skip
        VQATask(inference_method="generate", **settings).predict(model, samples)
        assert model.options["prompt"] == prompt and model.options.get("length_penalty") == penalty
    with pytest.raises(ValueError, match=r"run\.prompt='Q: \{\}': AlproQA takes no prompt"):
        VQATask(prompt="Q: {}").predict(random_model("alpro_qa", num_classes=3), samples)


def test_the_models_own_prompt_is_that_of_questions_if_it_has_a_place(instructed: Any) -> None:
    assert instructed.question_prompt == "Question: {} Short answer:"
    instructed.prompt = "Q: {} A:"
    assert instructed.question_prompt == "Q: {} A:"
    instructed.prompt = ""


def test_ground_truth_of_files(cache: Path) -> None:
    pictures(cache, "coco_vqa", "shapes_vqa")
    data = load_dataset("coco_vqa", data_type=None)["val"]
    ids = [r["question_id"] for r in data.records]
    records = [{"question_id": i, "answer": "a heron"} for i in ids]
    given = [{"question_id": i, "answers": [{"answer": "heron"}] * 10} for i in ids]
    write(cache / "questions.json", {"questions": [{"question_id": i, "question": "what?"} for i in ids]})
    write(cache / "annotations.json", {"annotations": given})
    files = {
        "ques_files": {"val": str(cache / "questions.json")},
        "anno_files": {"val": str(cache / "annotations.json")},
    }
    task = VQATask(inference_method="generate", **files)
    task.before_evaluation(nn.Identity(), data)
    assert task.score(records, data)["overall_percent"] == 100
    assert all(case.is_right for case in task.cases(records, data))
    private = {key: {"val": "/export/x.json"} for key in files}
    for settings in ({}, private):
        task = VQATask(inference_method="generate", **settings)
        task.before_evaluation(nn.Identity(), data)
        assert task.score(records, data)["overall_percent"] == 0
    with pytest.raises(FileNotFoundError, match=r"run\.ques_files\.val"):
        task = VQATask(ques_files={"val": "nothing.json"}, anno_files=files["anno_files"])
        task.before_evaluation(nn.Identity(), data)


def test_choices_are_ranked_by_a_model_that_writes(instructed: Any) -> None:
    samples = {
        "image": reference.images(), "question_id": [1, 2], "text_input": ["what is it?", "is it red?"],
        "choices": ["a dog", "a cat", "yes", "no"],
    }  # fmt: skip
    records = AOKVQATask(inference_method="generate", max_len=4).predict(instructed, samples)
    for i, record in enumerate(records):
        own = samples["choices"][2 * i : 2 * i + 2]
        prompt = f"Question: {samples['text_input'][i]} Short answer:"
        ranks = instructed.predict_class({"image": samples["image"][i : i + 1], "prompt": prompt}, own)
        assert record is not None and record["choice"] == own[int(ranks[0, 0])]


class Reader(nn.Module):
    """As PNP-VQA: answers, captions of each image, and where its patches came from."""

    def predict_answers(
        self, samples: Any, num_beams: int, max_len: int, min_len: int, num_captions: int, num_captions_fid: int,
        internal_bsz_fid: int, cap_max_length: int, cap_min_length: int, top_k: int, top_p: float,
        repetition_penalty: float, num_patches: int, block_num: int, inference_method: str = "generate",
    ) -> Any:  # fmt: skip
        self.options = (num_captions, num_captions_fid, block_num, cap_max_length, max_len)
        count = len(samples["text_input"])
        return ["yes"] * count, [["a dog", "a red dog"]] * count, torch.arange(count * 4.0).view(count, 4)


def test_answers_by_reading_captions(cache: Path) -> None:
    for split in ("train", "testdev", "test"):
        rows = [
            {"image": "1.jpg", "question": "Is it?", "question_id": f"{i}", "answer": a}
            for i, a in enumerate(("yes", "no"))
        ]
        write(cache / f"gqa/annotations/{split}_balanced_questions.json", rows)
    data, model = load_dataset("gqa")["val"], Reader()
    recipe = reference.REFERENCE / "recipes.json"
    for name, content in json.loads(recipe.read_text()).items():
        if not name.startswith("pnp-vqa/eval/gqa_eval."):
            continue
        settings = {k: v for k, v in content["run"].items() if k not in ("output_dir",)}
        task = setup_task(Config.from_dict({"run": settings}))
        assert isinstance(task, GQAReadingTask)
        task.before_evaluation(model, data)
        records = task.predict(model, {"text_input": ["a", "b"], "question_id": ["0", "1"]})
        assert model.options == (100, 5, 7, 20, 20)
        task.save(records, cache / task.result_name("val", "best"))  # type: ignore[arg-type]
        assert task.score(records, data)["accuracy_percent"] == 50  # type: ignore[arg-type]
    files = {path.name for path in cache.glob("val*")}
    assert files == {
        "val_vqa_result.json", "val_caption_result.json", "val_gradcam_result.pth", "val_vqa_result_leaderboard.json"
    }  # fmt: skip
    assert json.loads((cache / "val_vqa_result.json").read_text()) == [
        {"question_id": 0, "answer": "yes"}, {"question_id": 1, "answer": "yes"}
    ]  # fmt: skip
    captions = json.loads((cache / "val_caption_result.json").read_text())
    assert captions[1] == {"question_id": "1", "caption": ["a dog", "a red dog"]}
    assert torch.load(cache / "val_gradcam_result.pth", weights_only=True)["1"].tolist() == [4, 5, 6, 7]
    assert VQAReadingTask().settings.num_captions == 100


# ------------------------------------------------------------------------------------------ classes
def test_entailment_with_instructions(cache: Path, instructed: Any) -> None:
    pictures(cache, "snli_ve", "shapes_entailment")
    data, plain = load_dataset("snli_ve_instruct"), load_dataset("snli_ve")
    assert list(data["val"].classnames) == ["no", "maybe", "yes"] and isinstance(data["val"], SNLIVEInstruct)
    for split in ("train", "val"):
        sample, same = data[split][0], plain[split][0]
        word = ("no", "maybe", "yes")[same["label"]]
        assert sample["label"] == sample["answer"] == sample["text_output"] == word
        assert sample["text_input"] == same["text_input"]
        assert sample["prompt"] == "based on the given the image is {} true?"
    section = {
        "vis_processor": {"eval": {"name": "clip_image_eval", "image_size": 56}},
        "text_processor": {"eval": {"name": "blip_caption", "prompt": "given the image respond to "}},
    }
    model = {"arch": "blip2_t5_instruct", "model_type": "flant5xl"}
    run = {
        "task": "multimodal_classification", "evaluate": True, "test_splits": ["val"], "device": "cpu",
        "output_dir": str(cache / "runs"), "job_id": "job", "num_workers": 0, "precision": "fp32", "segments": 2,
    }  # fmt: skip
    config = Config.from_dict({"model": model, "datasets": {"snli_ve_instruct": section}, "run": run})
    scores = build(config, model=instructed).evaluate()["val"]
    (found,) = (cache / "runs/job/result").glob("*.json")
    rows = json.loads(found.read_text())
    data["val"].set_processors(*_processors(section))
    right = 0
    for i, row in enumerate(rows):
        sample = data["val"][i]
        prompt = sample["prompt"].format(sample["text_input"])
        asked = {"image": sample["image"][None], "prompt": prompt}
        ranks, logs = instructed.predict_class(asked, ["no", "maybe", "yes"], return_scores=True)
        assert (
            row["class"] == ("no", "maybe", "yes")[int(ranks[0, 0])]
            and row["target_class"] == sample["label"]
        )
        assert row["confidence"] == pytest.approx(float(logs.softmax(1).max()), abs=1e-4)
        right += row["class"] == row["target_class"]
    assert scores["accuracy_percent"] == pytest.approx(100 * right / len(rows))


def _processors(section: Any) -> tuple[Any, Any]:
    sides = [dict(section[key]["eval"]) for key in ("vis_processor", "text_processor")]
    vis, text = (load_processor(side.pop("name"), side) for side in sides)
    return vis, text


def test_classes_without_a_prompt_come_after_the_text(instructed: Any) -> None:
    task = ClassificationTask(prompt="what is it?")
    task._names = ["a dog", "a cat"]
    samples = {"image": reference.images(), "text_input": ["", "red"], "instance_id": ["0", "1"]}
    rows = task.predict(instructed, samples)
    for i, prompt in enumerate(("what is it? ", "what is it? red")):
        asked = {"image": samples["image"][i : i + 1], "prompt": prompt}
        ranks = instructed.predict_class(asked, task._names)
        assert rows[i] is not None and rows[i]["prediction"] == int(ranks[0, 0])  # type: ignore[index]
    with pytest.raises(ValueError, match="neither tells classes apart nor ranks"):
        task.predict(random_model("blip_caption"), samples)
    task._names = []
    with pytest.raises(ValueError, match="does not name its classes"):
        task.predict(instructed, samples)


# ------------------------------------------------------------------------------------------ data sets
@pytest.mark.parametrize("name", ["msrvtt_qa", "msvd_qa"])
def test_video_questions_with_words(cache: Path, name: str) -> None:
    for dataset in load_dataset(PUBLISHED[name], n_train=4, n_val=3, n_test=3).values():
        export_clips(dataset, name, cache)
    data, plain = load_dataset(f"{name}_instruct"), load_dataset(name)
    assert set(data) == set(plain) == {"train", "val", "test"}
    for split in data:
        record, sample = data[split].records[0], data[split][0]
        assert set(sample) == {"video", "text_input", "question_id", "instance_id", "answer", "text_output"}
        assert sample["answer"] == sample["text_output"] == record["answer"]
        assert len(data[split]) >= len(plain[split])  # rare answers are words, too
    assert data["test"].answer_list == plain["test"].answer_list and data["test"].name == f"{name}_instruct"
    batch = data["test"].collater([data["test"][i] | {"video": torch.zeros(3, 2, 4, 4)} for i in range(2)])
    assert batch["video"].shape == (2, 3, 2, 4, 4) and len(batch["answer"]) == 2
    assert data["test"].ground_truth()[data["test"].records[0]["question_id"]]["answers"]
    section = {"build_info": {"instance_id_key": "question_id"}}
    assert make_plan(type(plain["val"]), f"{name}_instruct", section)


def test_nocaps_out_of_domain(cache: Path) -> None:
    for split in ("val", "test"):
        rows = [{"image": f"{split}/{i}.jpg", "img_id": i} for i in range(6)]
        write(cache / f"nocaps/annotations/nocaps_{split}.json", rows)
    data = load_dataset("nocaps", domain="out")
    assert [data["val"].image_id(i) for i in range(len(data["val"]))] == [2, 4, 5] and len(data["test"]) == 6
    with pytest.raises(ValueError, match="domain"):
        load_dataset("nocaps", domain="near")


# ------------------------------------------------------------------------------------------ basic forms
def test_answers_in_basic_forms(instructed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {"image": reference.images(), "text_input": ["what?", "why?"], "apply_lemmatizer": True}
    plain = instructed.predict_answers({**samples, "apply_lemmatizer": False})
    lemmas.lemmatizer.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r"openlavis\[lemmas\].*apply_lemmatizer to false"):
        instructed.predict_answers(samples)
    Word = types.SimpleNamespace

    def pipeline(text: str) -> list[Any]:
        kinds = {"dogs": ("NOUN", "dog"), "running": ("VERB", "run"), "is": ("AUX", "be")}
        return [
            Word(text=w, pos_=kinds.get(w, ("X", w))[0], lemma_=kinds.get(w, ("X", w))[1])
            for w in text.split()
        ]

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=lambda name: pipeline))
    assert lemmas.lemmatized(["two dogs running", "it is"]) == ["two dog run", "it is"]
    assert instructed.predict_answers(samples) == [" ".join(text.split()) for text in plain]
    lemmas.lemmatizer.cache_clear()


def test_evaluation_of_own_data(tmp_path: Path, instructed: Any) -> None:
    """A table of one's own, with a model from a folder."""
    for color in ("red", "blue"):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{color}.png")
    rows = [{"image": f"{c}.png", "question": "which color?", "answer": c} for c in ("red", "blue")]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    described = reference.manifest("t5_instruct")
    saved = tmp_path / "saved"
    instructed.save_pretrained(saved)
    files = {"test": str(tmp_path / "qa.jsonl"), "images": str(tmp_path)}
    content = own_data.recipe("vqa", files, str(saved), [])
    content["run"].update(
        test_splits=["test"], valid_splits=[], evaluate=True, device="cpu", output_dir=str(tmp_path / "runs"),
        job_id="job", num_workers=0,
    )  # fmt: skip
    language = {"t5_model": str(reference.write_language_model(described, tmp_path / "language"))}
    metrics = evaluate({**content, "model": {**content["model"], "parts": language}})
    assert set(metrics) == {"test"} and "accuracy_percent" in metrics["test"]


# ------------------------------------------------------------------------------------------ examples before an image
def test_examples_are_read_before_an_image(instructed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = reference.images(6)
    questions, answers = ["what is it?", "is it red?"], ["a dog", "no"]
    texts = [["which color? red.", "is it? yes."], ["what? a longer example, two of them.", "who?"]]
    examples = [{"image": pixels[2 * i : 2 * i + 2], "text_input": texts[i]} for i in range(2)]
    samples = {
        "image": pixels[4:],
        "text_input": questions,
        "text_output": answers,
        "few_shot_samples": examples,
    }
    plain = {key: value for key, value in samples.items() if key != "few_shot_samples"}
    with torch.no_grad():
        assert torch.equal(instructed(samples).loss, instructed(plain).loss)  # the config asks for none
        few = dataclasses.replace(instructed.config, num_few_shot_examples=2, few_shot_prob=1.0)
        monkeypatch.setattr(instructed, "config", few)
        drawn = {instructed.prepare_few_shot_embeds(examples)[0].shape[1] for _ in range(20)}
        assert len(drawn) == 2  # one example or two
        monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.tensor(2))
        loss = instructed(samples).loss
        # the encoder reads the examples' queries and texts, one after another, then the image's
        read, masks = [], []
        for i in range(2):
            rows = instructed._padded(instructed._rows([t for own in texts for t in own], 128))
            both = instructed.prefix(pixels[:4], instructed.instruction([t for own in texts for t in own]))
            words = instructed.language.get_input_embeddings()(rows.ids)
            queries = torch.ones(1, both.shape[1], dtype=torch.bool)
            read.append(torch.cat([torch.cat([both[k], words[k]]) for k in (2 * i, 2 * i + 1)]))
            masks.append(torch.cat([torch.cat([queries[0], rows.mask[k]]) for k in (2 * i, 2 * i + 1)]))
        own = instructed.prefix(pixels[4:], instructed.instruction(questions))
        rows = instructed._padded(instructed._rows(questions, 128))
        embeds = torch.cat(
            [torch.stack(read), own, instructed.language.get_input_embeddings()(rows.ids)], dim=1
        )
        queries = torch.ones(2, own.shape[1], dtype=torch.bool)
        mask = torch.cat([torch.stack(masks), queries, rows.mask], dim=1)
        labels = instructed._padded(instructed._rows(answers))
        wanted = instructed.language(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            labels=labels.ids.masked_fill(~labels.mask, -100),
        ).loss
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
        short = [{"image": pixels[:1], "text_input": ["a"]}] * 2
        with pytest.raises(ValueError, match="num_few_shot_examples is 2"):
            instructed({**samples, "few_shot_samples": short})
        with pytest.raises(ValueError, match="examples for 1 images, and 2 images"):
            instructed({**samples, "few_shot_samples": examples[:1]})
        monkeypatch.setattr(instructed, "config", dataclasses.replace(few, few_shot_prob=0.5))
        often = sum(instructed.prepare_few_shot_embeds(examples)[0] is not None for _ in range(60))
        assert 10 < often < 50
