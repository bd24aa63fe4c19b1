"""Going on with an interrupted run, such that it ends as if it had never been interrupted."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.model import VisionModelConfig
from vision_stack.training.averaging import RAW_WEIGHTS, average_of
from vision_stack.training.checkpoints import callbacks_of, checkpoints_of
from vision_stack.training.lightning_module import SegmentationModule
from vision_stack.training.loggers import METRICS_TABLE, MetricsFile
from vision_stack.training.position import Position
from vision_stack.weights.checkpoint import model_state, read_checkpoint
from vision_stack.weights.checks import check_finite, check_fit, check_tensors, faults_of

KEPT_WITH_BEST = ("checkpoints/best.ckpt", "metrics.json", "predictions.json", "predictions")


def read_last_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint to resume from.

    Raises:
        ValueError: not a checkpoint of ours, one without the optimizer's state, or one with values that are not finite.
    """
    checkpoint = read_checkpoint(path)
    if not {"optimizer", "position", "callbacks"} <= checkpoint.keys():
        raise ValueError(f"resume: {path} has no optimizer state; give a last.ckpt, or weights={path} for a new run")
    with faults_of(f"resume: {path}"):
        _check_resumable(checkpoint)
    return checkpoint


def _check_resumable(checkpoint: Mapping[str, Any]) -> None:
    """ConfigError unless everything a run resumes from is of the right type, and finite where it is weights."""
    _expect(isinstance(checkpoint.get("best_score"), float | int | None), "best_score", "a number")
    for name in ("position", "callbacks", "precision", "optimizer"):
        _expect(isinstance(checkpoint.get(name), Mapping), name, "a mapping")
    position, optimizer = checkpoint["position"], checkpoint["optimizer"]
    counted = all(isinstance(count, int) and count >= 0 for count in position.values())
    _expect(counted and position.keys() == set(Position._fields), "position", ", ".join(Position._fields))
    groups, state = optimizer.get("param_groups"), optimizer.get("state")
    listed = isinstance(groups, list) and all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups
    )
    _expect(listed, "optimizer.param_groups", "lists of parameters")
    by_parameter = isinstance(state, Mapping) and all(isinstance(each, Mapping) for each in state.values())
    _expect(by_parameter, "optimizer.state", "the values of each parameter")
    tensors = {f"optimizer.{i}.{k}": v for i, each in state.items() for k, v in each.items() if isinstance(v, Tensor)}
    for kept in (tensors, checkpoint.get(RAW_WEIGHTS)):
        if kept:
            check_tensors(kept)
            check_finite(kept)


def _expect(ok: bool, name: str, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"{name}: expected {wanted}; give a last.ckpt that train.py wrote")


def check_same_model(checkpoint: Mapping[str, Any], model_config: dict[str, Any]) -> None:
    """Raises ValueError if the checkpoint is of another model than the options describe."""
    stored = to_dict(from_dict(checkpoint["model_config"], cls=VisionModelConfig))  # with options of later versions
    differing = list(differences(stored, model_config))
    if differing:
        raise ValueError(
            f"resume: the model differs from the checkpoint's: {', '.join(differing[:4])}; "
            "give the options that the interrupted run was started with"
        )


def with_pixel_statistics(config: VisionModelConfig, checkpoint: Mapping[str, Any]) -> VisionModelConfig:
    """Mean and std are the checkpoint's, perhaps those of the weights that the run started from."""
    stored = from_dict(checkpoint["model_config"], cls=VisionModelConfig)
    return dataclasses.replace(config, image_mean=stored.image_mean, image_std=stored.image_std)


