"""The presets as rows: one a name, found by their class, and added to from outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lavis.common.registry import registry
from lavis.inference import load
from lavis.models import load_model, model_zoo, zoo
from lavis.models.base import BaseModel, Preset
from lavis.models.blip import BlipCaption


def test_every_row_is_of_a_registered_class_and_in_one_place() -> None:
    source = Path(zoo.__file__).read_text(encoding="utf-8")
    for spec in zoo.ROWS:
        name, _, model_type = spec.partition("/")
        assert registry.get_model_class(name).PRESETS[model_type] is zoo.ROWS[spec]
        assert source.count(f'    "{spec}":') == 1
    aliases = ("clip_feature_extractor", "blip2_feature_extractor")
    types = {f"{name}/{t}" for name, each in model_zoo if name not in aliases for t in each}
    own = {s for s in types if registry.get_model_class(s.partition("/")[0]).__module__.startswith("lavis.")}
    assert own == set(zoo.ROWS)


def test_a_class_has_its_rows_those_of_its_parent_or_none() -> None:
    class Mine(BlipCaption):
        registered_name = "no_rows_of_mine"

    class Own(BlipCaption):
        registered_name = "rows_of_mine"
        PRESETS = {"a": BlipCaption.PRESETS["tiny"]}  # noqa: RUF012

    assert Mine.PRESETS is BlipCaption.PRESETS and list(Own.PRESETS) == ["a"] and not BaseModel.PRESETS
    assert BlipCaption.PRESETS is BlipCaption.PRESETS  # one dictionary, whoever asks


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    load_model("blip_caption", "tiny_shapes").save_pretrained(tmp_path / "mine")
    yield {"blip_caption/mine": replace(zoo.ROWS["blip_caption/tiny_shapes"], weights=str(tmp_path / "mine"))}
    BlipCaption.PRESETS.pop("mine", None)  # type: ignore[attr-defined]


def test_rows_are_added_from_outside(rows: dict[str, Preset]) -> None:
    zoo.add_rows(rows)
    zoo.add_rows(rows)  # a module that is imported again
    assert load("blip_caption/mine", device="cpu").model.model_type == "mine"
    with pytest.raises(ValueError, match="there is a preset blip_caption/mine already"):
        zoo.add_rows({"blip_caption/mine": zoo.ROWS["blip_caption/tiny"]})
    for wrong in ("blip_caption", "blip_caption/", "/mine"):
        with pytest.raises(ValueError, match="names no preset; give <registered name>/<type>"):
            zoo.add_rows({wrong: zoo.ROWS["blip_caption/tiny"]})
