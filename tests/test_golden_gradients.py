"""The gradients of a training step at full size have the original's norms, layer by layer.

`gradient_norms.json` was made with the original's code (transformers 4.26.1, float32), on the weights and samples of
the stored outputs, with dropout and drop path off.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict

import pytest

from tests import golden

pytestmark = [pytest.mark.golden, pytest.mark.slow, pytest.mark.usefixtures("all_cores")]
STORED = json.loads((golden.REFERENCE / "gradient_norms.json").read_text())


def layer_of(parameter: str) -> str:
    """The numbered layer that a parameter is in, "visual_encoder.blocks.0"; outside of layers its module,
    "visual_encoder.norm", or the parameter itself, "visual_encoder.pos_embed"."""
    layer = re.match(r".*?\.\d+(?=\.)", parameter)
    return layer.group() if layer else re.sub(r"\.(weight|bias)$", "", parameter)


@pytest.mark.parametrize("name", STORED)
def test_gradient_norms(tmp_path, name):
    model = golden.load(name, tmp_path, is_eval=False)
    loss = golden.train_step(model, golden.step_samples(name)).loss
    loss.backward()
    squares: dict[str, float] = defaultdict(float)
    for parameter, values in model.named_parameters():  # shared ones once, where they stand first
        if values.requires_grad:
            squares[layer_of(parameter)] += values.grad.double().square().sum().item()
    found = {"loss": loss.item(), **{layer: math.sqrt(square) for layer, square in squares.items()}}
    assert found == pytest.approx(STORED[name], rel=2e-5)
