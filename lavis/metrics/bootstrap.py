"""Confidence intervals of metrics by the bootstrap: the metric over resampled data (Efron and Tibshirani, 1993).

A metric is told by what each record contributes to some sums, and by a function of the sums: of a mean the value
and 1, of BLEU the matches and lengths. So a resample is one product of its counts with the contributions, and any
metric of this form is recomputed, not approximated. Records about the same picture are resampled together,
because they are not independent: the unit is the picture.

N records, U units, K sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """A metric as a function of sums over records.

    Attributes:
        parts: (N, K) what each record contributes. fold: sums (..., K) to metrics (...).
    """

    parts: Floats
    fold: Callable[[Floats], Floats]

    def value(self) -> float:
        """The metric over all records."""
        return float(self.fold(self.parts.sum(axis=0)))


@dataclass(frozen=True)
class Contributions:
    """What records contribute to metrics.

    Attributes:
        metrics: by name; all over the same N records. units: (N,) what is drawn together, such as the picture.
    """

    metrics: Mapping[str, Statistic]
    units: Sequence[Hashable]


def _ratio(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without any such record: NaN, left out
        out: Floats = sums[..., 0] / sums[..., 1]
    return out


def mean_of(values: Sequence[float | None] | Floats) -> Statistic:
    """The mean over records that have a value (not None or NaN)."""
    given = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    has = ~np.isnan(given)
    return Statistic(np.stack([np.where(has, given, 0.0), has], axis=1), _ratio)


def means_of(rows: Sequence[Mapping[str, float]]) -> dict[str, Statistic]:
    """Each metric as the mean over the records that have it.

    Args:
        rows: the metrics of each record by itself.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: mean_of([row.get(name) for row in rows]) for name in names}


def added(first: Statistic, second: Statistic) -> Statistic:
    """The sum of two metrics of the same records."""
    k = first.parts.shape[1]
    return Statistic(
        np.concatenate([first.parts, second.parts], axis=1),
        lambda sums: first.fold(sums[..., :k]) + second.fold(sums[..., k:]),
    )


def intervals(
    contributions: Contributions, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals.

    Args:
        contributions: of N records. resamples: R. level: the share of resamples between both ends, 0 to 1.
        seed: of the drawing; the same seed, the same intervals.

    Returns:
        {metric: (low, high)}; without metrics that are undefined in nearly all resamples.

    Raises:
        ValueError: there is no record, or the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it should be between 0 and 1")
    number: dict[Hashable, int] = {}
    owner = np.array([number.setdefault(u, len(number)) for u in contributions.units], dtype=np.int64)
    if not len(owner):
        raise ValueError("there is no record to resample")
    names = list(contributions.metrics)
    widths = [contributions.metrics[n].parts.shape[1] for n in names]
    ends = np.cumsum(widths)
    parts = np.concatenate([contributions.metrics[n].parts for n in names], axis=1)  # (N, K)
    units = len(number)
    per_unit = np.stack([np.bincount(owner, weights=column, minlength=units) for column in parts.T], axis=1)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, parts.shape[1]))
    for r in range(resamples):
        sums[r] = np.bincount(rng.integers(0, units, units), minlength=units) @ per_unit
    out = {}
    tail = (1 - level) / 2
    for name, width, end in zip(names, widths, ends):
        values = contributions.metrics[name].fold(sums[:, end - width : end])
        values = values[np.isfinite(values)]
        if len(values) >= resamples / 2:
            low, high = np.quantile(values, [tail, 1 - tail])
            out[name] = (float(low), float(high))
    return out
