"""Zero-shot classification: the prompts and class names that OpenAI published for ImageNet."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

from lavis.models.tokenizer import ASSETS

Template = str | Callable[[str], str]
LABEL_PROMPT = "Question: what is in this image? Short answer:"  # before labels that a language model ranks


@functools.cache
def _imagenet() -> dict[str, list[str]]:
    data: dict[str, list[str]] = json.loads((ASSETS / "imagenet_zero_shot.json").read_text(encoding="utf-8"))
    return data


def imagenet_templates(number: int = 80) -> list[str]:
    """The 80 templates, or the best 7, that OpenAI published for ImageNet; "{}" is where a class name goes."""
    key = f"templates_{number}"
    if key not in _imagenet():
        raise ValueError(f"there are 80 or 7 templates, not {number}")
    return list(_imagenet()[key])


def imagenet_classnames() -> list[str]:
    """The 1000 class names that OpenAI published for ImageNet, in the order of its labels."""
    return list(_imagenet()["classnames"])


def fill(template: Template, name: str) -> str:
    if callable(template):
        return template(name)
    if "{}" not in template:
        raise ValueError(f"the template {template!r} has no {{}}, where the class name goes")
    return template.replace("{}", name)
