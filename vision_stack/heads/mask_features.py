"""The map that masks are a product with: which one it is, and what takes it to the mask dimension."""

from __future__ import annotations

from torch import nn

from vision_stack.config import ConfigError
from vision_stack.layers.conv import init_conv
from vision_stack.structures import FeatureSpec

MASK_STRIDE = 4


def find_mask_features(head: str, in_specs: tuple[FeatureSpec, ...]) -> int:
    """Index of the map named `mask_features`, else of the one at stride 4.

    Raises:
        ConfigError: no map of stride 4; the line names necks and backbones that give one.
    """
    at_stride = [i for i, spec in enumerate(in_specs) if spec.stride == MASK_STRIDE]
    if not at_stride:
        raise ConfigError(
            f"head: {head} needs a map at stride {MASK_STRIDE}, got {tuple(s.stride for s in in_specs)}; use "
            "neck=pixel_decoder or neck=fpn with a backbone whose maps start at stride 4 (resnet50, swin_tiny, ...)"
        )
    named = [i for i in at_stride if in_specs[i].name == "mask_features"]
    return (named or at_stride)[0]


def mask_projection(spec: FeatureSpec, mask_dim: int | None, hidden_dim: int) -> tuple[int, nn.Module]:
    """The mask dimension, and what takes the map to it."""
    if spec.name != "mask_features":
        mask_dim = mask_dim or hidden_dim
        return mask_dim, projection(spec.channels, mask_dim)
    if mask_dim not in (None, spec.channels):
        raise ConfigError(
            f"head.mask_dim: {mask_dim} differs from the {spec.channels} channels of the neck's mask_features; "
            "set neck.mask_channels instead and leave head.mask_dim null"
        )
    return spec.channels, nn.Identity()


def projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    return init_conv(nn.Conv2d(in_channels, out_channels, kernel_size=1))
