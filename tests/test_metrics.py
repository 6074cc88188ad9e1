"""Metrics: equal to the reference values, to pycocoevalcap and to the Java tokenizer."""

from __future__ import annotations

import json
import os
import random
import shutil
import string
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lavis.metrics import caption_scores, caption_scores_each, external, vqa
from lavis.metrics.bleu import bleu
from lavis.metrics.cider import cider
from lavis.metrics.ptb import PUNCTUATION, raw_tokens, tokenize
from lavis.metrics.rouge import rouge_l

REFERENCE = Path(__file__).parent / "reference" / "metrics"
COCO = json.loads((REFERENCE / "coco_caption.json").read_text(encoding="utf-8"))
VQA = json.loads((REFERENCE / "vqa_accuracy.json").read_text(encoding="utf-8"))
AOKVQA = json.loads((REFERENCE / "aokvqa_accuracy.json").read_text(encoding="utf-8"))
PREDICTIONS = {c["image_id"]: c["prediction"] for c in COCO["cases"]}
REFERENCES = {c["image_id"]: c["references"] for c in COCO["cases"]}


# ---------------------------------------------------------------- captions against the stored reference
def test_scores_of_a_set_equal_the_reference() -> None:
    scores = caption_scores(PREDICTIONS, REFERENCES)
    assert set(scores) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    for name, value in scores.items():
        assert value == pytest.approx(COCO["scores"][name], rel=1e-9, abs=1e-15)


def test_scores_of_each_caption_equal_the_reference() -> None:
    each = caption_scores_each(PREDICTIONS, REFERENCES)
    for case in COCO["cases"]:
        for name, value in each[case["image_id"]].items():
            assert value == pytest.approx(case[name], rel=1e-9, abs=1e-15), (case["image_id"], name)


def test_tokens_equal_the_reference() -> None:
    for case in COCO["cases"]:
        assert tokenize(case["prediction"]) == case["ptb_prediction"]
        assert [tokenize(r) for r in case["references"]] == case["ptb_references"]


def test_order_of_ids_does_not_matter() -> None:
    backwards = dict(reversed(PREDICTIONS.items()))
    assert caption_scores(backwards, REFERENCES) == caption_scores(PREDICTIONS, REFERENCES)


