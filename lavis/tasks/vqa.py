"""Question answering: an answer per question, ranked from a list or generated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from lavis.common import moved
from lavis.common.arguments import accepted
from lavis.common.files import write_json
from lavis.common.registry import registry
from lavis.datasets.sources import is_of_another_machine
from lavis.datasets.vqa import official_truth
from lavis.metrics.bootstrap import Contributions, means_of
from lavis.models.answers import WRITTEN
from lavis.nn.generation import GenerationOptions
from lavis.tasks.base import Case, Record, Task, as_list, by_text_id, places_of, say_left_out, units_of

__getattr__ = moved.names_of(__name__)

# of `predict_answers`; those that are null are not handed over
_OPTIONS = ("num_beams", "max_len", "min_len", "num_ans_candidates", "prompt", "length_penalty")
PADDING_ID = -1  # question_id of entries that only pad a batch of pictures with several questions


@dataclass(frozen=True)
class VQASettings:
    """Keys of `run` for question answering.

    Args:
        inference_method: "rank" chooses from the data set's answer list, "generate" writes freely.
        num_ans_candidates: answers kept by their first token before ranking.
        num_beams, max_len, min_len: of "generate"; lengths in tokens.
        prompt: the form of a question, with "{}" for it, of a model that reads one; null: the model's own.
        length_penalty: of "generate"; null: the model's own.
        ques_files, anno_files: questions and annotations in the VQA server's layout by split, in place of the data
            set's own ground truth.
        report_metric: false writes answers without scoring them.
    """

    inference_method: Literal["rank", "generate"] = "rank"
    num_ans_candidates: int = 128
    num_beams: int = WRITTEN.num_beams
    max_len: int = WRITTEN.max_length
    min_len: int = WRITTEN.min_length
    prompt: str | None = None
    length_penalty: float | None = None
    ques_files: dict[str, str] = field(default_factory=dict)
    anno_files: dict[str, str] = field(default_factory=dict)
    report_metric: bool = True

    def __post_init__(self) -> None:
        GenerationOptions.of_run(self)
        if self.num_ans_candidates < 1:
            raise ValueError(f"run.num_ans_candidates is {self.num_ans_candidates}; it must be 1 or more")


@registry.register_task("vqa")
class VQATask(Task):
    """Records {"question_id", "answer"}; best by the accuracy in percent."""

    Config: ClassVar[type] = VQASettings
    LEGACY_KEYS: ClassVar[Mapping[str, str]] = {"sample_id_key": "questions go by question_id"}
    id_key: ClassVar[str] = "question_id"
    settings: VQASettings

    def __init__(self, settings: Any = None, **keys: Any) -> None:
        super().__init__(settings, **keys)
        self.answer_list: list[str] | None = None
        self._given: dict[Any, dict[str, Any]] | None = None  # ground truth of `ques_files` and `anno_files`
        self.primary = ("agg_metrics", "max") if self.settings.report_metric else None

    def before_evaluation(self, model: nn.Module, dataset: Any, **unused: Any) -> None:
        """Take the data set's answer list, and the ground truth of other files.

        Raises:
            ValueError: answers are to be ranked and there is no list. FileNotFoundError: there is no such file.
        """
        super().before_evaluation(model, dataset)
        self._given = self._ground_truth_of_files(dataset)
        self.answer_list = list(getattr(dataset, "answer_list", None) or []) or None
        if self.settings.inference_method == "rank" and self.answer_list is None:
            raise ValueError(
                f"run.inference_method is rank and {type(dataset).__name__} has no answer_list; "
                "give the data set one, or set run.inference_method=generate"
            )

    def _ground_truth_of_files(self, dataset: Any) -> dict[Any, dict[str, Any]] | None:
        split, found = getattr(dataset, "split", None), []
        for key in ("ques_files", "anno_files"):
            file = getattr(self.settings, key).get(split)
            where = f"run.{key}.{split}"
            if file is None or is_of_another_machine(where, file, f"the ground truth of {dataset.name}"):
                return None
            path = Path(file).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"{where}: there is no file {file}")
            found.append(path)
        return official_truth(*found)

    def options(self, model: Any) -> dict[str, Any]:
        """What `predict_answers` is called with, of the settings."""
        options = {name: getattr(self.settings, name) for name in _OPTIONS}
        if options["prompt"] is None:
            options["prompt"] = getattr(model, "question_prompt", None)
        return {name: value for name, value in options.items() if value is not None}

    def asked(self, model: nn.Module, samples: Mapping[str, Any], **given: Any) -> Any:
        """What a model's `predict_answers` gives, called with those of the settings that it takes."""
        method: Any = model.predict_answers
        options = self.options(model)
        taken = accepted(
            method,
            options,
            {f.name: f.default for f in fields(self.Config)},
            lambda name: (
                f"run.{name}={options[name]!r}: {type(model).__name__} takes no {name}; remove the key"
            ),
        )
        return method(samples=samples, **given, **taken)

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        answers = self.asked(
            model, samples, answer_list=self.answer_list, inference_method=self.settings.inference_method
        )
        ids = as_list(samples["question_id"])
        return [
            None if i == PADDING_ID else {"question_id": i, "answer": a}
            for i, a in zip(ids, answers, strict=True)
        ]

    def result_name(self, split: str, epoch: int | str) -> str:
        """The VQA server's name; it is that of the latest evaluation."""
        return f"{split}_vqa_result.json"

    def score(self, records: Sequence[Record], dataset: Any) -> dict[str, float]:
        """Accuracies in percent.

        `overall_percent`, the official accuracy, where questions have several answers;
        `accuracy_percent`, equality after the official normalisation, where they have one each, and for data
        of one's own, see `accuracy`. Either is also there as `agg_metrics`, and per type of question and answer.
        Questions without an answer are left out, which is said.

        Raises:
            ValueError: the data set doesn't know a predicted question.
        """
        if not self.settings.report_metric or not records:
            return {}
        known = self._known(dataset)
        truth = _answered(known)
        if not truth:
            return {}
        lacking = [r["question_id"] for r in records if str(r["question_id"]) not in known]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(records)} questions have no ground truth, the first is "
                f"{lacking[0]!r}; set run.report_metric=false to write answers without scoring them"
            )
        answered = [
            {**r, "question_id": str(r["question_id"])} for r in records if str(r["question_id"]) in truth
        ]
        say_left_out(len(records) - len(answered), len(records), "questions", "answer")
        rule = _rule(dataset, truth)
        truth = {r["question_id"]: truth[r["question_id"]] for r in answered}  # unreadable pictures left out
        metrics = self.accuracy(answered, truth, rule) if answered else {}
        if hasattr(dataset, "extra_metrics"):
            metrics.update(dataset.extra_metrics({r["question_id"]: r["answer"] for r in records}))
        return metrics

    def cases(self, rows: Sequence[Record], dataset: Any) -> list[Case]:
        """The verdict is the answer's accuracy; of A-OKVQA that of the direct answer."""
        places = _places(dataset)
        rows = [r for r in rows if str(r["question_id"]) in places]
        truth = _answered(self._known(dataset))
        out = []
        for row, metrics in zip(rows, self._each(rows, truth, _rule(dataset, truth)), strict=True):
            said = row["answer"] + (f" (chosen: {row['choice']})" if "choice" in row else "")
            name = str(row["question_id"])
            given = Counter(map(_as_text, truth[name]["answers"])).most_common() if name in truth else []
            verdict = metrics["agg_metrics"] / 100 if metrics else None
            answers = tuple(a if n == 1 else f"{a} (×{n})" for a, n in given)
            out.append(Case(places[name], said, answers, verdict))
        return out

    def contributions(self, records: Sequence[Record], dataset: Any) -> Contributions | None:
        truth = _answered(self._known(dataset))
        records = [r for r in records if not truth or str(r["question_id"]) in truth]
        each = self._each(records, truth, _rule(dataset, truth))
        if hasattr(dataset, "extra_metrics"):
            each = [m | dataset.extra_metrics({r["question_id"]: r["answer"]}) for m, r in zip(each, records)]
        places = _places(dataset)
        units = units_of((places[str(r["question_id"])] for r in records), dataset)
        return Contributions(means_of(each), units)

    def _known(self, dataset: Any) -> dict[Any, dict[str, Any]]:
        """The ground truth by question_id as text; {} where it is not public."""
        if self._given is not None:
            return by_text_id(self._given)
        return by_text_id(dataset.ground_truth()) if hasattr(dataset, "ground_truth") else {}

    def _each(
        self, rows: Sequence[Record], truth: Mapping[Any, Mapping[str, Any]], rule: str
    ) -> list[dict[str, float]]:
        """The metrics of each answer by itself; {} where its truth isn't known."""
        out: list[dict[str, float]] = []
        for row in rows:
            name = str(row["question_id"])
            known = name in truth
            out.append(
                self.accuracy([{**row, "question_id": name}], {name: truth[name]}, rule) if known else {}
            )
        return out

    def accuracy(
        self,
        records: Sequence[Record],
        truth: Mapping[Any, Mapping[str, Any]],
        rule: str | None = None,
    ) -> dict[str, float]:
        """Metrics of answers that all have a ground truth.

        Args:
            rule: "official", VQAv2's; "exact", equality with one answer; "own", for any numbers of answers. None:
                official where questions of `truth` have several answers, else exact.
        """
        from lavis.metrics.vqa import exact_match_percent, own_accuracy, vqa_accuracy

        rule = rule or _told_by(truth)
        if rule == "own":
            return own_accuracy(records, truth)
        if rule == "official":
            return vqa_accuracy(records, truth)
        metrics = exact_match_percent(records, truth)
        metrics["accuracy_percent"] = metrics.pop("exact_match_percent")
        return metrics


