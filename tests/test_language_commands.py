"""Models with language models in commands: parts by option, prompts, ranked labels, dialogues."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis.cli.common import read_parts
from lavis.cli.main import main
from lavis.inference import RankedLabels, load
from lavis.inference.answering import Answerer
from lavis.inference.dialogue import Conversation
from lavis.inference.protocols import Answers, Chats, Prompted, Ranks, Writes, lacking
from lavis.models import build_model, load_model
from tests.helpers import blip2_reference as reference

KINDS = ("opt", "t5", "t5_instruct", "vicuna_instruct")
LABELS = ["a dog", "a cat", "the tree", "red"]
Ran = tuple[int, list[dict], str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The options that name a small model of a kind, which lies apart from its language model."""
    made: dict[str, list[str]] = {}

    def options(kind: str) -> list[str]:
        if kind not in made:
            described = reference.manifest(kind)
            folder = tmp_path_factory.mktemp(kind)
            model = reference.build(described, reference.write(described, folder / "model.pth", trimmed=True))
            model.save_pretrained(folder / "saved")
            (folder / "language").rename(folder / "moved")
            part = f"{model.LANGUAGE}={folder / 'moved'}"
            made[kind] = ["--model", str(folder / "saved"), "--part", part]
        return made[kind]

    return options


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, color in enumerate(("red", "blue", "gray")):
        image = Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 20 + 10 * i).convert("RGB")
        Image.blend(image, Image.new("RGB", image.size, color), 0.4).save(folder / f"{color}.png")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: object) -> Ran:
        code = main([str(a) for a in arguments] + ["--device", "cpu", "--precision", "fp32"])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return call


def loaded(options: list[str]) -> Any:
    return load(options[1], device="cpu", precision="fp32", parts=read_parts(options[3:]))


