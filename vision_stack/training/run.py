"""One training run, from plain options to pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from vision_stack.backbones.pretrained import load_pretrained
from vision_stack.config import from_dict, to_dict
from vision_stack.data.configs import DataConfig
from vision_stack.data.datamodule import DataModule, build_datamodule
from vision_stack.data.images import read_image
from vision_stack.metrics.coco import CocoEvaluator
from vision_stack.metrics.table import format_table
from vision_stack.model import InputSize, VisionModel, VisionModelConfig
from vision_stack.training import resume
from vision_stack.training.allocator import keep_freed_memory
from vision_stack.training.checkpoints import Interrupted, checkpoints_of
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.lightning_module import SegmentationModule
from vision_stack.training.optim import OptimConfig
from vision_stack.training.pictures import draw_validation
from vision_stack.training.quiet import quiet_lightning
from vision_stack.training.results import METRICS_FILE, write_config
from vision_stack.training.summary import describe_data, describe_model, describe_run, describe_training
from vision_stack.visualization.curves import plot_curves


def train(config: Mapping[str, Any], run_dir: Path, make_trainer: Callable[[list[Any]], pl.Trainer]) -> None:
    """Train, validate, and leave checkpoints, metrics and pictures in `run_dir`.

    Args:
        config: the plain options of configs/train.yaml.
        run_dir: where everything goes.
        make_trainer: gives the trainer with these callbacks added to the configured ones.

    Raises:
        ValueError: options, data or checkpoint that the user has to mend; one line.
    """
    quiet_lightning()
    keep_freed_memory()
    seed = config["seed"]
    pl.seed_everything(seed, verbose=False)
    optim = from_dict(config["optim"], cls=OptimConfig, path="optim")
    finetune = from_dict(config["finetune"], cls=FinetuneConfig, path="finetune")
    data_config: DataConfig = from_dict(config["data"], kind="data")
    parts = {kind: _without_pretrained(config[kind]) for kind in ("backbone", "neck", "head")}
    decoded = {kind: from_dict(options, kind=kind) for kind, options in parts.items()}
    rank_zero_only(write_config)(config, run_dir)

    data = build_datamodule(data_config, seed)
    size = data_config.eval_transform
    model_config = VisionModelConfig(
        **decoded,
        categories=data.categories,
        input_size=InputSize(short_edge=size.short_edge, long_edge=size.long_edge),
    )
    run_config = {
        "data": stored_data(data_config),
        "optim": to_dict(optim),
        "finetune": to_dict(finetune),
        "seed": seed,
    }
    checkpoint = resume.read_last_checkpoint(config["resume"]) if config["resume"] else None
    if checkpoint is not None:
        resume.check_same_model(checkpoint, to_dict(model_config))

    model = VisionModel(model_config)
    if finetune.gradient_checkpointing:
        model.backbone.enable_gradient_checkpointing()
    finetune.apply(model.backbone, epoch=0)
    weights = "those of the checkpoint" if checkpoint else _initial_weights(model, config)
    evaluator = CocoEvaluator(data.val_ground_truth(), data.categories, max_detections=config["top_k"])
    module = SegmentationModule(model, optim, evaluator, finetune=finetune, seed=seed, run_config=run_config)
    trainer = make_trainer([resume.RestoreOptimizer(checkpoint)] if checkpoint else [])

    say(*describe_model(model, weights), *describe_training(model, optim, finetune))
    say(*describe_data(model.categories, len(data.train_records), len(data.val_records), len(data.problems)))
    _warn_about_queries(data, config["head"].get("num_queries"))
    say(*describe_run(run_dir, str(config["resume"]) if checkpoint else ""))

    if checkpoint is not None:
        for change in resume.changed_options(checkpoint, run_config):
            say(f"warning: not as in the interrupted run, so the result will differ: {change}")
        _go_on(trainer, module, data, checkpoint, config["resume"])
        del checkpoint
    try:
        trainer.fit(module, datamodule=data)
    except Interrupted as stop:
        say(f"{stop}; go on with the same options and resume={run_dir / 'checkpoints' / 'last.ckpt'}")
        raise SystemExit(128 + stop.signum) from None
    _finish(trainer, data, run_dir, config["num_pictures"])


def _go_on(
    trainer: pl.Trainer, module: SegmentationModule, data: DataModule, checkpoint: Mapping[str, Any], path: str
) -> None:
    position = resume.restore(trainer, module, checkpoint, path)
    if not position.validated:
        trainer.validate(module, datamodule=data, verbose=False)
        checkpoints_of(trainer).save_validated(trainer, checkpoint)
    data.set_position(position.epoch, position.batches_done)


def _initial_weights(model: VisionModel, config: Mapping[str, Any]) -> str:
    if config["weights"]:
        count, left_out = resume.load_weights(model, config["weights"])
        rest = f"; at random: {', '.join(left_out[:4])}{' ...' if len(left_out) > 4 else ''}" if left_out else ""
        return f"{count} tensors of {config['weights']}{rest}"
    report = load_pretrained(model.backbone, model.config.backbone, config["backbone"].get("pretrained", "auto"))
    return f"{report.source} (see the warning)" if report.warning else str(report)


def _without_pretrained(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "pretrained"}


def stored_data(config: DataConfig) -> dict[str, Any]:
    """What a checkpoint says of its data; the root as an absolute path, since evaluation may start elsewhere."""
    plain = to_dict(config)
    return {**plain, "root": os.path.abspath(os.path.expanduser(config.root)) if config.root else None}


@rank_zero_only
def say(*lines: str) -> None:
    """Print, once for all ranks."""
    for line in lines:
        print(line, flush=True)


def _warn_about_queries(data: DataModule, num_queries: int | None) -> None:
    if num_queries and (crowded := data.num_train_images_with_more_objects_than(num_queries)):
        say(
            f"warning: {crowded:,} training images have more than {num_queries} objects, the most that can be found "
            "in one; raise head.num_queries"
        )


@rank_zero_only
def _finish(trainer: pl.Trainer, data: DataModule, run_dir: Path, num_pictures: int) -> None:
    checkpoints = run_dir / "checkpoints"
    best = checkpoints_of(trainer).best_score
    if best is None:
        say(f"no validation was run; checkpoint: {checkpoints / 'last.ckpt'}")
        return
    Console().print(format_table(json.loads((run_dir / METRICS_FILE).read_text(encoding="utf-8"))))
    pictures = draw_validation(run_dir, data.val_records, data.categories, num_pictures)
    if (run_dir / "metrics.csv").is_file():
        plot_curves(run_dir / "metrics.csv", run_dir / "pictures" / "curves.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for path in pictures:
                logger.experiment.add_image(path.stem, read_image(path), trainer.global_step, dataformats="HWC")
    say(f"pictures:   {run_dir / 'pictures'}", f"checkpoint: {checkpoints / 'best.ckpt'} (mask AP {best:.3f})")
