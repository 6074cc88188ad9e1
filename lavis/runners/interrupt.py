"""Ctrl-C that lets the current step end."""

from __future__ import annotations

import logging
import signal
import threading
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)


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
