"""From options with `auto` in them to those of the run: the interrupted run's, or what data and device ask for."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from vision_stack.config import RENAMED, Config, ConfigError, from_dict, to_dict
from vision_stack.data.configs import DataConfig
from vision_stack.data.datamodule import DataModule
from vision_stack.model import InputSize, PanopticOptions, VisionModel, VisionModelConfig
from vision_stack.training.auto import auto_paths, settle, settled_values, without_autos
from vision_stack.training.facts import Device, find_device, gather
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.optim import OptimConfig
from vision_stack.training.probe import PRECISIONS, Probe
from vision_stack.training.recipe import Settled, lookup
from vision_stack.training.start import PARTS, Start, without_pretrained

RECIPE = "recipe"  # in a checkpoint's run_config: `settled_values`
BATCH = "data.batch_size"
_OF_RANK_ZERO = "VISION_STACK_RECIPE"  # in the environment of processes that the first one starts


def decode_parts(config: Mapping[str, Any]) -> dict[str, Config]:
    """Backbone, neck and head of options without `auto`; the head as the task has it."""
    parts = {kind: from_dict(without_pretrained(config[kind]), kind=kind) for kind in PARTS}
    return {**parts, "head": parts["head"].fitted(config["task"])}


def settle_options(
    config: Mapping[str, Any],
    data: DataModule,
    start: Start | None,
    checkpoint: Mapping[str, Any] | None,
    overrides: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Settled]]:
    """Options without `auto`, and what took its place.

    Args:
        config: plain options of configs/train.yaml, which can be decoded.
        data: read by them.
        start: the model of `weights=`.
        checkpoint: of the run that is resumed.
        overrides: the command line's.

    Raises:
        ValueError: an `auto` that cannot be derived, or not even one image fits into memory; one line.
    """
    early = without_autos(config)
    parts = start.parts if start else decode_parts(early)
    defaults = {
        **early,
        **{kind: to_dict(part) for kind, part in parts.items()},
        "data": to_dict(from_dict(early["data"], kind="data")),
        "optim": to_dict(from_dict(early["optim"], cls=OptimConfig)),
    }
    if start:
        _refuse_auto_parts(config)
        pretrained = config["backbone"].get("pretrained", False)
        config = {**config, **{kind: defaults[kind] for kind in PARTS}}
        config["backbone"] = {**config["backbone"], "pretrained": pretrained}
    stored = checkpoint["run_config"].get(RECIPE, {}) if checkpoint else _from_rank_zero()
    stored = {RENAMED.get(path, path): value for path, value in stored.items()}
    tries = bool(config["trainer"].get("auto_batch"))
    if tries and any(text.lstrip("+").startswith(f"{BATCH}=") for text in overrides):
        raise ConfigError(f"trainer.auto_batch: {BATCH} is given, too; leave out one of them")
    if tries and BATCH in stored:
        config = _with(config, BATCH, stored[BATCH])
        tries = False
    if not tries and set(auto_paths(config)) <= stored.keys():
        return settle(config, defaults, None, stored)
    device = find_device(config["trainer"])
    facts = gather(config, data, device, fine_tunes=start is not None, resumes=checkpoint is not None)
    settled = settle(config, defaults, facts, stored)
    if tries:
        batch, how = _largest_batch(settled[0], data, start, device)
        options, others = settle(_with(config, BATCH, batch), defaults, facts, stored)
        settled = options, {**others, BATCH: Settled(batch, how)}
    if _rank() == 0:
        os.environ[_OF_RANK_ZERO] = json.dumps(settled_values(settled[0]))
    return settled


def model_config(
    config: Mapping[str, Any], data_config: DataConfig, data: DataModule, start: Start | None
) -> VisionModelConfig:
    """The run's model, from settled options."""
    size = data_config.eval_transform
    parts: dict[str, Any] = start.parts if start else decode_parts(config)
    return VisionModelConfig(
        **parts,
        categories=data.categories,
        task=config["task"],
        panoptic=from_dict(config["panoptic"], cls=PanopticOptions, path="panoptic"),
        input_size=InputSize(short_edge=size.short_edge, long_edge=size.long_edge),
        **(start.pixel_statistics if start else {}),
    )


def _largest_batch(config: dict[str, Any], data: DataModule, start: Start | None, device: Device) -> tuple[int, str]:
    """The largest batch of which a step fits, and how it was found."""
    if device.world_size > 1 and "LOCAL_RANK" in os.environ:
        raise ConfigError(
            f"trainer.auto_batch: each of these processes would find a batch of its own; find it with one device, then "
            f"give {BATCH}="
        )
    precision = str(config["trainer"]["precision"])
    if precision not in PRECISIONS:
        raise ConfigError(f"trainer.auto_batch: cannot try steps in {precision}; give {BATCH}=")
    data.config = from_dict(config["data"], kind="data")
    model = VisionModel(model_config(config, data.config, data, start))
    finetune = from_dict(config["finetune"], cls=FinetuneConfig, path="finetune")
    if finetune.gradient_checkpointing:
        model.backbone.enable_gradient_checkpointing()
    finetune.apply(model.backbone, epoch=0)
    optim = from_dict(config["optim"], cls=OptimConfig, path="optim")
    probe = Probe(model, data, optim, finetune, device.device, precision)
    found = probe.largest_fitting(max(1, len(data.train_records) // device.world_size))
    pl.seed_everything(config["seed"], verbose=False)  # the run's own model starts as it would without this one
    return found


def _refuse_auto_parts(config: Mapping[str, Any]) -> None:
    for path in auto_paths(config):
        if path.partition(".")[0] in PARTS:
            raise ConfigError(f"{path}: with weights= the model is that of the weights; give a value instead of auto")


def _from_rank_zero() -> dict[str, Any]:
    """What the first process of this run has settled, for those that it has started."""
    text = os.environ.get(_OF_RANK_ZERO)
    return json.loads(text) if text and _rank() != 0 else {}


def _rank() -> int:
    return int(getattr(rank_zero_only, "rank", 0))


def _with(config: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(dict(config))
    group, _, name = path.rpartition(".")
    lookup(result, group)[name] = value
    return result
