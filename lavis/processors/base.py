"""What every processor is: a callable made from settings, whose randomness comes from one stream."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from lavis.common.registry import registry
from lavis.common.values import suggest

P = TypeVar("P", bound="BaseProcessor")


@registry.register_processor("base_processor")
class BaseProcessor:
    """The identity; other processors derive from it.

    A processor's settings are the arguments of its constructor, so each default is written once.
    """

    # settings that the original's recipes name, and that have no effect there either
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ()

    def __call__(self, item: Any, rng: np.random.Generator | None = None) -> Any:
        """Process one item.

        Args:
            item: a picture, a text, …
            rng: the stream for random choices; with it the result is a function of item and stream.
                None draws a fresh one.
        """
        return item

    @classmethod
    def from_config(cls: type[P], cfg: Mapping[str, Any] | None = None) -> P:
        """Make one from settings; None or {} gives the defaults.

        Raises:
            ValueError: an unknown setting (a near one is suggested), or a bad value.
        """
        known = list(inspect.signature(cls).parameters)
        ignored = {"name", *cls.WITHOUT_EFFECT}
        settings = {str(key): cfg[key] for key in cfg if key not in ignored} if cfg is not None else {}
        for key in settings:
            if key not in known:
                hint = suggest(key, known) if known else " It has no settings."
                raise ValueError(f"{cls.__name__}: unknown setting {key!r}.{hint}")
        return cls(**settings)

    @classmethod
    def build(cls: type[P], **settings: Any) -> P:
        """`from_config` with keyword arguments; on an instance, too, it starts from the defaults."""
        return cls.from_config(settings)

    def __repr__(self) -> str:
        settings = ", ".join(
            f"{k}={getattr(self, k)!r}" for k in inspect.signature(type(self)).parameters if hasattr(self, k)
        )
        return f"{type(self).__name__}({settings})"
