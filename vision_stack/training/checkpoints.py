"""Writing `checkpoints/last.ckpt` and `checkpoints/best.ckpt`, so that a run can be stopped at any moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from vision_stack.config import to_dict
from vision_stack.data.loader import BatchLoader
from vision_stack.ops.files import replacing
from vision_stack.training.averaging import AVERAGING, RAW_WEIGHTS, average_of
from vision_stack.training.interrupts import Signals, stopping_on_signals
from vision_stack.training.loggers import MetricsFile
from vision_stack.training.position import Position
from vision_stack.weights.checkpoint import FORMAT_VERSION

if TYPE_CHECKING:
    from vision_stack.training.lightning_module import SegmentationModule


class Checkpoints(Checkpoint):
    """`last.ckpt` every few steps, at the end of each epoch, around validation, and whenever training ends or stops
    between two steps: at its end, for a signal, for data that cannot be read; `best.ckpt`, with `metrics.json` and
    `predictions.json`, whenever validation gives the best score so far (mask AP, PQ or mIoU, by the task); of equal
    ones, such as those of images without objects, the last counts.

    Ctrl-C and SIGTERM stop it at the next moment at which it waits for data. The last step of a run is always followed
    by validation. Gradients half accumulated are in no checkpoint, nor is what batch norm has seen meanwhile.

    Args:
        every_n_steps: optimizer steps between two writings of `last.ckpt`; the most that `kill -9` can lose.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"callbacks.checkpoints.every_n_steps: {every_n_steps} must be a number of steps, from 1")
        self.every_n_steps = every_n_steps
        self.best_score: float | None = None
        self.position = Position()
        self._saved: Position | None = None  # that of `last.ckpt`
        self._due = False
        self._buffers: dict[str, torch.Tensor] | None = None  # as they were before the step that is half done
        self._signals = Signals()
        self._may_stop = True  # a signal may end it right where it is: nothing would be lost
        self._waiting = False  # for data, between two batches

    @contextlib.contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """In the block a signal raises `Stopped`, after `last.ckpt` has been written if training has begun."""
        with stopping_on_signals(lambda: self._may_stop) as self._signals:
            yield

    # When: between steps, never within one, and after the step has been logged

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._may_stop = False
        self._signals.install()  # in place of Lightning's own, which would stop between the batches of one step
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out in mid-epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if isinstance(trainer.train_dataloader, BatchLoader):
            trainer.train_dataloader.on_wait = partial(self._on_wait, trainer, pl_module)

    def _on_wait(self, trainer: pl.Trainer, pl_module: Any, waiting: bool) -> None:
        """The loop asks for its next batch, or has it."""
        self._may_stop = self._waiting = False
        if not waiting or not trainer.is_global_zero:  # the other ranks end with the first
            return
        if self._due and self._buffers is None:
            self.save_last(trainer, pl_module)
        self._may_stop = self._waiting = True
        self._signals.stop_if_asked()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.accumulate_grad_batches > 1 and self._buffers is None:
            self._buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        _validate_at_the_end(trainer)
        if _within_a_step(trainer):
            return
        self._buffers = None
        self.position = Position.of(trainer)
        self._due = self._due or self.position.step % self.every_n_steps == 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._buffers is None:
            self.position = self.position._replace(validated=False)
            self.save_last(trainer, pl_module)
            self._may_stop = trainer.is_global_zero

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        self._may_stop = trainer.state.fn != "fit"
        if not trainer.is_global_zero:
            return
        results = pl_module.results
        if results is not None and (self.best_score is None or results.score >= self.best_score):
            self.best_score = results.score
            results.write(Path(trainer.default_root_dir))
            contents = self._contents(trainer, pl_module)
            for name in (RAW_WEIGHTS, AVERAGING):  # what was validated is all that it is about
                contents.pop(name, None)
            self._write(trainer, "best.ckpt", contents)
        self.position = self.position._replace(validated=True)
        if trainer.state.fn == "fit" and self._buffers is None:
            self.save_last(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Also called where a run ends in mid-epoch. In `on_train_end` the model already holds the average.
        average = average_of(trainer)
        averaged_now = average is not None and average._latest_update_epoch == trainer.current_epoch
        if averaged_now or self._saved != self.position or self._buffers is not None:
            self._undo_half_step(pl_module)
            self.save_last(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._may_stop = True

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._waiting and self._saved != self.position and self.position.step:
            self._undo_half_step(pl_module)
            self.save_last(trainer, pl_module)
        self._may_stop, self._waiting = True, False

    def _undo_half_step(self, pl_module: Any) -> None:
        """Of gradients that were still being accumulated; weights have not changed yet."""
        if self._buffers is not None:
            with torch.no_grad():
                for name, buffer in pl_module.named_buffers():
                    buffer.copy_(self._buffers[name])
            self._buffers = None

    # What

    def save_last(self, trainer: pl.Trainer, module: SegmentationModule) -> None:
        """Write `last.ckpt`: model, optimizer, position in the run, state of the callbacks."""
        if not trainer.is_global_zero:
            return
        module.check_losses()  # weights after a NaN are not worth keeping
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.sync()  # no power cut keeps the checkpoint and loses its rows
        contents = self._contents(trainer, module)
        contents["optimizer"] = trainer.optimizers[0].state_dict()
        contents["precision"] = trainer.precision_plugin.state_dict()
        contents["callbacks"] = {
            c.state_key: s for c in callbacks_of(trainer) if c is not self and (s := c.state_dict())
        }
        self._write(trainer, "last.ckpt", contents)
        self._saved, self._due = self.position, False

    def save_validated(self, trainer: pl.Trainer, resumed: Mapping[str, Any]) -> None:
        """Write again the `last.ckpt` that a run was resumed from, whose validation has been done now."""
        if trainer.is_global_zero:
            news = {"position": self.position._asdict(), "best_score": self.best_score}
            self._write(trainer, "last.ckpt", {**resumed, **news})

    def _contents(self, trainer: pl.Trainer, module: SegmentationModule) -> dict[str, Any]:
        """Plain values and tensors, which `torch.load(weights_only=True)` takes; of weights those that are validated.

        Where they are an average, its callback moves the weights that are trained from `state_dict` to `RAW_WEIGHTS`.
        """
        contents = {
            "format_version": FORMAT_VERSION,
            "model_config": to_dict(module.model.config),
            "state_dict": module.state_dict(),
            "run_config": module.run_config,
            "position": self.position._asdict(),
            "best_score": self.best_score,
        }
        for callback in callbacks_of(trainer):
            callback.on_save_checkpoint(trainer, module, contents)
        for name in contents.keys() & {"state_dict", RAW_WEIGHTS}:
            contents[name] = {key: tensor.detach().cpu() for key, tensor in contents[name].items()}
        return contents

    def _write(self, trainer: pl.Trainer, name: str, contents: dict[str, Any]) -> None:
        path = Path(trainer.default_root_dir) / "checkpoints" / name
        with replacing(path) as file:
            try:
                torch.save(contents, file)
            except RuntimeError as error:  # a full disk, which torch hides behind positions in the file
                if isinstance(error.__context__, OSError):
                    raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from None
                raise


def _within_a_step(trainer: pl.Trainer) -> bool:
    """Gradients are being accumulated: batch norm, unlike the weights, has moved on from the last step's `Position`."""
    return trainer.state.fn == "fit" and trainer.fit_loop._should_accumulate()


def _validate_at_the_end(trainer: pl.Trainer) -> None:
    """After the last step of a run Lightning validates only where its cadence has it; here it always does."""
    fit = trainer.fit_loop
    epochs = trainer.current_epoch + trainer.is_last_batch
    is_last = (
        0 <= trainer.max_steps <= trainer.global_step
        or (trainer.is_last_batch and 0 <= (trainer.max_epochs or -1) <= epochs)
        or (trainer.should_stop and epochs >= (fit.min_epochs or 0) and trainer.global_step >= (fit.min_steps or 0))
    )
    if is_last:
        trainer.should_stop = True
        fit.min_epochs = fit.epoch_loop.min_steps = None  # which go behind max_steps, but would put validation off
        if trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1


def checkpoints_of(trainer: pl.Trainer) -> Checkpoints:
    """The trainer's callback that writes checkpoints.

    Raises:
        ValueError: it has none.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, Checkpoints):
            return callback
    raise ValueError("callbacks.checkpoints: missing; a run cannot do without it")


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """All callbacks, Lightning's own included (it does not declare the attribute)."""
    return trainer.callbacks  # type: ignore[attr-defined]
