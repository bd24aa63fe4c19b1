"""Backbones from their architecture, in transformers' words: importing this package registers them."""

from vision_stack.backbones.families.base import FamilyBackbone, FamilyConfig
from vision_stack.backbones.families.convnext import ConvNextConfig, ConvNextV2Config, DINOv3ConvNextConfig
from vision_stack.backbones.families.dinov3 import DINOv3ViTConfig
from vision_stack.backbones.families.resnet import ResNetConfig
from vision_stack.backbones.families.swin import SwinConfig, Swinv2Config
from vision_stack.backbones.families.vit import Dinov2Config, Dinov2WithRegistersConfig, ViTConfig

# transformers' `model_type` -> the config that reads its config.json (`from_transformers`); our `type` is the same.
TRANSFORMERS_FAMILIES: dict[str, type[FamilyConfig]] = {
    "convnext": ConvNextConfig,
    "convnextv2": ConvNextV2Config,
    "dinov2": Dinov2Config,
    "dinov2_with_registers": Dinov2WithRegistersConfig,
    "dinov3_convnext": DINOv3ConvNextConfig,
    "dinov3_vit": DINOv3ViTConfig,
    "resnet": ResNetConfig,
    "swin": SwinConfig,
    "swinv2": Swinv2Config,
    "vit": ViTConfig,
}

__all__ = [
    "TRANSFORMERS_FAMILIES",
    "ConvNextConfig",
    "ConvNextV2Config",
    "DINOv3ConvNextConfig",
    "DINOv3ViTConfig",
    "Dinov2Config",
    "Dinov2WithRegistersConfig",
    "FamilyBackbone",
    "FamilyConfig",
    "ResNetConfig",
    "SwinConfig",
    "Swinv2Config",
    "ViTConfig",
]
