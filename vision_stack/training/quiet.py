"""Lightning's advertisements, and warnings about what is meant to be as it is."""

from __future__ import annotations

import logging
import warnings
from typing import Any

MEANT = (
    "You're resuming from a checkpoint that ended before the epoch ended",  # our loader starts at the very next batch
    r".*does not have many workers",
    r"The number of training batches .* is smaller than the logging interval",
    r"Found \d+ module\(s\) in eval mode",  # frozen norms
    r".*Tensor Cores.*float32_matmul_precision",
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`",  # a resumed schedule begins in the middle
    r"`isinstance\(treespec, LeafSpec\)`",
    r".*available but not used",
    r"It is recommended to use `self.log\('val/",  # every rank has the scores of all
)


def quiet_lightning() -> None:
    """Leave only warnings that a user can do something about, each on one line."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in MEANT:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _in_one_line


def _in_one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {message}\n"
