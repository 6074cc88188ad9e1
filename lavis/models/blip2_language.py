"""BLIP-2's second stage (Li et al. 2023, arXiv 2301.12597, section 3.2) and InstructBLIP (Dai et al. 2023, arXiv
2305.06500): an image encoder, a Q-Former, a projection, and a language model that reads the queries before its tokens.

B images, F frames of a video, R = B·G rows of text, Q queries, T tokens, W width of the language model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lavis.common.registry import registry
from lavis.models import blip2_folders
from lavis.models.base import BaseModel, Output, inference
from lavis.models.blip2 import OFFICIAL, Blip2Config, Blip2Qformer, WithTower
from lavis.models.checkpoints import Rules, StateDict, read_json
from lavis.models.languages import language_model, language_tokenizer, texts_of_ids
from lavis.models.lemmas import lemmatized, lemmatizer
from lavis.models.outputs import Texts
from lavis.models.parts import Sources, building
from lavis.models.prompts import (
    INSTRUCTED,
    PLAIN,
    SHORT_ANSWER,
    asked,
    check_places,
    in_dialogue,
    prompts_of,
    with_words,
)
from lavis.models.samples import media_of, require, texts_of
from lavis.models.tokenizer import Tokens
from lavis.nn import generation
from lavis.nn.causal_lm import CausalDecoding, Decoding, EncoderDecoding, positions
from lavis.nn.generation import GenerationOptions
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.qformer import QueryReader

# a language model's own file: tables that are no weights, and a bias that T5 never reads
LANGUAGE_FILE = Rules(drop=("*.rotary_emb.inv_freq", "*.EncDecAttention.relative_attention_bias.weight"))


@dataclass(frozen=True)
class Blip2LanguageConfig(Blip2Config):
    """
    Attributes:
        prompt: what the language model reads before it writes, where samples have no prompt of their own.
        max_output_txt_len: tokens that the loss of InstructBLIP reads of a text to be written.
        qformer_text_input: whether InstructBLIP's Q-Former reads the instruction.
        num_few_shot_examples: of InstructBLIP with T5, the most examples that are read before an image in training,
            see `Blip2T5Instruct.prepare_few_shot_embeds`. few_shot_prob: how often there are any.
        apply_lemmatizer: whether nouns and verbs of answers are put into their basic forms, as OK-VQA's answers are.
        language: config.json of the language model, read with its part.
        language_source: the folder that its tokenizer lies in.
    """

    prompt: str = ""
    max_output_txt_len: int = 256
    qformer_text_input: bool = True
    num_few_shot_examples: int = 0
    few_shot_prob: float = 0.0
    apply_lemmatizer: bool = False
    language: Any = field(default=None, repr=False)
    language_source: str = ""


@dataclass(frozen=True)
class LanguageOutput(Output):
    """What `forward` returns: the loss, a mean over the tokens to be written (nats)."""

    loss: torch.Tensor | None = None


class Blip2Language(WithTower, BaseModel):
    """The network. Its classes say which language model it has, and what the original's method names mean of it.

    LANGUAGE: the module and part that is the language model. PROJECTION: the layer before it.
    INSTRUCT: whether the Q-Former reads texts. ENCODES: whether the language model has an encoder.
    """

    LANGUAGE: ClassVar[str]
    PROJECTION: ClassVar[str]
    INSTRUCT: ClassVar[bool] = False
    ENCODES: ClassVar[bool] = False
    # options of `reply`, the defaults of `generate`
    REPLIES: ClassVar[Mapping[str, Any]] = {"num_beams": 5, "max_length": 30, "min_length": 1}

    PART_RULES: ClassVar[Mapping[str, tuple[Rules, ...]]] = {
        **WithTower.PART_RULES, **dict.fromkeys(("opt_model", "t5_model", "llm_model"), (LANGUAGE_FILE,)),
    }  # fmt: skip

    config: Any

    def __init__(self, config: Blip2LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.prompt, self.max_txt_len = config.prompt, config.max_txt_len
        self.max_output_txt_len, self.qformer_text_input = (
            config.max_output_txt_len,
            config.qformer_text_input,
        )
        self.language_source = config.language_source
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_token, config.text.width))
        self.add_tower(config)
        self.Qformer = QueryReader(config.text, text=self.INSTRUCT)
        if config.language is None:
            raise ValueError(
                f"{self.registered_name} needs a language model; name its folder or Hugging Face id with "
                f"{self.LANGUAGE}="
            )
        with building(self.LANGUAGE):
            language = language_model(config.language)
        self.add_module(self.LANGUAGE, language)
        width = language.get_input_embeddings().weight.shape[1]
        self.add_module(self.PROJECTION, nn.Linear(config.text.width, width))
        if self.INSTRUCT:  # of the texts that the Q-Former reads
            self.tokenizer = Blip2Qformer.init_tokenizer(config.vocabulary)

    @classmethod
    def language_changes(cls) -> dict[str, Any]:
        """Entries that the original changes in config.json of the language model's own folder."""
        return {}

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> BaseModel:
        """As `BaseModel.from_config`; the original's key of the language model names the source of its part."""
        cfg = dict(cfg)
        if cls.LANGUAGE in cfg:
            source = {cls.LANGUAGE: {"source": str(cfg.pop(cls.LANGUAGE))}}
            cfg["parts"] = {**source, **(cfg.get("parts") or {})}
        return super().from_config(cfg)

    @classmethod
    def with_parts(cls, config: Any, sources: Sources) -> Any:
        """The config with what the language model's folder says of it, where the weights' own does not."""
        if config.language is not None and config.language_source:
            return config
        folder = sources.path(cls.LANGUAGE)
        language = config.language or {**read_json(folder / "config.json"), **cls.language_changes()}
        return replace(config, language=language, language_source=str(folder))

    @classmethod
    def adapt(cls, config: Any, path: Path) -> Any:
        """The config with what a folder says of its language model, and the tokenizer that lies in it."""
        return blip2_folders.with_tokenizer(super().adapt(config, path), path)

    @classmethod
    def complete(cls, config: Any, state: StateDict) -> Any:
        return replace(config, language=config.language and blip2_folders.untied(config.language, state))

    def save_beside(self, folder: Path, left_out: Collection[str]) -> dict[str, Any]:
        """Copy the language model's tokenizer, unless it lies where the language model is left."""
        if self.LANGUAGE in left_out:
            return {"language_source": ""}
        return {"language_source": blip2_folders.copy_tokenizer(Path(self.language_source), folder)}

    @property
    def language(self) -> Any:
        """The language model."""
        return self.get_submodule(self.LANGUAGE)

    @cached_property
    def words(self) -> Any:
        """The language model's tokenizer."""
        return language_tokenizer(self.language_source)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.query_tokens, std=self.config.text.init_std)
        self.visual_encoder.reset_parameters()
        self.Qformer.reset_parameters()

    # ------------------------------------------------------------------------------ reading images
    def _seen(self, samples: Mapping[str, Any]) -> Mapping[str, Any]:
        """Samples in which a video, which is read frame by frame, stands in the place of the image."""
        if samples.get("video") is None or samples.get(self.MEDIA) is not None:
            return samples
        return {**samples, self.MEDIA: samples["video"]}

    def instruction(self, texts: Sequence[str]) -> Tokens | None:
        """Tokens of what the Q-Former reads, cut on the left; None where it reads no texts."""
        if not self.INSTRUCT or not self.qformer_text_input:
            return None
        most, rows = self.max_txt_len, [self.tokenizer.encode(text) for text in texts]
        rows = [row if len(row) <= most else [row[0], *row[len(row) - most + 1 :]] for row in rows]
        return self._padded(rows)

    def prefix(self, media: torch.Tensor, instruction: Tokens | None = None) -> torch.Tensor:
        """What the language model reads of images (B, 3, h, w) or videos (B, 3, F, h, w): (B, Q or F·Q, W).

        Args:
            instruction: (B·G, T), see `instruction`; every frame is read with each of its G, and the result is
                (B·G, Q or F·Q, W).
        """
        frames = media.shape[2] if media.ndim == 5 else 1
        if media.ndim == 5:
            media = media.transpose(1, 2).flatten(0, 1)  # (B·F, 3, h, w)
        memory = self.Qformer.bert.project_memory(self.encode_image(media))
        ids = mask = None
        if instruction is not None:  # a frame's rows are side by side: (B·F·G, T)
            each = (part.unflatten(0, (len(memory) // frames, 1, -1)) for part in instruction)  # (B, 1, G, T)
            ids, mask = (part.expand(-1, frames, -1, -1).flatten(0, 2) for part in each)
        states = self.Qformer.bert(
            ids, queries=self.query_tokens, mask=mask, memory=memory, only_queries=True
        )
        found = self.get_submodule(self.PROJECTION)(states)
        found = found.unflatten(0, (len(memory) // frames, frames, -1))  # (B, F, G, Q, W)
        return found.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    # ------------------------------------------------------------------------------ reading texts
    def _rows(self, texts: Sequence[str], most: int | None = None, cut: str = "right") -> list[list[int]]:
        """Ids of texts as the language model reads them; of more than `most`, those on the side `cut` are left out."""
        self.words.truncation_side = cut
        rows: list[list[int]] = self.words(
            list(texts), truncation=most is not None, max_length=most
        ).input_ids
        return rows

    def _padded(self, rows: Sequence[Sequence[int]], side: str = "right") -> Tokens:
        """Rows of one length, filled up on a side."""
        longest = max(map(len, rows))
        gaps = [[0] * (longest - len(row)) for row in rows]
        ids = [[*gap, *row] if side == "left" else [*row, *gap] for row, gap in zip(rows, gaps)]
        place, lengths = torch.arange(longest), torch.tensor([len(row) for row in rows])[:, None]
        mask = place >= longest - lengths if side == "left" else place < lengths
        return Tokens(torch.tensor(ids), mask).to(self.device)

    def _embedded(self, prefix: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """A prefix (B, P, W), then tokens (R, T), R a multiple of B: embeddings (R, P + T, W) and their mask."""
        words = self.language.get_input_embeddings()(tokens.ids)
        prefix = prefix.to(words.dtype).repeat_interleave(len(words) // len(prefix), dim=0)
        mask = torch.cat([tokens.mask.new_ones(prefix.shape[:2]), tokens.mask], dim=1)
        return torch.cat([prefix, words], dim=1), mask

    def _prompts(self, samples: Mapping[str, Any], images: int) -> list[str]:
        """Prompts of the samples or the model's own, G for each image; "{}" becomes the words that were read in it."""
        return with_words(samples, prompts_of(samples.get("prompt", self.prompt), images), images)

    # ------------------------------------------------------------------------------ training
    def forward(self, samples: Mapping[str, Any]) -> LanguageOutput:
        """Loss of texts to be written.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B texts. A model that reads one text and writes another (T5,
                InstructBLIP) needs `text_output`, B texts.
        """
        samples = self._seen(samples)
        media = media_of(samples, self.MEDIA, self.device)
        texts = texts_of(samples, len(media))
        if not (self.ENCODES or self.INSTRUCT):
            return LanguageOutput(loss=self._loss(media, [], texts))
        require(samples, ("text_output",), "what is to be written, a text for each of text_input")
        return LanguageOutput(loss=self._loss(media, texts, texts_of(samples, len(media), "text_output")))

    def _loss(self, media: torch.Tensor, read: list[str], written: list[str]) -> torch.Tensor:
        raise NotImplementedError

    def _causal_loss(self, prefix: torch.Tensor, tokens: Tokens, labels: torch.Tensor) -> torch.Tensor:
        """Of a decoder-only language model; labels (R, T) of the tokens after the prefix."""
        embeds, mask = self._embedded(prefix, tokens)
        logits = self.language(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
        ).logits
        silent = labels.new_full(prefix.shape[:2], IGNORE)
        return language_modelling_loss(logits, torch.cat([silent, labels], dim=1))

    # ------------------------------------------------------------------------------ writing
    def special_ids(self) -> tuple[int, int, int]:
        """What a text starts with (a decoder-only model does not read it), what ends it, what comes after that."""
        raise NotImplementedError

    def _write(
        self,
        samples: Mapping[str, Any],
        prompts: list[str],
        options: GenerationOptions,
        most: int | None = None,
    ) -> Texts:
        """Texts after prompts, one for each image."""
        prefix = self.prefix(media_of(samples, self.MEDIA, self.device), self.instruction(prompts))
        decoding, first = self.begin(prefix, prompts, most, options.lengths(1)[0] - 1)
        _, end, pad = self.special_ids()
        decoded = generation.generate(decoding, first, replace(options, lookahead=1), end=end, pad=pad)
        ids, logprobs, scores = decoded.read(len(first))
        return Texts(texts_of_ids(self.words, ids), logprobs, scores)

    def begin(
        self, prefix: torch.Tensor, prompts: Sequence[str], most: int | None = None, new: int | None = None
    ) -> tuple[Decoding, torch.Tensor]:
        """Read a prefix and R prompts, of at most so many tokens; what goes on from there, for at most so many new
        tokens, and its first step's tokens (R, 1)."""
        # a decoder-only model goes on where its prompt ends
        tokens = self._padded(self._rows(prompts, most), "right" if self.ENCODES else "left")
        embeds, mask = self._embedded(prefix, tokens)
        decoding = (EncoderDecoding if self.ENCODES else CausalDecoding)(self.language, embeds, mask, new)
        return decoding, torch.full((len(embeds), 1), self.special_ids()[0], device=self.device)

    def _options(self, max_length: int, min_length: int, **options: Any) -> GenerationOptions:
        """Options of the original's arguments: of an encoder-decoder `max_length` counts new tokens, of others the
        start token, too."""
        if self.ENCODES and options.get("max_new_tokens") is None:
            options["max_new_tokens"] = max_length
        return GenerationOptions(max_length=max_length, min_length=min_length, **options)

    @inference
    def generate(
        self,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 5,
        max_length: int = 30,
        min_length: int = 1,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1.0,
        *,
        return_scores: bool = False,
        **more: Any,
    ) -> list[str] | Texts:
        """Write about images.

        Args:
            samples: `image` (B, 3, h, w), or of InstructBLIP videos (B, 3, F, h, w); `prompt`, one, or G for each
                image; `ocr_tokens`, words read in each image, for a prompt with "{}".
            max_length: of new tokens; of a decoder-only model one less, as in the original.
            return_scores: give `Texts` (with log-probabilities) instead of strings.
            more: the others are those of `generation.GenerationOptions`.

        Returns:
            B·G·num_captions texts, an image's next to one another, best first.
        """
        options = self._options(
            max_length, min_length, use_nucleus_sampling=use_nucleus_sampling, num_beams=num_beams, top_p=top_p,
            repetition_penalty=repetition_penalty, length_penalty=length_penalty, num_captions=num_captions,
            temperature=temperature, **more,
        )  # fmt: skip
        samples = self._seen(samples)
        prompts = self._prompts(samples, len(media_of(samples, self.MEDIA)))
        found = self._write(samples, prompts, options, self.prompt_cut)
        return found if return_scores else found.texts

    @property
    def prompt_cut(self) -> int | None:
        """Tokens that `generate` reads of a prompt; None: all."""
        return None

    @inference
    def predict_answers(
        self,
        samples: Mapping[str, Any],
        num_beams: int = 5,
        inference_method: str = "generate",
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | None = None,
        prompt: str = "",
        length_penalty: float | None = None,
        *,
        return_scores: bool = False,
        **unused: Any,
    ) -> list[str] | Texts:
        """Answer questions about images.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B·G questions, an image's next to one another; for a prompt
                with two places `choices` or `ocr_tokens`, a list for each question; `apply_lemmatizer`, true as the
                config's.
            inference_method: "generate"; there is no other.
            max_len, min_len: tokens of an answer.
            prompt: has a place "{}" for the question, or two: for the question and its choices, (a) … (b) …, or for the
                words read in the image and the question.
            length_penalty: None: the original's, 0 of decoder-only models, -1 of T5.

        Returns:
            B·G answers.
        """
        if inference_method != "generate":
            raise ValueError(
                f"inference_method is {inference_method!r}; {self.registered_name} writes its answers (generate), and "
                "chooses among none"
            )
        if length_penalty is None:
            length_penalty = -1.0 if self.ENCODES else 0.0
        samples = self._seen(samples)
        media = media_of(samples, self.MEDIA)
        questions = asked(samples, texts_of(samples, len(media)), prompt)
        lemmas = self.config.apply_lemmatizer or bool(samples.get("apply_lemmatizer"))
        if lemmas:
            lemmatizer()  # that it lacks is said before anything is written
        found = self._answer(samples, questions, num_beams, max_len, min_len, length_penalty)
        found = replace(found, texts=lemmatized(found.texts)) if lemmas else found
        return found if return_scores else found.texts

    def _answer(
        self, samples: Mapping[str, Any], questions: list[str], num_beams: int, max_len: int, min_len: int,
        length_penalty: float,
    ) -> Texts:  # fmt: skip
        options = GenerationOptions(
            num_beams=num_beams, max_new_tokens=max_len, min_length=min_len, length_penalty=length_penalty
        )
        return self._write(samples, questions, options, None if self.ENCODES else self.max_txt_len)

    # ------------------------------------------------------------ abilities, see `lavis.inference.protocols`
    @property
    def question_prompt(self) -> str:
        """The model's own prompt if it has a place for a question, else that of the original's evaluations."""
        return self.prompt if self.prompt.count("{}") == 1 else SHORT_ANSWER

    def check_prompt(self, prompt: str, places: int) -> None:
        """
        Raises:
            ValueError: it has another number of places.
        """
        check_places(prompt, places)

    def check_dialogue(self, caption: str | None, candidates: Sequence[str] | None) -> None:
        """
        Raises:
            ValueError: there are candidates, and the model only writes.
        """
        if candidates and not self.INSTRUCT:
            raise ValueError(f"{self.registered_name} writes its answers; give none to choose from")

    def reply(
        self, samples: Mapping[str, Any], candidates: Sequence[str] | None = None, **options: Any
    ) -> Texts:
        """The answer to one question, which the rounds before and a caption precede; the whole of it is read.

        Args:
            samples, candidates: see `Chats`. options: those of `generate`, with its defaults.
        """
        samples = self._seen(samples)
        history, question = samples["dialog"][0], texts_of(samples, 1)[0]
        caption = (samples.get("caption") or [""])[0]
        prompt = in_dialogue(
            question, history, caption, samples.get("prompt"), INSTRUCTED if self.INSTRUCT else PLAIN
        )
        seen = {self.MEDIA: media_of(samples, self.MEDIA)}
        if candidates is not None:
            self.check_dialogue(caption, candidates)
            found: Texts = self.chosen(seen, [prompt], [list(candidates)])  # type: ignore[operator]
            return found
        return self._replied(seen, prompt, {**self.REPLIES, **options})

    @inference
    def _replied(self, samples: Mapping[str, Any], prompt: str, options: Mapping[str, Any]) -> Texts:
        return self._write(samples, [prompt], self._options(**options))


@registry.register_model("blip2_opt")
class Blip2OPT(Blip2Language):
    """BLIP-2 with OPT, a decoder-only language model."""

    registered_name = "blip2_opt"
    LANGUAGE, PROJECTION = "opt_model", "opt_proj"
    RULES = replace(OFFICIAL, external=("visual_encoder.*", "opt_model.*"))
    PRETRAINED_RULES = RULES
    TRANSFORMERS = (blip2_folders.WRITES, "opt")
    FOREIGN_RULES = (blip2_folders.rules(blip2_folders.WRITES, LANGUAGE, PROJECTION),)

    @property
    def opt_tokenizer(self) -> Any:
        """The language model's tokenizer, under the original's name."""
        return self.words

    def _loss(self, media: torch.Tensor, read: list[str], written: list[str]) -> torch.Tensor:
        tokens = self._padded(self._rows([text + "\n" for text in written], self.max_txt_len))
        labels = tokens.ids.masked_fill(~tokens.mask, IGNORE)
        if self.prompt:
            labels[:, : len(self._rows([self.prompt])[0])] = IGNORE
        return self._causal_loss(self.prefix(media), tokens, labels)

    def special_ids(self) -> tuple[int, int, int]:
        newline = self.words("\n", add_special_tokens=False).input_ids[0]
        return self.language.config.bos_token_id, newline, self.language.config.pad_token_id

    @property
    def prompt_cut(self) -> int | None:
        return self.max_txt_len


class WithT5:
    """What BLIP-2's and InstructBLIP's models with T5 share: its encoder reads the queries and the prompt. Comes before
    the network among the bases."""

    config: Any
    language: Any
    words: Any
    max_txt_len: int
    max_output_txt_len: int
    _padded: Any
    _rows: Any
    _embedded: Any
    prefix: Any
    instruction: Any
    INSTRUCT: ClassVar[bool]

    LANGUAGE, PROJECTION = "t5_model", "t5_proj"
    ENCODES = True
    RULES = replace(OFFICIAL, external=("visual_encoder.*", "t5_model.*"))
    PRETRAINED_RULES = RULES

    @property
    def t5_tokenizer(self) -> Any:
        """The language model's tokenizer, under the original's name."""
        return self.words

    @classmethod
    def language_changes(cls) -> dict[str, Any]:
        return {"dense_act_fn": "gelu"}

    @property
    def written_cut(self) -> int:
        """Tokens that the loss reads of a text to be written."""
        return self.max_output_txt_len if self.INSTRUCT else self.max_txt_len

    def _read(self, media: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder reads of images and their texts: embeddings (R, P + T, W) and their mask."""
        prefix = self.prefix(media, self.instruction(texts))
        return self._embedded(prefix, self._padded(self._rows(texts, self.max_txt_len)))

    def _loss(
        self, media: torch.Tensor, read: list[str], written: list[str], before: tuple[torch.Tensor, ...] = ()
    ) -> torch.Tensor:
        """`before`: embeddings (R, N, W) and their mask (R, N), which the encoder reads first."""
        embeds, mask = self._read(media, read)
        if before:
            embeds, mask = (torch.cat(pair, dim=1) for pair in zip(before, (embeds, mask)))
        ids, real = self._padded(self._rows(written, self.written_cut))
        labels = ids.masked_fill(~real, IGNORE)
        out = self.language(inputs_embeds=embeds, attention_mask=mask.long(), labels=labels, use_cache=False)
        # each token is predicted by the place before it, the first by the start token
        logits = nn.functional.pad(out.logits, (0, 0, 0, 1))
        return language_modelling_loss(logits, nn.functional.pad(labels, (1, 0), value=IGNORE))

    def candidate_rows(self, candidates: list[str]) -> list[list[int]]:
        """Tokens of candidates, with their ends."""
        return self._rows(candidates)

    def special_ids(self) -> tuple[int, int, int]:
        config = self.language.config
        return config.decoder_start_token_id, config.eos_token_id, config.pad_token_id


@registry.register_model("blip2_t5")
class Blip2T5(WithT5, Blip2Language):
    """BLIP-2 with Flan-T5."""

    registered_name = "blip2_t5"
    TRANSFORMERS = (blip2_folders.WRITES, "t5")
    FOREIGN_RULES = (blip2_folders.rules(blip2_folders.WRITES, "t5_model", "t5_proj"),)
