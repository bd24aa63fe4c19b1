"""Arguments of Lightning's `Trainer` that would do nothing here, or harm: what there is instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.profilers import PassThroughProfiler


class Refusal(NamedTuple):
    """Of an argument whatever its value, except for the values that ask for nothing."""

    remedy: str
    nothing: tuple[Any, ...] = (None,)


_ALWAYS = {
    "logger": Refusal("give logger=csv, tensorboard, wandb, mlflow or none, several as logger=[csv,wandb]"),
    "callbacks": Refusal("give callbacks=ema or early_stopping, your own as +callbacks.NAME._target_=..."),
    "default_root_dir": Refusal("give run_dir"),
    "limit_test_batches": Refusal("there is no test split; give trainer.limit_val_batches", (None, 1.0)),
    "limit_predict_batches": Refusal("give predict a folder of fewer images", (None, 1.0)),
    "use_distributed_sampler": Refusal("images are shared out among processes without it; leave it false", (False,)),
    "barebones": Refusal("results are always written; leave it false", (None, False)),
    "model_registry": Refusal("upload run_dir/checkpoints/best.ckpt yourself"),
    "reload_dataloaders_every_n_epochs": Refusal("the order of images changes with every epoch; leave it 0", (None, 0)),
    "overfit_batches": Refusal("give experiment=overfit, or data.max_train_images", (None, 0)),
}
_CLIPPING = "gradients are clipped by the norm of the whole model's gradient; give optim.clip_norm (0 does not clip)"
_IN_TRAINING = {
    "gradient_clip_val": Refusal(_CLIPPING),
    "gradient_clip_algorithm": Refusal(_CLIPPING),
    "enable_checkpointing": Refusal(
        "a run always writes checkpoints, every callbacks.checkpoints.every_n_steps; leave it true", (None, True)
    ),
    "inference_mode": Refusal("Lightning validates within a training without it; leave it out", (None, True)),
    "enable_progress_bar": Refusal("progress is shown by callbacks.progress; leave it false", (None, False)),
}
_NOT_IN_EVALUATION = Refusal("does nothing in evaluation; leave it out, and trainer=eval (the default) as it is")
_IN_EVALUATION = {
    "enable_checkpointing": Refusal(_NOT_IN_EVALUATION.remedy, (None, False)),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm", "max_epochs", "min_epochs"), _NOT_IN_EVALUATION),
    **dict.fromkeys(("max_steps", "min_steps", "max_time", "limit_train_batches"), _NOT_IN_EVALUATION),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"), _NOT_IN_EVALUATION),
    **dict.fromkeys(("log_every_n_steps", "accumulate_grad_batches", "sync_batchnorm"), _NOT_IN_EVALUATION),
    **dict.fromkeys(("detect_anomaly", "enable_autolog_hparams"), _NOT_IN_EVALUATION),
}
REFUSED: dict[Literal["train", "eval"], dict[str, Refusal]] = {
    "train": _ALWAYS | _IN_TRAINING,
    "eval": _ALWAYS | _IN_EVALUATION,
}


def check_trainer_options(options: Mapping[str, Any], verb: Literal["train", "eval"]) -> None:
    """Raise ValueError, one line with what to give instead, for an argument of the trainer that would do nothing."""
    for name, refusal in REFUSED[verb].items():
        if name in options and options[name] not in refusal.nothing:
            raise ValueError(f"trainer.{name}: {refusal.remedy}")


def is_trainer_argument(name: str) -> bool:
    return name in inspect.signature(pl.Trainer).parameters


def check_loggers(trainer: pl.Trainer) -> None:
    """Raise ValueError for a logger that is asked to upload checkpoints, which only those of `ModelCheckpoint` are."""
    for logger in trainer.loggers:
        if getattr(logger, "_log_model", False):
            name = type(logger).__name__
            raise ValueError(f"logger: {name} uploads no checkpoints of this run; leave log_model=false")


def write_profile(trainer: pl.Trainer) -> None:
    """Let the profiler write into the run's folder. By default it goes to a log that is not shown."""
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]  # set by a helper of the trainer
    if not isinstance(profiler, PassThroughProfiler) and profiler.filename is None:
        profiler.dirpath, profiler.filename = trainer.default_root_dir, "profile"


def profiles(run_dir: Path) -> list[Path]:
    """What profilers wrote."""
    return sorted(run_dir.glob("*-profile*.txt"))
