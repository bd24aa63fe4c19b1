"""Backbones from their architecture, in transformers' words: importing this package registers them."""

from vision_stack.backbones.families.base import FamilyBackbone, FamilyConfig
from vision_stack.backbones.families.convnext import ConvNextConfig, ConvNextV2Config, DINOv3ConvNextConfig
from vision_stack.backbones.families.dinov3 import DINOv3ViTConfig
from vision_stack.backbones.families.hgnet_v2 import HGNetV2Config
from vision_stack.backbones.families.lw_detr_vit import LwDetrViTConfig
from vision_stack.backbones.families.resnet import ResNetConfig, RTDetrResNetConfig
from vision_stack.backbones.families.swin import SwinConfig, Swinv2Config
from vision_stack.backbones.families.vit import Dinov2Config, Dinov2WithRegistersConfig, ViTConfig
from vision_stack.backbones.families.windowed_dinov2 import WindowedDinov2Config

__all__ = [
    "ConvNextConfig",
    "ConvNextV2Config",
    "DINOv3ConvNextConfig",
    "DINOv3ViTConfig",
    "Dinov2Config",
    "Dinov2WithRegistersConfig",
    "FamilyBackbone",
    "FamilyConfig",
    "HGNetV2Config",
    "LwDetrViTConfig",
    "RTDetrResNetConfig",
    "ResNetConfig",
    "SwinConfig",
    "Swinv2Config",
    "ViTConfig",
    "WindowedDinov2Config",
]
