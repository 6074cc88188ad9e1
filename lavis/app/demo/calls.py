"""A visitor's call of a page: inputs checked, computed together with others that wait, rendered as HTML.

Calls come in threads, one each. Those of one model take turns; whoever has the turn computes what waits with equal
settings in one batch, so several visitors' captions cost little more than one's.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from lavis.app.demo.models import Choice, Pool
from lavis.app.demo.page import Page, Progress, Stop, silent, values_of
from lavis.app.demo.results import message
from lavis.app.demo.uploads import Limits

# what the library raises for people to read
READABLE = (ValueError, OSError, ImportError)


@dataclass(eq=False)
class _Call:
    """Checked inputs, and the reply once there is one.

    Attributes:
        spec: the chosen model. own: inputs that may differ within a batch. common: the others.
    """

    spec: str | None
    own: Mapping[str, Any]
    common: Mapping[str, Any]
    reply: list[str | None] | None = None

    def goes_with(self, other: _Call) -> bool:
        return self is other or (bool(self.own) and (self.spec, self.common) == (other.spec, other.common))


class Caller:
    """Answers calls of one page, from any number of threads.

    Args:
        page: the page.
        offered: the models that it may be called with; none if it needs none.
        pool: where they come from.
        limits: of uploads.
    """

    def __init__(self, page: Page, offered: Sequence[Choice], pool: Pool, limits: Limits) -> None:
        self.page, self.pool, self.limits = page, pool, limits
        self.offered = {choice.spec: choice for choice in offered}
        self._waiting: list[_Call] = []
        self._guard = threading.Lock()  # of _waiting and _turns
        self._turns: defaultdict[str | None, threading.Lock] = defaultdict(threading.Lock)

    def __call__(
        self, *values: Any, progress: Progress = silent, stop: Stop = lambda: False
    ) -> list[str | None]:
        """HTML of the message, then of each output; None for one that stays as it is.

        Args:
            values: the model's spec (where the page has models), then the inputs, as the browser sends them.
            progress: told how far a page is that `reports`. stop: asked by a page that `talks`.
        """
        try:
            call = self._checked(values)
        except READABLE as e:
            return self._complaint(e)
        with self._guard:
            self._waiting.append(call)
            turn = self._turns[call.spec]
        with turn:
            if call.reply is None:
                self._compute(self._batch(call), progress, stop)
        assert call.reply is not None
        return call.reply

    def _checked(self, values: Sequence[Any]) -> _Call:
        spec = None
        if self.page.uses_models:
            spec, *values = values
            if spec not in self.offered:
                raise ValueError("Model: choose one of the list")
        fields = self.page.inputs
        checked = {f.name: f.check(v, self.limits) for f, v in zip(fields, values, strict=True)}
        own = {name: checked.pop(name) for name in self.page.batched}
        return _Call(spec, own, checked)

    def _batch(self, first: _Call) -> list[_Call]:
        """A call and those that wait and go with it, which nobody else takes from now on."""
        with self._guard:
            others = [c for c in self._waiting if c is not first and c.goes_with(first)]
            batch = [first, *others[: self.page.largest_batch - 1]]
            self._waiting = [c for c in self._waiting if c not in batch]
        return batch

    def _compute(self, batch: list[_Call], progress: Progress, stop: Stop) -> None:
        """Give each call of a batch its reply; an error that is no sentence for the visitor is raised."""
        first = batch[0]
        lists = {name: [call.own[name] for call in batch] for name in self.page.batched}
        told: dict[str, Any] = {"progress": progress} if self.page.reports else {}
        told |= {"stop": stop} if self.page.talks else {}
        try:
            with self.pool.use(first.spec) if first.spec else nullcontext() as loaded:
                start = time.perf_counter()
                found = self.page.run(loaded, **first.common, **lists, **told)
                seconds = time.perf_counter() - start
            results = found if self.page.batched else [found]
        except READABLE as e:
            for call in batch:
                call.reply = self._complaint(e)
            return
        except Exception as e:
            no_memory = isinstance(e, RuntimeError) and "out of memory" in str(e).lower()
            reason = "there is not enough memory; try a smaller model" if no_memory else (
                f"this went wrong in the program ({type(e).__name__}); the terminal that it runs in says more"
            )  # fmt: skip
            for call in batch:
                call.reply = self._complaint(ValueError(reason))
            if not no_memory:
                raise
            return
        done = f"{seconds:.2f} s" + (f" with {first.spec}" if first.spec else "")
        if len(batch) > 1:
            done += f", in one batch with {len(batch) - 1} more"
        for call, result in zip(batch, results, strict=True):
            values = values_of(self.page, result)
            rendered = [output.render(v) for output, v in zip(self.page.outputs, values, strict=True)]
            call.reply = [message("done", done), *rendered]

    def _complaint(self, error: Exception) -> list[str | None]:
        text = " ".join(str(error).split()) or type(error).__name__
        shown = (None if output.stays else output.placeholder() for output in self.page.outputs)
        return [message("error", text), *shown]
