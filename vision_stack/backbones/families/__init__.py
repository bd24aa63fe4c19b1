"""Backbones from their architecture, in transformers' words: importing this package registers them."""

from vision_stack.backbones.families.base import FamilyBackbone, FamilyConfig
from vision_stack.backbones.families.resnet import ResNetConfig
from vision_stack.backbones.families.swin import SwinConfig, Swinv2Config

# transformers' `model_type` -> the config that reads its config.json (`from_transformers`).
TRANSFORMERS_FAMILIES: dict[str, type[FamilyConfig]] = {
    "resnet": ResNetConfig,
    "swin": SwinConfig,
    "swinv2": Swinv2Config,
}

__all__ = [
    "TRANSFORMERS_FAMILIES",
    "FamilyBackbone",
    "FamilyConfig",
    "ResNetConfig",
    "SwinConfig",
    "Swinv2Config",
]
