"""What a run will take, measured before its first step."""

from __future__ import annotations

import math

import pytorch_lightning as pl

from vision_stack.data.datamodule import DataModule
from vision_stack.training.checkpoints import callbacks_of
from vision_stack.training.lightning_module import SegmentationModule
from vision_stack.training.probe import GIB, PRECISIONS, Measured, Probe


def measure(trainer: pl.Trainer, module: SegmentationModule, data: DataModule, steps_done: int = 0) -> list[str]:
    """Rows: memory of a step on the largest batch, and how long the run will take. The run is the same without it.

    Nothing on ranks that do not print, and in precisions of which no step can be taken without Lightning.

    Raises:
        OutOfMemory: the step does not fit; one line that says what to lower.
    """
    precision = str(trainer.precision)
    in_a_fork = getattr(trainer.strategy, "_start_method", None) == "fork"  # where CUDA must not have been used before
    if not trainer.is_global_zero or precision not in PRECISIONS or in_a_fork:
        return []
    device = trainer.strategy.root_device
    probe = Probe(module.model, data, module.optim, module.finetune, device, precision)
    measured = probe.measure(data.config.batch_size, module.evaluator)
    steps, validations = length(trainer, data)
    left = max(0, steps - steps_done)
    share = left / steps if steps else 0.0
    seconds_left = None
    for callback in callbacks_of(trainer):
        if isinstance(callback, pl.callbacks.Timer):
            seconds_left = callback.time_remaining()
    images = len(data.val_records) / trainer.world_size
    return describe(measured, left, math.ceil(validations * share), images, seconds_left)


def length(trainer: pl.Trainer, data: DataModule) -> tuple[int, int]:
    """Optimizer steps and validations of a whole run; 0 steps where nobody knows."""
    world, batch = trainer.world_size, data.config.batch_size
    batches = max(data.epoch_size // (batch * world), 1)
    limit = trainer.limit_train_batches
    batches = max(1, int(batches * limit) if isinstance(limit, float) else min(batches, limit))
    of_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    by_epochs = (trainer.max_epochs or 0) * of_epoch
    limits = [steps for steps in (trainer.max_steps, by_epochs) if steps > 0]
    steps = min(limits, default=0)
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if every is None:
        return steps, math.ceil(steps * trainer.accumulate_grad_batches / float(interval))
    in_epoch = (
        1.0 if interval is None else max(1.0, (1 / interval if isinstance(interval, float) else batches / interval))
    )
    return steps, max(1, round(steps / of_epoch / every * in_epoch)) if steps else 0


def describe(
    measured: Measured, left: int, validations: int, num_val: float, seconds_left: float | None = None
) -> list[str]:
    """The rows, of `left` steps and so many validations of `num_val` images, ended by `max_time` at the latest."""
    of = f" of {measured.available / GIB:.1f}" if measured.available else ""
    rows = [f"{'memory':<11} {measured.memory / GIB:.1f}{of} GB, measured in a step on the largest batch"]
    if left:
        seconds = left * measured.seconds + validations * num_val * measured.seconds_of_validation
        if seconds_left is not None and seconds_left < seconds:
            rows.append(
                f"{'time':<11} {measured.seconds:.2f} s a step; trainer.max_time ends it in {duration(seconds_left)}"
            )
            return rows
        validated = f"{validations} validation{'s' * (validations != 1)}"
        what = f"{left:,} step{'s' * (left != 1)} of {measured.seconds:.2f} s and {validated}"
        rows.append(f"{'time':<11} about {duration(seconds)} for {what}")
    return rows


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
