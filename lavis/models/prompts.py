"""What a language model reads before it writes about an image: prompts with questions, choices, words read in the
image, and what was said before. The forms are those of the original's evaluations and of its notebook for BLIP-2.

B images, G prompts of each, R = B·G.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lavis.models.samples import require, texts_of

CONTEXTS = {  # what samples may hold beside a question, and how it is put before the prompt
    "context": "context: {}. {}",
    "history": "dialog history: {}\n{}",
    "caption": 'This image has the caption "{}". {}',
}
OCR_TOKENS = 30  # words read in an image that a prompt names at most
SHORT_ANSWER = "Question: {} Short answer:"


class Turns(NamedTuple):
    """How a dialogue is written down.

    Attributes:
        question: the last question, with a place for it. earlier: a round before it, of a question and an answer.
        whole: the rounds before and the last question.
    """

    question: str
    earlier: str
    whole: str


PLAIN = Turns("Question: {} Answer:", "Question: {} Answer: {}.", "{} {}")  # BLIP-2
INSTRUCTED = Turns("{}", "{} {}.", CONTEXTS["history"])  # InstructBLIP


def prompts_of(given: str | Sequence[str], images: int) -> list[str]:
    """One prompt for all of so many images, or the same number for each: R.

    Raises:
        ValueError: there is another number of them.
    """
    prompts = [given] * images if isinstance(given, str) else list(given)
    if not prompts or len(prompts) % images:
        raise ValueError(
            f"there are {len(prompts)} prompts for {images} images; give one, or the same number for each"
        )
    return prompts


def with_words(samples: Mapping[str, Any], prompts: list[str], images: int) -> list[str]:
    """Prompts in which "{}" is replaced by the words that were read in the image, where samples have `ocr_tokens`."""
    words = samples.get("ocr_tokens")
    if words is None or "{}" not in prompts[0]:
        return prompts
    each = len(prompts) // images
    return [prompt.format(_words(words[i // each])) for i, prompt in enumerate(prompts)]


def asked(samples: Mapping[str, Any], questions: list[str], prompt: str) -> list[str]:
    """Questions in a prompt's places: of two the second is for choices, or the first for words read in the image.

    Args:
        samples: `choices` or `ocr_tokens`, a list for each question.
    """
    if not prompt:
        return questions
    if prompt.count("{}") != 2:
        return [prompt.format(question) for question in questions]
    if samples.get("choices") is not None:
        return [
            prompt.format(question, _lettered(own)) for question, own in zip(questions, samples["choices"])
        ]
    require(samples, ("ocr_tokens",), "words read in each image, for the prompt's first place")
    return [prompt.format(_words(own), question) for question, own in zip(questions, samples["ocr_tokens"])]


def with_context(samples: Mapping[str, Any], prompts: list[str]) -> list[str]:
    """Prompts with their questions (`text_input`), and before them what else is known, see `CONTEXTS`."""
    if samples.get("text_input") is not None:
        questions = texts_of(samples, len(prompts))
        prompts = [prompt.format(question) for prompt, question in zip(prompts, questions)]
    for key, form in CONTEXTS.items():
        given = samples.get(key)
        if given is not None:
            prompts = [form.format(text, prompt) if text else prompt for text, prompt in zip(given, prompts)]
    return prompts


def in_dialogue(
    question: str, history: Sequence[tuple[str, str]], caption: str, form: str | None, turns: Turns
) -> str:
    """A question after the rounds before it.

    Args:
        history: questions and answers. caption: of the image, or "". form: of the question, with its place; None: that
            of the turns.
    """
    prompt = (form or turns.question).format(question)
    if history:
        rounds = " ".join(turns.earlier.format(said, answered.rstrip(".")) for said, answered in history)
        prompt = turns.whole.format(rounds, prompt)
    return CONTEXTS["caption"].format(caption, prompt) if caption else prompt


def check_places(prompt: str, places: int) -> None:
    """
    Args:
        places: how many "{}" a prompt should have: none before a caption, one for a question.

    Raises:
        ValueError: it has another number of places, or others.
    """
    try:
        found = [field for field in string.Formatter().parse(prompt) if field[1] is not None]
    except ValueError:
        found = []
    plain = all(name == spec == "" and not conversion for _, name, spec, conversion in found)
    if prompt.count("{}") != places or (places and (len(found) != places or not plain)):
        right = (
            'one "{}", the place of the question, as in "Question: {} Short answer:"'
            if places
            else 'no "{}", which stands for words read in each image (samples["ocr_tokens"])'
        )
        raise ValueError(f"the prompt {prompt[:200]!r} should have {right}")


def _words(words: Sequence[str]) -> str:
    return ", ".join(words[:OCR_TOKENS])


def _lettered(choices: Sequence[str]) -> str:
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(string.ascii_lowercase, choices))
