"""Why a run ends before its last iteration: Ctrl-C, its time, or validations that get no better."""

from __future__ import annotations

import logging
import signal
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from lavis.common import dist

if TYPE_CHECKING:
    from lavis.runners.settings import RunConfig
    from lavis.runners.state import Progress

logger = logging.getLogger(__name__)

_ASK_EVERY = 10  # updates between two times that ranks agree whether to stop


class Interrupted(Exception):  # noqa: N818  not an error
    """Ctrl-C was pressed and the current step is over."""


class CtrlC:
    """Context in which Ctrl-C sets `pressed`; a second one raises KeyboardInterrupt at once.

    Signals reach the main thread only: in another thread the context does nothing.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._old: Any = None

    def _handle(self, signum: int, frame: Any) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        logger.warning("stopping after this step; Ctrl-C again stops at once, without saving")

    def __enter__(self) -> CtrlC:
        self.pressed = False
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)
            self._old = None


class Stopping:
    """Asks after each update, and between epochs, whether a run should end. Owns the watch on Ctrl-C.

    Args:
        run: `max_minutes`, `patience`, `accum_grad_iters`. device: for the question among ranks.
    """

    def __init__(self, run: RunConfig, device: torch.device) -> None:
        self.run, self.device = run, device
        self.ctrl_c = CtrlC()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed, for places where ranks cannot agree; with several, always False."""
        return self.ctrl_c.pressed and not dist.is_on()

    def between_batches(self) -> None:
        """Raise `Interrupted` in an evaluation; several ranks agree at their next update instead."""
        if self.interrupted:
            raise Interrupted

    def reason(self, progress: Progress) -> str:
        """After an update: "", "interrupt" or "max_minutes"; the same on every rank."""
        minutes = self.run.max_minutes
        reserved = progress.plan["reserved"] if progress.plan else 0.0  # of what comes after training
        late = minutes is not None and progress.seconds > minutes * 60 - reserved
        code = 2 if self.ctrl_c.pressed else int(late)
        if dist.is_on():
            # ranks notice at different steps; asking now and then keeps that cheap
            updates = -(-progress.iteration // self.run.accum_grad_iters)
            if updates % _ASK_EVERY:
                return ""
            flag = torch.tensor(code, device=self.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            code = int(flag.item())
        return ("", "max_minutes", "interrupt")[code]

    def out_of_patience(self, progress: Progress) -> bool:
        """Between epochs: whether `patience` validations in a row were no better than the best."""
        return bool(self.run.patience) and progress.validations_without_best >= (self.run.patience or 0)
