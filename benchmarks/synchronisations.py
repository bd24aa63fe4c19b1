"""Which lines of a program make the host wait for a CUDA device."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def synchronisations() -> Iterator[list[str]]:
    """Gives a list that grows by the place of every operation that makes the host wait, as far as PyTorch notices."""
    places: list[str] = []

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing" in str(message):
            places.append(_place(traceback.extract_stack()))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        warnings.showwarning = note  # until the end of catch_warnings
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _place(stack: traceback.StackSummary) -> str:
    """The innermost line that is neither PyTorch's, nor generated, nor the warning's own way."""
    passed = (str(Path(torch.__file__).parent), warnings.__file__, "<")
    outside = [
        frame for frame in stack[:-1] if not frame.filename.startswith(passed) and "torchinductor" not in frame.filename
    ]
    return f"{'/'.join(Path(outside[-1].filename).parts[-3:])}:{outside[-1].lineno}"
