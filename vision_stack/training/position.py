"""Where in a run training stands, and how to put a fresh trainer there.

A run resumes at the very next batch. Its batches, their augmentation and its dropout are functions of (seed, epoch,
batch), so these few numbers are all the random state there is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytorch_lightning as pl


class Position(NamedTuple):
    """A point between two optimizer steps."""

    epoch: int = 0  # epochs that are complete
    batches_done: int = 0  # of the epoch that is not
    total_batches: int = 0  # since the run began
    step: int = 0  # optimizer steps since the run began
    validated: bool = True  # False: a validation is due at this point and has not been finished

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Position:
        """Of a trainer in `on_train_batch_end`, after an optimizer step."""
        done = trainer.fit_loop.epoch_loop.batch_progress
        end_of_epoch = trainer.is_last_batch
        return cls(
            epoch=trainer.current_epoch + end_of_epoch,
            batches_done=0 if end_of_epoch else done.current.ready,
            total_batches=done.total.ready,
            step=trainer.global_step,
        )

    def restore(self, trainer: pl.Trainer) -> None:
        """Set the counters of a trainer whose `fit` has not been called yet.

        Lightning's own restart restores its counters as they were at the moment of saving, and tells from their
        differences what was going on. Here saving only happens between steps, so that two states suffice: at an epoch's
        start, and in its middle.
        """
        fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
        in_epoch = self.batches_done > 0
        for count in (fit.epoch_progress.total, fit.epoch_progress.current):
            _set(count, begun=self.epoch + in_epoch, done=self.epoch)
        _set(epoch.batch_progress.total, begun=self.total_batches, done=self.total_batches)
        _set(epoch.batch_progress.current, begun=self.batches_done, done=self.batches_done)
        _set(epoch.automatic_optimization.optim_progress.optimizer.step.total, begun=self.step, done=self.step)
        epoch._batches_that_stepped = self.step  # what loggers count
        fit._resuming_from_checkpoint = True  # the data iterator that `fit` begins with is the one to use
        if in_epoch:
            fit.restarting = True

    @contextlib.contextmanager
    def validating(self, trainer: pl.Trainer) -> Iterator[None]:
        """In the block, a validation is logged like the one that is due here.

        Within `fit` Lightning validates before it counts the step as done, and the epoch where it is the last of one.
        """
        fit = trainer.fit_loop
        fit.epoch_loop._batches_that_stepped = self.step - 1
        _set(fit.epoch_progress.current, begun=self.epoch, done=self.epoch - (self.batches_done == 0))
        yield
        self.restore(trainer)


def _set(counter: Any, *, begun: int, done: int) -> None:
    values = {"ready": begun, "started": begun, "processed": done, "completed": done}
    for name in vars(counter).keys() & values.keys():
        setattr(counter, name, values[name])
