"""The facts that `auto` values follow from: of the data that was read, the device, the backbone's initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch

from vision_stack.backbones.hub import PublishedWeights, can_be_had, is_cached
from vision_stack.backbones.meta import on_meta
from vision_stack.backbones.timm_backbone import published_weights
from vision_stack.config import from_dict
from vision_stack.data.datamodule import DataModule
from vision_stack.data.workers import available_cores, free_shared_memory
from vision_stack.structures import WITH_OBJECTS
from vision_stack.training.recipe import AUTO, Facts, quantile
from vision_stack.training.start import without_pretrained
from vision_stack.training.tasks import TASKS

# Judged by accuracy for what a step costs there, best first. The first is fetched, of the others what is cached counts.
BACKBONES = {
    "cpu": (
        "tf_efficientnet_lite0.in1k",
        "mobilenetv4_conv_medium.e500_r256_in1k",
        "resnet18.tv_in1k",
        "tf_efficientnet_b0.ns_jft_in1k",
        "resnet34.tv_in1k",
        "resnet50.tv_in1k",
        "resnet50.tv2_in1k",
        "convnext_tiny.fb_in1k",
    ),
    "other": (
        "convnext_tiny.fb_in1k",
        "convnextv2_tiny.fcmae_ft_in22k_in1k",
        "resnet50.tv2_in1k",
        "resnet50d.ra2_in1k",
        "resnet50.tv_in1k",
        "resnet34.tv_in1k",
        "mobilenetv4_conv_medium.e500_r256_in1k",
        "tf_efficientnet_b0.ns_jft_in1k",
        "tf_efficientnet_lite0.in1k",
        "resnet18.tv_in1k",
    ),
}
LOOKED_AT = 5000  # images, at most, whose sizes are looked at
MAPS_READ = 32  # of label maps of classes, which have to be read for it


class Device(NamedTuple):
    """Where a run trains."""

    device: torch.device
    world_size: int


def find_device(trainer: Mapping[str, Any]) -> Device:
    """What Lightning makes of the trainer's options.

    Raises:
        ValueError: it makes nothing of them; one line.
    """
    options = {name: trainer[name] for name in ("accelerator", "devices", "num_nodes", "strategy") if name in trainer}
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    try:
        bare = pl.Trainer(**options, **silent)  # type: ignore[arg-type]
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from None
    return Device(bare.strategy.root_device, bare.world_size)


def gather(
    config: Mapping[str, Any], data: DataModule, device: Device, *, fine_tunes: bool, resumes: bool = False
) -> Facts:
    """The facts of a run.

    Args:
        config: plain options of configs/train.yaml, `auto` among them.
        data: read with them.
        fine_tunes: `weights=` gives the model.
        resumes: the backbone's initial weights come from a checkpoint, and are not looked for.
    """
    kind: Any = device.device.type if device.device.type in ("cpu", "mps") else "cuda"
    backbone, reason, pretrained = "", "", False
    if not fine_tunes and not resumes:
        backbone, reason, pretrained = _backbone(config["backbone"], kind)
    records = data.train_records
    looked_at = records[:: -(-len(records) // LOOKED_AT)]
    sizes = np.array([(record.height, record.width) for record in looked_at])
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    edges = [record.object_edges() for record in looked_at]
    relative = np.concatenate([e / min(r.height, r.width) for e, r in zip(edges, looked_at, strict=True)])
    gpu = torch.cuda.get_device_properties(device.device) if kind == "cuda" else None
    shared = free_shared_memory()
    return Facts(
        finds=TASKS[data.task].finds,
        num_train=len(records),
        num_val=len(data.val_records),
        num_classes=len(data.categories),
        short_edge=int(quantile(shorter.tolist(), 0.75)),
        aspect=round(float(quantile((longer / shorter).tolist(), 0.75)), 3),
        object_size=float(np.quantile(relative, 0.25)) if len(relative) else None,
        max_objects=max(object_counts(data)),
        can_be_cut_out=data.task in WITH_OBJECTS and not data.train_split.num_without_mask,
        device=kind,
        device_memory=round(gpu.total_memory / 2**30, 1) if gpu else None,
        has_bf16=kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
        world_size=device.world_size,
        cores=available_cores(),
        shared_memory=None if shared is None else shared / 2**30,
        backbone=backbone,
        backbone_reason=reason,
        pretrained=pretrained,
        fine_tunes=fine_tunes,
    )


def object_counts(data: DataModule) -> list[int]:
    """Objects (segments, classes) of each training image; of label maps of classes some are looked at."""
    records = data.train_records
    if not data.train_split.lists_objects:
        records = records[:: -(-len(records) // MAPS_READ)]
    return [record.num_objects for record in records]


def _backbone(options: Mapping[str, Any], device: str) -> tuple[str, str, bool]:
    """Name of the model to take where that is `auto`, why, and whether its weights (or the named model's) are there."""
    wanted = options.get("pretrained", False)
    if options.get("model_name") == AUTO:
        choices = BACKBONES.get(device, BACKBONES["other"])
        reason = "CPU" if device == "cpu" else "GPU"
        if wanted != AUTO:  # a file, or none at all
            return choices[0], reason, wanted is not False
        if can_be_had(published_weights(choices[0])):
            return choices[0], f"{reason}, pretrained", True
        cached = next((name for name in choices[1:] if is_cached(published_weights(name))), None)
        if cached:
            return cached, f"{reason}, the best that is cached", True
        return choices[0], f"{reason}, no weights cached and no network", False
    if wanted != AUTO:
        return "", "", wanted is not False
    return "", "", can_be_had(_published(options))


def _published(options: Mapping[str, Any]) -> PublishedWeights | None:
    """Where the weights of a named model are published, without building it."""
    plain = {name: value for name, value in without_pretrained(options).items() if value != AUTO}
    config = from_dict(plain, kind="backbone")
    if not type(config).__module__.startswith("vision_stack."):
        return None  # of a module of the user's own nothing is known before it is built
    with on_meta():
        published: PublishedWeights | None = config.build().published
    return published
