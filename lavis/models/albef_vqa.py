"""ALBEF for visual question answering (ALBEF paper, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lavis.common.registry import registry
from lavis.models.albef import BARE_TEXT, PRETRAINING_ONLY, Albef
from lavis.models.answers import Answering
from lavis.models.checkpoints import EMA_COPIES, TRAINING_STATE, Rules
from lavis.models.outputs import Texts
from lavis.models.presets import RESIZE


def decoder_copies(first: int, layers: int) -> tuple[tuple[str, str], ...]:
    """A pre-trained text encoder begins the decoder too: its embeddings, its fusion layers from `first` on."""
    own, theirs = r"^text_decoder(_m)?\.bert\.", r"text_encoder\1."
    return (
        (rf"{own}embeddings\.", f"{theirs}embeddings."),
        *((rf"{own}encoder\.layer\.{i}\.", f"{theirs}encoder.layer.{i + first}.") for i in range(layers)),
    )


@registry.register_model("albef_vqa")
class AlbefVQA(Albef, Answering):
    """ALBEF for VQA: a multimodal question encoder and an answer decoder over its states, of 6 layers.

    EMA copies teach the decoder; predicting never touches them.
    """

    registered_name = "albef_vqa"
    EMA = ("visual_encoder", "text_encoder", "text_decoder")
    RAMP_EPOCHS = 1
    RULES = Rules(drop=TRAINING_STATE, copy=EMA_COPIES)
    PRETRAINED_RULES = Rules(
        rename=((r"^text_encoder(_m)?\.cls\.", r"text_decoder\1.cls."), *BARE_TEXT),
        drop=(*PRETRAINING_ONLY, "vision_proj.*", "text_proj.*", "itm_head.*"),
        resize=RESIZE,
        copy=(*decoder_copies(6, 6), *EMA_COPIES),
    )

    def predict_answers(  # type: ignore[override]  # the order of arguments is the original's
        self,
        samples: Mapping[str, Any],
        answer_list: Sequence[str] | None = None,
        num_ans_candidates: int = 128,
        inference_method: str = "rank",
        **options: Any,
    ) -> list[str] | Texts:
        """Answer questions about pictures; the arguments are those of `Answering.predict_answers`."""
        return super().predict_answers(
            samples,
            inference_method=inference_method,
            num_ans_candidates=num_ans_candidates,
            answer_list=answer_list,
            **options,
        )

    def rank_answers(
        self, samples: Mapping[str, Any], answer_list: Sequence[str], num_ans_candidates: int = 128
    ) -> list[str]:
        """The answer of a list with the smallest loss, for each question, see `Answering.predict_answers`."""
        answers = self.predict_answers(samples, answer_list, num_ans_candidates)
        assert isinstance(answers, list)
        return answers