def test_tokenized_captions_are_taken_as_they_are() -> None:
    predictions = {c["image_id"]: c["ptb_prediction"] for c in COCO["cases"]}
    references = {c["image_id"]: c["ptb_references"] for c in COCO["cases"]}
    assert caption_scores(predictions, references, tokenized=True) == caption_scores(PREDICTIONS, REFERENCES)


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        ({1: "a dog"}, {1: ["a dog"], 2: ["a cat"]}, r"1 without a prediction: 2"),
        ({1: "a dog", "x": "b"}, {1: ["a dog"]}, r"1 without references: 'x'"),
        ({1: "a dog"}, {"1": ["a dog"]}, r"some ids are text on one side and numbers on the other"),
        ({}, {}, r"no caption to score"),
        ({1: ["a dog"]}, {1: ["a dog"]}, r"prediction for 1 .* expected one caption"),
        ({1: "a dog"}, {1: "a dog"}, r"references for 1 .* expected a list"),
        ({1: "a dog"}, {1: []}, r"references for 1 .* expected a list"),
    ],
)
def test_what_does_not_fit_is_named(predictions: dict, references: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        caption_scores(predictions, references)


# ---------------------------------------------------------------- against pycocoevalcap, no Java involved
WORDS = ["a", "the", "dog", "cat", "on", "red", "café", "狗", "-lrb-", "10\xa01/2", "x", "n't", "🙂"]
CAPTION = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
ITEMS = st.lists(st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=4)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(ITEMS)
@example([("", ["a dog"])])
@example([("a dog", ["a dog", "a dog"]), ("a dog", ["a dog"])])
@example([("a a a a a", ["a"]), ("", ["", "the dog"])])
def test_bleu_rouge_and_cider_equal_pycocoevalcap(items: list[tuple[str, list[str]]]) -> None:
    pytest.importorskip("pycocoevalcap.bleu.bleu")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    if not any(c.split() for _, references in items for c in references):
        return  # the official CIDEr crashes without a single reference token
    truth = {i: references for i, (_, references) in enumerate(items)}
    ours = {i: [prediction] for i, (prediction, _) in enumerate(items)}
    predictions, references = [p for p, _ in items], [r for _, r in items]

    expected, expected_each = Bleu(4).compute_score(truth, ours, verbose=0)
    total, each = bleu(predictions, references)
    np.testing.assert_allclose(total, expected, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(each, expected_each, rtol=1e-9, atol=1e-14)
    for ours_scorer, official in ((rouge_l, Rouge()), (cider, Cider())):
        expected, expected_each = official.compute_score(truth, ours)
        total, each = ours_scorer(predictions, references)
        np.testing.assert_allclose(total, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(each, expected_each, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider])
def test_metrics_refuse_what_does_not_fit(metric: object) -> None:
    for predictions, references in ([], []), (["a"], []), (["a"], [[]]), (["a"], ["a"]):
        with pytest.raises(ValueError, match=r"expected"):
            metric(predictions, references)  # type: ignore[operator]


def test_five_thousand_captions_take_seconds() -> None:
    rng = random.Random(0)
    words = [f"{a}{b}" for a in string.ascii_lowercase for b in string.ascii_lowercase]
    captions = [" ".join(rng.choices(words, k=rng.randint(6, 14))) + "." for _ in range(30_000)]
    predictions = dict(enumerate(captions[:5000]))
    references = {i: captions[5000 + 5 * i : 5005 + 5 * i] for i in range(5000)}
    start = time.process_time()
    caption_scores(predictions, references)
    assert time.process_time() - start < 10  # 2 s on an idle core; benchmarks/caption_metrics.py measures it


# ---------------------------------------------------------------- the tokenizer
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("A man's dog doesn't like Mr. Smith.", "a man 's dog does n't like mr. smith"),
        ("I can't, cannot; gonna!", "i ca n't can not gon na"),
        ("well-known two-year-old (left)", "well-known two-year-old -lrb- left -rrb-"),
        ('he said "hello" to the U.S.', "he said hello to the u.s."),
        ("it's 5:30 p.m. on 12/25/2010, $5.50", "it 's 5:30 p.m. on 12/25/2010 $ 5.50"),
        ("1 1/2 cups", "1\xa01/2 cups"),
        ("rock 'n' roll & AT&T", "rock 'n' roll & at&t"),
        ("www.google.com a@b.com #hash @user", "www.google.com a@b.com #hash @user"),
        ("wait... what?! - -- – —", "wait what ?!"),
        ("café 北京 🙂 don’t", "café 北京 do n't"),
        ("two\nlines\x0bof\u2028text\r\n", "two lines of text"),
        ("no. 5 and no. no", "no. 5 and no no"),
        ("J. Morgan saw a. The end", "j. morgan saw a the end"),
        ("£5 and 50¢ and €10", "# 5 and 50 cents and $ 10"),
        # separators that Python takes for spaces and the official tokenizer does not; it strips them from a line's end
        ("a@\x1cb 0@\x1fb.com", "a@\x1cb 0@\x1fb.com"),
        ("0@\x1f", "0@"),
    ],
)
def test_tokens(text: str, expected: str) -> None:
    assert tokenize(text) == expected


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet="a0@.-'< (\x1c\x1f\xa0\x85\u2003\t"))
def test_any_text_gives_lower_case_tokens_without_spaces(text: str) -> None:
    tokens = raw_tokens(text)
    assert all(t and " " not in t and "\n" not in t for t in tokens)
    kept = " ".join([t for t in tokens if t not in PUNCTUATION])
    assert tokenize(text) == (kept.rstrip("\x1c\x1d\x1e\x1f") if text[-1:] in "\x1c\x1d\x1e\x1f" else kept)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=string.ascii_letters + string.digits + " .,'\"-()!?&/", max_size=60))
def test_cutting_at_spaces_changes_nothing(text: str) -> None:
    """The path over cached chunks equals the path over the whole line."""
    assert tokenize(text) == " ".join([t for t in raw_tokens(text) if t not in PUNCTUATION])


