"""Writing `checkpoints/last.ckpt` and `checkpoints/best.ckpt`, so that a run can be stopped at any moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from vision_stack.config import to_dict
from vision_stack.training.averaging import AVERAGING, RAW_WEIGHTS, average_of
from vision_stack.training.position import Position
from vision_stack.weights.checkpoint import FORMAT_VERSION

if TYPE_CHECKING:
    from vision_stack.training.lightning_module import SegmentationModule


class Interrupted(Exception):
    """Training stopped because a signal asked for it, after `last.ckpt` was written."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Checkpoints(Checkpoint):
    """`last.ckpt` every so many steps, at the end of each epoch, around validation, and when a signal asks to stop;
    `best.ckpt`, with `metrics.json` and `predictions.json`, whenever validation gives the best score so far (mask AP,
    PQ or mIoU, by the task); of equal ones, such as those of images without objects, the last counts.

    Ctrl-C and SIGTERM let the step in hand finish; a second one ends the process at once. The last step of a run is
    always followed by validation.

    Args:
        every_n_steps: optimizer steps between two writings of `last.ckpt`; the most that `kill -9` can lose.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"callbacks.checkpoints.every_n_steps: {every_n_steps} must be a number of steps, from 1")
        self.every_n_steps = every_n_steps
        self.best_score: float | None = None
        self.position = Position()
        self._signal: int | None = None
        self._old_handlers: dict[int, Any] = {}

    # When: between steps, never within one

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if _within_a_step(trainer):
            return  # the gradients so far are in no checkpoint
        _validate_at_the_end(trainer)
        fetcher = trainer.fit_loop._data_fetcher
        validation_is_due = fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
        self.position = Position.of(trainer, validated=not validation_is_due)
        due = self.position.step % self.every_n_steps == 0
        if due or validation_is_due or trainer.is_last_batch or self._signal:
            self.save_last(trainer, pl_module)
        self._stop_if_asked()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Also called where a run ends in mid-epoch. In `on_train_end` the model already holds the average.
        ended_within_a_step = _within_a_step(trainer)  # by `max_time` or early stopping: all there will be
        average = average_of(trainer)
        averaged_now = average is not None and average._latest_update_epoch == trainer.current_epoch
        if ended_within_a_step or averaged_now:
            self.save_last(trainer, pl_module)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if not _within_a_step(trainer):
            self._stop_if_asked()  # `last.ckpt` says that the validation is still to be done

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
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
        if trainer.state.fn == "fit" and not _within_a_step(trainer):
            self.save_last(trainer, pl_module)

    # What

    def save_last(self, trainer: pl.Trainer, module: SegmentationModule) -> None:
        """Write `last.ckpt`: model, optimizer, position in the run, state of the callbacks."""
        if not trainer.is_global_zero:
            return
        module.check_losses()  # weights after a NaN are not worth keeping
        contents = self._contents(trainer, module)
        contents["optimizer"] = trainer.optimizers[0].state_dict()
        contents["precision"] = trainer.precision_plugin.state_dict()
        contents["callbacks"] = {
            c.state_key: s for c in callbacks_of(trainer) if c is not self and (s := c.state_dict())
        }
        self._write(trainer, "last.ckpt", contents)

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
        """Into a second file that then takes the name, so that there is a whole one at any moment."""
        path = Path(trainer.default_root_dir) / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        try:
            with scratch.open("wb") as file:
                torch.save(contents, file)
        except (OSError, RuntimeError) as error:
            scratch.unlink(missing_ok=True)
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            if isinstance(cause, OSError):  # a full disk, which torch hides behind positions in the file
                raise OSError(cause.errno, cause.strerror, str(path)) from None
            raise
        os.replace(scratch, path)

    # Signals

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if threading.current_thread() is threading.main_thread() and trainer.is_global_zero:
            # In place of Lightning's own, which would stop between the batches of one optimizer step.
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[signum] = signal.signal(signum, self._ask_to_stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore_handlers()

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        self._restore_handlers()  # a second signal does what it always does
        self._signal = signum

    def _stop_if_asked(self) -> None:
        if self._signal is not None:
            raise Interrupted(self._signal)

    def _restore_handlers(self) -> None:
        while self._old_handlers:
            signum, handler = self._old_handlers.popitem()
            signal.signal(signum, handler)


def _within_a_step(trainer: pl.Trainer) -> bool:
    """Gradients are being accumulated: batch norm, unlike the weights, has moved on from the last step's `Position`."""
    return trainer.state.fn == "fit" and trainer.fit_loop._should_accumulate()


def _validate_at_the_end(trainer: pl.Trainer) -> None:
    """After the last step of a run Lightning validates only where its cadence has it; here it always does."""
    steps_done = 0 < trainer.max_steps <= trainer.global_step
    epochs_done = trainer.is_last_batch and 0 < (trainer.max_epochs or 0) <= trainer.current_epoch + 1
    if steps_done or epochs_done:
        trainer.should_stop = True
    if trainer.should_stop and trainer.check_val_every_n_epoch is not None:
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
