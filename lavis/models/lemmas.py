"""Basic forms of the words of answers (spaCy, extra `lemmas`), for data sets whose answers are in them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

PIPELINE = "en_core_web_sm"


@functools.cache
def lemmatizer() -> Any:
    """spaCy's small English pipeline.

    Raises:
        ImportError: spaCy or the pipeline is not installed.
    """
    try:
        import spacy

        return spacy.load(PIPELINE)
    except (ImportError, OSError) as e:
        raise ImportError(
            f"apply_lemmatizer needs spaCy and its pipeline {PIPELINE}: pip install 'openlavis[lemmas]' and "
            f"python -m spacy download {PIPELINE}; or set model.apply_lemmatizer to false, which changes answers"
        ) from e


def lemmatized(answers: Sequence[str]) -> list[str]:
    """Answers whose nouns and verbs are put into their basic forms: "two dogs running" becomes "two dog run"."""
    pipeline = lemmatizer()
    return [
        " ".join(word.lemma_ if word.pos_ in ("NOUN", "VERB") else word.text for word in pipeline(answer))
        for answer in answers
    ]
