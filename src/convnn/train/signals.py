"""Ctrl-C and the SIGTERM of a scheduler: the step that runs is finished and saved; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ..errors import TerminatedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Takes the two signals while it is entered, and remembers the first that came.

    In another thread than the main one, where Python allows no handlers, signals do what they do without it.

    >>> with Interruption() as interruption:
    ...     interruption.pending
    False
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def pending(self) -> bool:
        """True once a signal has come."""
        return self.received is not None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.take()
        return self

    def take(self) -> None:
        """Become the handler of both signals (again: Lightning sets its own when training starts)."""
        if self._before:
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            self.stop()
        self.received = number

    def stop(self) -> None:
        """Raise what stands for the signal: KeyboardInterrupt, or TerminatedError."""
        if self.received == signal.SIGTERM:
            raise TerminatedError("stopped by SIGTERM")
        raise KeyboardInterrupt
