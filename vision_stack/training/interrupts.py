"""Ctrl-C and SIGTERM end a command with one line and the exit code that a shell expects, wherever it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """A signal asked the process to end. No `Exception`, so that nothing on the way takes it for a fault of its own.

    Attributes:
        exit_code: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, signum: int, advice: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}{advice and '; '}{advice}")
        self.signum = signum
        self.exit_code = 128 + signum


class Signals:
    """Handler of SIGINT and SIGTERM: the first one raises `Stopped`, at once or when it is convenient; another one ends
    the process.

    Args:
        may_stop: whether to raise right where the process is; otherwise `stop_if_asked` does it later.
    """

    def __init__(self, may_stop: Callable[[], bool] | None = None) -> None:
        self.may_stop = may_stop
        self.received: int | None = None
        self._process = os.getpid()
        self._outer: dict[int, Any] = {}

    def install(self) -> None:
        """Become the handler, or become it again after a library has put its own in place."""
        if threading.current_thread() is not threading.main_thread():
            return  # signals are the main thread's
        for signum in (signal.SIGINT, signal.SIGTERM):
            old = signal.signal(signum, self)
            self._outer.setdefault(signum, old)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        while self._outer:
            signal.signal(*self._outer.popitem())

    def stop_if_asked(self) -> None:
        """Raise `Stopped` if there was a signal."""
        if self.received is not None:
            raise Stopped(self.received)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a worker that was forked from here
            _end(signum)
        if self.received is not None:
            if self.may_stop and self._outer.get(signum) is signal.default_int_handler:  # called from Python code,
                raise KeyboardInterrupt  # perhaps in a notebook, which is to live on
            _end(signum)
        self.received = signum
        if self.may_stop is None or self.may_stop():
            raise Stopped(signum)


@contextmanager
def stopping_on_signals(may_stop: Callable[[], bool] | None = None) -> Iterator[Signals]:
    """In the block, the first SIGINT or SIGTERM raises `Stopped`; another one ends the process at once.

    With `may_stop` the first one waits, where that is False, for `stop_if_asked`, at the latest for the end of the
    block. What fails in the block after a signal fails because of it, such as a loader whose workers got it as well.
    """
    signals = Signals(may_stop)
    signals.install()
    try:
        yield signals
        signals.stop_if_asked()
    except Exception as error:
        if signals.received is not None:
            raise Stopped(signals.received) from error
        raise
    finally:
        signals.restore()


def _end(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
