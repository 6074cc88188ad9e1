"""Scores must be numbers: a NaN compares with nothing, so any place in an order would be a guess."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SHOWN = 5


def refuse_not_finite(scores: np.ndarray, what: str, names: Sequence[object] | None = None) -> None:
    """
    Args:
        scores: (rows, ...). what: a row is called this in the message. names: of the rows; None: their numbers.

    Raises:
        ValueError: a score is NaN or infinite; the rows are named.
    """
    scores = np.asarray(scores)
    finite = np.isfinite(scores).reshape(len(scores), -1).all(axis=1) if len(scores) else np.ones(0, bool)
    if finite.all():
        return
    rows = np.flatnonzero(~finite).tolist()
    shown = ", ".join(str(r if names is None else names[r]) for r in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    raise ValueError(
        f"{what} {shown}{more} are not finite (NaN or infinite; {len(rows)} of {len(scores)} rows), so nothing can be "
        "measured; look at the model's weights, or compute in --precision fp32"
    )
