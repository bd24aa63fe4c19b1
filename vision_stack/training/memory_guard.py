"""Keeps a run on CPUs within the memory that there is."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from vision_stack.training.allocator import return_freed_memory
from vision_stack.training.memory import available_memory, resident_memory

SHARE = 0.6  # of the memory that there is at the start
EVERY = 5  # steps


class MemoryGuard(pl.Callback):
    """Goes over to `return_freed_memory` once the process has taken most of what there is.

    `keep_freed_memory` is faster, but with images of many sizes the heap may grow to several times what a step needs.
    """

    def __init__(self) -> None:
        self.limit: float | None = None  # bytes

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        available = available_memory()
        if available and trainer.strategy.root_device.type == "cpu":
            self.limit = SHARE * available

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.limit and batch_idx % EVERY == 0 and resident_memory() > self.limit:
            self.limit = None
            if return_freed_memory():
                trainer.print(
                    "\nmemory is getting short: from here on freed memory is returned, which is a little slower"
                )
