"""Averages of the weights that a run goes through: what validation, `best.ckpt` and readers of `last.ckpt` get.

Lightning's `WeightAveraging` swaps it into the model for each validation; `Checkpoints` saves it. What is added here:
integer tables are left alone, an average lives on the device of its model, and short runs have a sensible one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

RAW_WEIGHTS, AVERAGING = "current_model_state", "averaging_state"  # Lightning's keys in a checkpoint
MultiAverage = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], None]


class Average(WeightAveraging):
    """Base of the averages below: updated after each optimizer step, buffers such as batch norm statistics included."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._average_model is not None
        self._average_model.to(pl_module.device)  # Lightning makes it before the model is moved there
        # Read in every update: on an accelerator that would wait for the whole step.
        self._average_model.n_averaged = self._average_model.n_averaged.cpu()


class ExponentialAverage(Average):
    """Exponential moving average.

    Args:
        decay: the weight of what the average was before a step, in a long run.
        ramp: how it gets there, so that the first steps are forgotten. None: after n steps
            min(decay, (1 + n) / (10 + n)), which is soon, however short the run is. A number of steps N:
            decay * (1 - exp(-(n + 1) / N)), as in the recipes of RT-DETR, D-FINE and RF-DETR. 0: always `decay`.
    """

    def __init__(self, decay: float = 0.999, ramp: float | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.average.decay: {decay} must be at least 0 and below 1, such as 0.999")
        if ramp is not None and not 0 <= ramp < math.inf:
            raise ValueError(f"callbacks.average.ramp: {ramp} must be a number of steps, such as 2000, or null")
        self.decay, self.ramp = decay, ramp
        super().__init__(multi_avg_fn=self._update)

    def decay_after(self, n: int) -> float:
        """The decay of a step that n steps came before; the first step's weights are taken as they are."""
        if self.ramp is None:
            return min(self.decay, (1 + n) / (10 + n))
        return self.decay * (1 - math.exp(-(n + 1) / self.ramp)) if self.ramp else self.decay

    def _update(self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        assert self._average_model is not None
        n = int(self._average_model.n_averaged)  # `count` is a copy on the device
        get_ema_multi_avg_fn(self.decay_after(n))(list(averaged), list(current), n)


class EqualAverage(Average):
    """The mean of the weights after each step from a certain one on (Izmailov et al. 2018, of steps instead of epochs).

    Until then the average is the weights themselves.

    Args:
        start: up to 1 a fraction of all steps, else a step.
    """

    def __init__(self, start: float = 0.75) -> None:
        if start < 0:
            raise ValueError(f"callbacks.average.start: {start} must be a fraction of the run, such as 0.75, or a step")
        self.start = start
        super().__init__(multi_avg_fn=get_swa_multi_avg_fn())

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        total = trainer.estimated_stepping_batches if self.start <= 1 else 1
        if not math.isfinite(total) or total < 0:
            raise ValueError("callbacks.average.start: a fraction of what? give trainer.max_epochs, or a step as start")
        if trainer.global_step < self.start * total:
            assert self._average_model is not None
            self._average_model.n_averaged.zero_()  # so that the next update copies


def average_of(trainer: pl.Trainer) -> WeightAveraging | None:
    """The callback that averages weights, if there is one."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a helper of the trainer
    return next((callback for callback in callbacks if isinstance(callback, WeightAveraging)), None)


def prepare_averaging(trainer: pl.Trainer) -> None:
    """Make a trainer's average one that models with integer tables can have; to be called once.

    Raises:
        ValueError: there are several, or one that is never validated; one line.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise ValueError(
            "callbacks: StochasticWeightAveraging replaces the learning rates of optim, and its average is never "
            "validated; use callbacks=swa, or callbacks=ema"
        )
    averages = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
    if len(averages) > 1:
        names = ", ".join(type(callback).__name__ for callback in averages)
        raise ValueError(f"callbacks: {names} would both average the weights; keep one of them")
    for average in averages:
        average._kwargs = _of_floats_alone(**average._kwargs)


def _of_floats_alone(
    avg_fn: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    multi_avg_fn: MultiAverage | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Options of `AveragedModel`, with integers copied: PyTorch truncates their averages, so that a table of indices,
    such as Swin's, loses 1 here and there."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        if averaged[0].is_floating_point() and avg_fn is None:
            (multi_avg_fn or get_swa_multi_avg_fn())(averaged, current, count)
            return
        for mine, theirs in zip(averaged, current, strict=True):
            mine.copy_(avg_fn(mine, theirs, count) if avg_fn and mine.is_floating_point() else theirs)

    return {**others, "multi_avg_fn": update}
