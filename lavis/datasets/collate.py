"""One collate function: samples (dicts) in, a batch (dict) out.

Shapes: B samples, G texts per sample (equal within a batch), B·G texts flat, item b's texts in places
b·G … b·G+G-1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Sample = dict[str, Any]

# A question's answers and their weights are ragged, so they are flattened under the paper's names.
_RAGGED = {"answers", "weights"}


def collate(samples: Sequence[Mapping[str, Any] | None]) -> Sample:
    """Make one batch out of samples.

    Args:
        samples: B dicts with the same keys; None entries are dropped. Values may be tensors or arrays
            of one shape (stacked to (B, …)), ints and bools (long tensor), floats (float tensor),
            strings, pictures or other objects (list of B), or a list of G of any of these
            (flattened to B·G). `answers` with `weights` become `answer` (flat list), `weight` (float
            tensor, one per answer) and `n_answers` (long tensor, one per question); `answers` that are
            whole numbers, classes, are joined as any other number.

    Returns:
        A dict with the samples' keys, `answers`/`weights` replaced as above.

    Raises:
        ValueError: no sample is left, a key is missing in some of them, or lengths and shapes differ;
            the message names the key.
    """
    kept = [s for s in samples if s is not None]
    if not kept:
        raise ValueError(f"nothing to collate: {len(samples)} samples were given and all of them are None")
    keys = list(kept[0])
    for position, sample in enumerate(kept):
        differing = set(keys) ^ set(sample)
        if differing:
            key = sorted(differing)[0]
            holder, lacker = (0, position) if key in kept[0] else (position, 0)
            raise ValueError(
                f"cannot collate: sample {holder} of the batch has the key {key!r}, sample {lacker} has not"
                f" (it has: {', '.join(sorted(kept[lacker]))}); every sample needs the same keys"
            )
    answers = kept[0].get("answers")
    classes = isinstance(answers[0] if isinstance(answers, list) and answers else answers, int | np.integer)
    ragged = set() if classes else _RAGGED
    batch: Sample = {k: _join(k, [s[k] for s in kept]) for k in keys if k not in ragged}
    if "answers" in keys and not classes:
        batch.update(_answers(kept))
    elif "weights" in keys and not classes:
        raise ValueError("cannot collate: the samples have `weights` but no `answers` that they belong to")
    return batch


def _join(key: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, list | tuple):
        lengths = {len(v) if isinstance(v, list | tuple) else None for v in values}
        if len(lengths) != 1:
            raise ValueError(
                f"cannot collate {key!r}: samples of one batch hold lists of different lengths "
                f"({sorted(str(n) for n in lengths)}); give every sample the same number of entries"
            )
        flat = [item for value in values for item in value]
        return _join(key, flat) if flat else flat
    if isinstance(first, np.ndarray):
        values = [torch.from_numpy(np.ascontiguousarray(v)) for v in values]
        first = values[0]
    if isinstance(first, torch.Tensor):
        shapes = {tuple(v.shape) for v in values}
        if len(shapes) != 1:
            raise ValueError(
                f"cannot collate {key!r}: tensors of different shapes {sorted(shapes)}; "
                "a processor with a fixed image_size makes them equal"
            )
        return torch.stack(values)
    if all(isinstance(v, bool | int | np.integer) for v in values):
        return torch.tensor([int(v) for v in values], dtype=torch.long)
    if all(isinstance(v, bool | int | float | np.integer | np.floating) for v in values):
        return torch.tensor([float(v) for v in values], dtype=torch.float32)
    return values


def _answers(samples: Sequence[Mapping[str, Any]]) -> Sample:
    answers: list[str] = []
    weights: list[float] = []
    counts: list[int] = []
    for position, sample in enumerate(samples):
        groups, group_weights = sample["answers"], sample.get("weights")
        if not groups or isinstance(groups[0], str):  # one question, not a list of questions
            groups, group_weights = [groups], None if group_weights is None else [group_weights]
        if group_weights is None:
            group_weights = [[1.0 / max(1, len(g))] * len(g) for g in groups]
        for group, weight in zip(groups, group_weights, strict=True):
            if len(group) != len(weight):
                raise ValueError(
                    f"cannot collate: sample {position} has {len(group)} answers but {len(weight)} weights"
                )
            answers.extend(group)
            weights.extend(float(w) for w in weight)
            counts.append(len(group))
    return {
        "answer": answers,
        "weight": torch.tensor(weights, dtype=torch.float32),
        "n_answers": torch.tensor(counts, dtype=torch.long),
    }