def test_values_of_the_option() -> None:
    assert read_parts(None) is None and read_parts([]) is None
    assert read_parts(["a=x,y", "b=/m/n,dtype=bfloat16", "c=dtype=float16"]) == {
        "a": {"source": "x,y"}, "b": {"source": "/m/n", "dtype": "bfloat16"}, "c": {"dtype": "float16"}
    }  # fmt: skip
    for wrong in ("a", "a=", "=x"):
        with pytest.raises(ValueError, match=r"--part .*NAME=SOURCE was expected"):
            read_parts([wrong])
    with pytest.raises(ValueError, match="--part a is given twice"):
        read_parts(["a=x", "a=dtype=float16"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_can(folders: Any, kind: str) -> None:
    model = loaded(folders(kind)).model
    can = {Writes, Answers, Chats, Prompted} | ({Ranks} if "instruct" in kind else set())
    assert {a for a in (Writes, Answers, Chats, Prompted, Ranks) if not lacking(model, a)} == can


@pytest.mark.parametrize("kind", KINDS)
def test_captions_after_a_prompt(folders: Any, photos: Path, run: Callable[..., Ran], kind: str) -> None:
    options = [*folders(kind), "--max-length", "12", "--batch-size", "2"]
    code, rows, said = run("caption", photos, *options, "--prompt", "a photo of")
    assert code == 0, said
    model = loaded(folders(kind))
    alone = [
        model.model.generate(
            {"image": model.read(Path(row["image"]))[None], "prompt": "a photo of"},
            num_beams=3,
            max_length=12,
        )[0]
        for row in rows
    ]
    assert [row["caption"] for row in rows] == alone and len(rows) == 3
    code, other, _ = run("caption", photos, *options)
    assert code == 0 and [row["caption"] for row in other] != alone


def test_a_default_that_is_not_the_models_can_be_asked_for(
    folders: Any, photos: Path, run: Callable[..., Ran]
) -> None:
    model = loaded(folders("t5_instruct"))
    image = {"image": model.read(photos / "red.png")[None]}
    options = ["--max-length", "14", *folders("t5_instruct")]
    for penalty in (1.0, 1.5):
        wanted = model.model.generate(image, num_beams=3, max_length=14, repetition_penalty=penalty)
        _, rows, _ = run("caption", photos / "red.png", *options, "--repetition-penalty", penalty)
        assert rows[0]["caption"] == wanted[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_questions_is_its_questions(
    folders: Any, photos: Path, run: Callable[..., Ran], kind: str
) -> None:
    questions = ["what is it?", "is there a red dog or a cat in it?"]
    code, rows, said = run(
        "ask", photos, *folders(kind), "-q", questions[0], "-q", questions[1], "--batch-size", 3
    )
    assert code == 0 and len(rows) == 6, said
    for row in rows:
        _, (alone,), _ = run("ask", row["image"], row["question"], *folders(kind))
        assert alone == row
    prompt = "Question: {} Long answer:"
    code, (given,), _ = run("ask", photos / "red.png", questions[0], *folders(kind), "--prompt", prompt)
    model = loaded(folders(kind))
    samples = {"image": model.read(photos / "red.png")[None], "text_input": [questions[0]]}
    assert [given["answer"]] == model.model.predict_answers(samples, num_beams=3, prompt=prompt)


@pytest.mark.parametrize("kind", ["t5_instruct", "vicuna_instruct"])
def test_labels_are_ranked_by_how_likely_they_are_written(
    folders: Any, photos: Path, run: Callable[..., Ran], kind: str
) -> None:
    code, rows, said = run(
        "classify", photos, *folders(kind), "--labels", ",".join(LABELS), "--prompt", "what is it?"
    )
    assert code == 0 and len(rows) == 3, said
    model = loaded(folders(kind))
    for row in rows:
        samples = {"image": model.read(Path(row["image"]))[None], "prompt": "what is it?"}
        ranks, scores = model.model.predict_class(samples, LABELS, return_scores=True)
        assert row["labels"] == [LABELS[i] for i in ranks[0].tolist()]
        shares = scores[0].softmax(dim=0).sort(descending=True).values
        assert row["probabilities"] == pytest.approx(shares.tolist(), abs=1e-5)
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-4)
    # several texts of a label count as their mean
    images = [model.read(path) for path in sorted(photos.iterdir())]
    found = RankedLabels(model, LABELS, ("{}", "it is {}"), "what is it?")(images)
    with torch.no_grad():
        each = [
            model.model.predict_class(
                {"image": torch.stack(images), "prompt": "what is it?"},
                [form.format(label) for label in LABELS], return_scores=True,
            )[1]
            for form in ("{}", "it is {}")
        ]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(each).mean(0).softmax(1), rtol=1e-4, atol=1e-5)
    code, _, said = run("classify", photos, *folders(kind), "--labels", "a,b", "--head", "itm")
    assert code == 2 and "--head itm" in said


@pytest.mark.parametrize("kind", ["t5_instruct", "vicuna_instruct"])
def test_answers_are_chosen_from_a_list(
    folders: Any, photos: Path, run: Callable[..., Ran], kind: str
) -> None:
    options = [*folders(kind), "--answers", ",".join(LABELS), "--scores"]
    code, rows, said = run("ask", photos, "what is it?", *options)
    assert code == 0, said
    answerer = Answerer(loaded(folders(kind)), LABELS)
    for row in rows:
        assert row["answer"] in LABELS and 0 < row["score"] <= 1
        alone = answerer(answerer.loaded.read(Path(row["image"]))[None], ["what is it?"])
        assert alone.texts == [row["answer"]] and alone.scores == pytest.approx([row["score"]], abs=1e-5)
        assert row["score"] >= 1 / len(LABELS)  # the likeliest of four


def test_what_does_not_go_is_said(folders: Any, photos: Path, run: Callable[..., Ran]) -> None:
    opt = folders("opt")
    for arguments, words in (
        (("ask", photos, "what?", *opt, "--answers", "a,b"), "writes its answers"),
        (("ask", photos, "what?", *opt, "--prompt", "Question:"), 'one "{}", the place of the question'),
        (("ask", photos, "what?", *opt, "--prompt", "{} {:>99}"), 'one "{}"'),
        (("caption", photos, *opt, "--prompt", "read {}"), 'no "{}"'),
        (("classify", photos, *opt, "--labels", "a,b"), "can't put images and texts into one space"),
        (("classify", photos, "--labels", "a,b", "--prompt", "what?"), "no --prompt before labels"),
        (("caption", photos, "--prompt", "a"), "can't read a prompt"),
        (
            ("caption", photos, *opt[:2], "--part", "opt_mdel=x"),
            "--part this model has no part 'opt_mdel'. Did you mean 'opt_model'",
        ),
        (("caption", photos, *opt, "--part", "visual_encoder=dtype=half"), "--part visual_encoder.dtype"),
        (("caption", photos, *opt[:2], "--part", "opt_model=nowhere"), "'opt_model'"),
        (("caption", photos, "--part", "opt_model=x"), "--part this model has no part"),
    ):
        code, _, said = run(*arguments)
        assert code == 2 and words in said, (arguments, said)


def test_a_missing_language_model_names_the_option(
    tmp_path: Path, photos: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAVIS_VICUNA", raising=False)
    described = reference.manifest("vicuna_instruct")
    file = reference.write(described, tmp_path / "model.pth")
    code, _, said = run("caption", photos, "--model", "blip2_vicuna_instruct/vicuna7b", "--checkpoint", file)
    assert code == 2 and "the part 'llm_model'" in said and "--part llm_model=PATH" in said


def test_the_environment_names_vicuna_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = reference.manifest("vicuna_instruct")
    file = reference.write(described, tmp_path / "model.pth")
    folder = str(reference.write_language_model(described, tmp_path / "vicuna"))
    section = {"arch": "blip2_vicuna_instruct", "model_type": "vicuna7b", **reference.sizes_of(described)}
    monkeypatch.setenv("LAVIS_VICUNA", folder)
    assert build_model({**section, "weights": str(file)}).parts["llm_model"].source == folder
    # beside a checkpoint, too: what is looked for next is the image encoder of this type's size
    with pytest.raises(OSError, match="its part 'visual_encoder'"):
        load_model("blip2_vicuna_instruct", "vicuna7b", checkpoint=file)


def test_number_formats_of_parts(folders: Any, photos: Path, run: Callable[..., Ran]) -> None:
    options = folders("t5_instruct")
    model = load(
        options[1], device="cpu", precision="fp32", parts=read_parts([options[3] + ",dtype=bfloat16"])
    ).model
    assert model.language.get_input_embeddings().weight.dtype == torch.bfloat16
    assert model.visual_encoder.patch_embed.proj.weight.dtype == torch.float32
    code, rows, said = run(
        "caption", photos, *options[:2], "--part", options[3] + ",dtype=bfloat16", "--max-length", 8
    )
    assert code == 0 and len(rows) == 3, said


@pytest.mark.parametrize("kind", KINDS)
def test_a_dialogue_reads_the_rounds_before(
    folders: Any, photos: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\nis it red?\n"))
    code, rows, said = run("dialogue", photos / "red.png", "--json", *folders(kind))
    assert code == 0 and [row["round"] for row in rows] == [1, 2], said
    model = loaded(folders(kind))
    first, second = (row["answer"] for row in rows)
    if "instruct" in kind:
        read = ["what is it?", f"dialog history: what is it? {first.rstrip('.')}.\nis it red?"]
        options = {"max_length": 256, "repetition_penalty": 1.5}
    else:
        read = [
            "Question: what is it? Answer:",
            f"Question: what is it? Answer: {first.rstrip('.')}. Question: is it red? Answer:",
        ]
        options = {"max_length": 30}
    image = model.read(photos / "red.png")[None]
    for prompt, answer in zip(read, (first, second)):
        if kind == "opt":  # whose `generate` cuts prompts
            monkeypatch.setattr(type(model.model), "prompt_cut", None)
        assert model.model.generate({"image": image, "prompt": prompt}, **options) == [answer]


def test_options_of_a_reply(folders: Any, photos: Path) -> None:
    model = loaded(folders("t5_instruct"))
    talk = Conversation(model, model.read(photos / "red.png"), prompt="Question: {} Answer:")
    drawn = {"use_nucleus_sampling": True, "num_beams": 1, "max_length": 12}
    answers = [talk.ask("what is it?", **drawn, seed=seed).answer for seed in (1, 2, 1)]
    talk.turns.clear()
    assert [talk.ask("what is it?", **drawn, seed=seed).answer for seed in (1,)] == answers[:1]
    assert len(talk.turns) == 1
    steps: list[int] = []

    def after_three() -> bool:
        steps.append(1)
        return len(steps) >= 3

    talk.turns.clear()
    talk.ask("what is it?", num_beams=1, max_length=200, min_length=100, stop=after_three)
    assert len(steps) == 3
    steps.clear()
    talk.ask("what is it?", num_beams=4, max_length=200, min_length=100, stop=after_three)
    assert len(steps) == 3
    with pytest.raises(TypeError, match="nothing_like_it"):
        talk.ask("what is it?", nothing_like_it=1)
    with pytest.raises(ValueError, match="empty"):
        talk.ask("  ")


def test_a_caption_precedes_the_dialogue(folders: Any, photos: Path) -> None:
    model = loaded(folders("t5_instruct"))
    image = model.read(photos / "red.png")
    with_caption = Conversation(model, image, caption="A red Dog.").ask("what is it?").answer
    prompt = 'This image has the caption "a red dog". what is it?'
    assert model.model.generate({"image": image[None], "prompt": prompt}) == [with_caption]
    chosen = Conversation(model, image, candidates=LABELS).ask("what is it?")
    assert chosen.answer in LABELS and 0 < chosen.score <= 1
    with pytest.raises(ValueError, match="blip2_t5 writes its answers"):
        Conversation(loaded(folders("t5")), image, candidates=LABELS)


@pytest.mark.parametrize("kind", ["t5_instruct", "vicuna_instruct"])
def test_a_video_is_an_image_of_frames(folders: Any, kind: str) -> None:
    model = loaded(folders(kind)).model
    video = torch.randn(2, 3, 2, 56, 56, generator=torch.Generator().manual_seed(1))
    texts = {"text_input": ["what is it?", "is it red?"], "text_output": ["a dog", "no"]}
    assert model.generate({"video": video}, max_length=8) == model.generate({"image": video}, max_length=8)
    assert model.predict_answers({"video": video, **texts}) == model.predict_answers(
        {"image": video, **texts}
    )
    assert torch.equal(
        model.predict_class({"video": video, "prompt": "what?"}, LABELS),
        model.predict_class({"image": video, "prompt": "what?"}, LABELS),
    )
    with torch.no_grad():
        assert torch.equal(model({"video": video, **texts}).loss, model({"image": video, **texts}).loss)
