"""What a task is: how a model is trained on a batch, what it predicts, and how predictions are scored.

To add one, put a class in a new file of this room: `predict` and `score` are enough.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn

from lavis.common import config as configs
from lavis.common import dist as _dist
from lavis.common.files import write_json
from lavis.datasets.base import picture_of
from lavis.datasets.tables import as_number
from lavis.metrics.bootstrap import Contributions

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A prediction beside the truth, in words: what a report and the browser show.

    Attributes:
        place: the position of its record in `dataset.records`.
        prediction: what the model said. truth: what would be right; empty where that isn't public.
        verdict: 1 right, 0 wrong, between partly right; None where nobody can tell.
        about: what was asked, where a record has several predictions (a round of a dialogue).
        found: of retrieved pictures the position of the first one's record.
        score: what cases are ordered by where there are no verdicts, larger is better (a caption's CIDEr).
    """

    place: int
    prediction: str
    truth: tuple[str, ...] = ()
    verdict: float | None = None
    about: str = ""
    found: int | None = None
    score: float | None = None

    @property
    def is_right(self) -> bool | None:
        """Whether it counts as right; None where nobody can tell."""
        return None if self.verdict is None else self.verdict >= 0.5

    @property
    def mark(self) -> str:
        """The verdict in a word ("right", "wrong", "60 %"), else the score; "" without either."""
        if self.verdict is None:
            return "" if self.score is None else f"CIDEr {self.score:.2f}"
        return {1.0: "right", 0.0: "wrong"}.get(self.verdict) or f"{100 * self.verdict:.0f} %"


@dataclass(frozen=True)
class NoSettings:
    """For tasks without run keys of their own."""


