"""What is shown while training: a live bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vision_stack.training.checkpoints import callbacks_of
from vision_stack.training.lightning_module import summed_over_layers

SHOWN_EVERY_S = 0.5  # of a bar; reading the losses waits for the accelerator, so that it is not done at every step


class TrainingProgress(pl.Callback):
    """Steps of the whole run, time left, losses, and the last validation's score.

    Args:
        line_every_s: seconds between two lines where the output is not a terminal.
    """

    def __init__(self, line_every_s: float = 15.0) -> None:
        self.console = Console(highlight=False)
        self.every_s = SHOWN_EVERY_S if self.console.is_terminal else line_every_s
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._validation: TaskID | None = None
        self._score = ""
        self._shown = self._began = 0.0
        self._first_step = 0
        self._pace = Pace()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._began = time.monotonic()
        self._shown = self._began
        self._first_step = trainer.global_step
        self._pace.begin()
        if self.console.is_terminal and trainer.is_global_zero:
            columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(TextColumn("{task.description}"), *columns, console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=_total_steps(trainer), text="")

    def on_train_batch_start(self, *_: Any) -> None:
        self._pace.data_is_there()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        now = time.monotonic()
        self._pace.step_done()
        first = trainer.global_step == self._first_step + 1
        if (now - self._shown < self.every_s and not first) or not trainer.is_global_zero:
            return
        self._shown = now
        total = _total_steps(trainer)
        losses = _read(pl_module.losses)
        left = self._seconds_left(trainer, now, total)
        pace = f"{self._pace.read()}  {_memory(pl_module.device)}"
        if self._bar is not None and self._task is not None:
            text = " ".join(part for part in (left and f"{left} left", losses, pace, self._score) if part)
            description = f"epoch {trainer.current_epoch + 1}"
            self._bar.update(self._task, completed=trainer.global_step, description=description, text=text)
        else:
            of_total = f"/{total}" if total else ""
            parts = [f"step {trainer.global_step}{of_total}", f"epoch {trainer.current_epoch + 1}", losses]
            parts += [f"lr {trainer.optimizers[0].param_groups[-1]['lr']:.1e}", pace]
            parts += [left and f"{left} left", self._score]
            print("  ".join(part for part in parts if part), flush=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._pace.pause()
        if self._bar is not None and not trainer.sanity_checking:
            self._validation = self._bar.add_task("validation", total=sum(trainer.num_val_batches), text="")

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._bar is not None and self._validation is not None:
            self._bar.advance(self._validation)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._pace.resume()
        if self._bar is not None and self._validation is not None:
            self._bar.remove_task(self._validation)
            self._validation = None
        if trainer.sanity_checking or pl_module.results is None:
            return
        self._score = pl_module.evaluator.score_text(pl_module.results.score)
        line = f"step {trainer.global_step}  validation: {pl_module.results.one_line()}"
        self.console.print(line, soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _seconds_left(self, trainer: pl.Trainer, now: float, total: int | None) -> str:
        """Time left at the pace so far, or until `max_time` where that is sooner."""
        done = trainer.global_step - self._first_step
        candidates = []
        if total and done:
            candidates.append((now - self._began) / done * (total - trainer.global_step))
        for callback in callbacks_of(trainer):
            if isinstance(callback, pl.callbacks.Timer) and (remaining := callback.time_remaining()) is not None:
                candidates.append(remaining)
        if not candidates:
            return ""
        seconds = max(0, round(min(candidates)))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


class Pace:
    """Batches per second since it was last read, and the share of that time that was spent waiting for data.

    Validation does not count.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._since = self._free_since = time.monotonic()
        self._waited = 0.0
        self._batches = 0

    def data_is_there(self) -> None:
        self._waited += time.monotonic() - self._free_since

    def step_done(self) -> None:
        self._batches += 1
        self._free_since = time.monotonic()

    def pause(self) -> None:
        self._paused = time.monotonic()

    def resume(self) -> None:
        away = time.monotonic() - getattr(self, "_paused", time.monotonic())
        self._since += away
        self._free_since += away

    def read(self) -> str:
        """ "3.1 it/s, data 12%"; what is counted starts again."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        text = f"{self._batches / seconds:.3g} it/s, data {min(self._waited / seconds, 1.0):.0%}"
        self.begin()
        return text


def _memory(device: torch.device) -> str:
    """The most memory so far: of the accelerator, or of this process on a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss in bytes
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


def _total_steps(trainer: pl.Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < float("inf") else None


def _read(losses: Mapping[str, torch.Tensor]) -> str:
    """All losses in one transfer: the total, then its parts, each summed over the decoder's layers."""
    if not losses:
        return ""
    parts = summed_over_layers(losses)
    values = torch.stack(list(parts.values())).tolist()
    shown = " + ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in zip(parts, values, strict=True))
    return f"loss {sum(values):.3f} = {shown}"
