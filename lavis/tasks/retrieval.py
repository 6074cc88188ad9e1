"""Retrieval: which texts belong to a picture (or clip), and which pictures to a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lavis.common.registry import registry
from lavis.datasets.captioning import as_list as texts_of
from lavis.metrics.bootstrap import Contributions, Floats, Statistic
from lavis.metrics.finite import refuse_not_finite
from lavis.models.gallery import cosine_matrix
from lavis.tasks.base import Case, Record, Task, say_left_out


@dataclass(frozen=True)
class RetrievalSettings:
    """Keys of `run` for retrieval.

    Args:
        k_test: how many of the best by contrast are matched anew, on each side.
    """

    k_test: int = 128

    def __post_init__(self) -> None:
        if self.k_test < 1:
            raise ValueError(f"run.k_test is {self.k_test}; it must be 1 or more")


@registry.register_task("retrieval")
class RetrievalTask(Task):
    """Records: a row of scores for each picture and for each text; best by `r_mean`, both sides' mean recall.

    The original chose its best checkpoint by one side only.
    """

    Config: ClassVar[type] = RetrievalSettings
    primary = ("r_mean", "max")
    settings: RetrievalSettings

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        raise ValueError("retrieval compares a whole gallery; use evaluate")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Any, dist: Any = None) -> list[Record]:
        """Two records: scores of texts for pictures, "i2t" (P, T), and of pictures for texts, "t2i" (T, P).

        Raises:
            ValueError: the data set has no texts, or a score is not finite.
        """
        self.before_evaluation(model, data.dataset)
        if not len(data.dataset.text):
            raise ValueError(
                f"{data.dataset!r} has no texts; retrieval needs captions that can be looked for"
            )
        # a model's own does more than compare vectors: it re-ranks by its matching head
        compare: Any = getattr(model, "compute_sim_matrix", None)
        if compare is None:
            i2t, t2i = cosine_matrix(model, data)
        else:
            i2t, t2i = compare(data, task_cfg=self.settings)
        refuse_not_finite(i2t, "the scores of picture")
        refuse_not_finite(t2i, "the scores of text")
        return [{"direction": "i2t", "scores": i2t}, {"direction": "t2i", "scores": t2i}]

    def score(self, records: Sequence[Record], dataset: Any) -> dict[str, float]:
        """Recall at 1, 5 and 10 in percent, see `lavis.metrics.retrieval.retrieval_scores`."""
        from lavis.metrics.retrieval import retrieval_scores

        scores = {r["direction"]: r["scores"] for r in records}
        img2txt = dataset.img2txt
        say_left_out(
            sum(not len(t) for t in img2txt.values()), len(img2txt), "pictures", "caption to look for"
        )
        return retrieval_scores(scores["i2t"], scores["t2i"], img2txt, dataset.txt2img)

    def rows(self, records: Sequence[Record]) -> list[Record]:
        """The ten best of each query, with their scores."""
        rows = []
        for record in records:
            best = np.argsort(-record["scores"], axis=1, kind="stable")[:, :10]
            chosen = np.take_along_axis(record["scores"], best, axis=1)
            rows += [
                {"direction": record["direction"], "query": i, "best": b, "scores": s}
                for i, (b, s) in enumerate(zip(best.tolist(), chosen.tolist()))
            ]
        return rows

    def cases(self, rows: Sequence[Record], dataset: Any) -> list[Case]:
        """One per picture (the text found first) and one per text (the picture found first)."""
        texts = [t for record in dataset.records for t in texts_of(record["caption"])]
        owners = [i for i, record in enumerate(dataset.records) for _ in texts_of(record["caption"])]
        own: dict[int, list[str]] = {}
        for text, owner in zip(texts, owners, strict=True):
            own.setdefault(owner, []).append(text)
        out = []
        for row in rows:
            query, first = int(row["query"]), int(row["best"][0])
            if row["direction"] == "i2t" and query < len(dataset.records) and first < len(texts):
                right = float(owners[first] == query) if query in own else None
                out.append(Case(query, texts[first], tuple(own.get(query, ())), right, "its text"))
            elif row["direction"] == "t2i" and query < len(texts) and first < len(dataset.records):
                place = owners[query]
                said, about = f"picture {first}", f"the picture of: {texts[query]}"
                out.append(
                    Case(place, said, (f"picture {place}",), float(first == place), about, found=first)
                )
        return out

    def contributions(self, records: Sequence[Record], dataset: Any) -> Contributions | None:
        """Pictures are drawn with their texts; all recalls are of queries against the whole gallery."""
        from lavis.metrics.retrieval import ranks_of_first_match, text_ranks

        scores = {r["direction"]: r["scores"] for r in records}
        img2txt, txt2img = dataset.img2txt, dataset.txt2img
        right = [np.atleast_1d(txt2img[i]).tolist() for i in range(len(scores["t2i"]))]
        texts = text_ranks(scores["i2t"], img2txt)
        pictures = ranks_of_first_match(scores["t2i"], right)
        owner = np.array([r[0] for r in right])
        parts = np.zeros((len(texts), 8))  # hits of texts at 1, 5, 10, pictures; hits of pictures, texts
        for column, k in enumerate((1, 5, 10)):
            parts[:, column] = (texts >= 0) & (texts < k)
            parts[:, 4 + column] = np.bincount(owner, weights=pictures < k, minlength=len(texts))
        parts[:, 3] = texts >= 0
        parts[:, 7] = np.bincount(owner, minlength=len(texts))

        def recall(columns: Sequence[int]) -> Statistic:
            def fold(sums: Floats) -> Floats:
                each = [100 * sums[..., c] / sums[..., 3 if c < 3 else 7] for c in columns]
                return np.asarray(np.mean(each, axis=0))

            return Statistic(parts, fold)

        named = {"txt_r1": [0], "txt_r5": [1], "txt_r10": [2], "txt_r_mean": [0, 1, 2]}
        named |= {"img_r1": [4], "img_r5": [5], "img_r10": [6], "img_r_mean": [4, 5, 6]}
        named["r_mean"] = [0, 1, 2, 4, 5, 6]
        return Contributions({n: recall(c) for n, c in named.items()}, range(len(texts)))
