"""What a model can do. Commands, the demo and the docs ask by these protocols and know no family.

A model has an ability if it has the methods (and properties) of the protocol under their names, and if each method
takes the protocol's keyword-only arguments; nothing is inherited or registered. `isinstance(model, Writes)` and
`issubclass(model_class, Writes)` tell; of a class, properties count that are class attributes, properties or
annotated. Methods are called in evaluation mode and, but for `explain_text`, without autograd. For a method that
users call themselves, `lavis.models.base.inference` sees to both, and refuses results that are not finite.

Media of a batch are images (B, 3, h, w) or, of a model whose class says `MEDIA = "video"`, videos (B, 3, T, h, w),
as the model's evaluation processor makes them, on the model's device. They come as a tensor, or in `samples` under
"image" or "video". Texts are cleaned by the model's text processor; the model tokenizes them, and cuts them to the
length that it reads. What a model can't do with its input it says by a ValueError: what is wrong, and what would do.

B images or videos, G texts of each, R = B·G, n texts, E width of the common space, Q vectors of an image, D width of
states, C classes, W words, g x g places of a heat map.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from lavis.common.arguments import parameters
from lavis.models.outputs import Explanation, Matched, Texts


class _Ability(type(Protocol)):  # type: ignore[misc]
    """Makes isinstance and issubclass look at the arguments of methods, too: models that write answers have a
    `generate` as those that write captions, but no `num_captions`."""

    def __instancecheck__(cls, instance: object) -> bool:
        if not cls.__dict__.get("_is_protocol"):
            return bool(super().__instancecheck__(instance))
        return not lacking(instance, cls)

    def __subclasscheck__(cls, subclass: type) -> bool:
        if not cls.__dict__.get("_is_protocol") or not isinstance(subclass, type):
            return bool(super().__subclasscheck__(subclass))
        return not _lacking_in_class(subclass, cls)


@runtime_checkable
class EmbedsBoth(Protocol, metaclass=_Ability):
    """Puts images and texts into one space, where cosines compare them: `match`, `classify`, `index`, `features`.

    Retrieval is evaluated by these cosines, too, where the model has no `compute_sim_matrix` of its own.
    """

    @property
    def embed_dim(self) -> int:
        """E."""

    @property
    def cosine_scale(self) -> float:
        """What cosines are multiplied with before a softmax: one over the learned temperature."""

    def embed_images(self, media: torch.Tensor) -> torch.Tensor:
        """Vectors of images or videos, (B, E), of any length; only their directions count."""

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors of texts, (n, E), likewise; at most 256 come at once, of similar length."""


@runtime_checkable
class EmbedsQueries(Protocol, metaclass=_Ability):
    """Beside `EmbedsBoth`: an image has Q vectors, and its cosine with a text is the largest of them. `match`,
    `classify` and `search` compare by it; `embed_images` gives one vector for the first search of a large index."""

    @property
    def num_queries(self) -> int:
        """Q."""

    def embed_queries(self, media: torch.Tensor) -> torch.Tensor:
        """All vectors of images or videos, (B, Q, E), of any length."""