def changed_options(checkpoint: Mapping[str, Any], run_config: dict[str, Any]) -> list[str]:
    """Options of data, optimizer and trainer that are not those of the interrupted run: `optim.lr: 0.001 -> 0.0005`.

    What earlier versions did not store counts as unchanged.
    """
    stored = checkpoint.get("run_config", {})
    both = [name for name in run_config if name in stored]
    return list(differences({name: stored[name] for name in both}, {name: run_config[name] for name in both}))


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two plain values differ: `backbone.type: resnet18 -> resnet50`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif _plain(old) != _plain(new):
        yield f"{path}: {old} -> {new}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def restore(
    trainer: pl.Trainer, module: SegmentationModule, checkpoint: Mapping[str, Any], source: str | Path
) -> Position:
    """Before `fit`: weights to validate, counters, state of the callbacks. What is trained follows (`RestoreTraining`).

    Returns:
        where the run continues; the caller tells the data, and validates if the position says that it is due.

    Raises:
        ValueError: the run averaged its weights, and is to continue without.
    """
    if RAW_WEIGHTS in checkpoint and average_of(trainer) is None:
        raise ValueError("resume: the interrupted run averaged its weights; give callbacks=ema, or what it was given")
    state = model_state(checkpoint)
    with faults_of(f"resume: {source}"):
        check_fit(module.model.state_dict(), state)
        check_finite(state)
    module.model.load_state_dict(state)
    position = Position(**checkpoint["position"])
    position.restore(trainer)
    checkpoints = checkpoints_of(trainer)
    checkpoints.position, checkpoints.best_score = position, checkpoint["best_score"]
    run_dir = Path(trainer.default_root_dir)
    _adopt(Path(source), run_dir, has_best=checkpoint["best_score"] is not None)
    if not (run_dir / "checkpoints" / "best.ckpt").is_file():
        checkpoints.best_score = None  # of a last.ckpt taken out of its run: the best that is to come counts
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.resume(position.step, validated=position.validated)
    for callback in callbacks_of(trainer):
        if callback.state_key in checkpoint["callbacks"]:
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    return position


def _adopt(checkpoint: Path, run_dir: Path, *, has_best: bool) -> None:
    """A run that continues in another folder takes its curves and the best checkpoint so far along."""
    folder = checkpoint.absolute().parent
    old_run = folder.parent
    if folder.name != "checkpoints" or old_run.resolve() == run_dir.resolve():
        return
    for name in (METRICS_TABLE, *(KEPT_WITH_BEST if has_best else ())):
        if (old_run / name).exists() and not (run_dir / name).exists():
            (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (old_run / name).is_dir() else shutil.copyfile
            copy(old_run / name, run_dir / name)


class RestoreTraining(pl.Callback):
    """Gives back at the first moment at which they exist: the optimizer's state; the average, and what it is one of.

    Rates, decay and their schedule are those of the present options; they depend only on the step.
    """

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self.checkpoint: Mapping[str, Any] | None = checkpoint
        self._step: int | None = checkpoint["position"]["step"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.checkpoint is None:
            return
        for callback in callbacks_of(trainer):
            callback.on_load_checkpoint(trainer, pl_module, dict(self.checkpoint))
        optimizer = trainer.optimizers[0]
        saved = self.checkpoint["optimizer"]
        current = optimizer.state_dict()["param_groups"]
        layout = [[(g.get("name"), len(g["params"])) for g in groups] for groups in (saved["param_groups"], current)]
        if layout[0] != layout[1]:
            raise ValueError(f"resume: the optimizer's parameter groups were {layout[0]} and are now {layout[1]}")
        optimizer.load_state_dict({"state": saved["state"], "param_groups": current})
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    shapes = f"{list(value.shape)}, not {list(parameter.shape)}"
                    raise ValueError(f"resume: the checkpoint's optimizer.{name} has shape {shapes}; give another")
        if self.checkpoint["precision"]:
            trainer.precision_plugin.load_state_dict(self.checkpoint["precision"])
        self.checkpoint = None  # free the memory

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._step is not None:
            # What loggers count. Lightning adds one where it skips the validation that was the last thing to be done.
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._step
            self._step = None
