"""InstructBLIP (Dai et al. 2023, arXiv 2305.06500): BLIP-2's second stage, whose Q-Former reads the instruction, too.

B images, G prompts of each, C candidates, Q queries, T tokens, W width of the language model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from lavis.common.registry import registry
from lavis.models import blip2_folders
from lavis.models.base import BaseModel, inference
from lavis.models.blip2 import OFFICIAL
from lavis.models.blip2_language import Blip2Language, LanguageOutput, WithT5
from lavis.models.configs import Preset
from lavis.models.outputs import Texts
from lavis.models.prompts import asked, with_context
from lavis.models.samples import media_of, require, texts_of
from lavis.nn.finite import check_finite
from lavis.nn.losses import IGNORE


class Instruct:
    """What InstructBLIP's models share: the Q-Former reads the instruction; answers are written like any text."""

    INSTRUCT = True
    REPLIES: ClassVar[Mapping[str, Any]] = {
        "num_beams": 5, "max_length": 256, "min_length": 1, "repetition_penalty": 1.5
    }  # fmt: skip

    def generate(
        self, samples: Mapping[str, Any], use_nucleus_sampling: bool = False, num_beams: int = 5, max_length: int = 256,
        min_length: int = 1, top_p: float = 0.9, repetition_penalty: float = 1.5, length_penalty: float = 1.0,
        num_captions: int = 1, temperature: float = 1.0, **more: Any,
    ) -> Any:  # fmt: skip
        """As `Blip2Language.generate`, with InstructBLIP's defaults."""
        return super().generate(  # type: ignore[misc]
            samples, use_nucleus_sampling, num_beams, max_length, min_length, top_p, repetition_penalty,
            length_penalty, num_captions, temperature, **more,
        )  # fmt: skip

    def _answer(
        self, samples: Mapping[str, Any], questions: list[str], num_beams: int, max_len: int, min_len: int,
        length_penalty: float,
    ) -> Texts:  # fmt: skip
        found: Texts = self.generate(
            {**samples, "prompt": questions}, num_beams=num_beams, max_length=max_len, min_length=min_len,
            length_penalty=length_penalty, return_scores=True,
        )  # fmt: skip
        return found

    @inference
    def predict_class(
        self,
        samples: Mapping[str, Any],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        n_segments: int = 1,
        return_scores: bool = False,
    ) -> torch.Tensor | list[torch.Tensor] | tuple[Any, Any]:
        """Rank candidates by the probability that the language model writes them.

        Args:
            samples: `image` (B, 3, h, w) or videos; `prompt`, whose place "{}" takes the image's `text_input`; before
                it come, an entry for each image, `context`, `history` (of a dialogue) and `caption`.
            candidates: C texts, or for each image a list of its own.
            n_segments: in how many parts the candidates are read; it changes no result.
            return_scores: also give each candidate's log-probability.

        Returns:
            Places of the candidates, best first: (B, C); a list of tensors where images have different numbers of them.
            With scores a pair of these and the log-probabilities, in the candidates' order.
        """
        model: Any = self
        samples = model._seen(samples)
        media = media_of(samples, model.MEDIA, model.device)
        prompts = with_context(samples, model._prompts(samples, len(media)))
        if not len(candidates):
            raise ValueError("there are no candidates to rank")
        shared = isinstance(candidates[0], str)
        lists = [candidates] * len(prompts) if shared else candidates
        if len(lists) != len(prompts):
            raise ValueError(
                f"there are {len(lists)} lists of candidates for {len(prompts)} prompts; give one for each"
            )
        counts = [len(own) for own in lists]
        if not all(counts):
            raise ValueError(f"image {counts.index(0)} has no candidates to rank")
        rows = [row for own in lists for row in model.candidate_rows(list(own))]
        if not all(rows):
            raise ValueError("a candidate is an empty text, which has no probability")
        decoding, first = model.begin(model.prefix(media, model.instruction(prompts)), prompts)
        items = torch.arange(len(lists), device=model.device).repeat_interleave(
            torch.tensor(counts, device=model.device)
        )
        tokens = model._padded(rows)
        logs = decoding.log_probabilities(first, tokens.ids, tokens.mask, items)
        check_finite(logs, kind="candidate")
        found = list(logs.split(counts))
        scores: Any = torch.stack(found) if len({len(row) for row in found}) == 1 else found
        if isinstance(scores, list):
            ranks: Any = [row.argsort(descending=True, stable=True) for row in scores]
        else:
            ranks = scores.argsort(dim=1, descending=True, stable=True)
        return (ranks, scores) if return_scores else ranks

    def predict_answers(
        self, samples: Mapping[str, Any], num_beams: int = 5, inference_method: str = "generate", max_len: int = 10,
        min_len: int = 1, num_ans_candidates: int = 128, answer_list: Sequence[str] | None = None, prompt: str = "",
        length_penalty: float | None = None, *, return_scores: bool = False, **unused: Any,
    ) -> Any:  # fmt: skip
        """As `Blip2Language.predict_answers`; "rank" chooses the likeliest of `answer_list`, all of which are read."""
        if inference_method != "rank":
            return super().predict_answers(  # type: ignore[misc]
                samples, num_beams, inference_method, max_len, min_len, num_ans_candidates, answer_list, prompt,
                length_penalty, return_scores=return_scores, **unused,
            )  # fmt: skip
        if not answer_list:
            raise ValueError(
                "there is no answer_list to choose from; give one, or inference_method='generate'"
            )
        model: Any = self
        samples = model._seen(samples)
        media = media_of(samples, model.MEDIA)
        questions = asked(samples, texts_of(samples, len(media)), prompt)
        found = self.chosen({model.MEDIA: media}, questions, [list(answer_list)] * len(questions))
        return found if return_scores else found.texts

    def chosen(
        self, samples: Mapping[str, Any], prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Texts:
        """Of the candidates of each prompt the likeliest; its score is its probability among them."""
        ranks, scores = self.predict_class(
            {**samples, "prompt": list(prompts)}, candidates, return_scores=True
        )
        best = [int(row[0]) for row in ranks]
        return Texts(
            [own[place] for own, place in zip(candidates, best, strict=True)],
            [float(row[place]) for row, place in zip(scores, best, strict=True)],
            [float(row.softmax(dim=0)[place]) for row, place in zip(scores, best, strict=True)],
        )


@registry.register_model("blip2_t5_instruct")
class Blip2T5Instruct(Instruct, WithT5, Blip2Language):
    """InstructBLIP with Flan-T5."""

    registered_name = "blip2_t5_instruct"
    TRANSFORMERS = (blip2_folders.INSTRUCTED, "t5")
    FOREIGN_RULES = (blip2_folders.rules(blip2_folders.INSTRUCTED, "t5_model", "t5_proj"),)

    def forward(self, samples: Mapping[str, Any]) -> LanguageOutput:
        """As of the others; samples may hold `few_shot_samples`, see `prepare_few_shot_embeds`."""
        examples = samples.get("few_shot_samples")
        embeds, mask = (None, None) if examples is None else self.prepare_few_shot_embeds(examples)
        if embeds is None or mask is None:
            return super().forward(samples)
        media = media_of(self._seen(samples), self.MEDIA, self.device)
        if len(embeds) != len(media):
            raise ValueError(f"there are examples for {len(embeds)} images, and {len(media)} images")
        read, written = (texts_of(samples, len(media), key) for key in ("text_input", "text_output"))
        return LanguageOutput(loss=self._loss(media, read, written, (embeds, mask)))

    def prepare_few_shot_embeds(
        self, samples: Sequence[Mapping[str, Any]]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Examples that are read before an image: n of each, an image and its text one after another.

        n is drawn for the whole batch: 0 with probability 1 - few_shot_prob, else 1 to num_few_shot_examples alike.

        Args:
            samples: for each image of the batch its examples: `image`, at least num_few_shot_examples of (3, h, w);
                `text_input`, as many texts.

        Returns:
            embeddings (B, n·(Q + T), W) and their mask; None and None where n is 0.
        """
        most, chance = self.config.num_few_shot_examples, self.config.few_shot_prob
        if most < 1 or chance <= 0 or float(torch.rand(())) >= chance:
            return None, None
        count = int(torch.randint(1, most + 1, ()))
        for each in samples:
            require(each, ("image", "text_input"), "examples, images and their texts")
            if min(len(each["image"]), len(each["text_input"])) < count:
                raise ValueError(
                    f"few_shot_samples has {len(each['image'])} images and {len(each['text_input'])} texts of an item; "
                    f"num_few_shot_examples is {most}"
                )
        images = torch.stack([each["image"][i] for each in samples for i in range(count)]).to(self.device)
        texts = [each["text_input"][i] for each in samples for i in range(count)]
        embeds, mask = (part.unflatten(0, (-1, count)).flatten(1, 2) for part in self._read(images, texts))
        return embeds, mask


@registry.register_model("blip2_vicuna_instruct")
class Blip2VicunaInstruct(Instruct, Blip2Language):
    """InstructBLIP with Vicuna, a decoder-only language model."""

    registered_name = "blip2_vicuna_instruct"
    LANGUAGE, PROJECTION = "llm_model", "llm_proj"
    RULES = replace(OFFICIAL, external=("visual_encoder.*", "llm_model.*"), drop=("*.rotary_emb.inv_freq",))
    PRETRAINED_RULES = RULES
    TRANSFORMERS = (blip2_folders.INSTRUCTED, "llama")
    FOREIGN_RULES = (blip2_folders.rules(blip2_folders.INSTRUCTED, LANGUAGE, PROJECTION),)

    @property
    def llm_tokenizer(self) -> Any:
        """The language model's tokenizer, under the original's name."""
        return self.words

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> BaseModel:
        """As of the others; that nothing says where Vicuna lies is said before the other weights are fetched."""
        given = cls.LANGUAGE in cfg or cls.LANGUAGE in (cfg.get("parts") or {})
        preset = cls.preset(str(cfg.get("model_type")))
        named = given or preset.parts[cls.LANGUAGE].source is not None
        if not named and cls.source_of(cfg)[1] == preset.pretrained:
            whole = (
                f", or take all of it from the hub with checkpoint={preset.elsewhere!r}"
                if preset.elsewhere
                else ""
            )
            raise ValueError(
                f"the weights of {cls.registered_name} {cfg['model_type']} are without Vicuna. Name its folder with "
                f"parts={{'llm_model': FOLDER}}, --part llm_model=FOLDER or LAVIS_VICUNA=FOLDER{whole}"
            )
        return super().from_config(cfg)

    @classmethod
    def preset(cls, model_type: str) -> Preset:
        """As of the others; where it names no folder of Vicuna, the environment's LAVIS_VICUNA does."""
        found, folder = super().preset(model_type), os.environ.get("LAVIS_VICUNA")
        part = found.parts[cls.LANGUAGE]
        if part.source is not None or not folder:
            return found
        return replace(found, parts={**found.parts, cls.LANGUAGE: replace(part, source=folder)})

    def _rows(self, texts: Sequence[str], most: int | None = None, cut: str = "right") -> list[list[int]]:
        # the original made the end token that of beginnings, too
        end = self.language.config.eos_token_id
        return [[end, *row[1:]] for row in super()._rows(texts, most, cut)]

    def _loss(self, media: torch.Tensor, read: list[str], written: list[str]) -> torch.Tensor:
        end = self.language.config.eos_token_id
        instructions = self._rows(read, self.max_txt_len, "left")
        answers = [[*row[1:], end][: self.max_output_txt_len - 1] for row in self._rows(written)]
        tokens = self._padded([a + b for a, b in zip(instructions, answers)])
        labels = tokens.ids.masked_fill(~tokens.mask, IGNORE)
        for row, instruction in zip(labels, instructions):
            row[: len(instruction)] = IGNORE
        return self._causal_loss(self.prefix(media, self.instruction(read)), tokens, labels)

    def candidate_rows(self, candidates: list[str]) -> list[list[int]]:
        """Tokens of candidates, without beginnings and ends."""
        return [row[1:] for row in self._rows(candidates)]

    def special_ids(self) -> tuple[int, int, int]:
        config = self.language.config
        return config.bos_token_id, config.eos_token_id, config.eos_token_id
