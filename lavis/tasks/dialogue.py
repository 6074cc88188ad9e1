"""Dialogue about a picture or a clip: the right answer's rank among candidates, or a written answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from lavis.common import moved
from lavis.common.registry import registry
from lavis.metrics.bootstrap import Contributions, means_of
from lavis.metrics.finite import refuse_not_finite
from lavis.nn.generation import GenerationOptions
from lavis.tasks.base import Case, Record, Task, as_list, places_of, say_left_out, units_of

__getattr__ = moved.names_of(__name__)


@dataclass(frozen=True)
class DialogueSettings:
    """Keys of `run` for dialogues.

    Args:
        inference_method: "rank" scores the candidates of each question, "generate" writes an answer; "auto" ranks
            where the data set has candidates.
        num_beams, max_len, min_len: of a written answer; lengths in tokens.
        report_metric: false writes the answers without scoring them.
    """

    inference_method: Literal["auto", "rank", "generate"] = "auto"
    num_beams: int = 5
    max_len: int = 20
    min_len: int = 1
    report_metric: bool = True

    def __post_init__(self) -> None:
        GenerationOptions.of_run(self)


@registry.register_task("dialogue")
class DialogueTask(Task):
    """Records {"image_id", "round_id", "ranks"} in VisDial's layout, or with "answer" and "reference".

    `ranks[i]` is candidate i's place, 1 for the best. Best by mean reciprocal rank, or by CIDEr. (The original
    kept the checkpoint with the greatest loss.)
    """

    Config: ClassVar[type] = DialogueSettings
    id_key: ClassVar[str] = "image_id"
    settings: DialogueSettings

    def __init__(self, settings: Any = None, **keys: Any) -> None:
        super().__init__(settings, **keys)
        self._choose(self.settings.inference_method != "generate")

    def _choose(self, ranks: bool) -> None:
        self.ranks = ranks
        chosen = "mrr_percent" if ranks else "CIDEr"
        self.primary = (chosen, "max") if self.settings.report_metric else None

    def before_evaluation(self, model: nn.Module, dataset: Any, **unused: Any) -> None:
        super().before_evaluation(model, dataset)
        if self.settings.inference_method == "auto":
            self._choose(getattr(dataset, "has_candidates", True))

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        ids, rounds = as_list(samples["image_id"]), as_list(samples["round_id"])
        each = len(rounds) // len(ids)  # rounds of a sample
        records = [{"image_id": ids[i // each], "round_id": r} for i, r in enumerate(rounds)]
        if self.ranks:
            if "answer_options" not in samples:
                raise ValueError(
                    "this data set has no candidate answers; set run.inference_method=generate to write them"
                )
            scores = torch.as_tensor(model.predict(samples)).float().cpu().numpy()  # type: ignore[operator]  # (Q, K)
            refuse_not_finite(scores, "the scores of dialogue", [r["image_id"] for r in records])
            right = as_list(samples["gt_index"]) if "gt_index" in samples else [None] * len(records)
            for record, row, index in zip(records, scores, right, strict=True):
                place = np.empty(len(row), dtype=np.int64)
                place[np.argsort(-row, kind="stable")] = np.arange(1, len(row) + 1)
                record.update(ranks=place.tolist(), gt_index=index)
                if index is not None:
                    record["rank"] = int((row >= row[index]).sum())  # ties count as better
            return records
        generate: Any = model.generate
        answers = generate(samples, **GenerationOptions.run_arguments(self.settings, generate))
        references = as_list(samples["answer"]) if "answer" in samples else [None] * len(records)
        for record, answer, reference in zip(records, answers, references, strict=True):
            record.update(answer=answer, reference=reference)
        return records

    def leaderboard(self, records: Sequence[Record]) -> Any:
        """Ranks alone, as VisDial's server takes them."""
        if not self.ranks:
            return None
        return [{key: r[key] for key in ("image_id", "round_id", "ranks")} for r in records]

    def score(self, records: Sequence[Record], dataset: Any) -> dict[str, float]:
        """Of ranks: r1, r5, r10 and mrr in percent, mean_rank, and ndcg in percent over the rounds that
        `dataset.relevance()` judges. Of answers: exact_percent and caption metrics."""
        if not self.settings.report_metric or not records:
            return {}
        if self.ranks:
            from lavis.metrics.dialogue import ndcg, rank_scores

            ranks = np.array([r["rank"] for r in records if "rank" in r])
            metrics = rank_scores(ranks) if len(ranks) else {}
            if len(ranks):
                say_left_out(len(records) - len(ranks), len(records), "rounds", "right answer")
            judged = dataset.relevance() if hasattr(dataset, "relevance") else {}
            pairs = [(r["ranks"], judged.get((r["image_id"], r["round_id"]))) for r in records]
            kept = [(ranked, worth) for ranked, worth in pairs if worth is not None and any(worth)]
            if kept:
                places, worths = (np.array(column) for column in zip(*kept))
                metrics["ndcg_percent"] = 100 * ndcg(-places, worths)
            return metrics
        known = [r for r in records if r["reference"] is not None]
        if not known:
            return {}
        say_left_out(len(records) - len(known), len(records), "rounds", "answer")
        from lavis.metrics.caption import caption_scores

        answers: dict[Any, str] = {str(i): r["answer"] for i, r in enumerate(known)}
        references: dict[Any, Sequence[str]] = {str(i): [r["reference"]] for i, r in enumerate(known)}
        right = sum(map(_equal, known))
        return {"exact_percent": 100.0 * right / len(known), **caption_scores(answers, references)}

    def cases(self, rows: Sequence[Record], dataset: Any) -> list[Case]:
        """One per round. Right is the right candidate in the first place, or a written answer that equals the
        reference."""
        places = _places(dataset)
        return [_case(r, places[str(r["image_id"])], dataset) for r in rows if str(r["image_id"]) in places]

    def contributions(self, records: Sequence[Record], dataset: Any) -> Contributions | None:
        from lavis.metrics.caption import caption_statistics
        from lavis.metrics.dialogue import ndcg, rank_scores

        places = _places(dataset)
        units = units_of((places[str(r["image_id"])] for r in records), dataset)
        if self.ranks:
            judged = dataset.relevance() if hasattr(dataset, "relevance") else {}
            each = []
            for r in records:
                one = rank_scores(np.array([r["rank"]])) if "rank" in r else {}
                worth = judged.get((r["image_id"], r["round_id"]))
                if worth is not None and any(worth):
                    one["ndcg_percent"] = 100 * ndcg(-np.array([r["ranks"]]), np.array([worth]))
                each.append(one)
            return Contributions(means_of(each), units)
        known = [i for i, r in enumerate(records) if r["reference"] is not None]
        if not known:
            return None
        answers: dict[Any, str] = {str(i): records[i]["answer"] for i in known}
        references: dict[Any, Sequence[str]] = {str(i): [records[i]["reference"]] for i in known}
        exact = means_of([{"exact_percent": 100.0 * _equal(records[i])} for i in known])
        return Contributions(exact | caption_statistics(answers, references), [units[i] for i in known])


def _places(dataset: Any) -> dict[str, int]:
    """Where the dialogue of each picture is."""
    return places_of(r.get("image_id", i) for i, r in enumerate(dataset.records))


def _equal(row: Record) -> bool:
    return str(row["answer"]).strip().lower() == str(row["reference"]).strip().lower()


def _case(row: Record, place: int, dataset: Any) -> Case:
    dialog = dataset.records[place]["dialog"]
    turn = dialog[row["round_id"] - 1]
    about = f"{row['round_id']}. {turn['question']}"
    if "ranks" not in row:
        known = row.get("reference") is not None
        truth = (str(row["reference"]),) if known else ()
        return Case(place, row["answer"], truth, float(_equal(row)) if known else None, about)
    options = turn.get("answer_options") or ()
    best = row["ranks"].index(1) if 1 in row["ranks"] else 0
    said = options[best] if best < len(options) else f"candidate {best}"
    if row.get("rank") is None:
        return Case(place, said, (), None, about)
    truth = (f"{turn.get('answer', '')} (in place {row['rank']} of {len(row['ranks'])})",)
    return Case(place, said, truth, float(row["rank"] == 1), about)
