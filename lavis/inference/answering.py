"""Answers to questions about pictures and clips, by every model that gives answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lavis.inference.loading import Loaded
from lavis.models.alpro import AlproQA
from lavis.models.answers import WRITTEN, Answering
from lavis.models.classification import some_names
from lavis.models.outputs import Texts
from lavis.nn.generation import GenerationOptions


class Answerer:
    """Answers questions: in the model's own words, or with one of some answers.

    Args:
        loaded: a model for visual question answering, or ALPRO's, which has a class per answer.
        answers: to choose from; None: the model writes. For ALPRO they name its classes, in order, unless its
            checkpoint does; then None is all of them.
        options: how answers are written.

    Raises:
        ValueError: another kind of model; answers that are missing or don't fit.
    """

    def __init__(
        self,
        loaded: Loaded,
        answers: Sequence[str] | None = None,
        options: GenerationOptions = WRITTEN,
    ) -> None:
        model = loaded.model
        if not isinstance(model, Answering | AlproQA):
            raise ValueError(
                f"{loaded.spec} does not answer questions; choose a model such as blip_vqa/vqav2, of clips "
                "blip_video_qa/vqav2"
            )
        if isinstance(model, AlproQA):
            classes, names = model.config.num_classes, model.classnames
            answers = _among(loaded, names, answers) if names is not None else answers
            if not answers:
                raise ValueError(
                    f"{loaded.spec} knows {classes} answers by number only; give their names, in order, as "
                    "the file that came with its data has them (such as train_ans2label.json)"
                )
            if names is None and len(answers) != classes:
                raise ValueError(
                    f"{loaded.spec} knows {classes} answers, but {len(answers)} names are given; it takes the file "
                    "that came with its data, such as train_ans2label.json"
                )
        self.loaded, self.answers = loaded, list(answers) if answers else None
        self.options = options

    def __call__(self, media: torch.Tensor, questions: Sequence[str]) -> Texts:
        """Answer.

        Args:
            media: pictures (B, 3, h, w) or clips (B, 3, T, h, w), as `Loaded.prepare` makes them.
            questions: B·G, a picture's next to one another.

        Returns:
            B·G answers; `scores` are probabilities among the given answers, or of written ones logprob per token.
        """
        model = self.loaded.model
        samples = {
            self.loaded.sees: media.to(model.device),
            "text_input": [self.loaded.txt(q) for q in questions],
        }
        with self.loaded.autocast():
            if isinstance(model, AlproQA):
                return self._classified(model, samples)
            assert isinstance(model, Answering)
            found = model.predict_answers(
                samples,
                num_beams=self.options.num_beams,
                inference_method="rank" if self.answers else "generate",
                max_len=self.options.max_length,
                min_len=self.options.min_length,
                answer_list=self.answers,
                return_scores=True,
            )
        assert isinstance(found, Texts)
        return found

    def _classified(self, model: AlproQA, samples: dict[str, object]) -> Texts:
        logits = model.predict(samples)["predictions"]
        assert logits is not None and self.answers is not None
        if model.classnames is not None:
            logits = logits[:, [model.classnames.index(name) for name in self.answers]]
        best = logits.float().log_softmax(dim=1).max(dim=1)  # (B·G,)
        return Texts(
            [self.answers[i] for i in best.indices.tolist()], best.values.tolist(), best.values.exp().tolist()
        )


def _among(loaded: Loaded, names: Sequence[str], answers: Sequence[str] | None) -> list[str]:
    """The answers, each once, of a model whose checkpoint names them."""
    unknown = [a for a in answers or () if a not in names]
    if unknown:
        raise ValueError(
            f"{loaded.spec} was not trained to answer {some_names(unknown)}; it knows {some_names(names)}"
        )
    return list(dict.fromkeys(answers or names))