@runtime_checkable
class EmbedsPairs(Protocol, metaclass=_Ability):
    """Reads an image and a text together and gives one vector of both: `features --mode multimodal`."""

    def embed_pairs(self, media: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Vectors of B pairs, (B, D): of each image and the text in the same place."""


@runtime_checkable
class Matches(Protocol, metaclass=_Ability):
    """Has a matching head, which reads an image and a text together: `match`, `search --rerank`, `classify --head itm`.

    Commands also show cosines, so the model has to be an `EmbedsBoth`.
    """

    def match_texts(self, media: torch.Tensor, texts: Sequence[str]) -> Matched:
        """Every image with every text; any number of texts, so memory is to be bounded here.

        Returns:
            logits (B, n, 2), log-odds of "does not fit" and "fits"; and what `embed_images` (of an `EmbedsQueries`
            `embed_queries`) and `embed_texts` give for the same, which is usually computed on the way.
        """


@runtime_checkable
class Writes(Protocol, metaclass=_Ability):
    """Writes captions: `caption`, the demo, evaluation of captioning."""

    def generate(
        self, samples: Mapping[str, Any], *, num_captions: int = 1, return_scores: bool = False
    ) -> list[str] | Texts:
        """Caption images or videos.

        Of the options of `lavis caption` (num_beams, max_length, min_length, max_new_tokens, min_new_tokens, top_p,
        temperature, repetition_penalty, use_nucleus_sampling, seed: lengths in tokens; a seed for each image) the
        method takes those that it heeds. Others are not passed, and refused where a user asks for one.

        Args:
            samples: "image" or "video".
            num_captions: of each image.
            return_scores: give `Texts` in place of strings, with `logprobs` (natural logarithm of a caption's
                probability) and `scores` (log-probability per token).

        Returns:
            B·num_captions captions, those of an image next to one another, the best first.
        """


@runtime_checkable
class Answers(Protocol, metaclass=_Ability):
    """Answers questions: `ask`, `dialogue` (each question by itself), evaluation of visual question answering."""

    def predict_answers(
        self,
        samples: Mapping[str, Any],
        *,
        answer_list: Sequence[str] | None = None,
        inference_method: str = "rank",
        return_scores: bool = False,
    ) -> list[str] | Texts:
        """Answer R questions.

        Of num_beams, max_len, min_len (tokens) and num_ans_candidates the method takes those that it heeds, as
        `Writes.generate` does.

        Args:
            samples: "image" or "video"; "text_input", R questions, those about an image next to one another.
            inference_method: "rank" chooses one of `answer_list`, "generate" writes.
            return_scores: give `Texts` in place of strings; `scores` are probabilities among the listed answers, or of
                written ones log-probabilities per token; `logprobs` as in `Writes`.

        Returns:
            R answers, in the questions' order.
        """


@runtime_checkable
class Prompted(Protocol, metaclass=_Ability):
    """Beside `Writes` and `Answers`: reads a text of the user's before it writes: `--prompt`.

    The samples of `generate` may hold "prompt", a text or one for each image. `predict_answers` takes the keyword
    `prompt`, in which "{}" is the place of a question.
    """

    @property
    def question_prompt(self) -> str:
        """The form of a question where the user gives none, with one "{}"."""

    def check_prompt(self, prompt: str, places: int) -> None:
        """Asked once, before the first text.

        Args:
            places: how many "{}" there should be: 0 before a caption, 1 for a question.

        Raises:
            ValueError: there is another number of them, or the model can't read such a prompt.
        """


@runtime_checkable
class Ranks(Protocol, metaclass=_Ability):
    """Ranks any texts by the probability that it would write them: `classify`, `ask --answers`, evaluation of
    classification by the names of classes."""

    def predict_class(
        self,
        samples: Mapping[str, Any],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        *,
        return_scores: bool = False,
    ) -> Any:
        """Rank candidates about images or videos.

        Args:
            samples: "image" or "video"; "prompt", what is read before a candidate, a text or one for each image.
            candidates: C texts, or for each image a list of its own.
            return_scores: also give each candidate's log-probability.

        Returns:
            places of the candidates, best first (B, C), or a list of tensors where images have different numbers of
            them; with scores a pair of these and the log-probabilities, in the candidates' order.
        """


@runtime_checkable
class AnswersFromList(Protocol, metaclass=_Ability):
    """Beside `Answers`: chooses among answers that it was trained for."""

    def answers_among(self, answers: Sequence[str] | None) -> list[str]:
        """Which answers `predict_answers` is to choose from, asked once, before the first question.

        Args:
            answers: those that a user gave; None: all that the model knows.

        Raises:
            ValueError: it doesn't know one of them, or knows none by name.
        """


@runtime_checkable
class Chats(Protocol, metaclass=_Ability):
    """Answers a question in the light of those before it: `dialogue`."""

    def check_dialogue(self, caption: str | None, candidates: Sequence[str] | None) -> None:
        """Asked once, before the first question.

        Raises:
            ValueError: the model needs a caption beside the image, or answers to choose from, and there are none.
        """

    def reply(self, samples: Mapping[str, Any], candidates: Sequence[str] | None = None) -> Texts:
        """The answer to a question.

        Of the fields of `nn.generation.GenerationOptions` the method takes those that it heeds, as keyword arguments.

        Args:
            samples: "image" or "video", one; "caption", a list of one text ("" where there is none); "text_input", a
                list of the question; "dialog", a list of one list: the rounds before, (question, answer) each; of a
                model that is `Prompted` perhaps "prompt", the form of the question.
            candidates: answers to choose from; None: write.

        Returns:
            one text; its score is a log-probability per token, or a probability among the candidates.
        """


@runtime_checkable
class Explains(Protocol, metaclass=_Ability):
    """Says where in an image each word of a text has its evidence: `explain`."""

    def explain_text(
        self, samples: Mapping[str, Any], text: str | None, layer: int | None = None
    ) -> Explanation:
        """Heat maps of a text's words. Autograd is on.

        Args:
            samples: one "image" (1, 3, h, w) or "video" (1, 3, T, h, w); where the class says `PAIRS = True`, the left
                and the right image, "image0" and "image1".
            text: a text that may fit, a caption, or a question. None only where the model also `Writes`: its own
                caption.
            layer: of the model, to look at; None: the one that shows places best.

        Raises:
            ValueError: there is no such layer, or no word to explain.
        """


@runtime_checkable
class Classifies(Protocol, metaclass=_Ability):
    """Tells classes apart that it was trained for: `classify` without labels, evaluation of classification.

    `classify` leaves out models whose class says `PAIRS = True`, which judge two images.
    """

    @property
    def classnames(self) -> Sequence[str] | None:
        """What the C classes are called, in their order; None: unknown."""

    def predict(self, samples: Mapping[str, Any]) -> Mapping[str, Any]:
        """Logits of the classes.

        Args:
            samples: "image" or "video"; "text_input", R texts, which may be empty.

        Returns:
            {"predictions": (R, C)}; "targets", the samples' "label", where they have it.
        """


def lacking(model: Any, ability: type) -> str:
    """What a model or a class of models lacks for a protocol, in words; "" if nothing."""
    if isinstance(model, type):
        return _lacking_in_class(model, ability)
    properties, methods = _members(ability)
    missing = [name for name in properties if not hasattr(model, name)]
    return _said(missing, {name: getattr(model, name, None) for name in methods}, methods)


@functools.lru_cache(maxsize=4096)
def _lacking_in_class(model_class: type, ability: type) -> str:
    properties, methods = _members(ability)
    annotated = {name for base in model_class.__mro__ for name in inspect.get_annotations(base)}
    missing = [name for name in properties if not hasattr(model_class, name) and name not in annotated]
    return _said(missing, {name: getattr(model_class, name, None) for name in methods}, methods)


@functools.cache
def _members(ability: type) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """A protocol's properties, and its methods with their keyword-only arguments."""
    own = {name: value for name, value in vars(ability).items() if not name.startswith("_")}
    methods = {name: value for name, value in own.items() if inspect.isfunction(value)}
    needed = {
        name: tuple(p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY)
        for name, method in methods.items()
    }
    return tuple(name for name, value in own.items() if isinstance(value, property)), needed


def _said(missing: list[str], found: Mapping[str, Any], needed: Mapping[str, tuple[str, ...]]) -> str:
    lost = missing + [name for name, method in found.items() if not callable(method)]
    if lost:
        return f"it has no {' and no '.join(lost)}"
    for name, method in found.items():
        names, takes_any = parameters(method)
        absent = [each for each in needed[name] if each not in names and not takes_any]
        if absent:
            return f"its {name} takes no {', '.join(absent)}"
    return ""
