"""Ctrl-C and SIGTERM end a command with one line and the exit code that a shell expects, wherever it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked the process to end. No `Exception`, so that nothing on the way takes it for a fault of its own.

    Attributes:
        exit_code: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, signum: int, advice: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}{advice and '; '}{advice}")
        self.signum = signum
        self.exit_code = 128 + signum


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """In the block, the first SIGINT or SIGTERM raises `Stopped`; another one ends the process at once.

    What fails in the block after a signal fails because of it, such as a loader whose workers got the signal as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    process = os.getpid()
    received: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if received or os.getpid() != process:  # in a worker that was forked from here
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        received.append(signum)
        raise Stopped(signum)

    old = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        if received:
            raise Stopped(received[0]) from error
        raise
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