def _java_tokens(captions: list[str], folder: Path) -> list[str]:
    """What the official wrapper makes of captions, each followed by a neutral line.

    The Java program reads the whole file as one text, so a caption's end can depend on the next caption.
    """
    import pycocoevalcap.tokenizer

    jar = Path(next(iter(pycocoevalcap.tokenizer.__path__))) / "stanford-corenlp-3.4.1.jar"
    file = folder / "captions.txt"
    file.write_text("".join(f"{c}\nzz\n" for c in captions), encoding="utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(file)], capture_output=True, check=True, timeout=300
    )
    lines = done.stdout.decode("utf-8").split("\n")[: 2 * len(captions) : 2]
    assert len(lines) == len(captions)
    return [" ".join([w for w in line.rstrip().split(" ") if w not in PUNCTUATION]) for line in lines]


def _generated_captions(rng: random.Random, number: int) -> list[str]:
    text = """a the of man woman dog street St. Mr. U.S. D.C. p.m. etc. Inc. Jr. no. t-shirt two-story 747
    F-16 7-Eleven is isn't can't cannot won't he's they've we'll gonna ain't o'clock John's Coca-Cola
    black-and-white
    1960s 1960's '60s 50% $5 1/2 1,000 3.5 5:30 12/25 #1 1st w/ w/o & and/or red young rock'n'roll 'n' ma'am
    well-lit half-eaten 10-foot AT&T e.g. vs. www.site.com a@b.com café naïve 日本 10 2 555-1234"""
    words = text.split()
    before = [""] * 12 + ['"', "'", "(", "“", "‘", "#", "@", "$", "-", "["]
    after = [""] * 16 + [".", ".", ",", "!", "?", "...", '"', "'", ")", ";", ":", "!!", "”", "’", "…", "]"]
    captions = []
    for _ in range(number):
        caption = []
        for _ in range(rng.randint(1, 12)):
            word = rng.choice(words)
            word = rng.choice([word, word, word, word.capitalize(), word.upper(), f"{word}'s"])
            caption.append(rng.choice(before) + word + rng.choice(after))
        captions.append(" ".join(caption) + rng.choice(["", ".", " .", " . "]))
    return captions


def test_tokenizer_equals_java(tmp_path: Path) -> None:
    """Generated captions and all strings of up to two printable characters; required where CI is set."""
    if shutil.which("java") is None and os.environ.get("CI") != "true":
        pytest.skip("needs Java")
    if os.environ.get("CI") != "true":
        pytest.importorskip("pycocoevalcap")
    signs = "aAnst1" + string.punctuation
    natural = _generated_captions(random.Random(3), 4000)
    short = [a + b for a in signs for b in ["", *signs]]
    mixed = ["".join(random.Random(i).choices([*signs, " ", " "], k=9)) for i in range(3000)]
    stored = [t for c in COCO["cases"] for t in [c["prediction"], *c["references"]]]
    for captions, allowed in ((natural, 0.002), (short, 0.0), (mixed, 0.001), (stored, 0.0)):
        expected = _java_tokens(captions, tmp_path)
        wrong = [(c, e, tokenize(c)) for c, e in zip(captions, expected) if tokenize(c) != e]
        assert len(wrong) <= allowed * len(captions), wrong[:5]


# ---------------------------------------------------------------- METEOR and SPICE
def test_meteor_equals_the_reference() -> None:
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    assert external.meteor(PREDICTIONS, REFERENCES) == pytest.approx(COCO["scores"]["METEOR"], abs=1e-9)


def test_external_metrics_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"pip install openlavis\[caption-metrics\]"):
        external.meteor(PREDICTIONS, REFERENCES)
    monkeypatch.setattr(external, "find_spec", lambda name: object())
    monkeypatch.setattr(external.shutil, "which", lambda name: None)
    with pytest.raises(OSError, match="SPICE needs Java"):
        external.spice(PREDICTIONS, REFERENCES)


