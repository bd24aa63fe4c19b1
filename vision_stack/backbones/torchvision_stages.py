"""The stages of torchvision's classifiers: which modules they are made of, their channels and strides.

Index 0 is the stem. Each family's function takes the model and declares its stages, fine to coarse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from vision_stack.structures import FeatureSpec


class Stage(NamedTuple):
    """A feature map and the modules, by name and in order, that lead to it from the stage before."""

    spec: FeatureSpec
    modules: tuple[str, ...]


class Family(NamedTuple):
    """What torchvision's models of one module have in common."""

    stages: Callable[[Any], list[Stage]]
    nhwc: bool = False
    rounds_up: bool = True  # else images are padded: to the patches of the stem, or to the coarsest stride
    pads_itself: bool = False


def _resnet(model: Any) -> list[Stage]:
    stages = [_stage("stem", model.conv1.out_channels, 4, "conv1", "bn1", "relu", "maxpool")]
    for i in range(1, 5):
        last_block = getattr(model, f"layer{i}")[-1]
        norm = last_block.bn3 if hasattr(last_block, "bn3") else last_block.bn2
        stages.append(_stage(f"stage{i}", norm.num_features, 2 ** (i + 1), f"layer{i}"))
    return stages


def _regnet(model: Any) -> list[Stage]:
    stages = [_stage("stem", model.stem.out_channels, 2, "stem")]
    for i, (name, blocks) in enumerate(model.trunk_output.named_children(), start=1):
        stages.append(_stage(f"stage{i}", blocks[-1].f.c.out_channels, 2 ** (i + 1), f"trunk_output.{name}"))
    return stages


def _convnext(model: Any) -> list[Stage]:
    return _patch_stem_then_pairs(model.features[0][0].out_channels, [d[1].out_channels for d in model.features[2::2]])


def _swin(model: Any) -> list[Stage]:
    merged = [merging.reduction.out_features for merging in model.features[2::2]]
    return _patch_stem_then_pairs(model.features[0][0].out_channels, merged)


def _patch_stem_then_pairs(stem: int, merged: list[int]) -> list[Stage]:
    """`features`: a stem of stride 4, the first stage, then (down by two, stage) for each of the other three."""
    stages = [_stage("stem", stem, 4, "features.0"), _stage("stage1", stem, 4, "features.1")]
    for i, channels in enumerate(merged, start=2):
        stages.append(_stage(f"stage{i}", channels, 2 ** (i + 1), f"features.{2 * i - 2}", f"features.{2 * i - 1}"))
    return stages


def _mobile(model: Any) -> list[Stage]:
    """`features`: a stem, blocks, and the classifier's 1x1 convolution. A stage is a run of blocks of one stride."""
    stages: list[Stage] = []
    stride = 1
    for i, block in enumerate(model.features[:-1]):
        step = max(conv.stride[0] for conv in block.modules() if isinstance(conv, nn.Conv2d))
        last: Any = block[-1] if type(block) is nn.Sequential else block
        modules: tuple[str, ...] = (f"features.{i}",)
        if step == 1 and i > 1:
            modules = stages.pop().modules + modules
        stride *= step
        stages.append(_stage(f"stage{len(stages)}" if stages else "stem", last.out_channels, stride, *modules))
    return stages


def _stage(name: str, channels: int, stride: int, *modules: str) -> Stage:
    return Stage(FeatureSpec(name, channels, stride), modules)


FAMILIES: dict[str, Family] = {
    "convnext": Family(_convnext, rounds_up=False),
    "efficientnet": Family(_mobile),
    "mobilenetv2": Family(_mobile),
    "mobilenetv3": Family(_mobile),
    "regnet": Family(_regnet),
    "resnet": Family(_resnet),
    "swin_transformer": Family(_swin, nhwc=True, rounds_up=False, pads_itself=True),
}


def keep_only(model: nn.Module, names: set[str]) -> None:
    """Remove every submodule that is neither among `names` nor around one of them."""
    for name, child in list(model.named_children()):
        inside = set(_below(names, name))
        if inside:
            keep_only(child, inside)
        elif name not in names:
            delattr(model, name)


def _below(names: set[str], parent: str) -> Iterator[str]:
    return (name.removeprefix(f"{parent}.") for name in names if name.startswith(f"{parent}."))
