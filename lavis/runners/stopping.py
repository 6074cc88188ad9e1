"""Why a run ends before its last iteration: a signal, its time, or validations that get no better."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from lavis.common import dist

if TYPE_CHECKING:
    from lavis.runners.settings import RunConfig
    from lavis.runners.state import Progress

logger = logging.getLogger(__name__)

# Ctrl-C; what batch systems, torchrun and `kill` send; what Slurm sends ahead of the end (--signal=USR1@120)
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_AT_ONCE = 1.0  # seconds within which a launcher's Ctrl-C and the terminal's are one


class Interrupted(Exception):  # noqa: N818  not an error
    """A signal arrived and the current step is over.

    Attributes:
        signum: its number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Terminated(SystemExit):
    """A run was ended by SIGTERM or SIGUSR1, after its state was saved. Exit code: 128 + the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(128 + signum)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Signals:
    """Context in which SIGINT, SIGTERM and SIGUSR1 set `received`; a second Ctrl-C raises KeyboardInterrupt at once.

    Signals reach the main thread only: in another thread the context does nothing.

    Attributes:
        received: the number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._when = 0.0
        self._old: dict[int, Any] = {}

    def _handle(self, signum: int, frame: Any) -> None:
        now = time.monotonic()
        if self.received:
            if signum == signal.SIGINT and (not dist.is_on() or now - self._when > _AT_ONCE):
                raise KeyboardInterrupt
            return  # batch systems repeat themselves
        self.received, self._when = signum, now
        again = "; Ctrl-C again stops at once, without saving" if signum == signal.SIGINT else ""
        logger.warning("%s: stopping after this step%s", signal.Signals(signum).name, again)

    def __enter__(self) -> Signals:
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, old in self._old.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
        self._old = {}


class Decision(NamedTuple):
    """What follows an update, the same on every rank.

    Attributes:
        stop: "", "interrupt" or "max_minutes". save: whether checkpoint_last is due.
    """

    stop: str
    save: bool


class Stopping:
    """Asks after each update, and between epochs, whether a run should end or be saved. Owns the watch on signals.

    Args:
        run: `max_minutes`, `save_every_minutes`, `patience`.
    """

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.signals = Signals()
        self._signum = 0  # that all ranks know of
        self._saved = 0.0  # when, in seconds of the run

    def raise_if_interrupted(self) -> None:
        """Raise `Interrupted` if any rank has a signal; all of them ask, equally often (between batches)."""
        self._signum = self._signum or dist.largest([self.signals.received])[0]
        if self._signum:
            raise Interrupted(self._signum)

    def saved(self, progress: Progress) -> None:
        """Take note that checkpoint_last is what the run is now."""
        self._saved = progress.seconds

    def after_update(self, progress: Progress) -> Decision:
        """Whether to stop or save after an update: any rank's signal, and the clock of the first."""
        run, seconds = self.run, progress.seconds
        reserved = progress.plan["reserved"] if progress.plan else 0.0  # of what comes after training
        late = run.max_minutes is not None and seconds > run.max_minutes * 60 - reserved
        due = run.save_every_minutes is not None and seconds - self._saved >= run.save_every_minutes * 60
        main = dist.is_main()
        self._signum, late, due = dist.largest([self.signals.received, late and main, due and main])
        stop = "interrupt" if self._signum else "max_minutes" if late else ""
        return Decision(stop, bool(due))

    def out_of_patience(self, progress: Progress) -> bool:
        """Between epochs: whether `patience` validations in a row were no better than the best."""
        return bool(self.run.patience) and progress.validations_without_best >= (self.run.patience or 0)
