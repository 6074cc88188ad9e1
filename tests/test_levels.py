"""Networks are flat: no public model has more than three classes of ours below nn.Module."""

from __future__ import annotations

import pytest
from torch import nn

from lavis.common.registry import registry


def levels(cls: type) -> int:
    """Classes on the longest way from nn.Module (not counted) to a class."""
    if cls is nn.Module:
        return 0
    return 1 + max(levels(base) for base in cls.__bases__ if issubclass(base, nn.Module))


@pytest.mark.parametrize("name", registry.list_models())
def test_a_model_has_at_most_three_levels(name):
    assert levels(registry.get_model_class(name)) <= 3


def test_levels_are_counted():
    class Base(nn.Module):
        pass

    class Mixed(Base):
        pass

    class Plain:
        pass

    class Model(Plain, Mixed, Base):
        pass

    assert [levels(cls) for cls in (nn.Module, Base, Mixed, Model)] == [0, 1, 2, 3]
