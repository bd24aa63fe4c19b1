"""Evaluating a model: a training checkpoint says what to rebuild; for a published one the data is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from vision_stack.config import from_dict, to_dict
from vision_stack.data.configs import DataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.model import VisionModel
from vision_stack.ops.run_files import CONFIG_FILE
from vision_stack.published import locate
from vision_stack.training.allocator import return_freed_memory
from vision_stack.training.lightning_module import SegmentationModule
from vision_stack.training.optim import OptimConfig
from vision_stack.training.options import EvalOptions, decode_options, set_nms
from vision_stack.training.pictures import draw_validation
from vision_stack.training.quiet import quiet_lightning
from vision_stack.training.results import METRICS_FILE, PREDICTIONS_FILE, Results, write_config
from vision_stack.training.tasks import build_evaluator
from vision_stack.training.trainer_options import profiles, write_profile
from vision_stack.weights.checkpoint import read_checkpoint

PATHS = (
    "root",
    "classes",
    "val_list",
    *(f"{split}_{what}" for split in ("train", "val") for what in ("annotations", "images", "labels")),
)


def evaluate(config: Mapping[str, Any], run_dir: Path, make_trainer: Callable[[], pl.Trainer]) -> Results | None:
    """Score a model on validation data, by its task; writes metrics, predictions and pictures (`Results`).

    A training checkpoint says which data. A directory or hub id does not, only how large its input is.

    Args:
        config: the plain options of configs/eval.yaml.

    Returns:
        what was found; in all but the first of several processes nothing.

    Raises:
        ValueError: checkpoint or data that the user has to fix; one line.
    """
    quiet_lightning()
    return_freed_memory()
    options = decode_options(config, EvalOptions)
    path = locate(options.checkpoint)
    if path.is_dir():
        model = VisionModel.from_pretrained(options.checkpoint)
        data_config = data_of({"model_config": to_dict(model.config)}, path, config["data"])
    else:
        checkpoint = read_checkpoint(path)
        data_config = data_of(checkpoint, path, config["data"])
        model = VisionModel.from_checkpoint(checkpoint, path)
        del checkpoint  # its copy of the weights
    set_nms(model, options)
    root = config["data"].get("root")
    if root and not Path(root).expanduser().is_dir():  # generated data would be drawn there
        raise ValueError(f"data.root: there is no folder {root}; check the path")
    task, masks = model.config.task, model.config.head.reads_masks
    data = build_datamodule(data_config, categories=model.categories, task=task, masks=masks)
    evaluator = build_evaluator(data, top_k=options.top_k, boundary_ap=options.boundary_ap)
    for line in data.val_notes():
        print(line)
    source = data_config.root or data_config.type
    rank_zero_only(print)(f"evaluating {options.checkpoint} on {len(data.val_records):,} images of {source}")

    module = SegmentationModule(model, OptimConfig(), evaluator)
    trainer = make_trainer()
    write_profile(trainer)
    rank_zero_only(write_config)({**config, "data": to_dict(data_config)}, run_dir)
    trainer.validate(module, datamodule=data, verbose=False)
    results = module.results
    if results is None:
        return None  # of several processes one has them
    results.write(run_dir)
    Console().print(evaluator.table(results.metrics))
    print(f"results:  {run_dir / METRICS_FILE}, {run_dir / PREDICTIONS_FILE}")
    for profile in profiles(run_dir):
        print(f"profile:  {profile}")
    if options.num_pictures:
        draw_validation(run_dir, data.val_records, model.categories, options.num_pictures, model.config.task)
        print(f"pictures: {run_dir / 'pictures'}")
    return results


def data_of(checkpoint: Mapping[str, Any], path: Path, overrides: Mapping[str, Any]) -> DataConfig:
    """The data that a checkpoint was trained on, with options replaced.

    A checkpoint in its own run's folder may say what to read. One from anywhere else may be a stranger's, and
    its paths are not touched: generated data goes to the cache, for other data `data.root` must be given. Of data of
    another type nothing is known but how large the model's input is.

    Raises:
        ValueError: no `data.root` although it is needed, or the checkpoint says nothing of its data.
    """
    stored = checkpoint.get("run_config", {}).get("data")
    if not isinstance(stored, dict):
        if "type" not in overrides:
            raise ValueError(f"{path}: says nothing of its data; give data.type=coco data.root=DIR")
        stored = {}
    if overrides.get("type", stored.get("type")) != stored.get("type"):  # other data altogether
        size = checkpoint.get("model_config", {}).get("input_size")
        stored = {"type": overrides["type"], **({"eval_transform": size} if size else {})}
    folder = path.absolute().parent
    in_own_run = folder.name == "checkpoints" and (folder.parent / CONFIG_FILE).is_file()
    if not in_own_run:
        if stored.get("type", "shapes") != "shapes" and "root" not in overrides:
            raise ValueError(
                f"{path}: is not in the folder of its run, so it may not say what to read; give data.root=DIR"
            )
        stored = {name: value for name, value in stored.items() if name not in PATHS}
    elif "root" in overrides:  # the other paths are of the old root
        stored = {name: value for name, value in stored.items() if name not in PATHS}
    return from_dict(merged(stored, overrides), kind="data")


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Plain dicts, the second over the first, key by key."""
    result = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result
