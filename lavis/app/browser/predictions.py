"""The results of a run beside the data set: which file, of which task, and what is right."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavis.common.config import read_yaml
from lavis.common.registry import registry
from lavis.datasets.base import Dataset
from lavis.tasks.base import Case, Record

VERDICTS = ("right", "wrong", "unjudged", "missing")

# A key of a row that tells the task, where no configuration lies beside the results.
_TOLD_BY = {
    "direction": "retrieval", "question_id": "vqa", "round_id": "dialogue", "instance_id": "multimodal_classification",
    "caption": "captioning",
}  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """What a run predicted for a split.

    Attributes:
        path: the file. cases: by the position of the record, each with one or several.
        right: (N,) for each record 1 if all of its predictions are right, 0 if one is wrong, -1 if nobody can
            tell, -2 without a prediction.
    """

    path: Path
    cases: Mapping[int, Sequence[Case]]
    right: np.ndarray

    def mask(self, verdict: str) -> np.ndarray:
        """(N,) whether records have this verdict, one of `VERDICTS`."""
        return self.right == {"right": 1, "wrong": 0, "unjudged": -1, "missing": -2}[verdict]

    def counts(self) -> dict[str, int]:
        """Records by verdict, those that occur."""
        return {v: n for v in VERDICTS if (n := int(self.mask(v).sum()))}


def find_results(given: Path, splits: Sequence[str], wanted: Sequence[str] = ()) -> dict[str, Path]:
    """The newest file of predictions for each split.

    Args:
        given: a run's folder, its folder result, or a file. splits: of the data set. wanted: those to be shown; a
            file whose name doesn't begin with a split is taken for the only one.

    Raises:
        FileNotFoundError: there is no such folder or file, or no predictions in it.
        ValueError: it can't be told which split a file is of.
    """
    if given.is_dir():
        folder = given / "result" if (given / "result").is_dir() else given
        out: dict[str, Path] = {}
        for path in sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime):
            split = _split_of(path, splits)
            if split is not None and not path.stem.endswith("_leaderboard"):
                out[split] = path
        if not out:
            raise FileNotFoundError(
                f"{given} has no predictions of {', '.join(splits)}; expected result/<split>_….json, as "
                "`lavis evaluate` writes it"
            )
        return out
    if not given.is_file():
        raise FileNotFoundError(f"--predictions {given}: there is no such folder or file")
    split = _split_of(given, splits)
    if split is None and len(wanted or splits) != 1:
        raise ValueError(
            f"--predictions {given}: its name does not begin with one of {', '.join(splits)}; say which with --split"
        )
    return {split or (wanted or splits)[0]: given}


def _split_of(path: Path, splits: Sequence[str]) -> str | None:
    fitting = [s for s in splits if path.stem == s or path.stem.startswith(f"{s}_")]
    return max(fitting, key=len, default=None)


def run_section(given: Path, name: str) -> dict[str, Any]:
    """What the configuration beside the results says of the data set, without processors; {} if nothing."""
    section = _configuration(given).get("datasets", {}).get(name) or {}
    return {
        k: v for k, v in dict(section).items() if k not in ("vis_processor", "text_processor", "on_error")
    }


def _configuration(given: Path) -> dict[str, Any]:
    folders = [given, given.parent] if given.is_dir() else [given.parent, given.parent.parent]
    for folder in folders:
        if (folder / "config.yaml").is_file():
            return read_yaml(folder / "config.yaml")
    return {}


def load_predictions(path: Path, dataset: Dataset) -> Predictions:
    """Read a file of predictions and compare it with a split.

    Args:
        path: what `lavis evaluate` wrote. dataset: the split, loaded (not reopened from an index).

    Raises:
        ValueError: it is no such file, of an unknown task, or about other data.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is no JSON ({e})") from e
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise ValueError(f"{path} should hold a JSON list of predictions, as `lavis evaluate` writes it")
    task = registry.get_task_class(_task_of(path, rows)).setup({})
    try:
        cases = task.cases(rows, dataset)
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise ValueError(f"{path} holds no predictions for {dataset!r}: {type(e).__name__} {e}") from e
    if rows and not cases:
        raise ValueError(f"{path}: none of its {len(rows)} predictions is about {dataset!r}")
    by_place: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        by_place[case.place].append(case)
    right = np.full(len(dataset.records), -2, dtype=np.int8)
    for place, some in by_place.items():
        judged = [c.is_right for c in some if c.is_right is not None]
        right[place] = int(all(judged)) if judged else -1
    return Predictions(path, dict(by_place), right)


def _task_of(path: Path, rows: Sequence[Record]) -> str:
    run = _configuration(path).get("run") or {}
    if run.get("task"):
        return str(run["task"])
    for key, task in _TOLD_BY.items():
        if rows and key in rows[0]:
            return task
    raise ValueError(f"{path}: its rows have none of the keys {', '.join(_TOLD_BY)}, by which tasks are told")
