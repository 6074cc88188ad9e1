"""VGD-GPT (Le & Hoi 2020, "Video-Grounded Dialogues with Pretrained Generation Language Models", arXiv 2006.15319):
GPT-2 reads a video's features and a dialogue as one sequence and writes the answer.

R dialogues, Tv time steps of the video, T tokens, F width of a feature, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lavis.common import dist
from lavis.common.registry import registry
from lavis.models import checkpoints
from lavis.models.base import BaseModel, Output, inference
from lavis.models.checkpoints import Rules, more_rows
from lavis.models.folders import locate
from lavis.models.gpt_tokenizer import ANSWERING, GPTTokenizer
from lavis.models.outputs import Texts
from lavis.models.samples import require
from lavis.nn import generation
from lavis.nn.generation import GenerationOptions
from lavis.nn.gpt import GPT, Decoding, GPTConfig
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.processors.dialogue import GPTDialogueProcessor

STARTING_WEIGHTS = {"gpt2": "openai-community/gpt2:model.safetensors"}  # GPT-2 small; MIT License, OpenAI

# transformers' GPT2LMHeadModel and GPT2Model: matrices are transposed, causal masks are stored, the head is tied.
_NAMES = (
    (r"(^|\.)h\.(\d+)\.", r"\1blocks.\2."),
    (r"(^|\.)ln_f\.", r"\1norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.c_attn\.", ".attn.qkv."),
    (r"\.attn\.c_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.(qkv|proj|fc1|fc2)\.weight$", r".\1.weight#T"),
)
_MASKS = ("*.attn.bias", "*.attn.masked_bias")
GPT2 = Rules(
    rename=((r"^transformer\.", ""), *_NAMES),
    drop=(*_MASKS, "lm_head.weight"),
    resize={"wte.weight": more_rows},
)
# The original's GPTDialogue, which is a GPT2LMHeadModel with two more layers.
ORIGINAL = Rules(marker="transformer.h.0.ln_1.weight", rename=_NAMES, drop=_MASKS)


@dataclass(frozen=True)
class GPTDialogueConfig:
    """
    Attributes:
        transformer: sizes of GPT-2.
        len_tokenizer: number of ids, GPT-2's and the seven special tokens of dialogues.
        len_video_ft: width of a video's features.
        max_turns: rounds before the question that are read.
        use_caption: whether the caption is read.
        vocabulary: "gpt2", or the path of a file of merges.
    """

    transformer: GPTConfig = field(default_factory=GPTConfig)
    len_tokenizer: int = 50264
    len_video_ft: int = 4224
    max_turns: int = 3
    use_caption: bool = True
    vocabulary: str = "gpt2"


@dataclass(frozen=True)
class GPTDialogueOutput(Output):
    """What `forward` returns: loss = loss_lm (nats) + loss_video (mean squared error); logits (R, Tv + T, V)."""

    loss: torch.Tensor | None = None
    loss_lm: torch.Tensor | None = None
    loss_video: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class Sequences:
    """What GPT-2 reads: video (R, Tv, F), ids (R, T); of both together types, labels (IGNORE where there is none)
    and mask (R, Tv + T)."""

    video: torch.Tensor
    ids: torch.Tensor
    types: torch.Tensor
    labels: torch.Tensor | None
    mask: torch.Tensor


@registry.register_model("gpt_dialogue")
class GPTDialogue(BaseModel):
    """Answers questions of a dialogue about a video (VGD-GPT paper, section 3).

    A video's features, one per time step, are projected to GPT-2's width and come before the text, see
    `lavis.processors.dialogue`; token types, which are words of the vocabulary, tell what is what. Training adds
    to the answer's cross entropy a regression: what a time step's state is projected to should be the next
    step's feature (as in Li et al. 2020, arXiv 2002.00163, and in the original library; of the
    paper's further objectives, masked modelling and matching, there are none).

    There are no published weights; training starts from GPT-2's (`init: {transformer: gpt2}`).

    Unlike the original, padding takes no position, is no target of the regression, and so never changes a
    result.
    """

    registered_name = "gpt_dialogue"
    FOREIGN_RULES = (ORIGINAL,)

    tokenizer: GPTTokenizer

    def __init__(self, config: GPTDialogueConfig) -> None:
        super().__init__()
        self.config = config
        self.processor = GPTDialogueProcessor(**self._text_settings())
        self.tokenizer = self.processor.tokenizer
        width = config.transformer.width
        self.transformer = GPT(config.transformer, config.len_tokenizer)
        self.lm_head = nn.Linear(width, config.len_tokenizer, bias=False)
        self.video_ff = nn.Linear(config.len_video_ft, width)
        self.video_ff_out = nn.Linear(width, config.len_video_ft)
        self.tie_weights()

    def _text_settings(self) -> dict[str, Any]:
        config = self.config
        return {
            name: getattr(config, name)
            for name in ("max_turns", "use_caption", "len_tokenizer", "vocabulary")
        }

    def preprocess_config(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The preset's processors, the text's with this model's settings."""
        found = super().preprocess_config()
        for cfg in found["text_processor"].values():
            cfg.update(self._text_settings())
        return found

    def tie_weights(self) -> None:
        """Make the head's matrix the words' embedding again (after weights were assigned)."""
        self.lm_head.weight = self.transformer.wte.weight

    def reset_parameters(self) -> None:
        self.transformer.reset_parameters()
        for layer in (self.video_ff, self.video_ff_out):
            nn.init.normal_(layer.weight, std=self.config.transformer.init_std)
            nn.init.zeros_(layer.bias)

    def start_from(self, init: Mapping[str, str]) -> None:
        """Start GPT-2 from published weights; new tokens, and the layers of videos, stay fresh.

        Args:
            init: {"transformer": source}; a source is "gpt2", or a path, URL or Hugging Face id of weights of
                transformers' GPT-2.
        """
        for name, source in init.items():
            if name != "transformer":
                raise ValueError(
                    f"model.init.{name}: {self.registered_name} can start transformer from a file"
                )
            state = checkpoints.read_state_dict(locate(STARTING_WEIGHTS.get(source, source)))
            checkpoints.load_into(self.transformer, state, GPT2, f"model.init.{name} {source}")
        self.tie_weights()

    # ------------------------------------------------------------------------------ samples
    def prepare(self, samples: Mapping[str, Any], answers: bool) -> dict[str, torch.Tensor]:
        """The sequences of plain samples.

        Args:
            samples: `video` (or `video_fts`), features of B videos, (B, Tv, F) or a list of (Tv, F); R texts
                `text_input`, the questions, a video's side by side; `dialog`, for each question the
                (question, answer) rounds before it; `caption`, B texts or R; `answer`, R texts.
            answers: whether answers belong to the sequences.

        Returns:
            `video_fts`, `input_ids`, `token_type_ids`, `labels`, `attn_mask`: see `forward`.
        """
        videos = self._videos(samples)
        caption, answer = ("caption",) * self.config.use_caption, ("answer",) * answers
        require(
            samples,
            ("text_input", "dialog", *caption, *answer),
            "texts of dialogues (or ids, made by the processor gpt_dialogue)",
        )
        questions = _texts(samples["text_input"])
        if not questions or len(questions) % len(videos):
            raise ValueError(
                f"there are {len(questions)} questions for {len(videos)} videos; give one per video, or the same "
                "number for each, a video's questions next to one another"
            )
        rounds = len(questions) // len(videos)
        columns = {"question": questions, "dialog": list(samples["dialog"])}
        if self.config.use_caption:
            captions = _texts(samples["caption"])
            shared = len(captions) == len(videos)
            columns["caption"] = [c for c in captions for _ in range(rounds)] if shared else captions
        if answers:
            columns["answer"] = _texts(samples["answer"])
        for key, values in columns.items():
            if len(values) != len(questions):
                raise ValueError(
                    f"there are {len(questions)} questions, but {len(values)} entries of {key!r}"
                )
        records = [dict(zip(columns, values)) for values in zip(*columns.values())]
        return self.processor.collate(
            [self.processor(record) for record in records], [v for v in videos for _ in range(rounds)]
        )

    def _videos(self, samples: Mapping[str, Any]) -> list[torch.Tensor]:
        key = next((k for k in ("video_fts", "video") if k in samples), None)
        if key is None:
            raise ValueError(
                f"samples need 'video' or 'video_fts', features of videos (B, T, F); they have {', '.join(samples)}"
            )
        videos = [torch.as_tensor(video) for video in samples[key]]
        for video in videos:
            self._check_features(key, video, 2)
        if not videos:
            raise ValueError(f"{key!r} is empty; there must be at least one video")
        return videos

    def _check_features(self, key: str, features: torch.Tensor, dimensions: int) -> None:
        width = self.config.len_video_ft
        if features.ndim != dimensions or features.shape[-1] != width or features.shape[-2] == 0:
            raise ValueError(
                f"a {key!r} has shape {tuple(features.shape)}; this model reads features (time steps, {width}), at "
                "least one step: use the processors that load_model_and_preprocess returns, or set len_video_ft"
            )

    def _sequences(self, samples: Mapping[str, Any], answers: bool) -> Sequences:
        if "input_ids" not in samples:
            samples = self.prepare(samples, answers)
        needed = ("video_fts", "input_ids", "token_type_ids", "attn_mask", *(("labels",) if answers else ()))
        missing = [key for key in needed if samples.get(key) is None]
        if missing:
            raise ValueError(
                f"samples with input_ids need {', '.join(missing)}, too; they have {', '.join(samples)}"
            )
        given = {k: samples[k].to(self.device) for k in (*needed, "labels") if samples.get(k) is not None}
        video, ids = given["video_fts"], given["input_ids"]
        self._check_features("video_fts", video, 3)
        together = (len(ids), video.shape[1] + ids.shape[1])
        for key in given.keys() - {"video_fts", "input_ids"}:
            if tuple(given[key].shape) != together:
                raise ValueError(
                    f"{key!r} has shape {tuple(given[key].shape)}; video and text make {together}"
                )
        labels = given.get("labels")
        return Sequences(
            video=video.to(self.dtype),
            ids=ids,
            types=given["token_type_ids"],
            labels=None if labels is None else labels.masked_fill(labels < 0, IGNORE),
            mask=given["attn_mask"].bool(),
        )

    def _embed(self, given: Sequences) -> torch.Tensor:  # (R, Tv + T, D)
        words = torch.cat([self.video_ff(given.video), self.transformer.embed(given.ids)], dim=1)
        return words + self.transformer.embed(given.types)

    # ------------------------------------------------------------------------------ training
    def forward(self, samples: Mapping[str, Any]) -> GPTDialogueOutput:
        """Loss of answers and of the videos' features.

        Args:
            samples: plain ones, see `prepare`, or ids, as the processor's `collate` gives them: `input_ids` (R, T),
                `video_fts` (R, Tv, F), and of both together, video first, `token_type_ids`, `labels` (negative
                where a place does not count) and `attn_mask` (R, Tv + T).

        Returns:
            `loss` = `loss_lm`, mean cross entropy over the tokens of answers, their ends included (nats), +
            `loss_video`, mean squared error of the features predicted for the next time step; `logits`.
        """
        given = self._sequences(samples, answers=True)
        assert given.labels is not None
        states = self.transformer(self._embed(given), mask=given.mask)
        logits = self.lm_head(states)
        loss_lm = language_modelling_loss(logits, given.labels)
        loss_video = self._regression(states, given)
        return GPTDialogueOutput(
            loss=loss_lm + loss_video, loss_lm=loss_lm, loss_video=loss_video, logits=logits
        )

    def _regression(self, states: torch.Tensor, given: Sequences) -> torch.Tensor:
        """Mean squared error of each time step's prediction of the next, over those of all ranks."""
        steps = given.video.shape[1]
        counts = given.mask[:, 1:steps]  # (R, Tv - 1)
        predicted = self.video_ff_out(states[:, : steps - 1]).float()
        each = (predicted - given.video[:, 1:].float()).square().mean(dim=-1)
        total = each.masked_fill(~counts, 0.0).sum()
        return total / dist.mean_over_ranks(counts.sum().to(total.dtype)).clamp(min=1)

    # ------------------------------------------------------------------------------ answers
    @inference
    def generate(
        self,
        samples: Mapping[str, Any],
        num_beams: int = 5,
        max_length: int = 20,
        min_length: int = 5,
        *,
        use_nucleus_sampling: bool = False,
        top_p: float = GenerationOptions.top_p,
        temperature: float = GenerationOptions.temperature,
        seed: int | Sequence[int] | None = None,
        length_penalty: float = GenerationOptions.length_penalty,
        return_scores: bool = False,
    ) -> list[str] | Texts:
        """Write an answer to each question.

        Args:
            samples: as in `forward`; answers, if there are any, aren't read.
            max_length, min_length: tokens of the answer.
            return_scores: give `Texts` (with log-probabilities) instead of strings.
            num_beams and the others: see `generation.GenerationOptions`.

        Returns:
            R answers.
        """
        options = GenerationOptions(
            use_nucleus_sampling, num_beams, max_new_tokens=max_length, min_new_tokens=min_length, top_p=top_p,
            top_k=0, temperature=temperature, seed=seed, length_penalty=length_penalty,
        )  # fmt: skip
        given = self._sequences(samples, answers=False)
        mask = given.mask if given.labels is None else given.mask & (given.labels == IGNORE)
        room = options.lengths(1)[0] - 1  # counted from the question's end on, which is the prompt
        decoding = Decoding(
            self.transformer, self.lm_head, self._embed(given), mask, self.tokenizer.id(ANSWERING), room
        )
        prompt = torch.full((len(mask), 1), self.tokenizer.eos_id, device=mask.device)
        decoded = generation.generate(
            decoding, prompt, options, end=self.tokenizer.eos_id, pad=self.tokenizer.pad_id
        )
        ids, logprobs, scores = decoded.read(len(mask))
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        return Texts(texts, logprobs, scores) if return_scores else texts


def _texts(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