def test_spice_says_what_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(external.shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(external, "_SPICE_PARTS", ("nowhere.jar",))
    with pytest.raises(OSError, match=r"nowhere\.jar .*download=True"):
        external.spice(PREDICTIONS, REFERENCES)


# ---------------------------------------------------------------- answers
def test_vqa_accuracy_equals_the_reference() -> None:
    for case in VQA["cases"]:
        got = round(100 * vqa.answer_accuracy(case["prediction"], case["answers"]), 2)
        assert got == case["accuracy"], case
        assert vqa.normalize_answer(case["prediction"]) == case["normalised"]
        assert vqa.strip_punctuation(case["prediction"].strip()) == case["punctuation_only"].strip() or (
            "\n" in case["prediction"] or "\t" in case["prediction"] or case["punctuation_only"].endswith(" ")
        )


def test_the_table_of_contractions() -> None:
    table = vqa._CONTRACTIONS
    assert len(table) == 118  # the official 120 without the two that map to themselves
    for found, written in {
        "dont": "don't", "couldntve": None, "couldnt've": "couldn't've", "couldn'tve": "couldn't've",
        "Id've": "I'd've", "wed've": "we'd've", "wed": None, "its": None, "twas": "'twas",
        "somebody'd": "somebodyd", "somebodyd": None, "yall'd've": "y'all'd've", "let's": None,
    }.items():  # fmt: skip
        assert table.get(found) == written, found


def test_vqa_accuracy_per_type_equals_the_reference() -> None:
    records = [{"question_id": i, "answer": c["prediction"]} for i, c in enumerate(VQA["cases"])]
    scores = vqa.vqa_accuracy(records, dict(enumerate(VQA["cases"])))
    assert round(scores["overall_percent"], 2) == VQA["overall"]
    assert scores["agg_metrics"] == scores["overall_percent"]
    for kind, name in (("perQuestionType", "question_type"), ("perAnswerType", "answer_type")):
        for group, expected in VQA[kind].items():
            assert round(scores[f"{name}/{group}_percent"], 2) == expected


def test_answers_may_be_mappings_and_types_may_be_missing() -> None:
    truth = {7: {"answers": [{"answer": "yes", "answer_id": i} for i in range(10)]}}
    assert vqa.vqa_accuracy([{"question_id": 7, "answer": "Yes."}], truth) == {
        "overall_percent": 100.0,
        "agg_metrics": 100.0,
    }


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(["red"], 1), (["blue"], 0), (["red", "blue"], 0.5), (["red", "red", "blue"], 2 / 3), (["red"] * 4, 1)],
)
def test_fewer_answers_than_ten(answers: list[str], expected: float) -> None:
    assert vqa.answer_accuracy("red", answers) == pytest.approx(expected)


def test_aokvqa_accuracy_equals_the_reference() -> None:
    truth = {i: {"answers": c["direct_answers"]} for i, c in enumerate(AOKVQA["cases"])}
    records = [{"question_id": i, "answer": c["prediction"]} for i, c in enumerate(AOKVQA["cases"])]
    assert vqa.aokvqa_accuracy(records, truth)["overall_percent"] == pytest.approx(AOKVQA["overall"])
    for record, case in zip(records, AOKVQA["cases"]):
        one = vqa.aokvqa_accuracy([record], {record["question_id"]: truth[record["question_id"]]})
        assert one["agg_metrics"] == pytest.approx(case["accuracy"])


def test_exact_match() -> None:
    truth = {
        1: {"answers": ["Yes"], "question_type": "is"},
        2: {"answers": ["two"], "question_type": "how many"},
    }
    records = [{"question_id": 1, "answer": "yes."}, {"question_id": 2, "answer": "3"}]
    assert vqa.exact_match_percent(records, truth) == {
        "exact_match_percent": 50.0,
        "agg_metrics": 50.0,
        "question_type/how many_percent": 0.0,
        "question_type/is_percent": 100.0,
    }


@pytest.mark.parametrize(
    ("records", "truth", "expected"),
    [
        ([{"question_id": 1, "answer": "a"}], {2: {"answers": ["a"]}}, "question 1 is not among"),
        ([{"question_id": 1, "answer": "a"}] * 2, {1: {"answers": ["a"]}}, "answered twice"),
        ([{"question_id": 1, "answer": "a"}], {1: {"answers": ["a"]}, 2: {"answers": ["a"]}}, "no answer: 2"),
        ([{"question_id": 1, "answer": "a"}], {1: {"answers": []}}, "expected one or more"),
        ([{"question": 1}], {1: {"answers": ["a"]}}, "lacks question_id or answer"),
        ([], {}, "no answer to score"),
    ],
)
def test_answers_that_do_not_fit_are_named(records: list, truth: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        vqa.vqa_accuracy(records, truth)


def test_metrics_import_no_torch() -> None:
    code = "import sys, lavis.metrics.caption, lavis.metrics.vqa; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