def _rule(dataset: Any, truth: Mapping[Any, Mapping[str, Any]]) -> str:
    """By which rule answers of a data set are right: one for all of its questions."""
    return getattr(dataset, "answer_rule", None) or _told_by(truth)


def _told_by(truth: Mapping[Any, Mapping[str, Any]]) -> str:
    return "official" if any(len(t["answers"]) != 1 for t in truth.values()) else "exact"


def _places(dataset: Any) -> dict[str, int]:
    """Where each question is."""
    return places_of(r["question_id"] for r in dataset.records)


def _answered(truth: Mapping[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {name: t for name, t in truth.items() if t["answers"]}


def _as_text(answer: Any) -> str:
    return str(answer["answer"] if isinstance(answer, Mapping) else answer)


@registry.register_task("aok_vqa")
class AOKVQATask(VQATask):
    """A-OKVQA. Direct answers are right as far as three people gave them, compared as they are; of questions that
    come with choices, one is chosen, too (`choice` in the records)."""

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        records = super().predict(model, samples)
        choices = samples.get("choices")
        if not choices or None in choices:
            return records
        each = len(choices) // len(records)
        lists = [choices[i * each : (i + 1) * each] for i in range(len(records))]
        if hasattr(model, "choose"):
            chosen = model.choose(samples, lists)  # type: ignore[operator]
        else:  # a model that writes, if it ranks texts as well
            if not hasattr(model, "predict_class"):
                return records
            prompt = self.options(model)["prompt"]
            asked = [prompt.format(question) for question in samples["text_input"]]
            asking = {**samples, "prompt": asked, "text_input": None}
            ranks = model.predict_class(asking, lists)  # type: ignore[operator]
            chosen = [own[int(row[0])] for own, row in zip(lists, ranks, strict=True)]
        return [None if r is None else {**r, "choice": c} for r, c in zip(records, chosen, strict=True)]

    def accuracy(
        self,
        records: Sequence[Record],
        truth: Mapping[Any, Mapping[str, Any]],
        rule: str | None = None,
    ) -> dict[str, float]:
        """`overall_percent` of direct answers, `multiple_choice_percent` of chosen ones."""
        from lavis.metrics.vqa import aokvqa_accuracy

        metrics = aokvqa_accuracy(records, truth)
        right = [(r["choice"], truth[r["question_id"]].get("choice")) for r in records if "choice" in r]
        known = [chosen == wanted for chosen, wanted in right if wanted is not None]
        return metrics | ({"multiple_choice_percent": 100 * sum(known) / len(known)} if known else {})

    def leaderboard(self, records: Sequence[Record]) -> Any:
        return {
            str(r["question_id"]): {"direct_answer": r["answer"], "multiple_choice": r.get("choice", "")}
            for r in records
        }


@registry.register_task("gqa")
class GQATask(VQATask):
    """GQA: equality with the one right answer, both normalised."""

    def leaderboard(self, records: Sequence[Record]) -> Any:
        return [{"questionId": str(r["question_id"]), "prediction": r["answer"]} for r in records]


@dataclass(frozen=True)
class ReadingSettings(VQASettings):
    """Keys of `run` for answers by reading captions (PNP-VQA, Tiong et al. 2022, arXiv 2210.08773); lengths in tokens.

    Args:
        block_num: the layer of the matching model whose attention chooses patches. num_patches: how many are drawn.
        num_captions: of an image. num_captions_fid: of these, how many are read at once with the question.
        internal_bsz_fid: questions that are answered at a time.
        cap_max_length, cap_min_length, top_k, top_p, repetition_penalty: of the captions, which are sampled.
    """

    inference_method: Literal["rank", "generate"] = "generate"
    num_beams: int = 1
    max_len: int = 20
    min_len: int = 0
    block_num: int = 7
    num_patches: int = 20
    num_captions: int = 100
    num_captions_fid: int = 1
    internal_bsz_fid: int = 1
    cap_max_length: int = 20
    cap_min_length: int = 10
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0


_READING = tuple(
    f.name for f in fields(ReadingSettings) if f.name not in {g.name for g in fields(VQASettings)}
)


@registry.register_task("vqa_reading_comprehension")
class VQAReadingTask(VQATask):
    """Answers by a model that reads captions of an image; its `predict_answers` gives answers, the captions of each
    image, and the maps by which their patches were chosen. Captions and maps are written beside the answers."""

    Config: ClassVar[type] = ReadingSettings

    def options(self, model: Any) -> dict[str, Any]:
        # the prompt is that of the captions, which the model has
        options = {k: v for k, v in super().options(model).items() if k != "prompt"}
        return options | {name: getattr(self.settings, name) for name in _READING}

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        answers, captions, maps = self.asked(model, samples)
        ids = as_list(samples["question_id"])
        return [
            {"question_id": i, "answer": a, "captions": list(c), "gradcam": as_list(m)}
            for i, a, c, m in zip(ids, answers, captions, maps, strict=True)
        ]

    def rows(self, records: Sequence[Record]) -> list[Record]:
        return super().rows([{"question_id": r["question_id"], "answer": r["answer"]} for r in records])

    def save(self, records: Sequence[Record], path: str | Path) -> Path:
        """The answers, and beside them <split>_caption_result.json and <split>_gradcam_result.pth by question."""
        saved = super().save(records, path)
        split = saved.name.removesuffix(self.result_name("", ""))
        captions = [{"question_id": r["question_id"], "caption": r["captions"]} for r in records]
        write_json(saved.with_name(f"{split}_caption_result.json"), captions, indent=None)
        maps = {str(r["question_id"]): torch.tensor(r["gradcam"]) for r in records}
        torch.save(maps, saved.with_name(f"{split}_gradcam_result.pth"))
        return saved


@registry.register_task("gqa_reading_comprehension")
class GQAReadingTask(VQAReadingTask):
    """The same of GQA: equality with the one right answer, both normalised."""

    leaderboard = GQATask.leaderboard
