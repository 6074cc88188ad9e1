"""The warning about a loss that does not move."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch

from lavis.models import build_model
from lavis.runners.stuck import StuckWatch


class Knows:
    def chance_losses(self, batch: int) -> dict[str, float]:
        return {"loss_itc": math.log(batch), "loss_itm": 0.6365}


def run(watch: StuckWatch, losses: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="lavis"):
        for step in range(300):
            watch.add(step, {k: torch.tensor(v) for k, v in losses(step).items()})
    return [r.getMessage() for r in caplog.records]


@pytest.fixture(autouse=True)
def heard() -> None:
    logging.getLogger("lavis").propagate = True


def test_a_loss_at_chance_is_warned_of_once_with_what_to_try(caplog: pytest.LogCaptureFixture) -> None:
    chance = math.log(16)
    said = run(
        StuckWatch(Knows(), 16, 3e-4, 200),
        lambda i: {"loss": chance + 0.6365, "loss_itc": chance, "loss_itm": 0.6365},
        caplog,
    )
    assert len(said) == 1
    assert said[0].startswith("after 200 steps the loss is 3.41, no better than chance (3.41)")
    assert "--lr 0.0009 or --lr 3e-05 instead of 0.0003" in said[0] and "lavis browse" in said[0]


def test_a_loss_that_fell_from_above_to_chance_has_learned_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """As the packaged matchers' at their own temperature: 30 in the beginning, chance in the end."""

    def losses(step: int) -> dict[str, float]:
        itc = max(math.log(16), 30 - step)
        return {"loss": itc + 0.6365, "loss_itc": itc, "loss_itm": 0.6365}

    assert run(StuckWatch(Knows(), 16, 3e-4, 200), losses, caplog)


def test_a_loss_below_chance_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert not run(
        StuckWatch(Knows(), 16, 3e-4, 200),
        lambda i: {"loss": 2.5, "loss_itc": 2.0, "loss_itm": 0.5},
        caplog,
    )


@pytest.mark.parametrize(("end", "warned"), [(6.9, True), (6.0, False), (9.0, True)])
def test_without_a_known_chance_the_first_steps_are_the_measure(
    end: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    watch = StuckWatch(object(), 16, 1e-5, 200)
    assert bool(run(watch, lambda i: {"loss": 7.0 if i < 10 else end, "loss_lm": 7.0}, caplog)) == warned


def test_a_run_of_a_few_steps_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    assert not run(StuckWatch(Knows(), 16, 3e-4, 20), lambda i: {"loss": 9.0}, caplog)


def test_what_chance_gives_each_model() -> None:
    blip = build_model({"arch": "blip_retrieval", "model_type": "tiny", "weights": "none"}).chance_losses(16)
    assert blip["loss_itc"] == pytest.approx(math.log(16 + 512))
    assert blip["loss_itm"] == pytest.approx(-(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3))
    clip = build_model({"arch": "clip", "model_type": "tiny"}).chance_losses(16)
    assert clip == {"loss_itc": pytest.approx(math.log(16))}
    section = {"arch": "blip_classification", "model_type": "tiny", "weights": "none", "num_classes": 7}
    assert build_model(section).chance_losses(16) == {"loss": pytest.approx(math.log(7))}
