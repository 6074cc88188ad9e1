"""METEOR and SPICE: Java programs, reached through the package pycocoevalcap.

Install with `pip install openlavis[caption-metrics]`; both need Java (METEOR 8 or later) on the PATH. SPICE
also downloads Stanford CoreNLP (about 400 MB) into the package's folder at its first use.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Hashable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lavis.metrics.caption import aligned

_SPICE_PARTS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def _scorer(metric: str) -> Any:
    """pycocoevalcap's module of a metric, after a check of what it needs."""
    if find_spec("pycocoevalcap") is None:
        raise OSError(f"{metric} needs the package pycocoevalcap: pip install openlavis[caption-metrics]")
    if shutil.which("java") is None:
        raise OSError(f"{metric} needs Java 8 or later, and there is no program java on the PATH")
    return import_module(f"pycocoevalcap.{metric.lower()}.{metric.lower()}")


def _run(
    metric: str,
    scorer: Any,
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    tokenized: bool,
) -> float:
    _, ours, theirs = aligned(predictions, references, tokenized)
    try:
        score, _ = scorer.compute_score(dict(enumerate(theirs)), {i: [c] for i, c in enumerate(ours)})
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        raise OSError(f"{metric}: the Java program failed ({e}); see whether `java -version` works") from e
    return float(score)


def meteor(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], tokenized: bool = False
) -> float:
    """METEOR 1.5 of a set of captions.

    Args:
        predictions: one caption per id.
        references: one or more captions per id.
        tokenized: the captions are tokenized already.

    Returns:
        A fraction from 0 to 1.

    Raises:
        OSError: the package or Java is missing, or the Java program failed.
        ValueError: the ids differ, or there is nothing to score.
    """
    scorer = _scorer("METEOR").Meteor()
    try:
        return _run("METEOR", scorer, predictions, references, tokenized)
    finally:
        process = scorer.meteor_p  # the wrapper leaves its Java process running
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def spice(
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    tokenized: bool = False,
    download: bool = False,
) -> float:
    """SPICE 1.0 of a set of captions.

    Args:
        predictions: one caption per id.
        references: one or more captions per id.
        tokenized: the captions are tokenized already.
        download: whether to let the package fetch Stanford CoreNLP (about 400 MB, over plain http, which
            its authors chose) if it is not there yet.

    Returns:
        A fraction from 0 to 1.

    Raises:
        OSError: the package, Java or CoreNLP is missing, or the Java program failed.
        ValueError: the ids differ, or there is nothing to score.
    """
    module = _scorer("SPICE")
    folder = Path(module.__file__).parent / "lib"
    lacking = [name for name in _SPICE_PARTS if not (folder / name).is_file()]
    if lacking and not download:
        raise OSError(
            f"SPICE needs {' and '.join(lacking)} in {folder}: call spice(…, download=True) once online "
            "(about 400 MB from nlp.stanford.edu), or copy the files of CoreNLP 3.6.0 there"
        )
    try:
        scorer = module.Spice()
    except OSError as e:
        raise OSError(f"SPICE: CoreNLP could not be downloaded ({e}); copy its two jars to {folder}") from e
    return _run("SPICE", scorer, predictions, references, tokenized)
