"""The demo's page for conversations: what it answers, another answer, stopping, and that visitors stay apart."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lavis.app.demo import models, uploads
from lavis.app.demo.calls import Caller
from lavis.app.demo.fields import HistoryInput
from lavis.app.demo.page import EXAMPLES, Rounds, Settings, Talk
from lavis.app.demo.pages.answering import Answering
from lavis.app.demo.pages.captioning import Captioning
from lavis.app.demo.pages.chat import Chat
from lavis.app.demo.pages.classification import Classification
from lavis.inference import RankedLabels, load
from lavis.inference.dialogue import Conversation
from tests.helpers import blip2_reference as reference

ANSWERER = "blip_vqa/tiny_easy_vqa"


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    described = reference.manifest("t5_instruct")
    folder = tmp_path_factory.mktemp("model")
    reference.build(described, reference.write(described, folder / "model.pth")).save_pretrained(
        folder / "saved"
    )
    return load(str(folder / "saved"), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(EXAMPLES / "drawing_00.png").convert("RGB")


@pytest.fixture
def limits(tmp_path: Any) -> uploads.Limits:
    (tmp_path / "uploads").mkdir()
    return uploads.Limits(tmp_path / "uploads", megabytes=1, megapixels=2)


def test_a_conversation_goes_on(instructed: Any, picture: Image.Image, tmp_path: Any) -> None:
    page = Chat(Settings(tmp_path))
    first, _ = page.run(instructed, picture, "what is it?", longest=8)
    second, again = page.run(instructed, picture, "is it red?", tuple(first), longest=8)
    assert second == again and second[:1] == first and len(second) == 2
    talk = Conversation(instructed, picture)
    for question, answer in second:
        assert talk.ask(question, num_beams=3, max_new_tokens=8).answer == answer
    other, _ = page.run(instructed, picture, "is it red?", (("what is it?", "a heron"),), longest=8)
    assert other[0][1] == "a heron"
    shaped, _ = page.run(instructed, picture, "is it red?", prompt="Question: {} Answer:", longest=8)
    asked = Conversation(instructed, picture, prompt="Question: {} Answer:")
    assert shaped == [("is it red?", asked.ask("is it red?", num_beams=3, max_new_tokens=8).answer)]
    chosen, _ = page.run(instructed, picture, "is it red?", answers=("yes", "no"))
    assert chosen[0][1] in ("yes", "no")


def test_another_answer_takes_the_place_of_the_last(
    instructed: Any, picture: Image.Image, tmp_path: Any
) -> None:
    page = Chat(Settings(tmp_path))
    history = (("what is it?", "a dog"), ("is it red?", "no"))
    found = [
        page.run(instructed, picture, "unsent", history, "yes", longest=12, seed=seed)[0]
        for seed in (1, 1, 2, 3)
    ]
    assert all(rounds[0] == history[0] and rounds[1][0] == "is it red?" for rounds in found)
    assert found[0] == found[1] and len({rounds[1][1] for rounds in found}) >= 2
    drawn = {page.run(instructed, picture, "", history, "yes", longest=12)[0][1][1] for _ in range(4)}
    assert len(drawn) > 1  # each time with another seed
    for wrong, says in (
        ({"retry": "yes"}, "there is no answer yet"),
        ({"message": ""}, "write something first"),
        ({"retry": "yes", "history": history, "answers": ("yes", "no")}, "always gives the same answer"),
    ):
        with pytest.raises(ValueError, match=says):
            page.run(instructed, picture, **{"message": "", **wrong})


def test_a_model_that_answers_takes_each_question_by_itself(picture: Image.Image, tmp_path: Any) -> None:
    page, loaded = Chat(Settings(tmp_path)), load(ANSWERER, device="cpu")
    alone, _ = page.run(loaded, picture, "what color is the shape?")
    later, _ = page.run(loaded, picture, "what color is the shape?", (("is there a circle?", "no"),))
    assert later[1] == alone[0] and later[0] == ("is there a circle?", "no")
    with pytest.raises(ValueError, match="always gives the same answer"):
        page.run(loaded, picture, "", tuple(alone), "yes")
    with pytest.raises(ValueError, match="can't read a prompt"):
        page.run(loaded, picture, "what?", prompt="Q: {}")


def test_models_with_language_models_are_offered_on_the_pages_that_fit() -> None:
    for page, fits in (
        (Chat, {"blip2_opt", "blip2_t5", "blip2_t5_instruct", "blip2_vicuna_instruct", "blip_vqa"}),
        (Captioning, {"blip2_opt", "blip2_t5", "blip2_t5_instruct", "blip2_vicuna_instruct", "blip_caption"}),
        (Answering, {"blip2_opt", "blip2_t5", "blip2_t5_instruct", "blip2_vicuna_instruct", "blip_vqa"}),
        (Classification, {"blip2_t5_instruct", "blip2_vicuna_instruct", "clip"}),
    ):
        offered = models.choices(page)
        assert fits <= {models.architecture(choice.spec) for choice in offered}, page
        specs = [choice.spec for choice in offered]
        assert len(specs) == len(set(specs))
        assert offered[0].where == models.PACKAGED


def test_the_other_pages_take_a_prompt(instructed: Any, picture: Image.Image, tmp_path: Any) -> None:
    media = instructed.prepare(picture)[None]
    rows = Captioning(Settings(tmp_path)).run(
        instructed, [picture], captions=1, beams=2, longest=6, prompt="a photo of"
    )
    written = instructed.model.generate(
        {"image": media, "prompt": "a photo of"}, num_beams=2, max_new_tokens=6, min_new_tokens=5
    )
    assert rows[0][0].text == written[0]
    page = Answering(Settings(tmp_path))
    plain = page.run(instructed, [picture], ["what is it?"])
    shaped = page.run(instructed, [picture], ["what is it?"], prompt="Question: {} Long answer:")
    assert plain[0][0].text != shaped[0][0].text
    labels = ("a dog", "a cat", "red")
    ranked = Classification(Settings(tmp_path)).run(instructed, picture, labels, "it is {}", "what is it?")
    wanted = RankedLabels(instructed, labels, ("it is {}",), "what is it?")([picture])[0]
    assert {row.text: row.share for row in ranked} == pytest.approx(dict(zip(labels, wanted.tolist())))
    clip = load("blip_feature_extractor/tiny_shapes", device="cpu")
    with pytest.raises(ValueError, match="write it into the template"):
        Classification(Settings(tmp_path)).run(clip, picture, labels, "a {}", "what is it?")


def test_writing_stops_within_a_step(instructed: Any, picture: Image.Image, tmp_path: Any) -> None:
    steps: list[int] = []

    def stop() -> bool:
        steps.append(1)
        return len(steps) > 4

    for beams in (1, 3):
        steps.clear()
        rounds, _ = Chat(Settings(tmp_path)).run(
            instructed, picture, "what is it?", beams=beams, longest=250, stop=stop
        )
        assert len(steps) <= 5 and len(rounds) == 1


@pytest.mark.parametrize(
    "value",
    ["{", "{}", "[1]", '[["a"]]', '[["a", 1]]', '[["a", "b", "c"]]', json.dumps([["a" * 501, "b"]]),
     json.dumps([["a", "b" * 10_001]]), json.dumps([["a", "b"]] * 41), 7],
)  # fmt: skip
def test_a_history_that_is_none_gets_a_sentence(value: Any, limits: uploads.Limits) -> None:
    with pytest.raises(ValueError, match="Conversation"):
        HistoryInput("history", "Conversation").check(value, limits)


def test_a_history_comes_back_as_it_went(limits: uploads.Limits) -> None:
    rounds = [("what <b>is</b> it?", 'a "dog" & more'), ("ü", "")]
    sent = Rounds("rounds", "Rounds").render(rounds)
    assert HistoryInput("history", "Conversation").check(sent, limits) == tuple(rounds)
    shown = Talk("talk", "Conversation").render(rounds)
    assert "<b>" not in shown and "&lt;b&gt;" in shown and "(no answer)" in shown
    assert HistoryInput("history", "Conversation").check(Rounds("r", "R").placeholder(), limits) == ()


def test_parts_of_models_by_option(instructed: Any, tmp_path: Any) -> None:
    pytest.importorskip("gradio")
    from lavis.app.demo.server import Options, _loader

    spec = instructed.spec
    offered = {"chat": models.choices(Chat, own=[spec])}
    load_model = _loader(
        Options(parts={"t5_model": {"dtype": "bfloat16"}}, device="cpu", precision="fp32"), offered
    )
    assert load_model(spec).model.language.dtype.itemsize == 2
    assert load_model(ANSWERER)  # which has no such part
    with pytest.raises(ValueError, match="--part t5_mdel: no model of the demo has such a part"):
        _loader(Options(parts={"t5_mdel": {"source": "x"}}), offered)


# ------------------------------------------------------------------------------------------ buttons
class Waiting(Chat):
    """A page whose answers take until they are stopped."""

    def run(self, loaded: Any, picture: Any, message: str, history: Any, stop: Any, **others: Any) -> Any:  # type: ignore[override]
        if message == "wrong":
            raise ValueError("that went wrong")
        until = time.monotonic() + 20
        while message == "wait" and not stop() and time.monotonic() < until:
            time.sleep(0.01)
        rounds = [*history, (message, "stopped" if stop() else "done")]
        return rounds, rounds


def test_visitors_stop_their_own_answers_and_keep_their_own_history(
    limits: uploads.Limits, tmp_path: Any
) -> None:
    pytest.importorskip("gradio")
    from lavis.app.demo.layout import _Talks

    page = Waiting(Settings(tmp_path))
    page.needs = ""  # type: ignore[misc]
    upload = limits.folder / "a.png"
    Image.new("RGB", (8, 8)).save(upload)
    caller = Caller(page, [], models.Pool(1, lambda spec: None), limits)
    talks = _Talks(caller, [field.name for field in page.inputs].index("retry"))
    ann, bob = (SimpleNamespace(session_hash=name) for name in ("ann", "bob"))

    def values(message: str, history: str = "[]") -> list[Any]:
        return [{"path": str(upload)}, message, history, "no", "", 3, 60, "", ""]

    replies: dict[str, list[Any]] = {}
    thread = threading.Thread(target=lambda: replies.update(ann=talks.send(ann, *values("wait"))))  # type: ignore[arg-type]
    thread.start()
    while not talks._running:
        time.sleep(0.01)
    talks.stop(bob)  # type: ignore[arg-type]
    time.sleep(0.1)
    assert thread.is_alive()  # it is not his
    talks.stop(ann)  # type: ignore[arg-type]
    thread.join(10)
    assert not thread.is_alive() and json.loads(replies["ann"][2]) == [["wait", "stopped"]]
    assert not talks._running
    told, talk, rounds, message = talks.send(bob, *values("hello"))  # type: ignore[arg-type]
    assert json.loads(rounds) == [["hello", "done"]] and "wait" not in talk and message == ""
    assert "lv-done" in told
    # after an error what was said before stays
    told, *rest = talks.send(bob, *values("wrong", rounds))  # type: ignore[arg-type]
    assert "that went wrong" in told and all(isinstance(each, dict) for each in rest)
    _, _, rounds, message = talks.retry(ann, *values("hello", '[["a", "b"]]'))  # type: ignore[arg-type]
    assert isinstance(message, dict)  # what is typed stays
    assert json.loads(rounds)[0] == ["a", "b"]
