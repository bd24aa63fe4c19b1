"""What a run consists of, printed before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vision_stack.model import VisionModel
from vision_stack.ops.text import shorten
from vision_stack.structures import Category, FeatureSpec
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.optim import OptimConfig, parameter_groups

SHOWN_CLASSES = 8


def describe_model(model: VisionModel, weights: str) -> list[str]:
    """One line for each part: type, parameters, the strides it gives; and where the backbone's weights come from."""
    config = model.config
    name = getattr(config.backbone, "model_name", config.backbone.type)
    return [
        _row("backbone", f"{name}, {_parameters(model.backbone)}, {_strides(model.backbone.out_specs)}"),
        _row("weights", weights),
        _row("neck", f"{config.neck.type}, {_parameters(model.neck)}, {_strides(model.neck.out_specs)}"),
        _row("head", f"{config.head.type}, {_parameters(model.head)}"),
    ]


def describe_training(model: VisionModel, optim: OptimConfig, finetune: FinetuneConfig) -> list[str]:
    """One line for each learning rate of the beginning, and what is frozen, of a model that is frozen as at epoch 0."""
    backbone = model.backbone
    rows = []
    if finetune.freeze_stages:
        names = ", ".join(group.name for group in backbone.stage_groups()[: backbone.frozen_stages])
        unfreezing = f", unfrozen at epoch {', '.join(map(str, finetune.unfreeze_epochs))}"
        rows.append(_row("frozen", f"{names}{unfreezing if finetune.unfreeze_epochs else ''}"))
    by_part: dict[str, list[dict[str, Any]]] = {}
    finetune.unfreeze_for_setup(backbone)
    for group in parameter_groups(model, optim):
        by_part.setdefault(group["name"].partition("_")[0], []).append(group)
    finetune.apply(backbone, epoch=0)
    for i, (part, groups) in enumerate(by_part.items()):
        rates = sorted({group["lr"] for group in groups})
        decayed = sum(p.numel() for group in groups for p in group["params"] if group["weight_decay"])
        count = sum(p.numel() for group in groups for p in group["params"])
        layers = f" in {len(rates)} steps from the input on" if len(rates) > 1 else ""
        rate = " to ".join(f"{rate:.2g}" for rate in dict.fromkeys((rates[0], rates[-1])))
        text = f"{part}: {_short(count)} parameters at rate {rate}{layers}; {_short(decayed)} with weight decay"
        rows.append(_row("" if i else "optimizer", text))
    if finetune.gradient_checkpointing:
        rows.append(_row("memory", "activations of the backbone's blocks are recomputed (gradient checkpointing)"))
    return rows


def describe_data(categories: Sequence[Category], num_train: int, num_val: int, num_problems: int) -> list[str]:
    """Classes and numbers of images."""
    names = ", ".join(shorten(category.name) for category in categories[:SHOWN_CLASSES])
    more = f" and {len(categories) - SHOWN_CLASSES} more" if len(categories) > SHOWN_CLASSES else ""
    skipped = f"; {num_problems:,} broken records skipped" if num_problems else ""
    return [
        _row("classes", f"{len(categories)}: {names}{more}"),
        _row("images", f"{num_train:,} to train on, {num_val:,} to validate on{skipped}"),
    ]


def describe_run(run_dir: Path, resumed_from: str) -> list[str]:
    """Where results go, and where a resumed run continues."""
    rows = [_row("resumed", resumed_from)] if resumed_from else []
    return [*rows, _row("results in", str(run_dir))]


def _row(name: str, text: str) -> str:
    return f"{name:<11} {text}"


def _parameters(module: nn.Module) -> str:
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = f" ({_short(total - trained)} frozen)" if trained < total else ""
    return f"{_short(total)} parameters{frozen}"


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _strides(specs: Sequence[FeatureSpec]) -> str:
    return "maps " + ", ".join(f"{spec.name}/{spec.stride}" for spec in specs)