class Task:
    """Base of all tasks.

    Attributes:
        Config: frozen dataclass of the task's own keys in the section `run`.
        primary: (metric, "max" or "min") that chooses the best checkpoint, None to keep the last one.
        id_key: the key of a record that names its sample.
        settings: an instance of `Config`.
        evaluated: the data set of the last evaluation.
    """

    Config: ClassVar[type] = NoSettings
    # keys of `run` that recipes of the original name for this task and that have no effect here, with the reason
    LEGACY_KEYS: ClassVar[Mapping[str, str]] = {}
    primary: tuple[str, str] | None = None
    id_key: ClassVar[str] = ""
    evaluated: Any = None

    def __init__(self, settings: Any = None, **keys: Any) -> None:
        self.settings = configs.typed(self.Config, keys, prefix="run.") if settings is None else settings

    @classmethod
    def setup(cls, cfg: configs.Config | Mapping[str, Any] | None = None) -> Task:
        """The task of a configuration.

        Args:
            cfg: a `Config`, or the task's own keys as a mapping.
        """
        if isinstance(cfg, configs.Config):
            same = type(cfg.task_config) is cls.Config
            return cls(cfg.task_config if same else None)
        return cls(**dict(cfg or {}))

    setup_task = setup  # the paper's name

    # ------------------------------------------------------------------ the paper's builders
    def build_model(self, cfg: configs.Config) -> nn.Module:
        """The model of a configuration's section `model`."""
        from lavis.models import build_model

        model: nn.Module = build_model(cfg.model)
        return model

    def build_datasets(self, cfg: configs.Config) -> dict[str, dict[str, Any]]:
        """{name: {split: data set}} of a configuration's section `datasets`: the splits that `run` uses."""
        from lavis.runners import build_datasets

        return build_datasets(cfg)

    # ------------------------------------------------------------------ training
    def before_training(self, model: nn.Module, dataset: Any, **unused: Any) -> None:
        """Called once before training, and before a run that goes on is restored.

        Args:
            model: as built, not wrapped; it may prepare, too. dataset: {name: {split: data set}}.
        """
        _prepare(model, "before_training", dataset, type(self))

    def batch_encoder(self, model: nn.Module) -> Callable[[Mapping[str, Any]], Mapping[str, Any]] | None:
        """What the loader's processes make of a batch before `train_step` gets it: by default the model's tokens.

        Args:
            model: as built, not wrapped. It may be of any kind.

        Returns:
            a callable that pickles without the weights; None where the batch stays as the data set made it. A task
            with a `train_step` of its own, which may change texts, does not get tokens of the old ones.
        """
        if type(self).train_step is not Task.train_step or not hasattr(model, "batch_encoder"):
            return None
        encoder: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = model.batch_encoder()  # type: ignore[operator]
        return encoder

    def train_step(self, model: nn.Module, samples: Mapping[str, Any]) -> Any:
        """Run the model on a batch.

        Args:
            model: as wrapped for training. samples: a batch, with `epoch`, `iters`, `num_iters_per_epoch`.

        Returns:
            The model's output: `output["loss"]` is a scalar to minimise; `output.keys()` names further
            losses, which are logged.
        """
        return model(samples)

    # ------------------------------------------------------------------ evaluation
    def before_evaluation(self, model: nn.Module, dataset: Any, **unused: Any) -> None:
        """Called once before the batches of a data set are predicted; lets the model prepare for it."""
        _prepare(model, "before_evaluation", dataset, type(self))

    def valid_step(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        """`predict`, under the original's name; a task may have either."""
        return self.predict(model, samples)

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        """Predictions for a batch.

        Returns:
            The same number of records for every sample of the batch, sample by sample; None in place of
            one that only pads the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no predict")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Any, dist: ModuleType = _dist) -> list[Record]:
        """Records of a whole data set, in its order, the same on every rank and on any number of ranks.

        Args:
            model: in evaluation mode. data: iterates over (indices, batch) of this rank's share and has
                the `dataset`. dist: `lavis.common.dist`.

        Raises:
            ValueError: `predict` gave a number of records that cannot be assigned to the samples.
        """
        self.before_evaluation(model, data.dataset)
        mine: list[tuple[int, list[Record]]] = []
        for indices, batch in data:
            records = self.valid_step(model=model, samples=batch)
            each, rest = divmod(len(records), len(indices))
            if rest:
                raise ValueError(
                    f"{type(self).__name__}.predict gave {len(records)} records for {len(indices)} samples; "
                    "it must give equally many for each (None for padding)"
                )
            for n, index in enumerate(indices):
                part = records[n * each : (n + 1) * each]
                mine.append((index, [r for r in part if r is not None]))
        gathered = [item for part in dist.all_gather_objects(mine) for item in part]
        gathered.sort(key=lambda item: item[0])
        return [record for _, records in gathered for record in records]

    def after_evaluation(
        self, val_result: Sequence[Record], split_name: str, epoch: int | str, **unused: Any
    ) -> dict[str, float]:
        """Metrics of a split's records: `score`, under the original's name; a task may have either."""
        return self.score(val_result, self.evaluated)

    def score(self, records: Sequence[Record], dataset: Any) -> dict[str, float]:
        """Metrics of the records; an empty dict where the data set has no ground truth."""
        return {}

    def cases(self, rows: Sequence[Record], dataset: Any) -> list[Case]:
        """Predictions beside the truth; [] for tasks that don't say.

        Args:
            rows: records as they are saved, see `rows`; also as read from a file, where ids may have become numbers.
            dataset: the evaluated split. Rows about samples that it doesn't have are left out.
        """
        return []

    def contributions(self, records: Sequence[Record], dataset: Any) -> Contributions | None:
        """What each record contributes to the metrics of `score`, for confidence intervals; None: not known.

        Metrics may be left out; those that are there give the numbers of `score` over all records.
        """
        return None

    # ------------------------------------------------------------------ results
    def rows(self, records: Sequence[Record]) -> list[Record]:
        """The records as they are saved, plain values."""
        return [jsonable(r) for r in records]

    def result_name(self, split: str, epoch: int | str) -> str:
        """File name of the records of an evaluation."""
        return f"{split}_epoch{epoch}.json"

    def leaderboard(self, records: Sequence[Record]) -> Any:
        """The records as a leaderboard takes them; None where it takes them as they are, or there is none."""
        return None

    def save(self, records: Sequence[Record], path: str | Path) -> Path:
        """Write the records as a JSON list, atomically, and what a leaderboard takes in a file beside."""
        rows = self.rows(records)
        for row in rows:
            key = self.id_key
            if isinstance(row.get(key), str):
                row[key] = as_number(row[key])  # evaluation servers expect numbers
        saved = write_json(path, rows, indent=None)
        submission = self.leaderboard(records)
        if submission is not None:
            write_json(saved.with_name(f"{saved.stem}_leaderboard.json"), submission, indent=None)
        return saved

    @staticmethod
    def save_result(
        result: Sequence[Record], result_dir: str | Path, filename: str, remove_duplicate: str = ""
    ) -> str:
        """Write records as `<result_dir>/<filename>.json`, by rank 0; for tasks in the original's form.

        Args:
            remove_duplicate: a key; of records with an equal value the first is written.

        Returns:
            the file.
        """
        path = Path(result_dir) / f"{filename}.json"
        if _dist.is_main():
            rows = [jsonable(r) for r in result]
            if remove_duplicate:
                rows = list({row[remove_duplicate]: row for row in reversed(rows)}.values())[::-1]
            write_json(path, rows, indent=None)
        return str(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({json.dumps(dataclasses.asdict(self.settings))})"


# ---------------------------------------------------------------------------------------- helpers
def _prepare(model: nn.Module, hook: str, dataset: Any, task_type: type) -> None:
    """Call a hook of a model that has it; models need not be of this library."""
    prepare = getattr(model, hook, None)
    if prepare is not None:
        prepare(dataset=dataset, task_type=task_type)


def jsonable(value: Any) -> Any:
    """Tensors and arrays in a record as plain numbers and lists."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


def say_left_out(count: int, total: int, what: str, lack: str) -> None:
    """Say how many of the predictions have nothing to be compared with, if there are any."""
    if count:
        logger.warning("%d of %d %s have no %s; they are predicted and not scored", count, total, what, lack)


def as_list(values: Any) -> list[Any]:
    """A batch's ids, a tensor or a sequence, as a list."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def places_of(ids: Iterable[Any]) -> dict[str, int]:
    """The place of each id as text; of several equal ones the first."""
    out: dict[str, int] = {}
    for place, name in enumerate(ids):
        out.setdefault(str(name), place)
    return out


def units_of(places: Iterable[int], dataset: Any) -> list[Any]:
    """What belongs together when records are resampled: the picture or clip of the record at each place."""
    records = dataset.records
    pictured = getattr(dataset, "pictured", picture_of)
    return [pictured(records[place]) for place in places]


def by_text_id(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same mapping under text keys, so that 7 and "7" are one id."""
    return {str(k): v for k, v in values.items()}
